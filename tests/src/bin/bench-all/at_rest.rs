//! What the bridge costs when nothing happens: time to start, size of the file, memory and CPU.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::bench::{Bench, Error, Upstream, float, median, ready};
use crate::fill::{self, Rows};
use crate::report::{Goal, Report, Table};
use crate::system;
use crate::worker::share_of_a_core;

const MANY: u64 = 1_000_000;
const FEW: u64 = 1_000;
const MANY_NAME: &str = "1,000,000 tokens, mappings, pushers";

/// Start-up and size over the number of tokens.
pub(crate) async fn start(bench: &Bench) -> Result<Report, Error> {
    let homeserver = bench.stand_in(Duration::ZERO).await?;
    let (few, many) = (bench.new_file().await?, bench.new_file().await?);
    let empty = fill::size(&many);
    fill::fill(&few, FEW, &[Rows::Tokens, Rows::Mappings, Rows::Registered]).await?;
    fill::fill(&many, MANY, &[Rows::Tokens]).await?;
    let tokens = fill::size(&many);
    fill::fill(&many, MANY, &[Rows::Mappings, Rows::Registered]).await?;
    let all = fill::size(&many);

    let mut report = Report::default();
    let mut table = Table::new(
        "From starting a process to its first 200 (of /health/ready), ms",
        &["", "pass-through", "api", "worker"],
    );
    for (name, file) in [("1,000 of each", &few), (MANY_NAME, &many)] {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..bench.rounds {
            let started = Instant::now();
            drop(bench.pass_through(&homeserver).await?);
            times[0].push(millis(started));
            let [api, worker] = start_up(bench, file, &homeserver).await?;
            times[1].push(api);
            times[2].push(worker);
        }
        let [base, api, worker] = times.map(median);
        let cell = |millis: f64| format!("{millis:.0}");
        table.row([name.into(), cell(base), cell(api), cell(worker)]);
        for (program, millis) in [("api", api), ("worker", worker)] {
            let what = format!("start-up of the {program}, {name}");
            report
                .goals
                .push(Goal::at_most(what, 1.0, millis / 1000.0, " s"));
        }
    }
    report.tables.push(table);

    let mut table = Table::new("Size of the database", &["", "MiB", "bytes per token"]);
    let per = |bytes: u64| format!("{:.0}", float(bytes - empty) / float(MANY));
    let mib = |bytes: u64| format!("{:.1}", float(bytes) / 1024.0 / 1024.0);
    table.row(["empty".into(), mib(empty), "–".into()]);
    table.row(["1,000,000 tokens".into(), mib(tokens), per(tokens)]);
    table.row([MANY_NAME.into(), mib(all), per(all)]);
    report.tables.push(table);
    Ok(report)
}

/// Milliseconds until the api and then the worker are ready.
pub(crate) async fn start_up(
    bench: &Bench,
    file: &Path,
    upstream: &Upstream,
) -> Result<[f64; 2], Error> {
    let started = Instant::now();
    let mut api = bench.api(file, Some(upstream)).await?;
    ready(api.admin()?).await?;
    let of_api = millis(started);
    api.process.terminate().await;
    let started = Instant::now();
    let mut worker = bench.worker(file, upstream.addr, true).await?;
    ready(worker.admin()?).await?;
    let of_worker = millis(started);
    worker.process.terminate().await;
    Ok([of_api, of_worker])
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// CPU and memory of both processes with nothing to do.
pub(crate) async fn idle(bench: &Bench) -> Result<Report, Error> {
    let homeserver = bench.stand_in(Duration::ZERO).await?;
    let file = bench.new_file().await?;
    fill::fill(
        &file,
        FEW,
        &[Rows::Tokens, Rows::Mappings, Rows::Registered],
    )
    .await?;
    let api = bench.api(&file, Some(&homeserver)).await?;
    let worker = bench.worker(&file, homeserver.addr, false).await?;
    let base = bench.pass_through(&homeserver).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let watched = Duration::from_secs(if bench.quick { 6 } else { 30 });
    let (of_api, of_worker, of_base) = tokio::join!(
        share_of_a_core(api.pid, watched),
        share_of_a_core(worker.pid, watched),
        share_of_a_core(base.pid, watched)
    );
    let mut report = Report::default();
    let mut table = Table::new("Idle, 1,000 tokens", &["", "% of a core", "resident MiB"]);
    let rows = [
        ("pass-through", of_base, base.pid),
        ("api", of_api, api.pid),
        ("worker", of_worker, worker.pid),
    ];
    for (name, share, pid) in rows {
        let memory = system::memory(pid).now;
        table.row([name.into(), format!("{share:.2}"), format!("{memory:.1}")]);
    }
    report.tables.push(table);
    let memory = |pid| system::memory(pid).now;
    report.goals.extend([
        Goal::at_most("idle CPU of both", 1.0, of_api + of_worker, " % of a core"),
        Goal::at_most("memory of the api, idle", 12.0, memory(api.pid), " MiB"),
        Goal::at_most(
            "memory of the worker, idle",
            20.0,
            memory(worker.pid),
            " MiB",
        ),
    ]);
    Ok(report)
}
