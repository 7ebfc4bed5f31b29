//! `cargo bench-all`: measures the bridge beside the least that the job can cost, prints tables, and renews
//! the generated parts of docs/performance.md. It judges nothing: a timing that falls short is shown, not failed.
#![expect(
    clippy::print_stdout,
    reason = "the figures are for the person at the terminal"
)]

mod at_rest;
mod bench;
mod chart;
mod connection;
mod docs;
mod fill;
mod growth;
mod instructions;
mod load;
mod mix;
mod notify;
mod operators;
mod outages;
mod pass_through;
mod postgres;
mod report;
mod reports;
mod soak;
mod stand_in;
mod system;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum, value_parser};
use matrix2acrobits_tests::tls::TlsFront;
use url::Url;

use bench::{Bench, Error};
use report::Report;
use stand_in::StandIn;

/// Measures the two programs between stand-ins on this machine. Nothing leaves it.
#[derive(Debug, Parser)]
#[command(name = "cargo bench-all")]
struct Args {
    /// Shorter and fewer rounds: about nine minutes, and less to be relied on
    #[arg(long)]
    quick: bool,
    /// Only this part; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<Part>,
    /// How many minutes `soak` runs. It takes 60 samples; in less than 15 minutes its outages are shorter and come more often
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = value_parser!(u32).range(1..=1440))]
    minutes: u32,
    /// Leave docs/performance.md as it is
    #[arg(long)]
    no_docs: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What else this program is, when it starts itself.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    StandIn {
        delay_ms: u64,
        #[arg(long)]
        tls: bool,
        #[arg(long, default_value_t = stand_in::ANY_PORT)]
        at: SocketAddr,
    },
    #[command(hide = true)]
    PassThrough {
        upstream: Url,
        /// A certificate authority to trust
        authority: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// /notify over connections
    Connections,
    /// /notify over stored tokens
    Tokens,
    /// /notify behind a slow PNM
    SlowPnm,
    /// /notify with TLS to PNM
    Tls,
    /// Reports per second, with the worker beside
    Reports,
    /// From a report to the pusher on an idle system
    Latency,
    /// The worker over the length of the backlog
    Backlog,
    /// The worker while all jobs are in backoff
    Backoff,
    /// Commands and pages over the number of rows
    Operators,
    /// Start-up and size of the database
    Start,
    /// CPU and memory with nothing to do
    Idle,
    /// The main figures over the number of phones
    Growth,
    /// Instructions per push, report and job; needs valgrind
    Instructions,
    /// Several apis and workers at a PostgreSQL database, beside one at an SQLite file
    Postgres,
    /// An hour of mixed load, in which PNM and the homeserver go and come back; only if it is named
    Soak,
}

impl Part {
    async fn run(self, bench: &Bench) -> Result<Report, Error> {
        match self {
            Self::Connections => notify::over_connections(bench).await,
            Self::Tokens => notify::over_tokens(bench).await,
            Self::SlowPnm => notify::slow_pnm(bench).await,
            Self::Tls => notify::over_tls(bench).await,
            Self::Reports => reports::rate(bench).await,
            Self::Latency => reports::latency(bench).await,
            Self::Backlog => worker::backlog(bench).await,
            Self::Backoff => worker::backoff(bench).await,
            Self::Operators => operators::operators(bench).await,
            Self::Start => at_rest::start(bench).await,
            Self::Idle => at_rest::idle(bench).await,
            Self::Growth => growth::growth(bench).await,
            Self::Instructions => instructions::instructions(bench).await,
            Self::Postgres => postgres::postgres(bench).await,
            Self::Soak => soak::soak(bench).await,
        }
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut builder = match args.role {
        // As the api does it.
        Some(Role::PassThrough { .. }) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let result = match builder.enable_all().build() {
        Ok(runtime) => runtime.block_on(play(args)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            println!("FAILED: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn play(args: Args) -> Result<(), Error> {
    // For reqwest, which is built without a TLS provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match args.role {
        Some(Role::PassThrough {
            upstream,
            authority,
        }) => {
            return pass_through::serve(upstream, authority.as_deref()).await;
        }
        Some(Role::StandIn { delay_ms, tls, at }) => {
            let addr = StandIn::start_at(at, Duration::from_millis(delay_ms))?.addr;
            if tls {
                let front = TlsFront::start(addr).await;
                println!("{addr} {} {}", front.url(), front.authority());
                return std::future::pending().await;
            }
            println!("{addr}");
            return std::future::pending().await;
        }
        None => {}
    }
    let bench = Bench::new(args.quick, args.minutes)?;
    bench.cores.stay_off();
    println!("{}\n", docs::machine(&bench));
    let mut reports = Vec::new();
    for part in Part::value_variants() {
        let asked_for = if args.only.is_empty() {
            *part != Part::Soak
        } else {
            args.only.contains(part)
        };
        if !asked_for {
            continue;
        }
        let started = Instant::now();
        let report = part.run(&bench).await?;
        println!(
            "{} ({:.0?})\n\n{}",
            part.name(),
            started.elapsed(),
            report.text()
        );
        reports.push((part.name(), report));
    }
    if !args.no_docs {
        docs::renew(&bench, &reports)?;
        println!("docs/performance.md is renewed");
    }
    Ok(())
}
