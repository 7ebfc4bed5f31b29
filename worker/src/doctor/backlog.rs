//! The doctor's look at the queue: dead letters, whether the outage gate lets jobs through, and whether jobs that have
//! waited for long are being worked off.

use std::time::{Duration, UNIX_EPOCH};

use matrix2acrobits_shared::{
    flow::{GateView, QueueState},
    process::words::Counted,
    rules::gate::Condition,
};
use matrix2acrobits_store::{Store, StoreError};

use super::Report;
use crate::commands::{Cli, Failure};

/// Nothing is the matter with a ready job that has waited up to this many seconds.
const LATE: i64 = 60;
/// How often to look again whether late jobs are being worked off, and the pause before each look.
const LOOKS: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// A worker that has no job to try with leaves the gate shut and looks again this soon. A new report gets its try then.
const SOON_MS: i64 = 10_000;

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
    let gate = store.read_gate().await.map_err(Failure::other)?;
    let now = i64::try_from(store.clock().unix_millis()).unwrap_or(i64::MAX);
    if let Some(text) = shut(&gate, waiting(&queue), now) {
        report.wrong("jobs", &text);
        return Ok(());
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

/// Why no job passes the outage gate, and what to do. None if jobs pass, or if nothing waits and a new job would soon get
/// its try.
fn shut(GateView { row, workers }: &GateView, waiting: i64, now_ms: i64) -> Option<String> {
    let reason = row.reason().or(match row.condition {
        Condition::Open => None,
        _ => Some("no reason is known"),
    })?;
    let wait = Duration::from_millis(u64::try_from(row.next_try_ms - now_ms).unwrap_or(0));
    if waiting == 0 && row.next_try_ms <= now_ms + SOON_MS {
        return None;
    }
    let jobs = Counted(waiting, "job");
    if *workers == 0 {
        return Some(format!(
            "{jobs} to do, but no worker runs to try again after this: {reason}: start it"
        ));
    }
    // While one worker tries, the row says until when no other worker does.
    let next = if row.holder.is_some() || wait.is_zero() {
        "a worker is trying now".to_owned()
    } else {
        let at = UNIX_EPOCH + Duration::from_millis(u64::try_from(row.next_try_ms).unwrap_or(0));
        format!(
            "the next try is at {} (in {})",
            humantime::format_rfc3339_seconds(at),
            humantime::format_duration(Duration::from_secs(wait.as_secs()))
        )
    };
    Some(match row.condition {
        Condition::Open => return None,
        Condition::Down => format!(
            "{jobs} to do, and the worker waits for the homeserver: {reason}; it probes the homeserver every second and \
             goes on by itself"
        ),
        Condition::Limited => format!(
            "{jobs} to do, and the worker waits for the homeserver: {reason}; {next}, and restarting the worker does not \
             make it sooner"
        ),
        Condition::Misconfigured => format!(
            "{jobs} to do, and the worker waits for the homeserver, which refused it: {reason}; {next}. Once that \
             is mended, restart the worker, which then tries at once"
        ),
    })
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
    use matrix2acrobits_shared::rules::gate::SharedGate;

    use super::*;

    #[test]
    fn a_shut_gate_is_told_with_its_reason_the_next_try_and_what_to_do() {
        let now_ms = 1_800_000_000_000;
        let gate = |condition, wait_ms, workers| {
            let mut row = SharedGate::new();
            row.condition = condition;
            row.reason = Some("HTTP 401 M_UNKNOWN_TOKEN".to_owned());
            row.next_try_ms = now_ms + wait_ms;
            GateView { row, workers }
        };
        let told = |gate: &GateView, waiting| shut(gate, waiting, now_ms).unwrap_or_default();
        let refused = gate(Condition::Misconfigured, 300_000, 1);
        assert_eq!(
            told(&refused, 1),
            "1 job to do, and the worker waits for the homeserver, which refused it: HTTP 401 M_UNKNOWN_TOKEN; the next \
             try is at 2027-01-15T08:05:00Z (in 5m). Once that is mended, restart the worker, which then tries at once"
        );
        // A report that came now would wait as well.
        assert!(told(&refused, 0).starts_with("0 jobs to do"));
        let limited = told(&gate(Condition::Limited, 540_000, 2), 3);
        assert!(limited.contains("HTTP 429") && limited.contains("(in 9m)"));
        assert!(limited.contains("does not make it sooner"));
        let mut trying = gate(Condition::Limited, 8000, 1);
        trying.row.holder = Some("worker-1".to_owned());
        assert!(told(&trying, 1).contains("a worker is trying now"));
        let down = told(&gate(Condition::Down, 1000, 1), 2);
        assert!(down.contains("probes the homeserver every second"));
        let nobody = told(&gate(Condition::Down, -60_000, 0), 2);
        assert!(nobody.contains("no worker runs") && nobody.ends_with("start it"));
        for (gate, waiting) in [
            (gate(Condition::Open, 300_000, 1), 5),
            // The user of the only job was deleted.
            (gate(Condition::Down, 1000, 1), 0),
            (gate(Condition::Limited, -1000, 1), 0),
        ] {
            assert_eq!(shut(&gate, waiting, now_ms), None, "{gate:?}");
        }
    }

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
