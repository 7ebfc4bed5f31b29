//! The worker's side of the queue: taking jobs, giving them back, and what becomes of those of a worker that died.

use std::sync::Arc;

use super::{
    GateReport, QueuedJob, Result, Transaction,
    settle::{PairState, Pairs},
};
use crate::rules::{
    jobs::{CHUNK, DEAD_AFTER, Job},
    pushers::Change,
};

/// A job that a worker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its name, a ULID.
    pub job_id: String,
    /// The worker that holds it.
    pub worker: Arc<str>,
    /// The row of `pushers` to bring about at the homeserver.
    pub pusher_id: i64,
    /// Attempts that ended in failure or with the worker.
    pub attempts: i64,
    /// Whether a worker has died with it: it may be the cause, and says when it begins.
    pub suspect: bool,
}

/// What a worker asks for.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Its name.
    pub worker: Arc<str>,
    /// Its settings.
    pub settings: String,
    /// How many jobs at most.
    pub limit: i64,
    /// Whether it takes a job that a worker died with. It takes one alone, so that the one that kills its worker
    /// is found without taking its neighbours along.
    pub suspect: bool,
}

/// What it gets.
#[derive(Debug, Clone, Default)]
pub struct Claimed {
    /// The jobs.
    pub jobs: Vec<Held>,
    /// How many could not be read and were given up.
    pub unreadable: usize,
    /// Whether a worker that started later has other settings: then this one takes no jobs.
    pub outdated: bool,
}

/// Takes jobs that are due.
pub async fn claim(tx: &mut dyn Transaction, claim: &Claim) -> Result<Claimed> {
    let now = tx.now();
    let newest = tx.newest_settings(now - DEAD_AFTER).await?;
    if newest.is_some_and(|newest| newest != claim.settings) {
        return Ok(Claimed {
            outdated: true,
            ..Claimed::default()
        });
    }
    let mut due = tx.due_jobs(claim.limit).await?;
    if claim.suspect {
        due.extend(tx.due_suspect().await?);
    }
    let (good, bad): (Vec<_>, Vec<_>) = due.into_iter().partition(|job| job.readable);
    let keys: Vec<_> = good.iter().map(|it| it.job.key).collect();
    if !keys.is_empty() {
        tx.hand_out(&keys, &claim.worker).await?;
    }
    let unreadable = bad.len();
    for job in bad {
        give_up(tx, job, now).await?;
    }
    let held = good.into_iter().filter_map(|job| {
        Some(Held {
            job_id: job.id,
            worker: claim.worker.clone(),
            pusher_id: job.pusher_id?,
            attempts: job.job.attempts,
            suspect: job.job.lost.is_some(),
        })
    });
    Ok(Claimed {
        jobs: held.collect(),
        unreadable,
        outdated: false,
    })
}

const UNREADABLE: &str = "the job cannot be read";

async fn give_up(tx: &mut dyn Transaction, bad: QueuedJob, now: i64) -> Result<()> {
    let mut pairs = Pairs::load_of(tx, bad.pusher_id.as_slice()).await?;
    if let Some((state, at)) = bad.pusher_id.and_then(|id| pairs.find(id)) {
        refuse(state, at, UNREADABLE, now);
        return pairs.save(tx).await;
    }
    // Nobody's, as far as can be told.
    let mut job = bad.job;
    job.kill(UNREADABLE, now);
    tx.update_jobs(&[&job]).await
}

fn refuse(state: &mut PairState, at: usize, error: &str, now: i64) {
    state.change_job(at, |job| job.kill(error, now));
    let error = error.to_owned();
    state.change(at, &Change::Refused { error }, now);
}

