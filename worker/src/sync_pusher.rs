//! The job: makes the homeserver's pusher what its row says, and records what became of it. Nothing of
//! apalis decides about a job's end; see docs/architecture.md for why.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use matrix2acrobits_shared::{
    clock::Clock,
    flow::{Finished, Held},
    matrix::{
        client::Homeserver,
        mark::MarkKey,
        pushers::{DeletePusher, PusherSettings, SetPusher},
    },
    process::shutdown::Stopping,
    rules::{
        gate::Sign,
        outcome::{Meaning, Request, meaning},
        pushers::{FinishSettings, Goal, Loaded, Outcome, PusherTask},
    },
};
use matrix2acrobits_store::{Store, StoreError};
use tokio::sync::watch;
use ulid::Ulid;

use crate::{
    gate::{Gate, Pass},
    metrics,
    settings::Settings,
};

/// What a dead letter says whose job panicked.
const PANICKED: &str = "the job panicked; see the log";
/// Pause between attempts to reach our own database.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// Everything that a job needs.
#[derive(Debug)]
pub(crate) struct Jobs {
    pub(crate) store: Store,
    pub(crate) homeserver: Homeserver,
    pub(crate) settings: Settings,
    pub(crate) pusher: PusherSettings,
    /// The key of the marks that pushers carry; it changes when the operator renews it.
    pub(crate) key: watch::Sender<MarkKey>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) stopping: Stopping,
}

impl Jobs {
    /// Runs one job to its recorded end. Only stopping leaves it as it is, for the next worker.
    pub(crate) async fn run(&self, held: Held) {
        let Some(row) = self.load(&held).await else {
            return;
        };
        // One key from the first look to the record of what was set.
        let key = self.key.borrow().clone();
        if let Some(outcome) = idle_outcome(row.goal) {
            self.finish(&held, &row, &key, outcome).await;
            return;
        }
        let pass = tokio::select! {
            pass = self.gate.enter() => pass,
            () = self.stopping.stop.cancelled() => return,
        };
        let started = Instant::now();
        if held.suspect {
            // Should it kill this worker, too, it is known which job it was.
            self.insist(|| self.store.begin(held.clone())).await;
        }
        // It may have changed while we waited.
        let Some(row) = self.load(&held).await else {
            return;
        };
        let outcome = match idle_outcome(row.goal) {
            Some(outcome) => outcome,
            None => self.act_guarded(&held, &row, &key, &pass).await,
        };
        drop(pass);
        self.finish(&held, &row, &key, outcome).await;
        metrics::job_took(started.elapsed());
    }

    async fn load(&self, held: &Held) -> Option<PusherTask> {
        let loaded = self
            .insist(|| self.store.task(held, self.pusher.append))
            .await?;
        match loaded {
            Loaded::Task(task) => return Some(task),
            Loaded::Gone => {
                self.insist(|| self.store.drop_job(held.clone())).await;
            }
            Loaded::Unreadable => {
                let error = "the pusher cannot be read";
                tracing::error!(
                    job = held.job_id,
                    reason = "unreadable",
                    "dead letter: {error}"
                );
                metrics::unreadable_jobs(1);
                self.insist(|| self.store.kill_job(held.clone(), error.into()))
                    .await;
            }
        }
        None
    }

    /// [`Jobs::act`], but a panic is a dead letter, and nothing runs for ever.
    async fn act_guarded(
        &self,
        held: &Held,
        row: &PusherTask,
        key: &MarkKey,
        pass: &Pass<'_>,
    ) -> Outcome {
        let longest = self.settings.homeserver_timeout * 2 + Duration::from_secs(5);
        let act = AssertUnwindSafe(self.act(row, key, pass)).catch_unwind();
        let ended = tokio::select! {
            ended = tokio::time::timeout(longest, act) => ended,
            () = self.stopping.abandon.cancelled() => return self.abandoned(),
        };
        let meaning = match ended {
            Ok(Ok(Some(meaning))) => meaning,
            Ok(Ok(None)) => return self.put_off(held),
            Ok(Err(_)) => {
                return Outcome::Dead {
                    error: PANICKED.into(),
                };
            }
            Err(_) => Meaning::Outage {
                reason: "the job took too long".into(),
                maybe_done: true,
                asked: None,
            },
        };
        let (sign, outcome) = self.outcome(held, row, meaning);
        tokio::select! {
            () = self.gate.record(pass, &sign) => {}
            () = self.stopping.abandon.cancelled() => {}
        }
        outcome
    }

    /// Makes the homeserver's pusher what the row says. None when the gate shut between two requests.
    async fn act(&self, row: &PusherTask, key: &MarkKey, pass: &Pass<'_>) -> Option<Meaning> {
        let set = SetPusher::new(&row.app_id, &row.pushkey, &row.selector, &self.pusher, key);
        Some(match row.goal {
            Goal::Delete => {
                let pusher = DeletePusher::new(&row.app_id, &row.pushkey);
                let reply = self.homeserver.delete(&row.user_id, &pusher).await;
                meaning(&reply, Request::Delete)
            }
            Goal::Check => return self.check(row, set, pass).await,
            Goal::Set | Goal::Nothing | Goal::Outdone | Goal::Yield => self.set(row, &set).await,
        })
    }

    async fn set(&self, row: &PusherTask, pusher: &SetPusher<'_>) -> Meaning {
        let reply = self.homeserver.set(&row.user_id, pusher).await;
        meaning(&reply, Request::Set)
    }

