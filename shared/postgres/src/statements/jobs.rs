//! The queue: `jobs`.
//!
//! Transactions that have locked a job's pair write its row, and so do workers that take, begin or drop the job without
//! that lock. So a transaction that will write a row from memory locks the row when it reads it. A transaction that
//! needs no particular row skips locked rows, and never waits while it holds some.
//!
//! Statements name their columns, because a statement that was prepared with `*` fails once the next release has added
//! a column.

use matrix2acrobits_shared::{
    flow::{QueuedJob, Result},
    rules::jobs::Job,
};
use sqlx::PgConnection;
use ulid::Ulid;

use super::JobRow;
use crate::errors::from_sqlx;

/// A job's name, which contains the time when it was made and its pusher.
pub(super) fn name(created_ms: i64, pusher_id: i64) -> String {
    let created = u64::try_from(created_ms).unwrap_or_default();
    let number = u128::try_from(pusher_id).unwrap_or_default();
    Ulid::from_parts(created, number).to_string()
}

/// The pusher of the job with this name. 0 if it is not a name.
pub(super) fn pusher_of(name: &str) -> i64 {
    let number = Ulid::from_string(name).map_or(0, |name| name.random());
    i64::try_from(number).unwrap_or_default()
}

/// Gives a job to each of these pushers, which have none. Each comes with the time when its job is due.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    pushers: &[(i64, i64)],
    now_ms: i64,
) -> Result<()> {
    let (ids, times): (Vec<i64>, Vec<i64>) = pushers.iter().copied().unzip();
    sqlx::query!(
        "INSERT INTO jobs (pusher_id, created_ms, state, run_at)
         SELECT i.pusher_id, $3, 'Pending', i.run_at
         FROM unnest($1::int8[], $2::int8[]) i (pusher_id, run_at)
         ON CONFLICT (pusher_id) DO NOTHING",
        &ids[..],
        &times[..],
        now_ms
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Writes all columns of jobs that can change.
pub(crate) async fn update(connection: &mut PgConnection, jobs: &[&Job]) -> Result<()> {
    let keys: Vec<_> = jobs.iter().map(|job| job.key).collect();
    let states: Vec<_> = jobs.iter().map(|job| job.status.as_str()).collect();
    let attempts: Vec<_> = jobs.iter().map(|job| job.attempts).collect();
    let run_at: Vec<_> = jobs.iter().map(|job| job.run_at).collect();
    let not_before: Vec<_> = jobs.iter().map(|job| job.not_before).collect();
    let lost: Vec<_> = jobs.iter().map(|job| job.lost).collect();
    let recalled: Vec<_> = jobs.iter().map(|job| job.recalled).collect();
    let lock_by: Vec<_> = jobs.iter().map(|job| job.lock_by.as_deref()).collect();
    let errors: Vec<_> = jobs.iter().map(|job| job.error.as_deref()).collect();
    let done_at: Vec<_> = jobs.iter().map(|job| job.done_at).collect();
    sqlx::query!(
        "UPDATE jobs t
         SET state = i.state,
             attempts = i.attempts,
             run_at = i.run_at,
             not_before = i.not_before,
             lost = i.lost,
             recalled = i.recalled,
             lock_by = i.lock_by,
             last_error = i.last_error,
             done_at = i.done_at
         FROM unnest($1::int8[], $2::text[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::bool[], $8::text[],
                  $9::text[], $10::int8[])
              i (pusher_id, state, attempts, run_at, not_before, lost, recalled, lock_by, last_error, done_at)
         WHERE t.pusher_id = i.pusher_id",
        &keys[..],
        &states as &[&str],
        &attempts[..],
        &run_at[..],
        &not_before as &[Option<i64>],
        &lost as &[Option<i64>],
        &recalled[..],
        &lock_by as &[Option<&str>],
        &errors as &[Option<&str>],
        &done_at as &[Option<i64>]
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes jobs.
pub(crate) async fn delete(connection: &mut PgConnection, keys: &[i64]) -> Result<()> {
    sqlx::query!(
        "DELETE FROM jobs
         WHERE pusher_id = ANY ($1)",
        keys
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The jobs of these pushers.
pub(crate) async fn of(connection: &mut PgConnection, pushers: &[i64]) -> Result<Vec<Job>> {
    let rows = sqlx::query_as!(
        JobRow,
        "SELECT pusher_id, state, attempts, run_at, not_before, lost, recalled, lock_by, last_error, done_at
         FROM jobs
         WHERE pusher_id = ANY ($1)",
        pushers
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(rows.into_iter().map(Job::from).collect())
}

/// The same, and locks them until the end of the transaction.
pub(crate) async fn lock(connection: &mut PgConnection, pushers: &[i64]) -> Result<Vec<Job>> {
    let rows = sqlx::query_as!(
        JobRow,
        "SELECT pusher_id, state, attempts, run_at, not_before, lost, recalled, lock_by, last_error, done_at
         FROM jobs
         WHERE pusher_id = ANY ($1)
         ORDER BY pusher_id
         FOR UPDATE",
        pushers
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(rows.into_iter().map(Job::from).collect())
}

/// Makes a [`QueuedJob`] of a row.
macro_rules! queued {
    ($row:expr) => {
        QueuedJob {
            id: name($row.created_ms, $row.pusher_id),
            pusher_id: Some($row.pusher_id),
            readable: true,
            job: Job::from(JobRow {
                pusher_id: $row.pusher_id,
                state: $row.state,
                attempts: $row.attempts,
                run_at: $row.run_at,
                not_before: $row.not_before,
                lost: $row.lost,
                recalled: $row.recalled,
                lock_by: $row.lock_by,
                last_error: $row.last_error,
                done_at: $row.done_at,
            }),
        }
    };
}

/// Up to `limit` due jobs that no worker died with.
pub(crate) async fn due(
    connection: &mut PgConnection,
    now: i64,
    limit: i64,
) -> Result<Vec<QueuedJob>> {
    let rows = sqlx::query!(
        "SELECT pusher_id, created_ms, state, attempts, run_at, not_before, lost, recalled, lock_by, last_error,
             done_at
         FROM jobs
         WHERE state IN ('Pending', 'Failed')
           AND lost IS NULL
           AND run_at <= $1
         ORDER BY run_at
         LIMIT $2
         FOR UPDATE SKIP LOCKED",
        now,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(rows.into_iter().map(|row| queued!(row)).collect())
}

/// Up to `limit` due jobs that a worker died with.
pub(crate) async fn due_suspects(
    connection: &mut PgConnection,
    now: i64,
    limit: i64,
) -> Result<Vec<QueuedJob>> {
    let rows = sqlx::query!(
        "SELECT pusher_id, created_ms, state, attempts, run_at, not_before, lost, recalled, lock_by, last_error,
             done_at
         FROM jobs
         WHERE state IN ('Pending', 'Failed')
           AND lost IS NOT NULL
           AND run_at <= $1
         ORDER BY run_at
         LIMIT $2
         FOR UPDATE SKIP LOCKED",
        now,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(rows.into_iter().map(|row| queued!(row)).collect())
}

/// Gives jobs to a worker.
pub(crate) async fn hand_out(
    connection: &mut PgConnection,
    keys: &[i64],
    worker: &str,
) -> Result<()> {
    sqlx::query!(
        "UPDATE jobs
         SET state = 'Queued',
             recalled = false,
             lock_by = $2
         WHERE pusher_id = ANY ($1)",
        keys,
        worker
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Notes that a worker begins a job that it holds.
pub(crate) async fn begin(
    connection: &mut PgConnection,
    pusher_id: i64,
    worker: &str,
) -> Result<()> {
    sqlx::query!(
        "UPDATE jobs
         SET state = 'Running'
         WHERE pusher_id = $1
           AND lock_by = $2",
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
    connection: &mut PgConnection,
    pusher_id: i64,
    worker: &str,
) -> Result<bool> {
    let done = sqlx::query!(
        "DELETE FROM jobs
         WHERE pusher_id = $1
           AND lock_by = $2",
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
    connection: &mut PgConnection,
    since: i64,
    limit: i64,
) -> Result<Vec<QueuedJob>> {
    let rows = sqlx::query!(
        "SELECT pusher_id, created_ms, state, attempts, run_at, not_before, lost, recalled, lock_by, last_error,
             done_at
         FROM jobs
         WHERE lock_by IS NOT NULL
           AND lock_by NOT IN (SELECT w.name FROM workers w WHERE w.last_seen > $1)
         LIMIT $2
         FOR UPDATE SKIP LOCKED",
        since,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(rows.into_iter().map(|row| queued!(row)).collect())
}

/// The jobs that a worker holds.
pub(crate) async fn held_by(connection: &mut PgConnection, worker: &str) -> Result<Vec<QueuedJob>> {
    let rows = sqlx::query!(
        "SELECT pusher_id, created_ms, state, attempts, run_at, not_before, lost, recalled, lock_by, last_error,
             done_at
         FROM jobs
         WHERE lock_by = $1
         ORDER BY pusher_id
         FOR UPDATE",
        worker
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(rows.into_iter().map(|row| queued!(row)).collect())
}

/// Up to `limit` jobs in backoff for which the homeserver did not ask to wait, in the order in which they are due.
pub(crate) async fn in_backoff(
    connection: &mut PgConnection,
    now: i64,
    until: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        "SELECT pusher_id
         FROM jobs
         WHERE state IN ('Pending', 'Failed')
           AND lost IS NULL
           AND run_at > $1
           AND coalesce(not_before, 0) < run_at
           AND coalesce(not_before, 0) <= $2
         ORDER BY run_at
         LIMIT $3",
        now,
        until,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Makes these jobs due if they are still in backoff: now, or at the time until which the homeserver asked to wait. Jobs
/// that somebody is writing are left for the next time.
pub(crate) async fn make_due(connection: &mut PgConnection, keys: &[i64], now: i64) -> Result<u64> {
    let done = sqlx::query!(
        "UPDATE jobs
         SET run_at = greatest($2, not_before)
         WHERE pusher_id = ANY (ARRAY(SELECT pusher_id
                                      FROM jobs
                                      WHERE pusher_id = ANY ($1)
                                        AND state IN ('Pending', 'Failed')
                                        AND lost IS NULL
                                        AND run_at > $2
                                        AND coalesce(not_before, 0) < run_at
                                      FOR UPDATE SKIP LOCKED))",
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
    connection: &mut PgConnection,
    soon: i64,
    longest: i64,
    asked: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT pusher_id AS "pusher_id!"
           FROM jobs
           WHERE state IN ('Pending', 'Failed')
             AND lost IS NULL
             AND run_at > $1
             AND (state = 'Pending' OR run_at > $2)
             AND (not_before IS NULL OR run_at > $3)
           UNION ALL
           SELECT pusher_id
           FROM jobs
           WHERE state IN ('Pending', 'Failed')
             AND lost IS NOT NULL
             AND run_at > $1
             AND (state = 'Pending' OR run_at > $2)
             AND (not_before IS NULL OR run_at > $3)
           LIMIT $4"#,
        soon,
        longest,
        asked,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Makes these jobs due now if they still wait. Jobs that somebody is writing are left for the next time.
pub(crate) async fn correct_waits(
    connection: &mut PgConnection,
    keys: &[i64],
    now: i64,
) -> Result<u64> {
    let done = sqlx::query!(
        "UPDATE jobs
         SET run_at = $2,
             not_before = NULL
         WHERE pusher_id = ANY (ARRAY(SELECT pusher_id
                                      FROM jobs
                                      WHERE pusher_id = ANY ($1)
                                        AND state IN ('Pending', 'Failed')
                                        AND run_at > $2
                                      FOR UPDATE SKIP LOCKED))",
        keys,
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected())
}

/// When the next waiting job is due.
pub(crate) async fn next_due(connection: &mut PgConnection) -> Result<Option<i64>> {
    sqlx::query_scalar!(
        "SELECT least((SELECT min(run_at)
                       FROM jobs
                       WHERE state IN ('Pending', 'Failed')
                         AND lost IS NULL),
                      (SELECT min(run_at)
                       FROM jobs
                       WHERE state IN ('Pending', 'Failed')
                         AND lost IS NOT NULL))"
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// The number of jobs by status.
pub(crate) async fn count(connection: &mut PgConnection) -> Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT CASE WHEN lock_by IS NULL THEN state ELSE 'Queued' END AS "state!", count(*) AS "count!"
           FROM jobs
           GROUP BY 1"#
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(rows.into_iter().map(|row| (row.state, row.count)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_which_job_and_when_it_was_made() {
        let name = name(1_800_000_000_123, 42);
        let ulid = Ulid::from_string(&name).unwrap();
        assert_eq!(ulid.timestamp_ms(), 1_800_000_000_123);
        assert_eq!(pusher_of(&name), 42);
        assert_eq!(pusher_of(""), 0);
    }
}