/// Makes a job whose pusher cannot be read a dead letter, and its pusher failed, or upkeep would revive it. False
/// when the lock was lost.
pub async fn kill_job(tx: &mut dyn Transaction, held: &Held, error: &str) -> Result<bool> {
    let now = tx.now();
    let mut pairs = Pairs::load_of(tx, &[held.pusher_id]).await?;
    let Some((state, at)) = pairs.find(held.pusher_id) else {
        if tx.pairs_of(&[held.pusher_id]).await?.is_empty() {
            return tx.drop_job(held.pusher_id, &held.worker).await;
        }
        // It is there, but what stands for its app id or pushkey is no text by which it can be found.
        let jobs = tx.jobs_of(&held.worker).await?;
        let job = jobs
            .into_iter()
            .find(|it| it.pusher_id == Some(held.pusher_id));
        let Some(mut job) = job.map(|it| it.job) else {
            return Ok(false);
        };
        job.kill(error, now);
        tx.update_jobs(&[&job]).await?;
        return Ok(true);
    };
    let ours = state.pushers[at]
        .job
        .as_ref()
        .is_some_and(|job| job.is_held_by(&held.worker));
    if ours {
        refuse(state, at, error, now);
        pairs.save(tx).await?;
    }
    Ok(ours)
}

/// Deletes a job whose pusher is gone. False when the lock was lost.
pub async fn drop_job(tx: &mut dyn Transaction, held: &Held) -> Result<bool> {
    tx.drop_job(held.pusher_id, &held.worker).await
}

/// Notes that a worker begins with a job that another one died with.
pub async fn begin(tx: &mut dyn Transaction, held: &Held) -> Result<()> {
    tx.begin_job(held.pusher_id, &held.worker).await
}

/// Makes a worker known under a name that no other has. Returns its place in the order in which workers started.
pub async fn register(tx: &mut dyn Transaction, worker: &str, settings: &str) -> Result<i64> {
    tx.insert_worker(worker, settings).await
}

/// What a worker says while it lives.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// Its name.
    pub worker: Arc<str>,
    /// Its place in the order in which workers started.
    pub started: i64,
    /// Its settings.
    pub settings: String,
    /// What its outage gate does.
    pub gate: GateReport,
}

/// Notes that a worker lives, and gives the jobs of dead workers back. Returns how many came back, and how many of
/// them were given up as the likely cause.
pub async fn beat(tx: &mut dyn Transaction, heartbeat: &Heartbeat) -> Result<(usize, usize)> {
    let now = tx.now();
    tx.beat(heartbeat).await?;
    let stranded = tx.stranded_jobs(now - DEAD_AFTER, CHUNK).await?;
    let mut killed = 0;
    let mut recovered: Vec<Job> = Vec::with_capacity(stranded.len());
    let recovers = stranded.len();
    for QueuedJob {
        pusher_id: pusher,
        mut job,
        ..
    } in stranded
    {
        if !job.recover(now) {
            recovered.push(job);
            continue;
        }
        killed += 1;
        let mut pairs = Pairs::load_of(tx, pusher.as_slice()).await?;
        match pusher.and_then(|id| pairs.find(id)) {
            Some((state, at)) => {
                let error = job.error.clone().unwrap_or_default();
                state.change_job(at, |stored| *stored = job);
                state.change(at, &Change::Refused { error }, now);
                pairs.save(tx).await?;
            }
            None => recovered.push(job),
        }
    }
    if !recovered.is_empty() {
        tx.update_jobs(&recovered.iter().collect::<Vec<_>>())
            .await?;
    }
    Ok((recovers, killed))
}

/// Gives everything back that a worker holds, when it stops. Returns how much.
pub async fn release(tx: &mut dyn Transaction, worker: &str) -> Result<usize> {
    let mut jobs = tx.jobs_of(worker).await?;
    for it in &mut jobs {
        it.job.release();
    }
    if !jobs.is_empty() {
        tx.update_jobs(&jobs.iter().map(|it| &it.job).collect::<Vec<_>>())
            .await?;
    }
    tx.delete_worker(worker).await?;
    Ok(jobs.len())
}
