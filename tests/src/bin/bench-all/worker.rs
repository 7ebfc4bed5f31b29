//! The worker: jobs per second and CPU per job over the length of the backlog, and what a backlog in backoff
//! costs while nothing can be done.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::bench::{Bench, Error, Sample, Upstream, float, median};
use crate::chart::{Axis, Panel, Series, chart};
use crate::fill::{self, Rows};
use crate::load::Pace;
use crate::notify;
use crate::report::{Chart, Goal, Report, Table, short};
use crate::system;

/// Jobs that are let pass before it counts, and that are counted: the same for every backlog.
const BEFORE: u64 = 500;
const COUNTED: u64 = 8_000;
/// The worker's default.
const CONCURRENCY: usize = 16;

/// Jobs per second and CPU microseconds per job.
type Drained = (f64, f64);

/// Drains a part of the backlog in a copy of a file.
pub(crate) async fn drain(
    bench: &Bench,
    template: &Path,
    homeserver: &Upstream,
) -> Result<Drained, Error> {
    let file = bench.copy_of(template)?;
    let begin = homeserver.seen().await?.pushers_set;
    let worker = bench.worker(&file, homeserver.addr, true).await?;
    let reached = async |count: u64| {
        let started = Instant::now();
        loop {
            let done = homeserver.seen().await?.pushers_set - begin;
            if done >= count || started.elapsed() > Duration::from_mins(1) {
                return Ok::<_, Error>((done, Instant::now(), system::cpu_time(worker.pid)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (first, started, cpu) = reached(BEFORE).await?;
    let (last, ended, cpu_after) = reached(BEFORE + COUNTED).await?;
    let jobs = float(last - first).max(1.0);
    let cpu = cpu_after.saturating_sub(cpu).as_secs_f64();
    drop(worker);
    std::fs::remove_file(file)?;
    Ok((jobs / (ended - started).as_secs_f64(), cpu * 1e6 / jobs))
}

pub(crate) async fn backlog(bench: &Bench) -> Result<Report, Error> {
    let sizes: &[u64] = if bench.quick {
        &[10_000, 200_000]
    } else {
        &[10_000, 50_000, 200_000]
    };
    let homeserver = bench.stand_in(Duration::ZERO).await?;
    let base = bench.pass_through(&homeserver).await?;
    let mut templates = Vec::new();
    for size in sizes {
        let file = bench.new_file().await?;
        fill::fill(&file, *size, &[Rows::Tokens, Rows::Mappings, Rows::Due]).await?;
        templates.push(file);
    }
    let notifications = notify::requests(1_000);
    let (mut of_base, mut of_ours) = (Vec::new(), vec![Vec::new(); sizes.len()]);
    for _ in 0..bench.rounds {
        let pushes = (&notifications, notify::TAKEN);
        let sample = bench.measure(
            base.target(),
            &homeserver,
            CONCURRENCY,
            Pace::Closed,
            pushes,
        );
        of_base.push(sample.await?);
        for (template, found) in templates.iter().zip(&mut of_ours) {
            found.push(drain(bench, template, &homeserver).await?);
        }
    }
    for template in templates {
        std::fs::remove_file(template)?;
    }
    Ok(found(sizes, &Sample::median(&of_base), &of_ours))
}

fn found(sizes: &[u64], base: &Sample, of_ours: &[Vec<Drained>]) -> Report {
    let mut report = Report::default();
    let title = format!("Draining a backlog, homeserver instant, {CONCURRENCY} jobs at a time");
    let mut table = Table::new(title, &["", "jobs/s", "of pass-through", "CPU µs a job"]);
    table.row([
        "pass-through (pushes)".into(),
        short(base.rate),
        "1.00".into(),
        format!("{:.1}", base.cpu),
    ]);
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for (size, drained) in sizes.iter().zip(of_ours) {
        let rate = median(drained.iter().map(|(rate, _)| *rate));
        let cost = median(drained.iter().map(|(_, cost)| *cost));
        let name = format!("{} queued", short(float(*size)));
        let share = format!("{:.2}", rate / base.rate);
        table.row([name.clone(), short(rate), share, format!("{cost:.1}")]);
        report
            .goals
            .push(Goal::at_least(format!("jobs/s, {name}"), 5_000.0, rate, ""));
        rates.push(rate);
        costs.push(cost);
    }
    report.tables.push(table);
    if let (Some(first), Some(last)) = (of_ours.first(), of_ours.last()) {
        let growth = median(first.iter().zip(last).map(|(first, last)| last.1 / first.1));
        let what = "CPU per job with the longest backlog, of that with the shortest";
        report.goals.push(Goal::at_most(what, 1.5, growth, " ×"));
    }
    let labels: Vec<_> = sizes.iter().map(u64::to_string).collect();
    let axis = Axis {
        title: "jobs in the backlog",
        labels: &labels,
    };
    let flat = |figure: f64| vec![figure; sizes.len()];
    report.charts.push(Chart {
        file: "worker-backlog.svg",
        about: "Jobs per second and CPU per job over the backlog, beside the pass-through",
        svg: chart(
            &axis,
            &[
                Panel {
                    title: "per second",
                    series: &[
                        Series("pass-through", &flat(base.rate)),
                        Series("worker", &rates),
                    ],
                },
                Panel {
                    title: "CPU, µs each",
                    series: &[
                        Series("pass-through", &flat(base.cpu)),
                        Series("worker", &costs),
                    ],
                },
            ],
        ),
    });
    report
}

/// What the worker takes of a core while all jobs wait for their time.
pub(crate) async fn backoff(bench: &Bench) -> Result<Report, Error> {
    let homeserver = bench.stand_in(Duration::ZERO).await?;
    let watched = Duration::from_secs(if bench.quick { 6 } else { 20 });
    let mut shares = Vec::new();
    let sizes = [1_u64, 200_000];
    for size in sizes {
        let file = bench.new_file().await?;
        fill::fill(&file, size, &[Rows::Tokens, Rows::Mappings, Rows::Waiting]).await?;
        let worker = bench.worker(&file, homeserver.addr, true).await?;
        // Its start looks over everything once.
        tokio::time::sleep(Duration::from_secs(4)).await;
        shares.push(share_of_a_core(worker.pid, watched).await);
    }
    let mut report = Report::default();
    let mut table = Table::new(
        "The worker while all jobs are in backoff",
        &["", "% of a core"],
    );
    for (size, share) in sizes.iter().zip(&shares) {
        table.row([
            format!("{} waiting", short(float(*size))),
            format!("{share:.2}"),
        ]);
    }
    report.tables.push(table);
    // Ticks of the clock are 10 ms: below 0.5 % a ratio says little.
    let growth = shares[1].max(0.5) / shares[0].max(0.5);
    let what = "idle cost with 200,000 waiting, of that with one";
    report.goals.push(Goal::at_most(what, 1.1, growth, " ×"));
    Ok(report)
}

/// Percent of a core that a process takes.
pub(crate) async fn share_of_a_core(pid: u32, time: Duration) -> f64 {
    let (before, started) = (system::cpu_time(pid), Instant::now());
    tokio::time::sleep(time).await;
    let taken = system::cpu_time(pid).saturating_sub(before);
    taken.as_secs_f64() / started.elapsed().as_secs_f64() * 100.0
}
