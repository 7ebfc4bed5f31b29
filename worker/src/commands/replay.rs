//! `replay`: makes the worker compare pushers with the homeserver's. It enqueues them in small transactions alongside a
//! running worker, and repeating it is harmless.

use matrix2acrobits_shared::{
    process::{
        output::print,
        progress::{self, ProgressBar},
        settings::{self, SettingError},
        words::Counted,
    },
    rules::pushers::Replay,
};
use matrix2acrobits_store::Store;

use super::{Cli, Failure};

/// Which pushers.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Args {
    /// Those whose job is a dead letter
    #[arg(long)]
    dead: bool,
    /// All
    #[arg(long)]
    all: bool,
    /// Those of one user, such as @bob:example.org
    #[arg(long, value_name = "USER_ID")]
    user: Option<String>,
    /// Those that changed since a time such as 2026-01-31T12:00:00Z, or within a duration such as 2h
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

impl Args {
    fn selection(&self, now: i64) -> Result<Replay, SettingError> {
        if let Some(user) = &self.user {
            return settings::user("--user", user).map(Replay::User);
        }
        if let Some(text) = &self.since {
            let since = settings::parse("--since", text, |text| settings::time_or_ago(text, now));
            return since.map(Replay::Since);
        }
        Ok(if self.dead { Replay::Dead } else { Replay::All })
    }
}

pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let store = Store::open_existing(&cli.shared).await?;
    let replay = args.selection(store.clock().unix())?;
    let total = store.count_replay(&replay).await.map_err(Failure::other)?;
    let bar = progress::bar(u64::try_from(total).unwrap_or(0));
    let result = enqueue(&store, replay, &bar).await;
    bar.finish_and_clear();
    let count = result?;
    let pushers = Counted(count, "pusher");
    print(format_args!("{pushers} enqueued to be checked"));
    Ok(())
}

async fn enqueue(store: &Store, replay: Replay, bar: &ProgressBar) -> Result<u64, Failure> {
    let (mut after, mut count) = (0, 0);
    while let Some((last, chunk)) = store
        .replay_chunk(&replay, after)
        .await
        .map_err(Failure::other)?
    {
        let chunk = u64::try_from(chunk).unwrap_or(u64::MAX);
        after = last;
        count += chunk;
        bar.inc(chunk);
        if bar.is_hidden() && count % 10_000 == 0 {
            print(format_args!("{count} so far"));
        }
    }
    Ok(count)
}
