//! `jobs`: lists jobs that wait, run or are dead letters.

use clap::ValueEnum;
use matrix2acrobits_shared::{
    flow::JobListing,
    process::{
        output::write,
        words::{Counted, time},
    },
    rules::jobs::Status,
};
use matrix2acrobits_store::Store;

use super::{Cli, Failure};

const PAGE: u32 = 500;

/// What to list.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Only jobs in this state
    #[arg(long, ignore_case = true)]
    state: Option<State>,
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
}

/// The states of the table Jobs.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// Ready for a worker
    Pending,
    /// In a worker's hands, also if it has begun (Running)
    Queued,
    /// Waiting for its next try
    Failed,
    /// Dead letter
    Killed,
}

impl State {
    /// The states that rows have.
    fn names(self) -> &'static [Status] {
        match self {
            Self::Pending => &[Status::Pending],
            // In this order, no job that begins meanwhile is left out.
            Self::Queued => &[Status::Queued, Status::Running],
            Self::Failed => &[Status::Failed],
            Self::Killed => &[Status::Killed],
        }
    }
}

pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let store = Store::open_existing(&cli.shared).await?;
    let mut jobs = Vec::new();
    if !args.json {
        write(row([
            "STATE",
            "WANTED",
            "USER",
            "ATTEMPTS",
            "NEXT TRY",
            "LAST ERROR",
        ]))?;
    }
    let states = args.state.map_or_else(
        || vec![None],
        |state| state.names().iter().map(|of| Some(of.as_str())).collect(),
    );
    let mut count = 0;
    for state in states {
        let mut after = String::new();
        loop {
            let page = store
                .list_jobs(state, &after, PAGE)
                .await
                .map_err(Failure::other)?;
            let Some(last) = page.last() else {
                break;
            };
            after.clone_from(&last.id);
            count += page.len();
            if args.json {
                jobs.extend(page);
            } else {
                for job in &page {
                    if !write(line(job))? {
                        return Ok(());
                    }
                }
            }
        }
    }
    if args.json {
        write(serde_json::to_string_pretty(&jobs).map_err(Failure::other)?)?;
    } else {
        write(Counted(count, "job"))?;
    }
    Ok(())
}

fn line(job: &JobListing) -> String {
    let attempts = job.attempts.to_string();
    let next = job
        .next_try
        .and_then(|at| u64::try_from(at).ok())
        .map(time)
        .unwrap_or_default();
    row([
        &job.state,
        job.wanted.as_deref().unwrap_or("-"),
        job.user_id.as_deref().unwrap_or("-"),
        &attempts,
        &next,
        job.last_error.as_deref().unwrap_or("-"),
    ])
}

fn row([state, wanted, user, attempts, next, error]: [&str; 6]) -> String {
    format!("{state:<8} {wanted:<8} {user:<32} {attempts:>8} {next:<20} {error}")
}
