//! The doctor's look at the queue: dead letters, and whether jobs that have waited for long are being worked off.

use std::time::Duration;

use matrix2acrobits_shared::{flow::QueueState, process::words::Counted, rules::gate::Condition};
use matrix2acrobits_store::{Store, StoreError};

use super::Report;
use crate::commands::{Cli, Failure};

/// Nothing is the matter with a ready job that has waited up to this many seconds.
const LATE: i64 = 60;
/// How often to look again whether late jobs are being worked off, and the pause before each look.
const LOOKS: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// What shows that jobs end.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// Jobs that are not done.
    waiting: i64,
    /// When the oldest waiting job was due.
    due: Option<i64>,
    /// Whether jobs pass the outage gate.
    open: bool,
}

impl Look {
    async fn at(store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            waiting: waiting(&store.queue_state().await?),
            due: store.next_due().await?,
            open: store.read_gate().await?.row.condition == Condition::Open,
        })
    }

    /// Whether jobs have ended since this look. While the gate is shut, a worker only takes a job to try with.
    fn has_moved(self, later: Self) -> bool {
        let taken = match (self.due, later.due) {
            (Some(before), Some(now)) => now > before,
            (before, now) => before.is_some() && now.is_none(),
        };
        later.open && (taken || later.waiting < self.waiting)
    }
}

fn waiting(queue: &QueueState) -> i64 {
    queue.pending + queue.queued + queue.failed
}

pub(super) async fn check(
    cli: &Cli,
    store: &Store,
    queue: QueueState,
    report: &mut Report,
) -> Result<(), Failure> {
    if queue.killed > 0 {
        let text = format!(
            "{}: see `jobs --state killed`, mend the reason, then `replay --dead`",
            Counted(queue.killed, "dead letter")
        );
        report.wrong("jobs", &text);
    }
    let seconds = queue.oldest_ready;
    if seconds <= LATE {
        if queue.killed == 0 {
            let text = format!("{} to do, no dead letter", waiting(&queue));
            report.ok("jobs", &text);
        }
    } else if is_worked_off(cli, store).await? {
        let text = format!(
            "{} to do, being worked off; the oldest has been ready for {seconds} s",
            waiting(&queue)
        );
        report.ok("jobs", &text);
    } else {
        let text = format!(
            "a job has been ready for {seconds} s and is not taken: the worker does not run, or waits for the \
             homeserver"
        );
        report.wrong("jobs", &text);
    }
    Ok(())
}

/// Looks again for a few seconds. A store keeps large counts for a while, so each look opens one of its own.
async fn is_worked_off(cli: &Cli, store: &Store) -> Result<bool, Failure> {
    let first = Look::at(store).await.map_err(Failure::other)?;
    for _ in 0..LOOKS {
        tokio::time::sleep(PAUSE).await;
        let fresh = Store::open_existing(&cli.shared).await?;
        let later = Look::at(&fresh).await.map_err(Failure::other)?;
        if first.has_moved(later) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_moves_when_jobs_end_and_the_gate_is_open() {
        let first = Look {
            waiting: 10,
            due: Some(100),
            open: true,
        };
        let later = |waiting, due, open| Look { waiting, due, open };
        for (later, moved) in [
            (later(10, Some(100), true), false),
            // New jobs come on top.
            (later(12, Some(100), true), false),
            // Many have the same due time.
            (later(9, Some(100), true), true),
            // New jobs came meanwhile.
            (later(10, Some(101), true), true),
            (later(12, Some(101), true), true),
            (later(10, None, true), true),
            (later(0, None, true), true),
            (later(9, Some(101), false), false),
            // A job came back with its old due time.
            (later(10, Some(90), true), false),
        ] {
            assert_eq!(first.has_moved(later), moved, "{later:?}");
        }
    }
}
