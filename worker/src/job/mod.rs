//! The job: makes the homeserver's pusher match its row, and records the outcome. apalis does not decide on a job's
//! outcome (docs/architecture.md says why).

mod act;
mod log;
mod outcome;
mod turns;

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use matrix2acrobits_shared::{
    clock::Clock,
    flow::{Finished, Held, Recorded},
    mark::MarkKey,
    matrix::{client::Homeserver, pushers::PusherSettings},
    process::shutdown::Stopping,
    rules::{
        outcome::Meaning,
        pushers::{FinishSettings, Loaded, Outcome, PusherTask},
    },
};
use matrix2acrobits_store::{Store, StoreError};
use tokio::sync::watch;
use ulid::Ulid;

pub(crate) use self::turns::Turns;
use self::{
    log::{PANICKED, log},
    outcome::Work,
};
use crate::{
    gate::{Gate, Pass},
    metrics, run,
    settings::Settings,
};

/// How long a job goes by what it has read. A change that comes later is seen when the outcome is recorded.
const FRESH: Duration = Duration::from_millis(50);

/// Everything that a job needs.
#[derive(Debug)]
pub(crate) struct Jobs {
    pub(crate) store: Store,
    pub(crate) homeserver: Homeserver,
    pub(crate) settings: Settings,
    pub(crate) pusher: PusherSettings,
    /// The key of the marks that pushers carry. It changes when the operator renews it.
    pub(crate) key: watch::Sender<MarkKey>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) turns: Turns,
    pub(crate) stopping: Stopping,
}

/// How a job ended.
#[derive(Debug)]
struct Ended {
    outcome: Outcome,
    /// Whether the homeserver was asked to change something. If not, it held what we want, and the job only checked.
    changing: bool,
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            changing: true,
        }
    }
}

impl Jobs {
    /// Runs one job until its outcome is recorded. Only a stop leaves the job unfinished, for the next worker.
    pub(crate) async fn run(&self, held: Held) {
        let Some(mut row) = self.load(&held).await else {
            return;
        };
        let loaded = Instant::now();
        if let Err(outcome) = Work::of(row.goal) {
            self.finish(&held, &row, &self.key(), outcome.into()).await;
            return;
        }
        let pass = tokio::select! {
            pass = self.gate.enter() => pass,
            () = self.stopping.stop.cancelled() => return,
        };
        let started = Instant::now();
        if held.suspect {
            // If the job kills this worker as well, the database knows which job it was.
            self.insist(&held, || self.store.begin(held.clone())).await;
        }
        // The pusher may have changed while we waited.
        if loaded.elapsed() > FRESH {
            match self.load(&held).await {
                Some(reloaded) => row = reloaded,
                None => return,
            }
        }
        // Use the same key from the first look until the outcome is recorded.
        let key = self.key();
        let ended = match Work::of(row.goal) {
            Err(outcome) => outcome.into(),
            Ok(work) => self.act_guarded(&held, &row, work, &key, &pass).await,
        };
        drop(pass);
        self.finish(&held, &row, &key, ended).await;
        metrics::job_took(started.elapsed());
    }

    async fn insist<T, F>(&self, held: &Held, operation: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        run::insist(&self.stopping.stop, &held.job_id, operation).await
    }

    fn key(&self) -> MarkKey {
        self.key.borrow().clone()
    }

    async fn load(&self, held: &Held) -> Option<PusherTask> {
        let loaded = self
            .insist(held, || self.store.task(held, self.pusher.append))
            .await?;
        match loaded {
            Loaded::Task(task) => return Some(task),
            // This worker was stalled for so long that another one took the job.
            Loaded::Taken => {}
            Loaded::Gone => {
                self.insist(held, || self.store.drop_job(held.clone()))
                    .await;
            }
            Loaded::Unreadable => {
                let error = "the pusher cannot be read";
                tracing::error!(
                    job = held.job_id,
                    reason = "unreadable",
                    "dead letter: {error}"
                );
                metrics::unreadable_jobs(1);
                self.insist(held, || self.store.kill_job(held.clone(), error.into()))
                    .await;
            }
        }
        None
    }

