//! Each main figure over the number of phones, in the same rounds: what an operation costs, what the processes take
//! with nothing to do, how soon they are ready, how large the file is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::at_rest::start_up;
use crate::bench::{Bench, Error, Gateway, Upstream, float, median};
use crate::fill::{self, Rows};
use crate::load::{Pace, Requests};
use crate::report::{Goal, Report, Table, short};
use crate::worker::{drain, share_of_a_core};
use crate::{notify, reports, system};

const SIZES: [(u64, &str); 4] = [
    (1_000, "1,000"),
    (10_000, "10,000"),
    (100_000, "100,000"),
    (1_000_000, "1,000,000"),
];
const CONNECTIONS: usize = 64;
/// Of one measurement of pushes or reports. With more time, the new phones would be many beside 1,000.
const TIME: Duration = Duration::from_secs(1);
/// Mapped phones that have not reported, more than reports come in a measurement.
const NEW: u64 = 40_000;
/// Jobs in the backlog of which a part is drained.
const QUEUED: u64 = 10_000;
/// A program has settled when it takes less than so many percent of a core for this time. At its start the api fills
/// its cache, and the worker looks over all pushers.
const SETTLED: (f64, Duration) = (5.0, Duration::from_millis(500));
const TO_SETTLE: Duration = Duration::from_mins(1);

const PUSH: usize = 0;
const UNCHANGED: usize = 1;
const NEW_PHONE: usize = 2;
const JOB: usize = 3;
const COSTS: [&str; 4] = [
    "CPU µs per push",
    "CPU µs per unchanged report",
    "CPU µs per new phone's report",
    "CPU µs per job",
];

/// What was found with so many phones.
struct Size {
    phones: u64,
    name: &'static str,
    file: PathBuf,
    /// The same with jobs that are due, of further phones.
    backlog: PathBuf,
    mib: f64,
    bytes_per_phone: f64,
    /// Milliseconds until the api and the worker are ready.
    start_up: [f64; 2],
    /// Percent of a core, and MiB, of the api and the worker with nothing to do.
    idle: [(f64, f64); 2],
    /// MiB of the api after pushes to and reports of all phones.
    busy: f64,
    /// Microseconds of CPU, of each round.
    costs: [Vec<f64>; COSTS.len()],
}

pub(crate) async fn growth(bench: &Bench) -> Result<Report, Error> {
    let upstream = bench.stand_in(Duration::ZERO).await?;
    let sizes = SIZES.into_iter().step_by(if bench.quick { 2 } else { 1 });
    let mut all = Vec::new();
    for (phones, name) in sizes {
        all.push(filled(bench, &upstream, phones, name).await?);
    }
    // More would add little for the time that they take.
    let rounds = bench.rounds.min(3);
    with_all_apis(bench, &upstream, rounds, &mut all).await?;
    for size in &all {
        let new = size.phones..size.phones + NEW;
        fill::fill_phones(&size.file, new, &[Rows::Mappings]).await?;
    }
    for _ in 0..rounds {
        for size in &mut all {
            let (_rate, cost) = drain(bench, &size.backlog, &upstream).await?;
            size.costs[JOB].push(cost);
            let copy = bench.copy_of(&size.file)?;
            let api = bench.api(&copy, Some(&upstream)).await?;
            settled(&api).await;
            let phones = size.phones;
            let requests: Requests =
                Arc::new(move |number, into| reports::report(phones + number % NEW, into));
            let new_phones = (&requests, reports::TAKEN);
            let cost = cpu(bench, &api, &upstream, new_phones).await?;
            size.costs[NEW_PHONE].push(cost);
            drop(api);
            reports::remove(&copy);
        }
    }
    for size in &all {
        reports::remove(&size.file);
        reports::remove(&size.backlog);
    }
    Ok(found(&all))
}

/// The files with these phones, their size, and how soon the programs are ready with it.
async fn filled(
    bench: &Bench,
    upstream: &Upstream,
    phones: u64,
    name: &'static str,
) -> Result<Size, Error> {
    let file = bench.new_file().await?;
    let empty = fill::size(&file);
    let rows = [Rows::Tokens, Rows::Mappings, Rows::Registered];
    fill::fill(&file, phones, &rows).await?;
    let bytes = fill::size(&file);
    // Before the programs run: what they have written may be in the log, which is not copied.
    let backlog = bench.copy_of(&file)?;
    let due = phones..phones + QUEUED;
    let rows = [Rows::Tokens, Rows::Mappings, Rows::Due];
    fill::fill_phones(&backlog, due, &rows).await?;
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..bench.rounds {
        let both = start_up(bench, &file, upstream).await?;
        for (times, time) in times.iter_mut().zip(both) {
            times.push(time);
        }
    }
    Ok(Size {
        phones,
        name,
        file,
        backlog,
        mib: float(bytes) / 1024.0 / 1024.0,
        bytes_per_phone: float(bytes - empty) / float(phones),
        start_up: times.map(median),
        idle: [(0.0, 0.0); 2],
        busy: 0.0,
        costs: Default::default(),
    })
}

