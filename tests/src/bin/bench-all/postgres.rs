//! PostgreSQL beside SQLite in the same rounds: reports, pushes and jobs with several apis and workers, what each
//! operation costs them and the server, and how soon a report has become a pusher.
//!
//! On few cores more processes cannot be faster. What counts is that an operation costs no more beside many of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use matrix2acrobits_test_postgres::{Database, Server};

use crate::bench::{Bench, Error, Gateway, Place, Upstream, float, median};
use crate::fill::{self, Rows};
use crate::load::{self, Load, Pace, Requests};
use crate::notify;
use crate::report::{Goal, Report, Table, short};
use crate::reports;
use crate::stand_in::StandIn;
use crate::system;
use crate::worker::share_of_a_core;

/// Of each api.
const CONNECTIONS: usize = 64;
/// Phones that there are already, where the database is not empty.
const OLD: u64 = 200_000;
const TOKENS: u64 = 1_000;
/// Jobs that are counted.
const COUNTED: u64 = 8_000;

/// A database with rows, to be copied.
enum Template {
    File(PathBuf),
    InServer(Database),
}

/// Some processes at one database, measured once in each round.
struct Scenario<'t> {
    name: String,
    template: &'t Template,
    processes: usize,
    samples: Vec<Figures>,
}

/// What one measurement, or the median of several, came to.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Operations per second.
    rate: f64,
    /// Microseconds of CPU time of our processes per operation.
    ours: f64,
    /// The same of the database's server.
    server: f64,
    /// Milliseconds.
    p99: f64,
}

impl Figures {
    fn median(of: &[Self]) -> Self {
        let middle = |figure: fn(&Self) -> f64| median(of.iter().map(figure));
        Self {
            rate: middle(|it| it.rate),
            ours: middle(|it| it.ours),
            server: middle(|it| it.server),
            p99: middle(|it| it.p99),
        }
    }

    fn cost(&self) -> f64 {
        self.ours + self.server
    }
}

impl<'t> Scenario<'t> {
    fn new(name: impl Into<String>, template: &'t Template, processes: usize) -> Self {
        Self {
            name: name.into(),
            template,
            processes,
            samples: Vec::new(),
        }
    }
}

/// The bench with a server beside it.
struct Rig<'b> {
    bench: &'b Bench,
    server: Server,
    upstream: Upstream,
}

