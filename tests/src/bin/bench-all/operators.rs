//! What operators do, over the number of rows: the cost per row must not grow with them, and reports must not wait.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use matrix2acrobits_tests::process::Program;

use crate::bench::{Bench, Error, Gateway, float, median};
use crate::connection::Connection;
use crate::fill::{self, Rows};
use crate::report::{Goal, Report, Table, short};
use crate::reports;

/// The cost per row at the most rows is compared with that at the fewest.
const ROWS: [u64; 3] = [1_000, 10_000, 100_000];
/// Reports beside come at this pace, from phones that are stored.
const PAUSE: Duration = Duration::from_millis(5);
const PHONES: u64 = 1_000;
/// How often a page is asked for; the median counts.
const LOOKS: usize = 9;

/// Time that each operation took, in seconds, and the reports' 99th percentile meanwhile, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Cost {
    took: f64,
    p99: f64,
}

const OPERATIONS: [&str; 7] = [
    "jobs",
    "replay --dead",
    "replay --all",
    "mappings export",
    "mappings import",
    "DELETE confirm=all",
    "status page",
];

/// The last of [`OPERATIONS`] shows as much however much is stored.
const STATUS: usize = 6;

pub(crate) async fn operators(bench: &Bench) -> Result<Report, Error> {
    // What starting a program, or an empty database, costs is not the rows' cost.
    let none = all(bench, 0).await?;
    let mut costs = Vec::new();
    for rows in ROWS {
        costs.push((rows, all(bench, rows).await?));
    }
    let mut report = Report::default();
    let mut table = Table::new(
        "What operators do: µs per row (the page: ms in all), and the reports' p99 meanwhile, ms",
        &[
            "",
            "1,000",
            "10,000",
            "100,000",
            "p99 at 1,000",
            "p99 at 100,000",
        ],
    );
    for (place, name) in OPERATIONS.into_iter().enumerate() {
        let per_row = |(rows, all): &(u64, Vec<Cost>)| {
            if place == STATUS {
                return all[place].took * 1e3;
            }
            (all[place].took - none[place].took).max(0.0) * 1e6 / float(*rows)
        };
        let [few, some, many] = [0, 1, 2].map(|at| per_row(&costs[at]));
        let [calm, busy] = [0, 2].map(|at| costs[at].1[place].p99);
        let [few_cell, some, many_cell, calm, busy] = [few, some, many, calm, busy].map(short);
        table.row([name.into(), few_cell, some, many_cell, calm, busy]);
        let what = format!("{name}: cost at 100,000 rows over that at 1,000");
        report
            .goals
            .push(Goal::at_most(what, 2.0, many / few, " ×"));
    }
    report.tables.push(table);
    Ok(report)
}

/// All operations on files with so many rows.
async fn all(bench: &Bench, rows: u64) -> Result<Vec<Cost>, Error> {
    let file = bench.new_file().await?;
    let more = rows.max(PHONES);
    if rows > 0 {
        fill::fill(&file, rows, &[Rows::Mappings, Rows::Dead]).await?;
    }
    fill::fill(&file, more, &[Rows::Tokens]).await?;
    let api = bench.api(&file, None).await?;
    let list = bench.new_path();
    let mut costs = Vec::new();
    for args in [&["jobs"][..], &["replay", "--dead"], &["replay", "--all"]] {
        let run = run(bench, Program::Worker, args, &file);
        costs.push(beside(api.addr, run).await?.0);
    }
    let run_export = run(bench, Program::Api, &["mappings", "export"], &file);
    let (cost, exported) = beside(api.addr, run_export).await?;
    std::fs::write(&list, exported)?;
    costs.push(cost);

    // The same phones before they were mapped: each gets a pusher and a job.
    let unmapped = bench.new_file().await?;
    fill::fill(&unmapped, more, &[Rows::Tokens]).await?;
    let other = bench.api(&unmapped, None).await?;
    let name = list.display().to_string();
    let args = ["mappings", "import", &name];
    let import = run(bench, Program::Api, &args, &unmapped);
    costs.push(beside(other.addr, import).await?.0);
    drop(other);

    let status = looks(&api).await?;
    let delete = async {
        let path = "/api/internal/push_tokens?confirm=all";
        ask(api.admin()?, "DELETE", path).await
    };
    costs.push(beside(api.addr, delete).await?.0);
    costs.push(status);
    drop(api);
    Ok(costs)
}

/// The status page, each time a moment later, so that what it keeps of the last time may be too old.
async fn looks(api: &Gateway) -> Result<Cost, Error> {
    let (mut times, mut slowest) = (Vec::new(), 0.0_f64);
    for _ in 0..LOOKS {
        let page = async { ask(api.admin()?, "GET", "/").await };
        let (cost, _) = beside(api.addr, page).await?;
        times.push(cost.took);
        slowest = slowest.max(cost.p99);
    }
    Ok(Cost {
        took: median(times),
        p99: slowest,
    })
}

async fn ask(admin: SocketAddr, method: &str, path: &str) -> Result<Vec<u8>, Error> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {admin}\r\n\
         authorization: Bearer admin-token\r\n\r\n"
    );
    let mut connection = Connection::open(admin).await?;
    let answer = connection.exchange(request.as_bytes()).await?;
    if answer.status != 200 {
        return Err(format!("{method} {path}: {}", answer.status).into());
    }
    Ok(answer.body.to_vec())
}

/// Runs a command to its end; what it printed.
async fn run(
    bench: &Bench,
    program: Program,
    args: &[&str],
    file: &Path,
) -> Result<Vec<u8>, Error> {
    let output = bench.command(program, args, file).await;
    if !output.status.success() {
        let problem = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{args:?}: {problem}").into());
    }
    Ok(output.stdout)
}

/// Does something while phones report.
async fn beside<T>(
    api: SocketAddr,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<(Cost, T), Error> {
    let done = Cell::new(false);
    let work = async {
        let started = Instant::now();
        let result = work.await;
        done.set(true);
        (started.elapsed(), result)
    };
    let reporting = async {
        let mut latency = Histogram::<u64>::new(3)?;
        let (mut connection, mut request) = (Connection::open(api).await?, Vec::new());
        let mut due = Instant::now();
        for number in 0.. {
            tokio::time::sleep_until(due.into()).await;
            reports::report(number % PHONES, &mut request);
            // One at a time: a slow one makes the next one late, which is not that one's latency.
            let sent = Instant::now();
            if connection.exchange(&request).await?.status != 200 {
                return Err("a report was refused".into());
            }
            latency.record(u64::try_from(sent.elapsed().as_micros())?)?;
            due = sent + PAUSE;
            if done.get() {
                break;
            }
        }
        Ok::<_, Error>(latency)
    };
    let ((took, result), latency) = tokio::join!(work, reporting);
    let cost = Cost {
        took: took.as_secs_f64(),
        p99: float(latency?.value_at_quantile(0.99)) / 1000.0,
    };
    Ok((cost, result?))
}
