//! The job queue: apalis' table `Jobs` in our database. A job carries a pusher's id alone.
//!
//! The schema and the worker runtime are apalis'. Enqueueing, fetching, heartbeats, the recovery of a dead
//! worker's jobs and the outcome are ours, for what we measured of apalis-sqlite 1.0: it enqueues by a statement
//! a job; its fetch reads every row in backoff; it stops heartbeats while jobs are buffered; a retry's `run_at` is not persisted; one
//! SQLITE_BUSY ends its backend; its recovery never gives up on a job that kills its worker.
//!
//! A job is Pending → Queued (held by a worker) → gone, or Failed (waiting for `run_at`), or Killed (dead
//! letter). Its idempotency key is the pusher's, so a pusher has at most one.

mod workers;

use std::{collections::HashSet, sync::Arc};

use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::store::{Store, StoreError, json};

pub use workers::{DEAD_AFTER, GateReport, GateState, HEARTBEAT, MAX_LOST};

/// The queue's name in `Jobs.job_type`.
pub const QUEUE: &str = "sync_pusher";
/// The longest that a job waits because the homeserver asked for it, in seconds.
pub const LONGEST_ASKED: i64 = 3600;
/// No job that is not in backoff is due later than this, in seconds; recovered jobs wait some.
const SOON: i64 = 15;
/// Rows that one housekeeping or replay transaction touches at most.
pub const CHUNK: i64 = 500;

/// The payload of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPusher {
    /// The row of `pushers` to bring about at the homeserver.
    pub pusher_id: i64,
}

/// A job that a worker holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// `Jobs.id`.
    pub job_id: String,
    /// The worker that holds it.
    pub worker: Arc<str>,
    /// Its payload as stored; may be unreadable.
    pub payload: Vec<u8>,
    /// Failed attempts so far.
    pub attempts: i64,
    /// Workers that died holding it.
    pub lost: i64,
}

fn key(pusher_id: i64) -> String {
    format!("pusher:{pusher_id}")
}

fn payload(pusher_id: i64) -> Result<String, StoreError> {
    serde_json::to_string(&SyncPusher { pusher_id })
        .map_err(|e| sqlx::Error::Encode(Box::new(e)).into())
}

