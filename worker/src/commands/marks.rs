//! `marks renew`: changes the key of the marks, and shows how many pushers still need a new mark.

use std::time::{Duration, Instant};

use clap::Subcommand;
use matrix2acrobits_shared::{
    flow::MarkRenewal,
    process::{output::print, progress, words::Counted},
};
use matrix2acrobits_store::{OLD_MARKS_COUNT, Store};

use super::{Cli, Failure};

/// How often to count the pushers.
const LOOK: Duration = Duration::from_secs(1);
/// How often to print a line of progress without a terminal.
const SAY: Duration = Duration::from_secs(10);
/// After this long without progress, the command assumes that no worker runs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to do with the marks.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Make a new key: old marks count for a day, and the worker gives every pusher a new one, 50 a second
    Renew,
}

pub(crate) async fn run(cli: &Cli, Command::Renew: &Command) -> Result<(), Failure> {
    let store = Store::open_existing(&cli.shared).await?;
    let promised = Counted(OLD_MARKS_COUNT.as_secs() / 3600, "hour");
    if let MarkRenewal::TooEarly(carry) = store.renew_mark_key().await.map_err(Failure::other)? {
        return Err(Failure::other(format_args!(
            "the key was renewed less than {promised} ago, and {carry} pushers still carry marks of the key before: nothing is \
             changed; let the worker renew them first"
        )));
    }
    let key = store.mark_keys().await.map_err(Failure::other)?.current;
    print(format_args!(
        "the key is new; marks by the old one count for {promised}"
    ));
    let count = async || {
        let count = store.count_without_mark(&key).await.map_err(Failure::other);
        count.map(|count| u64::try_from(count).unwrap_or(0))
    };
    let total = count().await?;
    let bar = progress::bar(total);
    let (mut left, mut moved, mut said) = (total, Instant::now(), Instant::now());
    while left > 0 && moved.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK).await;
        let now = count().await?;
        if now != left {
            moved = Instant::now();
        }
        left = now;
        bar.set_position(total.saturating_sub(left));
        if bar.is_hidden() && said.elapsed() >= SAY {
            let total = Counted(total, "pusher");
            print(format_args!("{left} of {total} to go"));
            said = Instant::now();
        }
    }
    bar.finish_and_clear();
    if left == 0 {
        print(format_args!(
            "the new mark is in {}",
            Counted(total, "pusher")
        ));
    } else {
        print(format_args!(
            "the old mark is still in {left} of {}: the worker renews them when it runs",
            Counted(total, "pusher")
        ));
    }
    Ok(())
}
