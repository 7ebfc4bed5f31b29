//! Decides what a response means for the job and for the gate.

use std::time::Duration;

use matrix2acrobits_shared::{
    clock::Clock,
    flow::Held,
    rules::{
        gate::Sign,
        outcome::Meaning,
        pushers::{Goal, Outcome, PusherTask},
        retry::RetryPolicy,
    },
};

use super::Jobs;

/// What a job does at the homeserver.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Set,
    Check,
    Delete,
}

impl Work {
    /// From a pusher's goal. `Err` is the outcome of a job that needs nothing from the homeserver.
    pub(super) fn of(goal: Goal) -> Result<Self, Outcome> {
        match goal {
            Goal::Set => Ok(Self::Set),
            Goal::Check => Ok(Self::Check),
            Goal::Delete => Ok(Self::Delete),
            Goal::Nothing | Goal::Yield => Err(Outcome::Nothing),
            Goal::Outdone => Err(Outcome::Outdone),
        }
    }
}

impl Jobs {
    /// The outcome if the worker has to end before the homeserver responds.
    pub(super) fn abandoned(&self) -> Outcome {
        Outcome::Retry {
            run_at: self.store.clock().unix(),
            not_before: None,
            error: "the worker stopped before the homeserver answered".into(),
            maybe_done: true,
        }
    }

    /// The outcome if the gate shut while the job ran, before the job learnt anything about its own pusher.
    pub(super) fn put_off(&self, held: &Held) -> Outcome {
        let failures = u32::try_from(held.attempts + 1).unwrap_or(u32::MAX);
        Outcome::Retry {
            run_at: self
                .store
                .clock()
                .after(self.settings.retry.delay(failures)),
            not_before: None,
            error: "the homeserver was found in trouble before this job ended".into(),
            maybe_done: false,
        }
    }

    /// See [`judge`].
    pub(super) fn outcome(
        &self,
        held: &Held,
        row: &PusherTask,
        meaning: Meaning,
    ) -> (Sign, Outcome) {
        let (retry, clock) = (&self.settings.retry, self.store.clock());
        judge(retry, clock, held.attempts, row.goal, meaning)
    }
}

/// What a meaning says about the homeserver, and the outcome of the job, which has failed `attempts` times before.
fn judge(
    policy: &RetryPolicy,
    clock: &Clock,
    attempts: i64,
    goal: Goal,
    meaning: Meaning,
) -> (Sign, Outcome) {
    let failures = u32::try_from(attempts + 1).unwrap_or(u32::MAX);
    // A retry comes no sooner than our own backoff, unless a report or the homeserver's return brings it forward. Nothing
    // brings it forward to before the time that the homeserver asks for.
    let retry = |own: Duration, error: String, maybe_done, asked: Option<Duration>| {
        let wait = asked.map_or(own, |asked| asked.max(own));
        Outcome::Retry {
            run_at: clock.after(wait),
            not_before: asked.map(|asked| clock.after(asked)),
            error,
            maybe_done,
        }
    };
    let backoff = policy.delay(failures);
    match meaning {
        Meaning::Done if goal == Goal::Delete => (Sign::Well, Outcome::Removed),
        Meaning::Done => (Sign::Well, Outcome::Registered),
        Meaning::Refused { reason } => (Sign::Well, Outcome::Dead { error: reason }),
        Meaning::Later { reason, asked } => {
            (Sign::Well, retry(backoff, reason, false, Some(asked)))
        }
        Meaning::Outage {
            reason,
            maybe_done,
            asked,
        } => {
            let outcome = retry(backoff, reason.clone(), maybe_done, asked);
            (Sign::Unwell(reason), outcome)
        }
        Meaning::Limited { asked } => {
            // Everybody waits for as long as asked. This job's own backoff concerns nobody else, but nothing shortens it
            // where the homeserver only limits its clients.
            let wait = asked.unwrap_or(policy.initial);
            let error = format!(
                "HTTP 429: asked to wait {}",
                humantime::format_duration(wait)
            );
            (
                Sign::Limited(wait),
                retry(backoff, error, false, Some(wait.max(backoff))),
            )
        }
        Meaning::Misconfigured { reason, asked } => {
            let outcome = retry(policy.max, reason.clone(), false, asked);
            (Sign::Misconfigured(reason), outcome)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;
    const POLICY: RetryPolicy = RetryPolicy {
        initial: Duration::from_secs(2),
        max: Duration::from_mins(5),
        multiplier: 2.0,
    };

    /// A job that has failed so often that its own backoff is the longest.
    fn judge_old(meaning: Meaning) -> (Sign, Outcome) {
        judge(&POLICY, &Clock::manual(NOW), 20, Goal::Set, meaning)
    }

    /// When the job runs again on its own, and when at the earliest.
    fn times(outcome: Outcome) -> (i64, Option<i64>) {
        match outcome {
            Outcome::Retry {
                run_at, not_before, ..
            } => (run_at - NOW, not_before.map(|at| at - NOW)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_429_makes_everybody_wait_as_long_as_asked_and_its_job_for_its_backoff() {
        let seconds = Duration::from_secs;
        for (asked, everybody, earliest) in [
            (Some(seconds(7)), seconds(7), 7),
            (Some(seconds(0)), seconds(0), 0),
            (None, POLICY.initial, 2),
            (Some(seconds(1000)), seconds(1000), 1000),
        ] {
            let (sign, outcome) = judge_old(Meaning::Limited { asked });
            assert_eq!(sign, Sign::Limited(everybody), "{asked:?}");
            let (run_at, not_before) = times(outcome);
            assert!((300.max(earliest)..=375.max(earliest)).contains(&run_at));
            assert_eq!(not_before, Some(run_at), "{asked:?}");
        }
    }

    #[test]
    fn the_homeserver_asks_for_its_own_wait_and_not_for_our_backoff() {
        let asked = Some(Duration::from_secs(1));
        let outage = |asked| Meaning::Outage {
            reason: "no".into(),
            maybe_done: false,
            asked,
        };
        let wrong = Meaning::Misconfigured {
            reason: "no".into(),
            asked,
        };
        let later = Meaning::Later {
            reason: "no".into(),
            asked: Duration::from_secs(1),
        };
        for meaning in [outage(asked), wrong, later] {
            let (run_at, not_before) = times(judge_old(meaning.clone()).1);
            assert!((300..=375).contains(&run_at), "{meaning:?}: {run_at}");
            assert_eq!(not_before, Some(1), "{meaning:?}");
        }
        assert_eq!(times(judge_old(outage(None)).1).1, None);
    }
}