    /// Runs [`Jobs::act`] with a time limit. A panic makes the job a dead letter.
    async fn act_guarded(
        &self,
        held: &Held,
        row: &PusherTask,
        work: Work,
        key: &MarkKey,
        pass: &Pass<'_>,
    ) -> Ended {
        let longest = self.settings.homeserver_timeout * 2 + Duration::from_secs(5);
        // Boxed, because the future is large and would be copied from one to the next of those around it.
        let act = AssertUnwindSafe(Box::pin(self.act(row, work, key, pass))).catch_unwind();
        // Once: a homeserver that takes its time for this one gets it at the next attempt. And not where a request that comes
        // late after all could touch another app's pusher.
        let may_be_lost = held.attempts == 0 && !self.homeserver.wants_device();
        let ended = tokio::select! {
            biased;
            ended = tokio::time::timeout(longest, act) => ended,
            () = pass.lost(), if may_be_lost => {
                // This says nothing new about the homeserver, so the gate is not told.
                let lost = Meaning::Outage {
                    reason: "no response, while later requests got theirs".into(),
                    maybe_done: true,
                    asked: None,
                };
                return self.outcome(held, row, lost).1.into();
            }
            () = self.stopping.abandon.cancelled() => return self.abandoned().into(),
        };
        let (meaning, changing) = match ended {
            Ok(Ok(Some(acted))) => acted,
            Ok(Ok(None)) => return self.put_off(held).into(),
            Ok(Err(_)) => {
                let error = PANICKED.into();
                return Outcome::Dead { error }.into();
            }
            Err(_) => {
                let late = Meaning::Outage {
                    reason: "the job took too long".into(),
                    maybe_done: true,
                    asked: None,
                };
                (late, true)
            }
        };
        let (sign, outcome) = self.outcome(held, row, meaning);
        tokio::select! {
            () = self.gate.record(pass, &sign) => {}
            () = self.stopping.abandon.cancelled() => {}
        }
        Ended { outcome, changing }
    }

    async fn finish(&self, held: &Held, row: &PusherTask, key: &MarkKey, ended: Ended) {
        let Ended { outcome, changing } = ended;
        let age = age(self.store.clock(), held);
        let settings = FinishSettings {
            fingerprint: self.pusher.fingerprint(key),
            settings: self.pusher.name(),
            mark_key: key.name().to_owned(),
            append: self.pusher.append,
            one_per_pushkey: self.homeserver.wants_device(),
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
        let recorded = self.insist(held, finish).await;
        if recorded == Some(Recorded::Lost) {
            tracing::warn!(user = %row.user_id, "another worker took this job over; the pusher will be checked");
        }
        let ended = Ended {
            outcome: as_recorded(outcome, recorded),
            changing,
        };
        log(held, row, &ended);
        metrics::job(&ended.outcome, held.attempts + 1, age);
    }
}

/// A refusal is a dead letter only if the database has made it one.
fn as_recorded(outcome: Outcome, recorded: Option<Recorded>) -> Outcome {
    match outcome {
        Outcome::Dead { error } if recorded != Some(Recorded::Stands) => Outcome::Retry {
            run_at: 0,
            not_before: None,
            error,
            maybe_done: false,
        },
        outcome => outcome,
    }
}

/// How long ago a job was made, from its id (a ULID).
fn age(clock: &Clock, held: &Held) -> Option<Duration> {
    let made = Ulid::from_string(&held.job_id).ok()?.timestamp_ms();
    Some(Duration::from_millis(
        clock.unix_millis().saturating_sub(made),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_database_gave_up_is_a_dead_letter() {
        let dead = Outcome::Dead { error: "no".into() };
        for (recorded, is_dead) in [
            (Some(Recorded::Stands), true),
            (Some(Recorded::Again), false),
            (Some(Recorded::Lost), false),
            (None, false),
        ] {
            let told = as_recorded(dead.clone(), recorded);
            assert_eq!(told == dead, is_dead, "{recorded:?}");
        }
        let set = as_recorded(Outcome::Registered, Some(Recorded::Again));
        assert_eq!(set, Outcome::Registered, "the homeserver has it");
    }
}
