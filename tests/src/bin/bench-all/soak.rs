//! Mixed load for an hour, while PNM and the homeserver go and come back: what grows, what fails, what stays undone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::bench::{Bench, Error, Gateway, float, median};
use crate::chart::{Axis, Panel, Series, chart};
use crate::fill::{self, Rows};
use crate::load::{self, Load, Outcome, Pace, Requests};
use crate::mix::{Mix, PHONES};
use crate::outages::{self, Outage};
use crate::report::{Chart, Goal, Report, Table, short};
use crate::{notify, reports, system};

const SAMPLES: u32 = 60;
/// Samples of the first, middle and last tenth. The first sample of all is the warm-up and left out.
const TENTHS: [std::ops::Range<usize>; 3] = [1..7, 27..33, 54..60];
/// Connections, and requests a second.
const PUSHES: (usize, f64) = (16, 300.0);
const REPORTS: (usize, f64) = (8, 30.0);

/// How long after PNM's return a push may still fail.
const GRACE: Duration = Duration::from_secs(1);
/// By then the queue has to be empty after the load.
const TO_DRAIN: Duration = Duration::from_mins(2);

/// What is sampled, and how much of the first tenth's figure the last tenth's may be.
const FIGURES: [(&str, Option<f64>); 11] = [
    ("memory of the api, MiB", Some(1.1)),
    ("memory of the worker, MiB", Some(1.1)),
    ("file, MiB", Some(1.1)),
    ("write-ahead log, MiB", Some(1.1)),
    ("descriptors of the api", Some(1.1)),
    ("descriptors of the worker", Some(1.1)),
    ("pushes, p50 ms", None),
    ("pushes, p99 ms", Some(1.5)),
    ("reports, p50 ms", None),
    ("reports, p99 ms", Some(1.5)),
    ("jobs", None),
];
type Sampled = [f64; FIGURES.len()];

/// What was sent, and what became of it.
#[derive(Debug, Default)]
struct Counts {
    sent: u64,
    /// In samples during which PNM was gone.
    failed_without_pnm: u64,
    /// At other times, or with status 200 and an unexpected body.
    failed: u64,
}

impl Counts {
    fn add(&mut self, outcome: &Outcome, without_pnm: bool) {
        self.sent += outcome.good + outcome.failed;
        let excused = if without_pnm {
            outcome.failed - outcome.other
        } else {
            0
        };
        self.failed_without_pnm += excused;
        self.failed += outcome.failed - excused;
    }
}

/// The programs under test and their file.
struct Rig<'a> {
    api: &'a Gateway,
    worker: &'a Gateway,
    file: &'a Path,
}

pub(crate) async fn soak(bench: &Bench) -> Result<Report, Error> {
    let file = bench.new_file().await?;
    let rows = [Rows::Tokens, Rows::Mappings, Rows::Registered];
    fill::fill(&file, PHONES, &rows).await?;
    let homeserver = bench.stand_in_at(outages::STAND_INS).await?;
    let pnm = bench.stand_in_at(outages::STAND_INS).await?;
    let api = bench.api(&file, Some(&pnm)).await?;
    let worker = bench.worker(&file, homeserver.addr, false).await?;
    let rig = Rig {
        api: &api,
        worker: &worker,
        file: &file,
    };
    let (start, total) = (Instant::now(), Duration::from_mins(bench.minutes.into()));
    let outages = outages::plan(start, total);
    let ((samples, pushes, reports), _stand_ins) = tokio::try_join!(
        load_and_sample(&rig, start, total, &outages),
        outages::play(bench, &outages, homeserver, pnm)
    )?;
    let left = drained(&file).await?;
    Ok(found(bench.minutes, &samples, &pushes, &reports, left))
}

async fn load_and_sample(
    rig: &Rig<'_>,
    start: Instant,
    total: Duration,
    outages: &[Outage],
) -> Result<(Vec<Sampled>, Counts, Counts), Error> {
    let mix = Arc::<Mix>::default();
    let load = |requests: Requests, (connections, rate), expected, time| Load {
        addr: rig.api.addr,
        connections,
        pace: Pace::Open(rate),
        time,
        requests,
        expected,
    };
    let (mut samples, mut of_pushes, mut of_reports) =
        (Vec::new(), Counts::default(), Counts::default());
    for number in 1..=SAMPLES {
        let began = Instant::now();
        let time = (start + total * number / SAMPLES).saturating_duration_since(began);
        let pushes = load(mix.pushes(), PUSHES, notify::TAKEN, time);
        let reports = load(mix.reports(), REPORTS, reports::TAKEN, time);
        let (pushes, reports) = tokio::join!(load::run(&pushes), load::run(&reports));
        let without_pnm = outages.iter().any(|outage| {
            outage.of_pnm && outage.from <= Instant::now() && began <= outage.to + GRACE
        });
        of_pushes.add(&pushes, without_pnm);
        of_reports.add(&reports, false);
        samples.push(rig.sample(&pushes, &reports).await?);
        if number % (SAMPLES / 10) == 0 {
            print_progress(number);
        }
    }
    Ok((samples, of_pushes, of_reports))
}

