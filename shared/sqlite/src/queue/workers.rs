//! Workers as the queue knows them: who lives, and what becomes of the jobs of those that died.

use std::{sync::Arc, time::Duration};

use sqlx::SqliteConnection;

use super::{QUEUE, last_result};
use crate::store::{Store, StoreError};

/// How often a worker says that it lives; well within [`DEAD_AFTER`].
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// A worker that has not beaten for this long is dead and its jobs go to others, in seconds.
pub const DEAD_AFTER: i64 = 10;
/// A job that was held by this many workers when they died is the likely cause: dead letter.
pub const MAX_LOST: i64 = 5;

/// Whether a worker's outage gate lets jobs through to the homeserver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GateState {
    /// Nothing has been tried yet.
    #[default]
    Untried,
    /// The homeserver worked when it was last asked.
    Open,
    /// It did not; jobs wait.
    Shut,
}

impl GateState {
    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Untried => "untried",
            Self::Open => "open",
            Self::Shut => "shut",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        [Self::Untried, Self::Open, Self::Shut]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// What a worker says of its outage gate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateReport {
    /// Whether jobs pass.
    pub state: GateState,
    /// Why none do, for people.
    pub reason: Option<String>,
}

impl Store {
    /// Registers a worker under a name that no other has.
    pub async fn register_worker(&self, worker: Arc<str>) -> Result<(), StoreError> {
        let now = self.clock.unix();
        self.writer
            .write(move |connection| {
                let worker = worker.clone();
                Box::pin(async move {
                    let worker = worker.as_ref();
                    sqlx::query!(
                        "INSERT INTO Workers (id, worker_type, storage_name, layers, last_seen, started_at)
                         VALUES (?1, ?2, 'SqliteStorage', '', ?3, ?3)",
                        worker,
                        QUEUE,
                        now
                    )
                    .execute(connection)
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    /// Says that `worker` lives and what its gate does, and gives the jobs of dead workers back. Returns how
    /// many.
    pub async fn heartbeat(&self, worker: Arc<str>, gate: GateReport) -> Result<u64, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (worker, gate, now) = (worker.clone(), gate.clone(), clock.unix());
                Box::pin(async move {
                    let recovered = beat(connection, &worker, now).await?;
                    note_gate(connection, &worker, &gate, now).await?;
                    Ok(recovered)
                })
            })
            .await
    }

    /// Gives everything back that `worker` holds, when it stops: nothing was lost, so nothing counts.
    pub async fn release_worker(&self, worker: Arc<str>) -> Result<u64, StoreError> {
        self.writer
            .write(move |connection| {
                let worker = worker.clone();
                Box::pin(async move {
                    let worker = worker.as_ref();
                    let released = sqlx::query!(
                        "UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL
                         WHERE lock_by = ? AND status IN ('Queued', 'Running')",
                        worker
                    )
                    .execute(&mut *connection)
                    .await?;
                    sqlx::query!("UPDATE Jobs SET lock_by = NULL WHERE lock_by = ?", worker)
                        .execute(&mut *connection)
                        .await?;
                    sqlx::query!("DELETE FROM Workers WHERE id = ?", worker)
                        .execute(connection)
                        .await?;
                    Ok(released.rows_affected())
                })
            })
            .await
    }
}

/// Writes only what has changed. With every heartbeat, so that neither a failed write nor a worker's row that
/// was gone for a while leaves an old word standing.
async fn note_gate(
    connection: &mut SqliteConnection,
    worker: &str,
    gate: &GateReport,
    now: i64,
) -> Result<(), StoreError> {
    let (state, reason) = (gate.state.as_str(), gate.reason.as_deref());
    sqlx::query!(
        "INSERT INTO gates (worker, state, since, reason) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (worker) DO UPDATE SET state = excluded.state, reason = excluded.reason,
             since = iif(state = excluded.state, since, excluded.since)
         WHERE state <> excluded.state OR reason IS NOT excluded.reason",
        worker,
        state,
        now,
        reason
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn beat(
    connection: &mut SqliteConnection,
    worker: &str,
    now: i64,
) -> Result<u64, StoreError> {
    // The row may be gone: another worker took us for dead while this machine slept.
    sqlx::query!(
        "INSERT INTO Workers (id, worker_type, storage_name, layers, last_seen, started_at)
         VALUES (?1, ?2, 'SqliteStorage', '', ?3, ?3)
         ON CONFLICT (id) DO UPDATE SET last_seen = excluded.last_seen",
        worker,
        QUEUE,
        now
    )
    .execute(&mut *connection)
    .await?;
    // A last_seen in the future is from before the clock was set back: without this, whoever died then
    // would count as alive until that hour comes again.
    sqlx::query!(
        "UPDATE Workers SET last_seen = ?1 WHERE last_seen > ?1 + 2",
        now
    )
    .execute(&mut *connection)
    .await?;
    let dead_since = now - DEAD_AFTER;
    let error = last_result("the worker that held this job died");
    // The more workers a job has seen die, the longer it waits, so that its neighbours come first.
    let recovered = sqlx::query!(
        "UPDATE Jobs SET
             status = iif(coalesce(json_extract(metadata, '$.lost'), 0) + 1 >= ?1, 'Killed', 'Pending'),
             done_at = iif(coalesce(json_extract(metadata, '$.lost'), 0) + 1 >= ?1, ?2, NULL),
             run_at = ?2 + 2 * coalesce(json_extract(metadata, '$.lost'), 0),
             metadata = json_set(iif(json_valid(metadata), metadata, '{}'), '$.lost',
                                 coalesce(json_extract(metadata, '$.lost'), 0) + 1),
             attempts = attempts + 1, last_result = ?3, lock_by = NULL, lock_at = NULL
         WHERE job_type = ?4 AND status IN ('Queued', 'Running')
             AND lock_by NOT IN (SELECT id FROM Workers WHERE last_seen > ?5)",
        MAX_LOST,
        now,
        error,
        QUEUE,
        dead_since
    )
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if recovered > 0 {
        let killed = sqlx::query!(
            "UPDATE pushers SET state = 'failed', last_error = 'its job killed its worker again and again', updated_at = ?
             WHERE state <> 'failed' AND EXISTS (SELECT 1 FROM Jobs
                 WHERE Jobs.job_type = ? AND Jobs.status = 'Killed' AND Jobs.done_at = ?
                     AND Jobs.idempotency_key = 'pusher:' || pushers.id)",
            now,
            QUEUE,
            now
        )
        .execute(connection)
        .await?
        .rows_affected();
        if killed > 0 {
            tracing::warn!(
                reason = "worker_died",
                killed,
                "dead letters: these jobs killed their worker again and again"
            );
        }
    }
    Ok(recovered)
}