/// What can be measured in turn while an api runs on each file: first at rest, with a worker, then under load.
async fn with_all_apis(
    bench: &Bench,
    upstream: &Upstream,
    rounds: usize,
    all: &mut [Size],
) -> Result<(), Error> {
    let (mut apis, mut workers) = (Vec::new(), Vec::new());
    for size in &*all {
        apis.push(bench.api(&size.file, Some(upstream)).await?);
        workers.push(bench.worker(&size.file, upstream.addr, true).await?);
    }
    for program in apis.iter().chain(&workers) {
        settled(program).await;
    }
    let watched = Duration::from_secs(if bench.quick { 6 } else { 20 });
    let idle = async |program: &Gateway| {
        let share = share_of_a_core(program.pid, watched).await;
        (share, system::memory(program.pid).now)
    };
    let (of_apis, of_workers) = tokio::join!(
        join_all(apis.iter().map(idle)),
        join_all(workers.iter().map(idle))
    );
    if upstream.seen().await?.pushers_set > 0 {
        return Err("workers without anything to do have set pushers".into());
    }
    for (size, (api, worker)) in all.iter_mut().zip(of_apis.into_iter().zip(of_workers)) {
        size.idle = [api, worker];
    }
    for mut worker in workers {
        worker.process.terminate().await;
    }
    for _ in 0..rounds {
        for (size, api) in all.iter_mut().zip(&apis) {
            let requests = notify::requests(size.phones);
            let pushes = (&requests, notify::TAKEN);
            size.costs[PUSH].push(cpu(bench, api, upstream, pushes).await?);
            let requests = reports::any_of(size.phones);
            let unchanged = (&requests, reports::TAKEN);
            size.costs[UNCHANGED].push(cpu(bench, api, upstream, unchanged).await?);
        }
    }
    for (size, mut api) in all.iter_mut().zip(apis) {
        size.busy = system::memory(api.pid).now;
        api.process.terminate().await;
    }
    Ok(())
}

/// Waits until a program has done what it does at its start.
async fn settled(program: &Gateway) {
    let (most, time) = SETTLED;
    let started = Instant::now();
    while share_of_a_core(program.pid, time).await >= most && started.elapsed() < TO_SETTLE {}
}

/// Microseconds of the api's CPU time per request.
async fn cpu(
    bench: &Bench,
    api: &Gateway,
    upstream: &Upstream,
    requests: (&Requests, &'static [u8]),
) -> Result<f64, Error> {
    let (target, pace) = (api.target(), Pace::Closed);
    let sample = bench.measure_for(TIME, target, upstream, CONNECTIONS, pace, requests);
    Ok(sample.await?.cpu)
}

fn found(all: &[Size]) -> Report {
    let mut header = vec![""];
    header.extend(all.iter().map(|size| size.name));
    let title = "Over the number of phones, each with token, mapping and pusher";
    let mut table = Table::new(title, &header);
    let mut row = |name: &str, cell: &dyn Fn(&Size) -> String| {
        let cells = all.iter().map(cell);
        table
            .rows
            .push(std::iter::once(name.to_owned()).chain(cells).collect());
    };
    for (place, name) in COSTS.into_iter().enumerate() {
        row(name, &|size| {
            let cost = median(size.costs[place].iter().copied());
            format!("{cost:.1} ({:.2} ×)", growth_of(place, size, &all[0]))
        });
    }
    let (api, worker) = (0, 1);
    let share = |share: f64| format!("{share:.2}");
    row("idle api, % of a core", &|size| share(size.idle[api].0));
    row("idle worker, % of a core", &|size| {
        share(size.idle[worker].0)
    });
    let mib = |figure: f64| format!("{figure:.1}");
    row(
        "memory of the api, idle, MiB",
        &|size| mib(size.idle[api].1),
    );
    row("memory of the api, after load, MiB", &|size| mib(size.busy));
    row("memory of the worker, idle, MiB", &|size| {
        mib(size.idle[worker].1)
    });
    row("start-up of the api, ms", &|size| short(size.start_up[api]));
    row("start-up of the worker, ms", &|size| {
        short(size.start_up[worker])
    });
    row("file, MiB", &|size| mib(size.mib));
    row("bytes per phone", &|size| {
        short(size.bytes_per_phone.round())
    });
    let mut report = Report::default();
    report.tables.push(table);
    if let Some(most) = all.last() {
        for (place, name) in COSTS.into_iter().enumerate() {
            let what = format!("{name} with {} phones, of that with 1,000", most.name);
            let growth = growth_of(place, most, &all[0]);
            report.goals.push(Goal::at_most(what, 1.5, growth, " ×"));
        }
    }
    report
}

/// The median of the ratios round by round.
fn growth_of(cost: usize, size: &Size, least: &Size) -> f64 {
    let rounds = size.costs[cost].iter().zip(&least.costs[cost]);
    median(rounds.map(|(ours, least)| ours / least))
}