/// Enqueues the jobs of these pushers, due now; does nothing for one that has a job already (its idempotency
/// key is unique).
///
/// It writes what apalis' own `push_tasks` writes (a test compares), but all in one statement: with a
/// statement each, a crowd of new phones waited for little else.
pub(crate) async fn enqueue_new(
    connection: &mut SqliteConnection,
    pusher_ids: &[i64],
    now: i64,
) -> Result<(), StoreError> {
    let jobs = pusher_ids
        .iter()
        .map(|&id| Ok((Ulid::generate().to_string(), payload(id)?, key(id))));
    let jobs = json(jobs.collect::<Result<Vec<_>, StoreError>>()?)?;
    sqlx::query!(
        "INSERT INTO Jobs (id, job, job_type, status, attempts, max_attempts, run_at, priority, metadata, idempotency_key)
         SELECT value ->> 0, CAST(value ->> 1 AS BLOB), ?2, 'Pending', 0, ?3, ?4, 0, '{}', value ->> 2
         FROM json_each(?1) WHERE true
         ON CONFLICT (job_type, idempotency_key) DO NOTHING",
        jobs,
        QUEUE,
        i32::MAX,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes sure that each of these pushers has a live job that runs now: one in backoff is brought forward, a
/// dead letter is revived, whatever its payload was. A job that runs at this moment sees the change when it
/// finishes (see `store::finish`).
pub(crate) async fn enqueue(
    connection: &mut SqliteConnection,
    pusher_ids: &[i64],
    now: i64,
) -> Result<(), StoreError> {
    if pusher_ids.is_empty() {
        return Ok(());
    }
    let jobs = pusher_ids.iter().map(|&id| Ok((key(id), payload(id)?)));
    let jobs = json(jobs.collect::<Result<Vec<_>, StoreError>>()?)?;
    sqlx::query!(
        "UPDATE Jobs SET job = CAST(i.value ->> 1 AS BLOB), attempts = iif(status = 'Killed', 0, attempts),
             run_at = min(run_at, max(?1, coalesce(json_extract(metadata, '$.not_before'), 0))),
             metadata = iif(status = 'Killed', NULL, metadata),
             status = iif(status = 'Killed', 'Pending', status), done_at = NULL, lock_by = NULL, lock_at = NULL
         FROM json_each(?3) i
         WHERE job_type = ?2 AND idempotency_key = i.value ->> 0 AND status IN ('Failed', 'Killed')",
        now,
        QUEUE,
        jobs
    )
    .execute(&mut *connection)
    .await?;
    enqueue_new(connection, pusher_ids, now).await
}

/// Deletes a pusher's job if it is a dead letter: nobody wants any more what it could not do.
pub(crate) async fn discard_dead_letter(
    connection: &mut SqliteConnection,
    pusher_id: i64,
) -> Result<(), StoreError> {
    let key = key(pusher_id);
    sqlx::query!(
        "DELETE FROM Jobs WHERE job_type = ? AND idempotency_key = ? AND status = 'Killed'",
        QUEUE,
        key
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What becomes of a job that a worker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disposal<'a> {
    /// Its work is done.
    Delete,
    /// The pusher has changed meanwhile: run again at once.
    Again,
    /// Run again at this time; if `strict`, nothing brings it forward.
    Retry {
        run_at: i64,
        error: &'a str,
        strict: bool,
    },
    /// Dead letter.
    Kill { error: &'a str },
}

/// Disposes of a held job. False when the lock was lost: another worker may hold the job now.
pub(crate) async fn dispose(
    connection: &mut SqliteConnection,
    held: &Held,
    disposal: &Disposal<'_>,
    now: i64,
) -> Result<bool, StoreError> {
    let (id, worker) = (held.job_id.as_str(), held.worker.as_ref());
    let done = match disposal {
        Disposal::Delete => {
            sqlx::query!("DELETE FROM Jobs WHERE id = ? AND lock_by = ?", id, worker).execute(connection).await?
        }
        Disposal::Again => {
            sqlx::query!(
                "UPDATE Jobs SET status = 'Pending', attempts = 0, run_at = ?, metadata = json_remove(metadata, '$.lost'),
                     lock_by = NULL, lock_at = NULL
                 WHERE id = ? AND lock_by = ?",
                now,
                id,
                worker
            )
            .execute(connection)
            .await?
        }
        Disposal::Retry { run_at, error, strict } => {
            let result = last_result(error);
            let not_before = strict.then_some(run_at);
            sqlx::query!(
                "UPDATE Jobs SET status = 'Failed', attempts = attempts + 1, run_at = ?1, last_result = ?2,
                     metadata = json_set(json_remove(iif(json_valid(metadata), metadata, '{}'), '$.lost'), '$.not_before', ?3),
                     lock_by = NULL, lock_at = NULL
                 WHERE id = ?4 AND lock_by = ?5",
                run_at,
                result,
                not_before,
                id,
                worker
            )
            .execute(connection)
            .await?
        }
        Disposal::Kill { error } => {
            let result = last_result(error);
            sqlx::query!(
                "UPDATE Jobs SET status = 'Killed', attempts = attempts + 1, done_at = ?, last_result = ?,
                     lock_by = NULL, lock_at = NULL
                 WHERE id = ? AND lock_by = ?",
                now,
                result,
                id,
                worker
            )
            .execute(connection)
            .await?
        }
    };
    Ok(done.rows_affected() > 0)
}

/// Deletes those of these jobs that `worker` still holds, and returns their ids.
pub(crate) async fn delete_held<'a>(
    connection: &mut SqliteConnection,
    worker: &str,
    jobs: impl Iterator<Item = &'a Held>,
) -> Result<HashSet<String>, StoreError> {
    let ids = json(jobs.map(|held| held.job_id.as_str()))?;
    let deleted = sqlx::query_scalar!(
        r#"DELETE FROM Jobs WHERE id IN (SELECT value FROM json_each(?)) AND lock_by = ? RETURNING id AS "id!""#,
        ids,
        worker
    )
    .fetch_all(connection)
    .await?;
    Ok(deleted.into_iter().collect())
}

/// The form in which apalis keeps an error, so that its tools can read the row.
fn last_result(error: &str) -> String {
    serde_json::json!({ "Err": error }).to_string()
}

/// How much waits, for metrics and the status of the worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct QueueState {
    /// Ready or waiting for their first attempt.
    pub pending: i64,
    /// Held by a worker.
    pub queued: i64,
    /// In backoff.
    pub failed: i64,
    /// Dead letters.
    pub killed: i64,
    /// Seconds that the oldest job that could run has waited.
    pub oldest_ready: i64,
}

impl Store {
    /// Takes up to `limit` jobs that are due for `worker`. Jobs that were in the hands of a worker when it
    /// died (`lost`) are taken only if `suspect` is set, and then one alone: so the one that kills its
    /// worker is found without taking its neighbours along.
    pub async fn fetch_jobs(
        &self,
        worker: Arc<str>,
        limit: i64,
        suspect: bool,
    ) -> Result<Vec<Held>, StoreError> {
        let now = self.clock.unix();
        let due = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM Jobs WHERE job_type = ? AND status IN ('Pending', 'Failed')
                   AND lock_by IS NULL AND run_at <= ?) AS "due: bool""#,
            QUEUE,
            now
        )
        .fetch_one(self.readers())
        .await?;
        if !due || limit == 0 {
            // Looking costs no write lock; taking does.
            return Ok(Vec::new());
        }
        self.writer
            .write(move |connection| {
                let worker = worker.clone();
                Box::pin(async move { fetch(connection, &worker, limit, suspect, now).await })
            })
            .await
    }

    /// When the next job that waits is due, in seconds since 1970; none when nothing waits.
    pub async fn next_due(&self) -> Result<Option<i64>, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT run_at FROM Jobs WHERE job_type = ? AND status IN ('Pending', 'Failed')
               AND lock_by IS NULL ORDER BY run_at LIMIT 1"#,
            QUEUE
        )
        .fetch_optional(self.readers())
        .await?)
    }

    /// Makes jobs in backoff due now, at most `limit` of them, but not before the homeserver asked for it.
    /// Returns how many, so that the caller repeats until none is left.
    pub async fn make_due(&self, limit: i64) -> Result<u64, StoreError> {
        let now = self.clock.unix();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let due = sqlx::query!(
                        "UPDATE Jobs SET run_at = ?1 WHERE rowid IN (
                             SELECT rowid FROM Jobs WHERE job_type = ?2 AND status IN ('Pending', 'Failed')
                                 AND lock_by IS NULL AND run_at > ?1
                                 AND coalesce(json_extract(metadata, '$.not_before'), 0) <= ?1 LIMIT ?3)",
                        now,
                        QUEUE,
                        limit
                    )
                    .execute(connection)
                    .await?;
                    Ok(due.rows_affected())
                })
            })
            .await
    }

    /// Puts right what a jump of the machine's clock did to waiting times. A job in backoff waits for at most
    /// `longest` seconds, or an hour where the homeserver asked for it; any other is due almost at once. What
    /// lies further ahead was reckoned by a clock that was wrong, and is due now. Returns how many.
    ///
    /// It does not need to know when and by how much the clock jumped, so it may run at any time, in any
    /// number of workers. After a jump ahead everything is due a little early, which the gate copes with.
    pub async fn correct_waits(&self, longest: i64) -> Result<u64, StoreError> {
        let now = self.clock.unix();
        self.writer
            .write(move |connection| {
                let (soon, longest, asked) = (now + SOON, now + longest, now + LONGEST_ASKED + SOON);
                Box::pin(async move {
                    let corrected = sqlx::query!(
                        "UPDATE Jobs SET run_at = ?1, metadata = json_remove(metadata, '$.not_before')
                         WHERE job_type = ?2 AND status IN ('Pending', 'Failed') AND lock_by IS NULL AND run_at > ?3
                             AND (status = 'Pending' OR run_at > ?4)
                             AND (json_extract(metadata, '$.not_before') IS NULL OR run_at > ?5)",
                        now,
                        QUEUE,
                        soon,
                        longest,
                        asked
                    )
                    .execute(connection)
                    .await?;
                    Ok(corrected.rows_affected())
                })
            })
            .await
    }

    /// Jobs by state, and the age of the oldest that could run.
    pub async fn queue_state(&self) -> Result<QueueState, StoreError> {
        let counts = sqlx::query!(
            r#"SELECT status, count(*) AS "count!" FROM Jobs WHERE job_type = ? GROUP BY status"#,
            QUEUE
        )
        .fetch_all(self.readers())
        .await?;
        let mut state = QueueState::default();
        for row in counts {
            match row.status.as_str() {
                "Pending" => state.pending = row.count,
                "Failed" => state.failed = row.count,
                "Killed" => state.killed = row.count,
                _ => state.queued += row.count,
            }
        }
        let waited = self
            .next_due()
            .await?
            .map_or(0, |due| self.clock.unix() - due);
        state.oldest_ready = waited.max(0);
        Ok(state)
    }
}