#[expect(clippy::print_stdout, reason = "talks to the person at the terminal")]
fn print_progress(number: u32) {
    println!("  soak: {number} of {SAMPLES} samples");
}

impl Rig<'_> {
    async fn sample(&self, pushes: &Outcome, reports: &Outcome) -> Result<Sampled, Error> {
        let [api, worker] = [self.api.pid, self.worker.pid];
        let [of_api, of_worker] = [api, worker].map(|pid| system::memory(pid).now);
        if of_api == 0.0 || of_worker == 0.0 {
            return Err("the api or the worker has ended".into());
        }
        let mut log = self.file.as_os_str().to_owned();
        log.push("-wal");
        let mib = |file: &Path| float(fill::size(file)) / 1024.0 / 1024.0;
        let descriptors = |pid| float(system::descriptors(pid) as u64);
        let millis = |outcome: &Outcome, quantile| {
            float(outcome.latency.value_at_quantile(quantile)) / 1000.0
        };
        Ok([
            of_api,
            of_worker,
            mib(self.file),
            mib(Path::new(&log)),
            descriptors(api),
            descriptors(worker),
            millis(pushes, 0.5),
            millis(pushes, 0.99),
            millis(reports, 0.5),
            millis(reports, 0.99),
            float(fill::jobs(self.file).await?),
        ])
    }
}

/// Waits until no job is left, and gives the number of those that are.
async fn drained(file: &Path) -> Result<u64, Error> {
    let started = Instant::now();
    loop {
        let left = fill::jobs(file).await?;
        if left == 0 || started.elapsed() > TO_DRAIN {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn found(
    minutes: u32,
    samples: &[Sampled],
    pushes: &Counts,
    reports: &Counts,
    left: u64,
) -> Report {
    let mut report = Report::default();
    let phones = short(float(PHONES));
    let title =
        format!("{minutes} minutes of mixed load, {phones} phones; medians of {SAMPLES} samples");
    let header = ["", "first tenth", "middle tenth", "last tenth"];
    let mut table = Table::new(title, &header);
    for (place, (name, most)) in FIGURES.into_iter().enumerate() {
        let tenths = TENTHS.map(|tenth| median(samples[tenth].iter().map(|all| all[place])));
        let [first, middle, last] = tenths.map(short);
        table.row([name.into(), first, middle, last]);
        if let Some(most) = most {
            let what = format!("{name}, last tenth of the first");
            let growth = tenths[2] / tenths[0];
            report.goals.push(Goal::at_most(what, most, growth, " ×"));
        }
    }
    report.tables.push(table);

    let header = ["", "sent", "failed while PNM was gone", "failed otherwise"];
    let mut table = Table::new("What became of it", &header);
    for (name, counts) in [("pushes", pushes), ("reports", reports)] {
        let figures = [counts.sent, counts.failed_without_pnm, counts.failed];
        let [sent, without_pnm, failed] = figures.map(|count| short(float(count)));
        table.row([name.into(), sent, without_pnm, failed]);
        let what = format!("{name} that failed otherwise");
        report
            .goals
            .push(Goal::at_most(what, 0.0, float(counts.failed), ""));
    }
    report.tables.push(table);
    let what = "jobs left when the load has ended";
    report.goals.push(Goal::at_most(what, 0.0, float(left), ""));
    report.charts.push(drawn(minutes, samples));
    report
}

fn drawn(minutes: u32, samples: &[Sampled]) -> Chart {
    let labels: Vec<_> = (1..=SAMPLES)
        .map(|number| match number % 10 {
            0 => short(f64::from(minutes * number) / f64::from(SAMPLES)),
            _ => String::new(),
        })
        .collect();
    let axis = Axis {
        title: "minutes",
        labels: &labels,
    };
    let lines: [Vec<f64>; FIGURES.len()] =
        std::array::from_fn(|place| samples.iter().map(|all| all[place]).collect());
    let pair = |[a, b]: [&'static str; 2], [first, second]: [usize; 2]| {
        [Series(a, &lines[first]), Series(b, &lines[second])]
    };
    // By their places in FIGURES.
    let [memory, descriptors] = [[0, 1], [4, 5]].map(|places| pair(["api", "worker"], places));
    let database = pair(["file", "write-ahead log"], [2, 3]);
    let p99 = pair(["pushes", "reports"], [7, 9]);
    let panels = [
        ("resident memory, MiB", &memory),
        ("database, MiB", &database),
        ("open file descriptors", &descriptors),
        ("p99, ms", &p99),
    ]
    .map(|(title, series)| Panel { title, series });
    Chart {
        file: "soak.svg",
        about: "Memory, database, file descriptors and 99th percentiles over the time of the run",
        svg: chart(&axis, &panels),
    }
}
