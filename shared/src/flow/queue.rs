//! The worker's side of the queue: takes jobs, gives them back, and recovers the jobs of workers that died.

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
    /// The job's name, a ULID.
    pub job_id: String,
    /// The worker that holds the job.
    pub worker: Arc<str>,
    /// The row of `pushers` that the homeserver should match.
    pub pusher_id: i64,
    /// Attempts that failed or ended with the worker's death.
    pub attempts: i64,
    /// Whether a worker has died with this job. The job may be the cause, so the worker notes when it begins the job.
    pub suspect: bool,
}

/// What a worker asks for.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The worker's name.
    pub worker: Arc<str>,
    /// The worker's settings.
    pub settings: String,
    /// The most jobs to take.
    pub limit: i64,
    /// Whether the worker takes jobs that a worker died with. It takes only one of those that had begun, so that the job
    /// that kills its worker is found without blaming others.
    pub suspect: bool,
    /// Set after a claim whose result got lost: the pushers of the jobs that the worker knows it holds. All other jobs
    /// under its name go back to the queue. No one else would free them while the worker lives.
    pub knows: Option<Vec<i64>>,
}

/// What a worker gets.
#[derive(Debug, Clone, Default)]
pub struct Claimed {
    /// The jobs.
    pub jobs: Vec<Held>,
    /// How many jobs could not be read and were given up.
    pub unreadable: usize,
}

/// Takes due jobs.
pub async fn claim(tx: &mut dyn Transaction, claim: &Claim) -> Result<Claimed> {
    let now = tx.now();
    if let Some(known) = &claim.knows {
        let mut jobs = tx.jobs_of(&claim.worker).await?;
        jobs.retain(|job| job.pusher_id.is_none_or(|id| !known.contains(&id)));
        free(tx, jobs).await?;
    }
    if is_outdated(tx, &claim.settings).await? {
        return Ok(Claimed::default());
    }
    let mut due = tx.due_jobs(claim.limit).await?;
    if claim.suspect {
        let room = claim.limit - i64::try_from(due.len()).unwrap_or(claim.limit);
        let mut suspects = tx.due_suspects(room.max(1)).await?;
        // Those that nobody is known to have begun are noted when they begin. So they may run side by side: another death
        // is blamed on few of them, and from then on each of these runs alone.
        let not_begun = |queued: &&QueuedJob| queued.job.lost == Some(0);
        let together = suspects.iter().take_while(not_begun).count();
        suspects.truncate(together.max(1));
        due.extend(suspects);
    }
    let (good, bad): (Vec<_>, Vec<_>) = due.into_iter().partition(|job| job.readable);
    let keys: Vec<_> = good.iter().map(|job| job.job.key).collect();
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
    })
}

/// Whether a worker that started later than all with these settings lives, and has others.
pub(super) async fn is_outdated(tx: &mut dyn Transaction, settings: &str) -> Result<bool> {
    let alive_since = tx.now() - DEAD_AFTER;
    let newest = tx.newest_settings(alive_since).await?;
    Ok(newest.is_some_and(|newest| newest != settings))
}

const UNREADABLE: &str = "the job cannot be read";

async fn give_up(tx: &mut dyn Transaction, bad: QueuedJob, now: i64) -> Result<()> {
    let mut pairs = Pairs::load_of(tx, bad.pusher_id.as_slice()).await?;
    if let Some((state, at)) = bad.pusher_id.and_then(|id| pairs.find(id)) {
        refuse(state, at, UNREADABLE, now);
        return pairs.save(tx).await;
    }
    // No pusher can be found for this job.
    let mut job = bad.job;
    job.kill(UNREADABLE, now);
    tx.update_jobs(&[&job]).await
}

fn refuse(state: &mut PairState, at: usize, error: &str, now: i64) {
    state.change_job(at, |job| job.kill(error, now));
    let error = error.to_owned();
    state.change(at, &Change::Refused { error }, now);
}

/// Makes a dead letter of a job whose pusher cannot be read. The pusher becomes failed, because upkeep would otherwise
/// revive the job. False when the lock was lost.
pub async fn kill_job(tx: &mut dyn Transaction, held: &Held, error: &str) -> Result<bool> {
    let now = tx.now();
    let mut pairs = Pairs::load_of(tx, &[held.pusher_id]).await?;
    let Some((state, at)) = pairs.find(held.pusher_id) else {
        if tx.pairs_of(&[held.pusher_id]).await?.is_empty() {
            return tx.drop_job(held.pusher_id, &held.worker).await;
        }
        // The pusher exists, but its app id or pushkey is not valid text and so cannot be looked up.
        let jobs = tx.jobs_of(&held.worker).await?;
        let job = jobs
            .into_iter()
            .find(|queued| queued.pusher_id == Some(held.pusher_id));
        let Some(mut job) = job.map(|queued| queued.job) else {
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

/// What a worker reports regularly while it is alive.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// The worker's name.
    pub worker: Arc<str>,
    /// The worker's place in the order in which workers started.
    pub started: i64,
    /// The worker's settings.
    pub settings: String,
    /// The state of the worker's outage gate.
    pub gate: GateReport,
    /// Whether this heartbeat recovers the jobs of workers that died.
    pub recovers: bool,
}

/// What a heartbeat found of other workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Others {
    /// How many jobs of workers that died were taken over.
    pub recovered: usize,
    /// How many of them were given up as the likely cause.
    pub killed: usize,
    /// Whether a worker that started later has other settings. Then this worker gets no jobs.
    pub outdated: bool,
}

/// Notes that a worker is alive, and gives the jobs of dead workers back to the queue. Returns the pushers of those jobs
/// that are the likely cause as well, for [`give_up_suspects`].
pub async fn beat(tx: &mut dyn Transaction, heartbeat: &Heartbeat) -> Result<(Others, Vec<i64>)> {
    let now = tx.now();
    tx.beat(heartbeat).await?;
    let mut others = Others {
        outdated: is_outdated(tx, &heartbeat.settings).await?,
        ..Others::default()
    };
    let mut suspects = Vec::new();
    if !heartbeat.recovers {
        return Ok((others, suspects));
    }
    let mut recovered = Vec::new();
    for QueuedJob {
        pusher_id, mut job, ..
    } in tx.stranded_jobs(now - DEAD_AFTER, CHUNK).await?
    {
        let suspect = job.recover(now);
        match pusher_id.filter(|_| suspect) {
            Some(id) => suspects.push(id),
            None => recovered.push(job),
        }
    }
    update(tx, &recovered).await?;
    others.recovered = recovered.len();
    Ok((others, suspects))
}

/// Makes dead letters of the jobs that killed worker after worker, if their workers are still dead. This is a separate
/// transaction because it locks pairs, and a transaction that has locked jobs must not wait for pairs. Returns how
/// many.
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

/// Gives back all jobs of a worker that stops. Returns how many.
pub async fn release(tx: &mut dyn Transaction, worker: &str) -> Result<usize> {
    let jobs = tx.jobs_of(worker).await?;
    let released = free(tx, jobs).await?;
    tx.delete_worker(worker).await?;
    Ok(released)
}

async fn free(tx: &mut dyn Transaction, jobs: Vec<QueuedJob>) -> Result<usize> {
    let mut jobs: Vec<Job> = jobs.into_iter().map(|queued| queued.job).collect();
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