async fn fetch(
    connection: &mut SqliteConnection,
    worker: &str,
    limit: i64,
    suspect: bool,
    now: i64,
) -> Result<Vec<Held>, StoreError> {
    let rows = sqlx::query!(
        r#"UPDATE Jobs SET status = 'Queued', lock_by = ?1, lock_at = ?2 WHERE rowid IN (
               SELECT rowid FROM Jobs WHERE job_type = ?3 AND status IN ('Pending', 'Failed')
                   AND lock_by IS NULL AND run_at <= ?2
                   AND (metadata IS NULL OR coalesce(json_extract(metadata, '$.lost'), 0) = 0)
               ORDER BY run_at LIMIT ?4)
           RETURNING id AS "id!", job AS "job!", attempts AS "attempts!""#,
        worker,
        now,
        QUEUE,
        limit
    )
    .fetch_all(&mut *connection)
    .await?;
    let worker: Arc<str> = worker.into();
    let mut jobs: Vec<Held> = rows
        .into_iter()
        .map(|row| Held {
            job_id: row.id,
            worker: worker.clone(),
            payload: row.job,
            attempts: row.attempts,
            lost: 0,
        })
        .collect();
    if suspect {
        jobs.extend(fetch_suspect(connection, worker, now).await?);
    }
    Ok(jobs)
}

