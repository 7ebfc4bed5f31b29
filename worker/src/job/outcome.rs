//! Decides what a response means for the job and for the gate.

use std::time::Duration;

use matrix2acrobits_shared::{
    flow::Held,
    rules::{
        gate::Sign,
        outcome::Meaning,
        pushers::{Goal, Outcome, PusherTask},
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
            error: "the worker stopped before the homeserver answered".into(),
            maybe_done: true,
            strict: false,
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
            error: "the homeserver was found in trouble before this job ended".into(),
            maybe_done: false,
            strict: false,
        }
    }

    /// What a meaning says about the homeserver, and the outcome of the job.
    pub(super) fn outcome(
        &self,
        held: &Held,
        row: &PusherTask,
        meaning: Meaning,
    ) -> (Sign, Outcome) {
        let failures = u32::try_from(held.attempts + 1).unwrap_or(u32::MAX);
        // A retry comes no sooner than our own backoff. If the homeserver asks to wait, nothing brings the retry
        // forward.
        let retry = |own: Duration, error: String, maybe_done, asked: Option<Duration>| {
            let wait = asked.map_or(own, |asked| asked.max(own));
            Outcome::Retry {
                run_at: self.store.clock().after(wait),
                error,
                maybe_done,
                strict: asked.is_some(),
            }
        };
        let backoff = self.settings.retry.delay(failures);
        match meaning {
            Meaning::Done if row.goal == Goal::Delete => (Sign::Well, Outcome::Removed),
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
                let wait = asked.map_or(backoff, |asked| asked.max(backoff));
                let error = format!(
                    "HTTP 429: asked to wait {}",
                    humantime::format_duration(wait)
                );
                (
                    Sign::Limited(wait),
                    retry(backoff, error, false, Some(wait)),
                )
            }
            Meaning::Misconfigured { reason, asked } => {
                let outcome = retry(self.settings.retry.max, reason.clone(), false, asked);
                (Sign::Misconfigured(reason), outcome)
            }
        }
    }
}
