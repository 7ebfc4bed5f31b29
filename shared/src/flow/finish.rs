//! Records the outcomes of jobs: in the job's row, in its pusher's, and in those of users who share the pushkey.

use super::{
    Held, OwnedPair, Pair, Result, Transaction,
    settle::{PairState, Pairs},
    writer::Bulk,
};
use crate::ids::log_id;
use crate::mark::MarkKey;
use crate::rules::{
    jobs::DEAD_AFTER,
    pushers::{Change, FinishSettings, Goal, Outcome, Pusher, PusherTask, goal, record, rivals},
};

/// Within this time, all workers know a new key of the marks, in seconds.
const NEW_KEY_KNOWN: i64 = 10;

/// What a pusher should carry that is set now.
#[derive(Debug)]
struct Current {
    /// The settings of the worker that started last.
    settings: Option<String>,
    /// The key of the marks.
    mark_key: Option<MarkKey>,
}

/// A job that has run.
#[derive(Debug)]
pub struct Finished {
    /// The job.
    pub held: Held,
    /// The pusher as the job read it.
    pub task: PusherTask,
    /// What became of the job.
    pub outcome: Outcome,
    /// The worker's settings.
    pub settings: FinishSettings,
}

/// What became of a job whose outcome was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// The outcome stands.
    Stands,
    /// The job runs again: what is wanted changed while it ran, or a refused phone reported again.
    Again,
    /// Another worker took the job over.
    Lost,
}

impl Bulk for Finished {
    type Value = Recorded;

    /// Records one outcome after the other in memory. Reads and writes are shared by all.
    async fn write_all(tx: &mut dyn Transaction, finished: &[&Self]) -> Result<Vec<Recorded>> {
        let now = tx.now();
        let current = Current {
            settings: tx.newest_settings(now - DEAD_AFTER).await?,
            mark_key: tx.mark_key().await?,
        };
        let keys: Vec<_> = finished
            .iter()
            .map(|job| Pair {
                app_id: job.task.app_id.as_str(),
                pushkey: job.task.pushkey.as_str(),
            })
            .collect();
        let beside = beside_deleted(tx, finished).await?;
        let all: Vec<_> = keys
            .iter()
            .copied()
            .chain(beside.iter().map(borrow))
            .collect();
        let mut pairs = Pairs::load(tx, &all).await?;
        let mut recorded = Vec::with_capacity(finished.len());
        for (job, key) in finished.iter().zip(&keys) {
            let place = pairs.get(*key).and_then(|state| {
                let at = state.pushers.iter().position(|p| p.id == job.task.id)?;
                Some((state, at))
            });
            recorded.push(match place {
                Some((state, at)) => job.finish(state, at, &current, now),
                None if tx.drop_job(job.task.id, &job.held.worker).await? => Recorded::Stands,
                None => Recorded::Lost,
            });
        }
        for job in finished.iter().filter(|job| job.may_have_deleted_others()) {
            let task = &job.task;
            let (app_id, pushkey) = (task.app_id.as_str(), task.pushkey.as_str());
            for pair in beside.iter().map(borrow) {
                if pair.pushkey == pushkey
                    && pair.app_id != app_id
                    && let Some(state) = pairs.get(pair)
                {
                    state.check_users(task.user_id.as_str(), now);
                }
            }
        }
        pairs.save(tx).await?;
        Ok(recorded)
    }
}

fn borrow((app_id, pushkey): &OwnedPair) -> Pair<'_> {
    Pair { app_id, pushkey }
}

/// The pairs whose pushers some homeservers have deleted together with those that these jobs deleted.
async fn beside_deleted(
    tx: &mut dyn Transaction,
    finished: &[&Finished],
) -> Result<Vec<OwnedPair>> {
    let deleted = finished.iter().filter(|job| job.may_have_deleted_others());
    let pushkeys: Vec<_> = deleted.map(|job| job.task.pushkey.as_str()).collect();
    if pushkeys.is_empty() {
        return Ok(Vec::new());
    }
    tx.pairs_with(&pushkeys).await
}

