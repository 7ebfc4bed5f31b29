//! What the parts share: the folder, the processes under test, and how one of them is measured.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use matrix2acrobits_tests::process::{Env, Process, Program};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::connection::{Connection, get};
use crate::fill::PROXY_URL;
use crate::load::{self, Load, Pace, Requests};
use crate::stand_in::{PNM_PATH, Seen};
use crate::system::{self, Cores};

pub(crate) type Error = Box<dyn std::error::Error>;

/// Before it counts, a process gets this much of the same load.
const WARM_UP: Duration = Duration::from_millis(500);

/// A database for the programs under test.
pub(crate) trait Place {
    /// `DATABASE_URL`.
    fn url(&self) -> String;
}

impl Place for Path {
    fn url(&self) -> String {
        format!("sqlite://{}", self.display())
    }
}

impl Place for PathBuf {
    fn url(&self) -> String {
        self.as_path().url()
    }
}

impl Place for matrix2acrobits_test_postgres::Database {
    fn url(&self) -> String {
        self.url()
    }
}

/// How much is measured, and where.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) cores: Cores,
    /// Interleaved rounds, of which the median counts.
    pub(crate) rounds: usize,
    /// Of one measurement.
    pub(crate) time: Duration,
    pub(crate) quick: bool,
    /// How long `soak` runs.
    pub(crate) minutes: u32,
    /// On a disk: in memory a flush would cost nothing.
    pub(crate) folder: TempDir,
}

impl Bench {
    pub(crate) fn new(quick: bool, minutes: u32) -> Result<Self, Error> {
        let own = std::env::current_exe()?;
        let folder = own.parent().unwrap_or(Path::new("."));
        Ok(Self {
            cores: Cores::of_this_machine(),
            rounds: if quick { 2 } else { 5 },
            time: Duration::from_millis(if quick { 1000 } else { 3000 }),
            quick,
            minutes,
            folder: tempfile::Builder::new()
                .prefix("bench-")
                .tempdir_in(folder)?,
        })
    }

    /// A path that is not taken.
    pub(crate) fn new_path(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.folder.path().join(format!("{number}.db"))
    }

    /// A file with the schema and nothing in it: the api has started and ended on it.
    pub(crate) async fn new_file(&self) -> Result<PathBuf, Error> {
        let file = self.new_path();
        let mut api = self.api(&file, None).await?;
        api.process.terminate().await;
        Ok(file)
    }

    /// An api on the gateway's core.
    pub(crate) async fn api(
        &self,
        place: &(impl Place + ?Sized),
        pnm: Option<&Upstream>,
    ) -> Result<Gateway, Error> {
        self.api_on(place, pnm, true).await
    }

    /// An api on the gateway's core, or on any.
    pub(crate) async fn api_on(
        &self,
        place: &(impl Place + ?Sized),
        pnm: Option<&Upstream>,
        alone: bool,
    ) -> Result<Gateway, Error> {
        let env = api_env(place, pnm);
        let start = || Process::start(Program::Api, &[], &env);
        let mut process = self.cores.bound(alone, start);
        process.listening().await;
        Ok(Gateway {
            addr: address(&process.public_url())?,
            pid: process.pid().ok_or("the api has ended")?,
            process,
        })
    }

    /// A copy of a file that nobody has open.
    pub(crate) fn copy_of(&self, file: &Path) -> Result<PathBuf, Error> {
        let copy = self.new_path();
        std::fs::copy(file, &copy)?;
        Ok(copy)
    }

    /// A worker on the gateway's core, or on any.
    pub(crate) async fn worker(
        &self,
        place: &(impl Place + ?Sized),
        homeserver: SocketAddr,
        alone: bool,
    ) -> Result<Gateway, Error> {
        let env = worker_env(place, homeserver);
        let start = || Process::start(Program::Worker, &[], &env);
        let mut process = self.cores.bound(alone, start);
        process.listening().await;
        Ok(Gateway {
            addr: address(&process.admin_url())?,
            pid: process.pid().ok_or("the worker has ended")?,
            process,
        })
    }

    /// A command of either program, beside the load, to its end.
    pub(crate) async fn command(&self, program: Program, args: &[&str], file: &Path) -> Output {
        let mut env = common(file);
        env.insert("MATRIX_HOMESERVER_URL".into(), "http://127.0.0.1:9".into());
        program.run(args, &env).await
    }

    /// The stand-in in a process of its own, beside the load.
    pub(crate) async fn stand_in(&self, delay: Duration) -> Result<Upstream, Error> {
        let delay = delay.as_millis().to_string();
        self.upstream(&["stand-in", &delay]).await
    }

    /// One that takes no time, at this address.
    pub(crate) async fn stand_in_at(&self, addr: SocketAddr) -> Result<Upstream, Error> {
        let addr = addr.to_string();
        self.upstream(&["stand-in", "0", "--at", &addr]).await
    }

    /// The same behind TLS.
    pub(crate) async fn stand_in_with_tls(&self) -> Result<Upstream, Error> {
        self.upstream(&["stand-in", "0", "--tls"]).await
    }

