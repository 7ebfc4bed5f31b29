//! The queue: apalis' table `Jobs`, with our own columns.

use matrix2acrobits_shared::{
    flow::{QueuedJob, Result},
    rules::jobs::{Job, SyncPusher},
};
use serde::Deserialize;
use sqlx::{SqliteConnection, SqliteExecutor};
use ulid::Ulid;

use super::{from_json, json};
use crate::errors::from_sqlx;

/// Gives a job to each of these pushers, which have none. Each comes with the time when its job is due. This writes
/// what apalis' own `push_tasks` writes, plus the pusher's id, in one statement.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    pushers: &[(i64, i64)],
) -> Result<()> {
    let jobs = pushers.iter().map(|&(pusher_id, run_at)| {
        let payload = serde_json::json!(SyncPusher { pusher_id }).to_string();
        (Ulid::generate().to_string(), payload, run_at, pusher_id)
    });
    let jobs = json(jobs)?;
    sqlx::query!(
        "INSERT INTO Jobs (id, job, job_type, status, attempts, max_attempts, run_at, priority, metadata, pusher_id)
         SELECT value ->> 0, CAST(value ->> 1 AS BLOB), 'sync_pusher', 'Pending', 0, 2147483647, value ->> 2, 0, '{}',
             value ->> 3
         FROM jsonb_each(?1)
         -- An ON CONFLICT after a SELECT needs a WHERE, or it reads as a join's ON.
         WHERE true
         ON CONFLICT (pusher_id) DO NOTHING",
        jobs
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Writes all columns of jobs that can change.
pub(crate) async fn update(connection: &mut SqliteConnection, jobs: &[&Job]) -> Result<()> {
    let rows = json(jobs.iter().map(|job| {
        (
            job.key,
            job.status.as_str(),
            job.attempts,
            job.run_at,
            job.not_before,
            job.lost,
            i64::from(job.recalled),
            &job.lock_by,
            &job.error,
            job.done_at,
        )
    }))?;
    sqlx::query!(
        "UPDATE Jobs
         SET status = i.value ->> 1,
             attempts = i.value ->> 2,
             run_at = i.value ->> 3,
             not_before = i.value ->> 4,
             lost = i.value ->> 5,
             recalled = i.value ->> 6,
             lock_by = i.value ->> 7,
             lock_at = iif(i.value ->> 7 IS NULL, NULL, lock_at),
             -- The form in which apalis keeps an error, so that its tools can read the row.
             last_result = iif(i.value ->> 8 IS NULL, NULL, json_object('Err', i.value ->> 8)),
             done_at = i.value ->> 9,
             -- Nobody can run a job whose payload is spoilt, and its pusher is known.
             job = iif(i.value ->> 1 = 'Pending' AND typeof(pusher_id) = 'integer',
                       CAST(json_object('pusher_id', pusher_id) AS BLOB),
                       job)
         FROM jsonb_each(?) i
         WHERE Jobs.rowid = i.value ->> 0",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes jobs.
pub(crate) async fn delete(connection: &mut SqliteConnection, keys: &[i64]) -> Result<()> {
    let keys = json(keys)?;
    sqlx::query!(
        "DELETE FROM Jobs
         WHERE rowid IN (SELECT value FROM jsonb_each(?))",
        keys
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

#[derive(Deserialize)]
struct Row {
    id: String,
    pusher_id: Option<i64>,
    payload: String,
    job: Job,
}

/// A job is readable only if its column and its payload name the same pusher.
impl From<Row> for QueuedJob {
    fn from(row: Row) -> Self {
        let payload: Option<SyncPusher> = serde_json::from_str(&row.payload).ok();
        Self {
            readable: payload.is_some_and(|payload| Some(payload.pusher_id) == row.pusher_id),
            id: row.id,
            pusher_id: row.pusher_id,
            job: row.job,
        }
    }
}

/// These jobs, in the same order.
pub(crate) async fn read(
    connection: &mut SqliteConnection,
    keys: Vec<i64>,
) -> Result<Vec<QueuedJob>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let keys = json(keys)?;
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'id', CAST(j.id AS TEXT),
               -- apalis' table is not STRICT: anything may stand there.
               'pusher_id', iif(typeof(j.pusher_id) = 'integer', j.pusher_id, NULL),
               'payload', CAST(j.job AS TEXT),
               'job', json_object(
                   'key', j.rowid,
                   'status', CAST(j.status AS TEXT),
                   'attempts', CAST(j.attempts AS INTEGER),
                   'run_at', CAST(j.run_at AS INTEGER),
                   'not_before', CAST(j.not_before AS INTEGER),
                   'lost', CAST(j.lost AS INTEGER),
                   'recalled', iif(j.recalled, json('true'), json('false')),
                   'lock_by', CAST(j.lock_by AS TEXT),
                   'error', CAST(iif(json_valid(j.last_result), j.last_result ->> '$.Err', j.last_result) AS TEXT),
                   'done_at', CAST(j.done_at AS INTEGER))
           ) ORDER BY i.key) AS BLOB) AS "rows!: Vec<u8>"
           FROM jsonb_each(?) i
           CROSS JOIN Jobs j
           WHERE j.rowid = i.value"#,
        keys
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    let rows: Vec<Row> = from_json(&rows)?;
    Ok(rows.into_iter().map(QueuedJob::from).collect())
}

/// Up to `limit` due jobs that no worker died with.
pub(crate) async fn due(
    connection: &mut SqliteConnection,
    now: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    let keys = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(key) AS BLOB) AS "keys!: Vec<u8>"
           FROM (SELECT rowid AS key
                 FROM Jobs INDEXED BY jobs_due
                 WHERE job_type = 'sync_pusher'
                   AND status IN ('Pending', 'Failed')
                   AND lost IS NULL
                   AND run_at <= ?1
                 ORDER BY run_at
                 LIMIT ?2)"#,
        now,
        limit
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    from_json(&keys)
}

/// Up to `limit` due jobs that a worker died with.
pub(crate) async fn due_suspects(
    connection: &mut SqliteConnection,
    now: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT rowid AS "key!"
           FROM Jobs INDEXED BY jobs_suspect
           WHERE job_type = 'sync_pusher'
             AND status IN ('Pending', 'Failed')
             AND lost IS NOT NULL
             AND run_at <= ?1
           ORDER BY run_at
           LIMIT ?2"#,
        now,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Gives jobs to a worker.
pub(crate) async fn hand_out(
    connection: &mut SqliteConnection,
    keys: &[i64],
    worker: &str,
    now: i64,
) -> Result<()> {
    let keys = json(keys)?;
    sqlx::query!(
        "UPDATE Jobs
         SET status = 'Queued',
             recalled = 0,
             lock_by = ?2,
             lock_at = ?3
         WHERE rowid IN (SELECT value FROM jsonb_each(?1))",
        keys,
        worker,
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Notes that a worker begins a job that it holds.
pub(crate) async fn begin(
    connection: &mut SqliteConnection,
    pusher_id: i64,
    worker: &str,
) -> Result<()> {
    sqlx::query!(
        "UPDATE Jobs
         SET status = 'Running'
         WHERE pusher_id = ?
           AND lock_by = ?",
        pusher_id,
        worker
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes a job if the worker holds it.
pub(crate) async fn drop_held(
    connection: &mut SqliteConnection,
    pusher_id: i64,
    worker: &str,
) -> Result<bool> {
    let done = sqlx::query!(
        "DELETE FROM Jobs
         WHERE pusher_id = ?
           AND lock_by = ?",
        pusher_id,
        worker
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected() > 0)
}

/// Up to `limit` jobs of workers that have had no heartbeat since a time.
pub(crate) async fn stranded(
    connection: &mut SqliteConnection,
    since: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT rowid AS "key!"
           FROM Jobs INDEXED BY jobs_held
           WHERE lock_by IS NOT NULL
             AND job_type = 'sync_pusher'
             AND lock_by NOT IN (SELECT id FROM Workers WHERE last_seen > ?1)
           LIMIT ?2"#,
        since,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// The jobs that a worker holds.
pub(crate) async fn held_by(connection: &mut SqliteConnection, worker: &str) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT rowid AS "key!"
           FROM Jobs
           WHERE lock_by = ?"#,
        worker
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Up to `limit` jobs in backoff that can be brought forward to a time until `until`, in the order in which they are due.
pub(crate) async fn in_backoff(
    executor: impl SqliteExecutor<'_>,
    now: i64,
    until: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    let keys = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(key) AS BLOB) AS "keys!: Vec<u8>"
           FROM (SELECT rowid AS key
                 FROM Jobs INDEXED BY jobs_due
                 WHERE job_type = 'sync_pusher'
                   AND status IN ('Pending', 'Failed')
                   AND lost IS NULL
                   AND run_at > ?1
                   AND coalesce(not_before, 0) < run_at
                   AND coalesce(not_before, 0) <= ?2
                 ORDER BY run_at
                 LIMIT ?3)"#,
        now,
        until,
        limit
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    from_json(&keys)
}

/// Makes these jobs due if they are still in backoff: now, or at the time until which the homeserver asked to wait.
pub(crate) async fn make_due(
    connection: &mut SqliteConnection,
    keys: &[i64],
    now: i64,
) -> Result<u64> {
    let keys = json(keys)?;
    let done = sqlx::query!(
        "UPDATE Jobs
         SET run_at = max(?2, coalesce(not_before, 0))
         WHERE rowid IN (SELECT value FROM jsonb_each(?1))
           AND status IN ('Pending', 'Failed')
           AND lost IS NULL
           AND run_at > max(?2, coalesce(not_before, 0))",
        keys,
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected())
}

/// Up to `limit` jobs that wait for a time that none of our rules can have set: later than `soon` without backoff,
/// later than `longest` in backoff, or later than `asked` at the homeserver's request.
pub(crate) async fn wait_too_long(
    executor: impl SqliteExecutor<'_>,
    soon: i64,
    longest: i64,
    asked: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT rowid AS "key!"
           FROM Jobs INDEXED BY jobs_due
           WHERE job_type = 'sync_pusher'
             AND status IN ('Pending', 'Failed')
             AND lost IS NULL
             AND run_at > ?1
             AND (status = 'Pending' OR run_at > ?2)
             AND (not_before IS NULL OR run_at > ?3)
           UNION ALL
           SELECT rowid
           FROM Jobs INDEXED BY jobs_suspect
           WHERE job_type = 'sync_pusher'
             AND status IN ('Pending', 'Failed')
             AND lost IS NOT NULL
             AND run_at > ?1
             AND (status = 'Pending' OR run_at > ?2)
             AND (not_before IS NULL OR run_at > ?3)
           LIMIT ?4"#,
        soon,
        longest,
        asked,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)
}

/// Makes these jobs due now if they still wait.
pub(crate) async fn correct_waits(
    connection: &mut SqliteConnection,
    keys: &[i64],
    now: i64,
) -> Result<u64> {
    let keys = json(keys)?;
    let done = sqlx::query!(
        "UPDATE Jobs
         SET run_at = ?2,
             not_before = NULL
         WHERE rowid IN (SELECT value FROM jsonb_each(?1))
           AND status IN ('Pending', 'Failed')
           AND run_at > ?2",
        keys,
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected())
}

/// When the next waiting job is due.
pub(crate) async fn next_due(executor: impl SqliteExecutor<'_>) -> Result<Option<i64>> {
    sqlx::query_scalar!(
        r#"SELECT CAST(min(run_at) AS INTEGER) AS "run_at: i64"
           -- What is no number sorts behind the largest one.
           FROM (SELECT min(run_at) AS run_at
                 FROM Jobs
                 WHERE job_type = 'sync_pusher'
                   AND status IN ('Pending', 'Failed')
                   AND lost IS NULL
                   AND run_at < 9223372036854775807
                 UNION ALL
                 SELECT min(run_at)
                 FROM Jobs
                 WHERE job_type = 'sync_pusher'
                   AND status IN ('Pending', 'Failed')
                   AND lost IS NOT NULL
                   AND run_at < 9223372036854775807)"#
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)
}

/// The number of jobs by status.
pub(crate) async fn count(executor: impl SqliteExecutor<'_>) -> Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT status AS "status!: String", count(*) AS "count!: i64"
           FROM Jobs
           WHERE job_type = 'sync_pusher'
             AND status IN ('Pending', 'Failed')
             AND lost IS NULL
           GROUP BY status
           UNION ALL
           SELECT status, count(*)
           FROM Jobs
           WHERE job_type = 'sync_pusher'
             AND status IN ('Pending', 'Failed')
             AND lost IS NOT NULL
           GROUP BY status
           UNION ALL
           SELECT 'Queued', count(*)
           FROM Jobs
           WHERE lock_by IS NOT NULL
           UNION ALL
           SELECT 'Killed', count(*)
           FROM Jobs
           WHERE status = 'Killed'"#
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    Ok(rows
        .into_iter()
        .map(|row| (row.status, row.count))
        .collect())
}
