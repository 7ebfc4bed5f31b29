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
    /// The pushers of the jobs that it knows it holds, where an earlier claim was not answered: what else stands under
    /// its name goes back to the queue. As long as it lives nobody else would free it.
    pub knows: Option<Vec<i64>>,
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
    if let Some(known) = &claim.knows {
        let mut jobs = tx.jobs_of(&claim.worker).await?;
        jobs.retain(|job| job.pusher_id.is_none_or(|id| !known.contains(&id)));
        free(tx, jobs).await?;
    }
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
    /// Whether it frees the jobs of workers that died.
    pub recovers: bool,
}

/// What a heartbeat found of workers that died.
#[derive(Debug, Clone, Default)]
pub struct Stranded {
    /// How many of their jobs went back to the queue.
    pub recovered: usize,
    /// The pushers of those that are the likely cause, for [`give_up_suspects`].
    pub suspects: Vec<i64>,
}

/// Notes that a worker lives, and gives the jobs of dead workers back.
pub async fn beat(tx: &mut dyn Transaction, heartbeat: &Heartbeat) -> Result<Stranded> {
    let now = tx.now();
    tx.beat(heartbeat).await?;
    let mut found = Stranded::default();
    if !heartbeat.recovers {
        return Ok(found);
    }
    let mut recovered = Vec::new();
    for QueuedJob {
        pusher_id, mut job, ..
    } in tx.stranded_jobs(now - DEAD_AFTER, CHUNK).await?
    {
        let suspect = job.recover(now);
        match pusher_id.filter(|_| suspect) {
            Some(id) => found.suspects.push(id),
            None => recovered.push(job),
        }
    }
    update(tx, &recovered).await?;
    found.recovered = recovered.len();
    Ok(found)
}

/// Makes dead letters of the jobs that killed worker after worker, if their workers are dead still. A transaction of its
/// own: it locks pairs, and whoever holds jobs must not wait for pairs. Returns how many.
pub async fn give_up_suspects(tx: &mut dyn Transaction, suspects: &[i64]) -> Result<usize> {
    let now = tx.now();
    let mut pairs = Pairs::load_of(tx, suspects).await?;
    let (mut killed, mut of_nobody) = (0, Vec::new());
    for QueuedJob {
        pusher_id, mut job, ..
    } in tx.stranded_jobs(now - DEAD_AFTER, CHUNK).await?
    {
        let Some(id) = pusher_id.filter(|id| suspects.contains(id)) else {
            continue;
        };
        if !job.recover(now) {
            continue;
        }
        killed += 1;
        match pairs.find(id) {
            Some((state, at)) => {
                let error = job.error.clone().unwrap_or_default();
                state.change_job(at, |stored| *stored = job);
                state.change(at, &Change::Refused { error }, now);
            }
            None => of_nobody.push(job),
        }
    }
    pairs.save(tx).await?;
    update(tx, &of_nobody).await?;
    Ok(killed)
}

/// Gives everything back that a worker holds, when it stops. Returns how much.
pub async fn release(tx: &mut dyn Transaction, worker: &str) -> Result<usize> {
    let jobs = tx.jobs_of(worker).await?;
    let released = free(tx, jobs).await?;
    tx.delete_worker(worker).await?;
    Ok(released)
}

async fn free(tx: &mut dyn Transaction, jobs: Vec<QueuedJob>) -> Result<usize> {
    let mut jobs: Vec<Job> = jobs.into_iter().map(|it| it.job).collect();
    jobs.iter_mut().for_each(Job::release);
    update(tx, &jobs).await?;
    Ok(jobs.len())
}

async fn update(tx: &mut dyn Transaction, jobs: &[Job]) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    tx.update_jobs(&jobs.iter().collect::<Vec<_>>()).await
}