impl Finished {
    /// Applies the outcome.
    fn finish(&self, state: &mut PairState, at: usize, current: &Current, now: i64) -> Recorded {
        let pusher = &state.pushers[at];
        // The user to whom the job gave way may have gone while it ran, and had nobody to give the pusher back to.
        let stands = self.outcome != Outcome::Outdone
            || goal(&state.pushers, self.task.id, 0, self.settings.append, now)
                == Some(Goal::Outdone);
        let unchanged = pusher.generation == self.task.generation && stands;
        let job = pusher.job.as_ref();
        let ours = job.is_some_and(|job| job.is_held_by(&self.held.worker));
        let recalled = job.is_some_and(|job| job.recalled);
        let recorded = if ours {
            self.dispose(state, at, unchanged, recalled, now)
        } else {
            // Another worker assumed that we were dead, and may be working on this pusher right now. We do not know in
            // which order the homeserver sees the requests, so a job has to look once more.
            state.change(at, &Change::Check, now);
            Recorded::Lost
        };
        if self.outcome == Outcome::Registered {
            let settings = current.settings.as_deref();
            if settings.is_some_and(|settings| settings != self.settings.settings) {
                // A worker with newer settings started while this one ran.
                state.change(at, &Change::Renew, now);
            } else if current
                .mark_key
                .as_ref()
                .is_some_and(|key| key.name() != self.settings.mark_key)
            {
                // The key of the marks changed while the job ran. This worker may not know the new key yet.
                state.change(at, &Change::Renew, now);
                state.delay(at, now + NEW_KEY_KNOWN);
            }
        }
        if !self.settings.append {
            for (rival, change) in rivals(&state.pushers, at, &self.outcome) {
                if change == Change::Absent {
                    tell_takeover(&state.pushers[rival], &state.pushers[at]);
                }
                state.change(rival, &change, now);
            }
        }
        recorded
    }

    /// The job looked whether the homeserver holds its pusher, and then deleted by pushkey. In between, another worker may
    /// have set the pusher of another app with this pushkey.
    fn may_have_deleted_others(&self) -> bool {
        self.settings.one_per_pushkey && self.outcome == Outcome::Removed
    }

    fn dispose(
        &self,
        state: &mut PairState,
        at: usize,
        unchanged: bool,
        recalled: bool,
        now: i64,
    ) -> Recorded {
        let dead = matches!(self.outcome, Outcome::Dead { .. });
        let mut recorded = Recorded::Stands;
        match &self.outcome {
            Outcome::Retry {
                run_at,
                not_before,
                error,
                ..
            } if not_before.is_some() || unchanged => {
                state.change_job(at, |job| job.retry(*run_at, *not_before, error, now));
            }
            // What is wanted changed while the job ran, so the job has to run again whatever it did.
            _ if !unchanged => {
                recorded = Recorded::Again;
                state.change_job(at, |job| job.again(now));
            }
            // Our pusher may be there from an attempt whose response was lost, so delete it.
            Outcome::Outdone => state.change_job(at, |job| job.again(now)),
            // The phone reported during the attempt, which counts as the next report.
            Outcome::Dead { .. } if recalled => {
                recorded = Recorded::Again;
                state.change_job(at, |job| job.again(now));
            }
            Outcome::Dead { error } => state.change_job(at, |job| job.kill(error, now)),
            _ => state.delete_job(at),
        }
        let change = record(&self.outcome, &self.settings, now).filter(|_| unchanged);
        let change = match change {
            Some(_) if dead && recalled => Some(Change::Revive),
            change => change,
        };
        if let Some(change) = change {
            state.change(at, &change, now);
        }
        recorded
    }
}

/// This happens when a phone gets a new owner, and when somebody with a login has learnt the pushkey.
fn tell_takeover(former: &Pusher, pusher: &Pusher) {
    tracing::warn!(
        pushkey = %log_id(&pusher.pushkey),
        user = %pusher.user_id,
        former = %former.user_id,
        "another user has reported this pushkey and takes the pusher over"
    );
}