async fn fetch_suspect(
    connection: &mut SqliteConnection,
    worker: Arc<str>,
    now: i64,
) -> Result<Option<Held>, StoreError> {
    let name = worker.as_ref();
    let row = sqlx::query!(
        r#"UPDATE Jobs SET status = 'Queued', lock_by = ?1, lock_at = ?2 WHERE rowid = (
               SELECT rowid FROM Jobs INDEXED BY jobs_suspect WHERE job_type = ?3 AND status = 'Pending'
                   AND attempts > 0 AND lock_by IS NULL AND run_at <= ?2 AND json_extract(metadata, '$.lost') > 0
               ORDER BY run_at LIMIT 1)
           RETURNING id AS "id!", job AS "job!", attempts AS "attempts!",
               json_extract(metadata, '$.lost') AS "lost!: i64""#,
        name,
        now,
        QUEUE
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Held {
        job_id: row.id,
        worker,
        payload: row.job,
        attempts: row.attempts,
        lost: row.lost,
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use apalis_core::task::{Task, builder::TaskBuilder};
    use sqlx::{Column, Connection, Row, TypeInfo, ValueRef};

    use super::*;
    use crate::{url::DatabaseUrl, writer::Sharing};
    use matrix2acrobits_shared::clock::Clock;

    const NOW: i64 = 1_800_000_000;

    async fn connection(folder: &tempfile::TempDir) -> SqliteConnection {
        let path = folder.path().join("test.db");
        let url = format!("sqlite://{}", path.display());
        let database = url.parse::<DatabaseUrl>().unwrap();
        let sharing = Sharing::ahead(Duration::from_secs(5));
        let store = Store::open(&database, sharing, Clock::manual(NOW)).await;
        drop(store.unwrap());
        SqliteConnection::connect(&url).await.unwrap()
    }

    /// Columns with their types and bytes, but the id, which is chance, and the pusher's number.
    async fn jobs(connection: &mut SqliteConnection) -> Vec<Vec<(String, String, String)>> {
        let rows = sqlx::query("SELECT * FROM Jobs ORDER BY idempotency_key")
            .fetch_all(connection)
            .await
            .unwrap();
        let job = |row: &sqlx::sqlite::SqliteRow| {
            let columns = row.columns().iter().filter(|column| column.name() != "id");
            let column = |column: &sqlx::sqlite::SqliteColumn| {
                let raw = row.try_get_raw(column.ordinal()).unwrap();
                let of = raw.type_info().name().to_owned();
                let text = match of.as_str() {
                    "NULL" => String::new(),
                    "INTEGER" => row.get::<i64, _>(column.ordinal()).to_string(),
                    "BLOB" => String::from_utf8(row.get(column.ordinal())).unwrap(),
                    _ => row.get(column.ordinal()),
                };
                (column.name().to_owned(), of, text)
            };
            columns.map(column).collect()
        };
        rows.iter().map(job).collect()
    }

    #[tokio::test]
    async fn what_is_enqueued_is_what_apalis_would_enqueue() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut ours = connection(&ours).await;
        enqueue_new(&mut ours, &[7, 8], NOW).await.unwrap();
        enqueue_new(&mut ours, &[8], NOW + 5).await.unwrap();

        let mut theirs = connection(&theirs).await;
        let tasks = [7, 8].map(|id| {
            let task: Task<Vec<u8>> = TaskBuilder::new(payload(id).unwrap().into_bytes())
                .idempotency_key(key(id))
                .run_at_timestamp(NOW.try_into().unwrap())
                .max_attempts(i32::MAX as usize)
                .build();
            task
        });
        let pushed = apalis_sqlite::queries::push_tasks(&mut theirs, QUEUE, &tasks);
        pushed.await.unwrap();
        let jobs = (jobs(&mut ours).await, jobs(&mut theirs).await);
        assert_eq!(jobs.0.len(), 2);
        assert_eq!(jobs.0, jobs.1);
    }
}
