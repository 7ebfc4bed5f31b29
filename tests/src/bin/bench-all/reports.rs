//! Token reports: how many a second are on disk and answered, whatever the homeserver does, with the worker
//! beside; and how soon a report has become a pusher.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::bench::{Bench, Error, Gateway, Sample, float, median, ratio};
use crate::connection::{Connection, post};
use crate::fill::{self, APP_ID, Rows};
use crate::load::{Pace, Requests};
use crate::notify;
use crate::report::{Goal, Report, Table, short};
use crate::stand_in::StandIn;
use crate::system;

const PATH: &str = "/api/client/push_token_report";
pub(crate) const TAKEN: &[u8] = b"{}";
const CONNECTIONS: usize = 64;

/// The report of a phone, with a token that is its own.
pub(crate) fn report(phone: u64, into: &mut Vec<u8>) {
    report_token(phone, phone, into);
}

/// The report of a phone, with the push token that has this number.
pub(crate) fn report_token(phone: u64, token: u64, into: &mut Vec<u8>) {
    let (selector, token) = (fill::selector(phone), fill::token(token));
    let body = format!(
        r#"{{"selector":"{selector}","token_msgs":"{token}","app_id_msgs":"{APP_ID}","token_calls":"{token}","app_id_calls":"{APP_ID}"}}"#
    );
    post(PATH, &body, into);
}

/// Reports of so many phones in turn.
pub(crate) fn requests(phones: u64) -> Requests {
    Arc::new(move |number, into| report(number % phones, into))
}

/// Reports of any of so many phones with equal chance.
pub(crate) fn any_of(phones: u64) -> Requests {
    Arc::new(move |number, into| report(notify::mixed(number) % phones, into))
}

/// What the worker does beside.
#[derive(Debug, Clone, Copy)]
enum Worker {
    None,
    With(SocketAddr),
}

struct Scenario {
    name: &'static str,
    phones: u64,
    worker: Worker,
    /// The least share of the pass-through's rate.
    goal: f64,
    /// Whether pushers are set meanwhile.
    draining: bool,
    samples: Vec<Sample>,
}

/// A loopback address on which nobody listens.
fn nobody() -> Result<SocketAddr, Error> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub(crate) async fn rate(bench: &Bench) -> Result<Report, Error> {
    // More mapped phones than reports will come, so that each is new: a row, a pusher and a job.
    let new = if bench.quick { 250_000 } else { 1_000_000 };
    let template = bench.new_file().await?;
    fill::fill(&template, new, &[Rows::Mappings]).await?;
    let instant = bench.stand_in(Duration::ZERO).await?;
    let slow = bench.stand_in(Duration::from_millis(20)).await?;
    let base = bench.pass_through(&instant).await?;
    let (down, with) = (nobody()?, Worker::With);
    let scenario = |name, phones, worker, goal| Scenario {
        name,
        phones,
        worker,
        goal,
        draining: matches!(worker, Worker::With(homeserver) if homeserver != down),
        samples: Vec::new(),
    };
    let mut scenarios = [
        scenario("new phones, no worker", new, Worker::None, 0.45),
        scenario("the same 1,000 phones, unchanged", 1_000, Worker::None, 1.2),
        scenario("new, homeserver instant", new, with(instant.addr), 0.35),
        scenario("new, homeserver takes 20 ms", new, with(slow.addr), 0.35),
        scenario("new, homeserver down", new, with(down), 0.35),
    ];
    let notifications = notify::requests(1_000);
    let (mut of_base, mut flushes) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        // The disk's part of the baseline: others may use it, too.
        flushes.push(system::flush_time(bench.folder.path()).as_secs_f64() * 1000.0);
        let pushes = (&notifications, notify::TAKEN);
        let (target, pace) = (base.target(), Pace::Closed);
        of_base.push(
            bench
                .measure(target, &instant, CONNECTIONS, pace, pushes)
                .await?,
        );
        for it in &mut scenarios {
            let file = bench.copy_of(&template)?;
            let api = bench.api(&file, Some(&instant)).await?;
            let (upstream, worker) = match it.worker {
                Worker::None => (&instant, None),
                Worker::With(homeserver) => {
                    let upstream = if homeserver == slow.addr {
                        &slow
                    } else {
                        &instant
                    };
                    (
                        upstream,
                        Some(bench.worker(&file, homeserver, false).await?),
                    )
                }
            };
            let requests = requests(it.phones);
            let reports = (&requests, TAKEN);
            let target = api.target();
            it.samples.push(
                bench
                    .measure(target, upstream, CONNECTIONS, pace, reports)
                    .await?,
            );
            drop((api, worker));
            remove(&file);
        }
    }
    Ok(found(&scenarios, &of_base, median(flushes)))
}