    async fn upstream(&self, args: &[&str]) -> Result<Upstream, Error> {
        let helper = Helper::start(args).await?;
        let tls = helper.more.split_once(' ').map(|(url, authority)| Tls {
            url: url.to_owned(),
            authority: authority.to_owned(),
        });
        Ok(Upstream {
            addr: helper.addr,
            tls,
            helper,
        })
    }

    /// The pass-through, on the gateway's core.
    pub(crate) async fn pass_through(&self, upstream: &Upstream) -> Result<Helper, Error> {
        let args = upstream.pass_through();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let started = self.cores.bound(true, || Helper::spawn(&args))?;
        Helper::listening(started).await
    }

    /// One measurement, after a warm-up.
    pub(crate) async fn measure(
        &self,
        target: (SocketAddr, u32),
        upstream: &Upstream,
        connections: usize,
        pace: Pace,
        requests: (&Requests, &'static [u8]),
    ) -> Result<Sample, Error> {
        self.measure_for(self.time, target, upstream, connections, pace, requests)
            .await
    }

    /// The same for a time of its own.
    pub(crate) async fn measure_for(
        &self,
        time: Duration,
        (addr, pid): (SocketAddr, u32),
        upstream: &Upstream,
        connections: usize,
        pace: Pace,
        (requests, expected): (&Requests, &'static [u8]),
    ) -> Result<Sample, Error> {
        let mut load = Load {
            addr,
            connections,
            pace,
            time: WARM_UP,
            requests: requests.clone(),
            expected,
        };
        load::run(&load).await;
        load.time = time;
        let (seen, cpu) = (upstream.seen().await?, system::cpu_time(pid));
        let outcome = load::run(&load).await;
        let cpu = system::cpu_time(pid).saturating_sub(cpu);
        let after = upstream.seen().await?;
        if outcome.failed > 0 {
            println_failed(outcome.failed, outcome.good);
        }
        let good = float(outcome.good).max(1.0);
        let seconds = outcome.took.as_secs_f64();
        let millis = |quantile| float(outcome.latency.value_at_quantile(quantile)) / 1000.0;
        Ok(Sample {
            rate: good / seconds,
            cpu: cpu.as_secs_f64() * 1e6 / good,
            busy: cpu.as_secs_f64() / seconds,
            p50: millis(0.5),
            p99: millis(0.99),
            p999: millis(0.999),
            connected: float(after.connections - seen.connections) / good,
            upstream: float(after.pushes - seen.pushes) / good,
            set: float(after.pushers_set - seen.pushers_set) / seconds,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::print_stdout, reason = "talks to the person at the terminal")]
fn println_failed(failed: u64, good: u64) {
    println!("  NOTE: {failed} requests failed, {good} were good");
}

/// The settings of an api; without a PNM it needs none.
pub(crate) fn api_env(place: &(impl Place + ?Sized), pnm: Option<&Upstream>) -> Env {
    let mut env = common(place);
    env.insert("LISTEN_ADDR".into(), "127.0.0.1:0".into());
    let url = pnm.map_or_else(|| "http://127.0.0.1:9/".to_owned(), Upstream::pnm);
    env.insert("PNM_URL".into(), url);
    if let Some(tls) = pnm.and_then(|upstream| upstream.tls.as_ref()) {
        env.insert("EXTRA_CA_FILE".into(), tls.authority.clone());
    }
    env.insert("NEW_SELECTORS_PER_HOUR".into(), "0".into());
    env
}

/// The settings of a worker.
pub(crate) fn worker_env(place: &(impl Place + ?Sized), homeserver: SocketAddr) -> Env {
    let mut env = common(place);
    env.insert(
        "MATRIX_HOMESERVER_URL".into(),
        format!("http://{homeserver}"),
    );
    env.insert("MATRIX_AS_TOKEN".into(), "as-token".into());
    env.insert("PROXY_URL".into(), PROXY_URL.into());
    // Jobs in backoff are due in an hour; the worker must not take that for a jump of the clock.
    env.insert("RETRY_MAX_INTERVAL".into(), "2h".into());
    env
}

fn common(place: &(impl Place + ?Sized)) -> Env {
    let settings = [
        ("DATABASE_URL", place.url()),
        ("ADMIN_LISTEN_ADDR", "127.0.0.1:0".to_owned()),
        ("ADMIN_TOKEN", "admin-token".to_owned()),
        ("MATRIX_SERVER_NAME", "example.org".to_owned()),
        // Warnings, and the one line that says where it listens.
        (
            "RUST_LOG",
            "warn,matrix2acrobits_api::startup=info,matrix2acrobits_worker::startup=info"
                .to_owned(),
        ),
    ];
    settings
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

fn address(url: &str) -> Result<SocketAddr, Error> {
    Ok(url.trim_start_matches("http://").parse()?)
}

/// The api or the worker; killed when dropped.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) process: Process,
    /// The listener that is measured: the api's public one, the worker's admin listener.
    pub(crate) addr: SocketAddr,
    pub(crate) pid: u32,
}

impl Gateway {
    pub(crate) fn admin(&self) -> Result<SocketAddr, Error> {
        address(&self.process.admin_url())
    }

    pub(crate) fn target(&self) -> (SocketAddr, u32) {
        (self.addr, self.pid)
    }
}

/// This program in another role; killed when dropped.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    addr: SocketAddr,
    more: String,
    pub(crate) pid: u32,
}

impl Helper {
    fn spawn(args: &[&str]) -> std::io::Result<Child> {
        let own = std::env::current_exe()?;
        Self::spawn_command(Command::new(own).args(args))
    }

    /// A command that ends in this program.
    pub(crate) fn spawn_command(command: &mut Command) -> std::io::Result<Child> {
        command.stdout(Stdio::piped()).kill_on_drop(true).spawn()
    }

    /// SIGTERM, and waits for its end.
    pub(crate) async fn end(&mut self) -> Result<(), Error> {
        let pid = self.pid.to_string();
        Command::new("kill").arg(pid).status().await?;
        self.child.wait().await?;
        Ok(())
    }

    /// Reads its first line, which begins with its address.
    pub(crate) async fn listening(mut child: Child) -> Result<Self, Error> {
        let pid = child.id().ok_or("a helper has ended")?;
        let stdout = child.stdout.take().ok_or("no pipe to a helper")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        let line = line.ok_or("a helper has ended")?;
        let (addr, more) = line.split_once(' ').unwrap_or((&line, ""));
        Ok(Self {
            addr: addr.parse()?,
            more: more.to_owned(),
            child,
            pid,
        })
    }

    async fn start(args: &[&str]) -> Result<Self, Error> {
        Self::listening(Self::spawn(args)?).await
    }

    pub(crate) fn target(&self) -> (SocketAddr, u32) {
        (self.addr, self.pid)
    }
}

/// The stand-in, from outside.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    tls: Option<Tls>,
    helper: Helper,
}

/// Where it is reached by TLS, and the file with the certificate authority to trust.
#[derive(Debug)]
struct Tls {
    url: String,
    authority: String,
}

impl Upstream {
    fn pnm(&self) -> String {
        let plain = || format!("http://{}", self.addr);
        let base = self.tls.as_ref().map_or_else(plain, |tls| tls.url.clone());
        format!("{base}{PNM_PATH}")
    }

    /// Ends it, and waits until it is gone.
    pub(crate) async fn end(&mut self) -> Result<(), Error> {
        self.helper.end().await
    }

    /// How the pass-through to it is started.
    pub(crate) fn pass_through(&self) -> Vec<String> {
        let authority = self.tls.as_ref().map(|tls| tls.authority.clone());
        let args = ["pass-through".to_owned(), self.pnm()];
        args.into_iter().chain(authority).collect()
    }

    /// What it has seen; this asking is not counted.
    pub(crate) async fn seen(&self) -> Result<Seen, Error> {
        let mut connection = Connection::open(self.addr).await?;
        let answer = connection.exchange(&get("/seen")).await?;
        let text = std::str::from_utf8(answer.body)?;
        let mut numbers = text.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next().ok_or("a count is missing");
        Ok(Seen {
            connections: next()??,
            pushes: next()??,
            pushers_set: next()??,
        })
    }
}

/// One measurement, or the median of several: each figure for itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    /// Good answers per second.
    pub(crate) rate: f64,
    /// Microseconds of CPU time of the process under test per good answer.
    pub(crate) cpu: f64,
    /// Share of a core that the process under test had.
    pub(crate) busy: f64,
    /// Milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// New connections to the stand-in per good answer.
    pub(crate) connected: f64,
    /// Pushes that reached the stand-in per good answer.
    pub(crate) upstream: f64,
    /// Pushers that the stand-in was given, per second.
    pub(crate) set: f64,
}

impl Sample {
    pub(crate) fn median(samples: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(samples.iter().map(figure));
        Self {
            rate: of(|s| s.rate),
            cpu: of(|s| s.cpu),
            busy: of(|s| s.busy),
            p50: of(|s| s.p50),
            p99: of(|s| s.p99),
            p999: of(|s| s.p999),
            connected: of(|s| s.connected),
            upstream: of(|s| s.upstream),
            set: of(|s| s.set),
        }
    }
}

pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => 0.0,
        count if count % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}

/// The median of the ratios round by round, which noise that lasts longer than a round cannot move.
pub(crate) fn ratio(ours: &[Sample], base: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    median(
        ours.iter()
            .zip(base)
            .map(|(ours, base)| of(ours) / of(base)),
    )
}

/// How long it takes until `/health/ready` answers 200.
pub(crate) async fn ready(admin: SocketAddr) -> Result<(), Error> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        if let Ok(mut connection) = Connection::open(admin).await
            && let Ok(answer) = connection.exchange(&get("/health/ready")).await
            && answer.status == 200
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Err("not ready within 30 s".into())
}