    /// Sets the pusher unless the homeserver holds it as it should be.
    async fn check(
        &self,
        row: &PusherTask,
        wanted: SetPusher<'_>,
        pass: &Pass<'_>,
    ) -> Option<Meaning> {
        let (reply, held) = self.homeserver.pushers(&row.user_id).await;
        Some(match (meaning(&reply, Request::Look), held) {
            (Meaning::Done, Some(held)) if held.iter().any(|held| wanted.matches(held)) => {
                Meaning::Done
            }
            (Meaning::Done, Some(_)) if !self.gate.again(pass).await => return None,
            (Meaning::Done, Some(held)) => self.set(row, &wanted.keeping(&held)).await,
            (Meaning::Done, None) => Meaning::Outage {
                reason: "the list of pushers cannot be read".into(),
                maybe_done: false,
                asked: None,
            },
            (meaning, _) => meaning,
        })
    }

    /// The worker has to end before the homeserver answers.
    fn abandoned(&self) -> Outcome {
        Outcome::Retry {
            run_at: self.store.clock().unix(),
            error: "the worker stopped before the homeserver answered".into(),
            maybe_done: true,
            strict: false,
        }
    }

    /// The gate shut while the job ran, and nothing is known of its own work.
    fn put_off(&self, held: &Held) -> Outcome {
        let failures = u32::try_from(held.attempts + 1).unwrap_or(u32::MAX);
        Outcome::Retry {
            run_at: self
                .store
                .clock()
                .after(self.settings.retry.delay(failures)),
            error: "the homeserver was taken for unwell before the pusher was set".into(),
            maybe_done: false,
            strict: false,
        }
    }

    /// What the meaning says of the homeserver, and what of the job.
    fn outcome(&self, held: &Held, row: &PusherTask, meaning: Meaning) -> (Sign, Outcome) {
        let failures = u32::try_from(held.attempts + 1).unwrap_or(u32::MAX);
        // Never sooner than our own backoff, and if the homeserver asks for a time nothing brings it forward.
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

    async fn finish(&self, held: &Held, row: &PusherTask, key: &MarkKey, outcome: Outcome) {
        log(held, row, &outcome);
        metrics::job(&outcome, held.attempts + 1, age(self.store.clock(), held));
        let settings = FinishSettings {
            fingerprint: self.pusher.fingerprint(key),
            settings: self.pusher.name(),
            append: self.pusher.append,
            refresh_after: i64::try_from(self.settings.refresh_after.as_secs()).unwrap_or(i64::MAX),
        };
        let finish = || {
            self.store.finish(Finished {
                held: held.clone(),
                task: row.clone(),
                outcome: outcome.clone(),
                settings: settings.clone(),
            })
        };
        if self.insist(finish).await == Some(false) {
            tracing::warn!(user = %row.user_id, "another worker took this job over; the pusher will be checked");
        }
    }

    /// Repeats a database operation until it works: a job whose end is not written would be held for ever.
    /// None when the worker stops first.
    async fn insist<T, F>(&self, operation: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        loop {
            match operation().await {
                Ok(value) => return Some(value),
                Err(error) => tracing::debug!(%error, "the database does not answer; trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(DATABASE_PAUSE) => {}
                () = self.stopping.stop.cancelled() => return None,
            }
        }
    }
}

/// What becomes of a job that needs nothing from the homeserver.
fn idle_outcome(goal: Goal) -> Option<Outcome> {
    match goal {
        Goal::Nothing | Goal::Yield => Some(Outcome::Nothing),
        Goal::Outdone => Some(Outcome::Outdone),
        Goal::Set | Goal::Check | Goal::Delete => None,
    }
}

/// How long ago a job was made: its id says it (a ULID).
fn age(clock: &Clock, held: &Held) -> Option<Duration> {
    let made = Ulid::from_string(&held.job_id).ok()?.timestamp_ms();
    Some(Duration::from_millis(
        clock.unix_millis().saturating_sub(made),
    ))
}

/// One line for each end that matters. `reason` is a word to search and count by, `error` is for people.
fn log(held: &Held, row: &PusherTask, outcome: &Outcome) {
    let (user, app_id, pushkey, job, attempt) = (
        &row.user_id,
        &row.app_id,
        row.pushkey.log_id(),
        &held.job_id,
        held.attempts + 1,
    );
    match outcome {
        Outcome::Registered => {
            tracing::info!(%user, %app_id, %pushkey, job, attempt, "pusher set");
        }
        Outcome::Removed => {
            tracing::info!(%user, %app_id, %pushkey, job, attempt, "pusher deleted");
        }
        Outcome::Nothing => {}
        Outcome::Outdone => {
            tracing::info!(%user, %app_id, %pushkey, job, "pusher left to the user who reported it later");
        }
        Outcome::Retry { error, .. } => {
            tracing::debug!(%user, %app_id, %pushkey, job, attempt, error, "pusher will be tried again");
        }
        Outcome::Dead { error } => {
            let reason = dead_reason(error);
            tracing::warn!(%user, %app_id, %pushkey, job, attempt, reason, error, "dead letter: tried again at the next report or replay");
        }
    }
}

/// The homeserver's errcode, or what happened here.
fn dead_reason(error: &str) -> &str {
    if error == PANICKED {
        return "panic";
    }
    let mut words = error.split([' ', ':']);
    words
        .find(|word| word.starts_with("M_"))
        .unwrap_or("refused")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_has_a_reason_to_count_by() {
        assert_eq!(
            dead_reason("HTTP 403 M_FORBIDDEN: M_X has not registered"),
            "M_FORBIDDEN"
        );
        assert_eq!(dead_reason("HTTP 400"), "refused");
        assert_eq!(dead_reason(PANICKED), "panic");
    }
}