pub(crate) fn remove(file: &Path) {
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", file.display()));
    }
}

fn found(scenarios: &[Scenario], of_base: &[Sample], flush: f64) -> Report {
    let base = &Sample::median(of_base);
    let mut report = Report::default();
    let mut table = Table::new(
        format!(
            "Durable reports, {CONNECTIONS} connections; one flush of the disk takes {flush:.2} ms"
        ),
        &[
            "",
            "reports/s",
            "of pass-through",
            "CPU µs",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "pushers set/s",
        ],
    );
    let mut row = |name: &str, sample: &Sample, set: String| {
        table.row([
            name.to_owned(),
            short(sample.rate),
            format!("{:.2}", sample.rate / base.rate),
            format!("{:.1}", sample.cpu),
            format!("{:.2}", sample.p50),
            format!("{:.2}", sample.p99),
            format!("{:.2}", sample.p999),
            set,
        ]);
    };
    row("pass-through (pushes)", base, "–".into());
    for it in scenarios {
        let ours = Sample::median(&it.samples);
        let set = match it.worker {
            Worker::None => "–".into(),
            Worker::With(_) => short(ours.set),
        };
        row(it.name, &ours, set);
        let name = it.name;
        let goal = format!("rate of the pass-through's, {name}");
        let share = ratio(&it.samples, of_base, |s| s.rate);
        report
            .goals
            .push(Goal::at_least(goal, it.goal, share, " ×"));
        if it.draining {
            let goal = format!("pushers set/s, {name}");
            report
                .goals
                .push(Goal::at_least(goal, 1_500.0, ours.set, ""));
        }
    }
    report.tables.push(table);
    report
}

/// From sending a report to the pusher's arrival at the homeserver, one at a time on an idle system.
pub(crate) async fn latency(bench: &Bench) -> Result<Report, Error> {
    let count = if bench.quick { 60 } else { 300 };
    let file = bench.new_file().await?;
    fill::fill(&file, count, &[Rows::Mappings]).await?;
    // In this process, so that one clock sees both ends.
    let homeserver = StandIn::start(Duration::ZERO)?;
    let api = bench.api(&file, None).await?;
    let worker = bench.worker(&file, homeserver.addr, false).await?;
    let [answered, set] = times(&api, &homeserver, count).await?;
    drop((api, worker));
    let mut report = Report::default();
    let mut table = Table::new(
        "A report on an idle system, ms",
        &["", "p50", "p99", "longest"],
    );
    for (name, times) in [("answered", &answered), ("pusher set", &set)] {
        let millis = |micros: u64| format!("{:.2}", float(micros) / 1000.0);
        let quantile = |q| millis(times.value_at_quantile(q));
        table.row([
            name.into(),
            quantile(0.5),
            quantile(0.99),
            millis(times.max()),
        ]);
    }
    report.tables.push(table);
    let at = |q| float(set.value_at_quantile(q)) / 1000.0;
    report.goals.push(Goal::at_most(
        "report to pusher set, p50",
        15.0,
        at(0.5),
        " ms",
    ));
    report.goals.push(Goal::at_most(
        "report to pusher set, p99",
        300.0,
        at(0.99),
        " ms",
    ));
    Ok(report)
}

/// Microseconds from sending a report to its answer, and to the pusher's arrival.
pub(crate) async fn times(
    api: &Gateway,
    homeserver: &StandIn,
    count: u64,
) -> Result<[Histogram<u64>; 2], Error> {
    let mut connection = Connection::open(api.addr).await?;
    let bounds = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    let (mut answered, mut set) = (bounds.clone(), bounds);
    let mut request = Vec::new();
    for phone in 0..count {
        // At no fixed distance, or the worker's looks at the database would always hit the same moment.
        tokio::time::sleep(Duration::from_millis(50 + phone * 37 % 100)).await;
        report(phone, &mut request);
        let (before, started) = (homeserver.pushers_set(), Instant::now());
        let status = connection.exchange(&request).await?.status;
        answered.saturating_record(micros(started));
        if status != 200 {
            return Err(format!("a report was answered {status}").into());
        }
        let arrived = homeserver.another_pusher(before);
        tokio::time::timeout(Duration::from_secs(30), arrived).await?;
        set.saturating_record(micros(started));
    }
    Ok([answered, set])
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