impl Rig<'_> {
    async fn file(&self, count: u64, rows: &[Rows]) -> Result<Template, Error> {
        let file = self.bench.new_file().await?;
        fill::fill(&file, count, rows).await?;
        Ok(Template::File(file))
    }

    async fn database(&self, count: u64, rows: &[Rows]) -> Result<Template, Error> {
        let database = self.server.database();
        // It makes the schema.
        let mut api = self.bench.api(&database, None).await?;
        api.process.terminate().await;
        fill::fill_postgres(&database, count, rows).await?;
        Ok(Template::InServer(database))
    }

    fn copy(&self, template: &Template) -> Result<Box<dyn Place>, Error> {
        Ok(match template {
            Template::File(file) => Box::new(self.bench.copy_of(file)?),
            Template::InServer(database) => Box::new(self.server.copy_of(database)),
        })
    }

    /// CPU time of our processes and, where there is one, of the server's.
    fn cpu(&self, template: &Template, ours: &[Gateway]) -> (Duration, Duration) {
        let server = match template {
            Template::File(_) => Vec::new(),
            Template::InServer(_) => self.server.pids(),
        };
        (
            ours.iter().map(|it| system::cpu_time(it.pid)).sum(),
            server.into_iter().map(system::cpu_time).sum(),
        )
    }

    /// Waits until what begins with the processes, such as filling their caches, is done.
    async fn settle(&self, template: &Template, ours: &[Gateway]) {
        const LOOK: Duration = Duration::from_millis(500);
        for _ in 0..60 {
            let (ours_before, server_before) = self.cpu(template, ours);
            tokio::time::sleep(LOOK).await;
            let (ours_after, server_after) = self.cpu(template, ours);
            let took = ours_after.saturating_sub(ours_before);
            if took + server_after.saturating_sub(server_before) < LOOK / 10 {
                return;
            }
        }
    }

    /// Each api has connections of its own.
    async fn load(
        &self,
        scenario: &Scenario<'_>,
        requests: &Requests,
        expected: &'static [u8],
    ) -> Result<Figures, Error> {
        let place = self.copy(scenario.template)?;
        let mut apis = Vec::new();
        for _ in 0..scenario.processes {
            let pnm = Some(&self.upstream);
            apis.push(self.bench.api_on(&*place, pnm, false).await?);
        }
        self.settle(scenario.template, &apis).await;
        let run = async |time: Duration| {
            let loads = apis.iter().map(|api| Load {
                addr: api.addr,
                connections: CONNECTIONS,
                pace: Pace::Closed,
                time,
                requests: requests.clone(),
                expected,
            });
            let loads: Vec<_> = loads.collect();
            join_all(loads.iter().map(load::run)).await
        };
        run(Duration::from_millis(500)).await;
        let (ours, server) = self.cpu(scenario.template, &apis);
        let outcomes = run(self.bench.time).await;
        let (ours_after, server_after) = self.cpu(scenario.template, &apis);
        let good: u64 = outcomes.iter().map(|it| it.good).sum();
        let failed: u64 = outcomes.iter().map(|it| it.failed).sum();
        if failed > 0 {
            let logs: Vec<_> = apis.iter().map(|api| api.process.log()).collect();
            let logs = logs.join("\n");
            return Err(format!("{failed} requests failed: {}\n{logs}", scenario.name).into());
        }
        let took = outcomes.iter().map(|it| it.took).max().unwrap_or_default();
        let slowest = outcomes.iter().map(|it| it.latency.value_at_quantile(0.99));
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / float(good).max(1.0);
        Ok(Figures {
            rate: float(good) / took.as_secs_f64(),
            ours: each(ours_after.saturating_sub(ours)),
            server: each(server_after.saturating_sub(server)),
            p99: float(slowest.max().unwrap_or_default()) / 1000.0,
        })
    }

    /// So many workers drain a queue.
    async fn drain(&self, scenario: &Scenario<'_>, size: u64) -> Result<Figures, Error> {
        // At its start each worker looks over all pushers, beside its first jobs.
        let before = size / 10;
        let place = self.copy(scenario.template)?;
        let begin = self.upstream.seen().await?.pushers_set;
        // At the same time, or the first one is through before the last one has begun.
        let start = || self.bench.worker(&*place, self.upstream.addr, false);
        let started = join_all((0..scenario.processes).map(|_| start())).await;
        let workers = started.into_iter().collect::<Result<Vec<_>, _>>()?;
        let reached = async |count: u64| {
            let started = Instant::now();
            loop {
                let done = self.upstream.seen().await?.pushers_set - begin;
                if done >= count || started.elapsed() > Duration::from_mins(1) {
                    return Ok::<_, Error>((
                        done,
                        Instant::now(),
                        self.cpu(scenario.template, &workers),
                    ));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (first, started, (ours, server)) = reached(before).await?;
        let (last, ended, (ours_after, server_after)) = reached(before + COUNTED).await?;
        let jobs = float(last - first).max(1.0);
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / jobs;
        Ok(Figures {
            rate: jobs / (ended - started).as_secs_f64(),
            ours: each(ours_after.saturating_sub(ours)),
            server: each(server_after.saturating_sub(server)),
            p99: 0.0,
        })
    }
}

pub(crate) async fn postgres(bench: &Bench) -> Result<Report, Error> {
    // Not bound to the cores that the load keeps to.
    let server = bench.cores.bound(false, Server::durable);
    let server = server.ok_or("no PostgreSQL server: install Debian's package postgresql")?;
    let rig = Rig {
        bench,
        server,
        upstream: bench.stand_in(Duration::ZERO).await?,
    };
    let mut report = Report::default();
    // First, while the server has nothing to write back.
    quiet(&rig, &mut report).await?;
    new_phones(&rig, &mut report).await?;
    pushes(&rig, &mut report).await?;
    jobs(&rig, &mut report).await?;
    Ok(report)
}

async fn new_phones(rig: &Rig<'_>, report: &mut Report) -> Result<(), Error> {
    let new = if rig.bench.quick { 300_000 } else { 1_000_000 };
    let file = rig.file(new, &[Rows::Mappings]).await?;
    let empty = rig.database(new, &[Rows::Mappings]).await?;
    let full = rig.database(new, &[Rows::Mappings]).await?;
    if let Template::InServer(database) = &full {
        fill::fill_postgres(database, OLD, &[Rows::Tokens, Rows::Due]).await?;
    }
    let mut scenarios = vec![Scenario::new("SQLite, 1 api", &file, 1)];
    for count in [1, 2, 4] {
        let name = format!("PostgreSQL, empty before, {}", apis(count));
        scenarios.push(Scenario::new(name, &empty, count));
    }
    for count in [1, 2, 4] {
        let name = format!("PostgreSQL, 200,000 phones, {}", apis(count));
        scenarios.push(Scenario::new(name, &full, count));
    }
    let requests: Requests = Arc::new(move |number, into| {
        reports::report(OLD + number % (new - OLD), into);
    });
    for _ in 0..rig.bench.rounds {
        for it in &mut scenarios {
            it.samples
                .push(rig.load(it, &requests, reports::TAKEN).await?);
        }
    }
    let title = format!("New phones, durable, {CONNECTIONS} connections to each api");
    let medians = show(report, &title, "reports/s", &scenarios);
    for (first, what) in [(1, "from an empty database"), (4, "beside 200,000 phones")] {
        let goal = format!("rate of one api, of SQLite's, {what}");
        let share = medians[first].rate / medians[0].rate;
        report.goals.push(Goal::at_least(goal, 0.8, share, " ×"));
        let goal = format!("cost per report with 4 apis, of that with one, {what}");
        grows(report, goal, &medians[first..first + 3]);
    }
    Ok(())
}

async fn pushes(rig: &Rig<'_>, report: &mut Report) -> Result<(), Error> {
    let file = rig.file(TOKENS, &[Rows::Tokens]).await?;
    let database = rig.database(TOKENS, &[Rows::Tokens]).await?;
    let mut scenarios = [
        Scenario::new("SQLite, 1 api", &file, 1),
        Scenario::new("PostgreSQL, 1 api", &database, 1),
        Scenario::new("PostgreSQL, 2 apis", &database, 2),
    ];
    let requests = notify::requests(TOKENS);
    for _ in 0..rig.bench.rounds {
        for it in &mut scenarios {
            it.samples
                .push(rig.load(it, &requests, notify::TAKEN).await?);
        }
    }
    let title = format!("/notify from memory, {CONNECTIONS} connections to each api");
    let medians = show(report, &title, "pushes/s", &scenarios);
    let share = medians[1].ours / medians[0].ours;
    let goal = "CPU of an api per push, of SQLite's";
    report.goals.push(Goal::at_most(goal, 1.03, share, " ×"));
    grows(
        report,
        "cost per push with 2 apis, of that with one".into(),
        &medians[1..],
    );
    Ok(())
}

async fn jobs(rig: &Rig<'_>, report: &mut Report) -> Result<(), Error> {
    for size in [10_000, 200_000] {
        let rows = [Rows::Tokens, Rows::Mappings, Rows::Due];
        let file = rig.file(size, &rows).await?;
        let database = rig.database(size, &rows).await?;
        let mut scenarios = vec![Scenario::new("SQLite, 1 worker", &file, 1)];
        for count in [1, 2, 4] {
            let plural = if count == 1 { "" } else { "s" };
            let name = format!("PostgreSQL, {count} worker{plural}");
            scenarios.push(Scenario::new(name, &database, count));
        }
        for _ in 0..rig.bench.rounds {
            for it in &mut scenarios {
                it.samples.push(rig.drain(it, size).await?);
            }
        }
        let title = format!("Draining {} jobs, homeserver instant", short(float(size)));
        let medians = show(report, &title, "jobs/s", &scenarios);
        let goal = format!("cost per job with 4 workers, of that with one, {size} queued");
        grows(report, goal, &medians[1..]);
    }
    Ok(())
}

/// What it takes with nothing to do, and how soon a report has become a pusher then.
async fn quiet(rig: &Rig<'_>, report: &mut Report) -> Result<(), Error> {
    let count = if rig.bench.quick { 60 } else { 300 };
    let database = rig.database(count, &[Rows::Mappings]).await?;
    let place = rig.copy(&database)?;
    // In this process, so that one clock sees both ends.
    let homeserver = StandIn::start(Duration::ZERO)?;
    let api = rig.bench.api_on(&*place, None, false).await?;
    let worker = rig.bench.worker(&*place, homeserver.addr, false).await?;
    let [_, set] = reports::times(&api, &homeserver, count).await?;
    let millis = |quantile| float(set.value_at_quantile(quantile)) / 1000.0;
    let (p50, p99) = (millis(0.5), millis(0.99));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let watched = Duration::from_secs(if rig.bench.quick { 6 } else { 30 });
    let ((_, before), started) = (rig.cpu(&database, &[]), Instant::now());
    let (of_api, of_worker) = tokio::join!(
        share_of_a_core(api.pid, watched),
        share_of_a_core(worker.pid, watched)
    );
    let (_, after) = rig.cpu(&database, &[]);
    let of_server = after.saturating_sub(before).as_secs_f64() / started.elapsed().as_secs_f64();
    let mut table = Table::new("An api and a worker at PostgreSQL, idle", &["", ""]);
    let mut row = |name: &str, figure: String| table.row([name.to_owned(), figure]);
    row("report to pusher set, p50", format!("{p50:.1} ms"));
    row("report to pusher set, p99", format!("{p99:.1} ms"));
    row("api", format!("{of_api:.2} % of a core"));
    row("worker", format!("{of_worker:.2} % of a core"));
    row("server", format!("{:.2} % of a core", of_server * 100.0));
    report.tables.push(table);
    report.goals.extend([
        Goal::at_most("report to pusher set, p50", 30.0, p50, " ms"),
        Goal::at_most("report to pusher set, p99", 300.0, p99, " ms"),
        Goal::at_most("idle CPU of both", 1.0, of_api + of_worker, " % of a core"),
    ]);
    Ok(())
}

/// Adds a table of the medians, and returns them.
fn show(
    report: &mut Report,
    title: &str,
    unit: &'static str,
    scenarios: &[Scenario<'_>],
) -> Vec<Figures> {
    let header = ["", unit, "of SQLite", "CPU µs, ours", "server", "p99 ms"];
    let mut table = Table::new(title, &header);
    let medians = scenarios.iter().map(|it| Figures::median(&it.samples));
    let medians: Vec<_> = medians.collect();
    for (scenario, figures) in scenarios.iter().zip(&medians) {
        let (server, p99) = (figures.server, figures.p99);
        let some = |figure: f64, text: String| if figure > 0.0 { text } else { "–".into() };
        table.row([
            scenario.name.clone(),
            short(figures.rate),
            format!("{:.2}", figures.rate / medians[0].rate),
            format!("{:.0}", figures.ours),
            some(server, format!("{server:.0}")),
            some(p99, format!("{p99:.1}")),
        ]);
    }
    report.tables.push(table);
    medians
}

/// The cost of an operation must not grow with the number of processes.
fn grows(report: &mut Report, goal: String, medians: &[Figures]) {
    if let (Some(one), Some(many)) = (medians.first(), medians.last()) {
        let growth = many.cost() / one.cost();
        report.goals.push(Goal::at_most(goal, 1.2, growth, " ×"));
    }
}

fn apis(count: usize) -> String {
    match count {
        1 => "1 api".into(),
        _ => format!("{count} apis"),
    }
}
