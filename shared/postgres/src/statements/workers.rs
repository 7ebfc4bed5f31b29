//! Workers: their last heartbeats, settings, and the states of their gates.

use matrix2acrobits_shared::flow::{GateStatus, Heartbeat, Result, WorkerStatus};
use sqlx::PgConnection;

use crate::errors::from_sqlx;

/// Registers a worker, even if an earlier commit without a response has registered it. Returns its place in the order
/// in which workers started.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    worker: &str,
    settings: &str,
    now: i64,
) -> Result<i64> {
    sqlx::query_scalar!(
        r#"INSERT INTO workers (name, settings, last_seen)
           VALUES ($1, $2, $3)
           ON CONFLICT (name) DO UPDATE
           SET last_seen = excluded.last_seen
           RETURNING started AS "started!""#,
        worker,
        settings,
        now
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// Notes that a worker is alive, and the state of its gate.
pub(crate) async fn beat(
    connection: &mut PgConnection,
    heartbeat: &Heartbeat,
    now: i64,
) -> Result<()> {
    sqlx::query!(
        "INSERT INTO workers AS w (name, started, settings, last_seen, gate, gate_since, gate_reason)
         VALUES ($1, $2, $3, $4, $5, $4, $6)
         -- Its row may be gone: another worker took it for dead while this machine slept.
         ON CONFLICT (name) DO UPDATE
         SET last_seen = excluded.last_seen,
             gate = excluded.gate,
             gate_since = CASE WHEN w.gate = excluded.gate THEN w.gate_since ELSE excluded.gate_since END,
             gate_reason = excluded.gate_reason",
        heartbeat.worker.as_ref(),
        heartbeat.started,
        heartbeat.settings,
        now,
        heartbeat.gate.state.as_str(),
        heartbeat.gate.reason.as_deref()
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Corrects workers that were last seen in the future, which happens when the clock is set back. Otherwise workers that
/// died before would count as alive until that time comes again.
pub(crate) async fn correct_last_seen(connection: &mut PgConnection, now: i64) -> Result<()> {
    sqlx::query!(
        "UPDATE workers
         SET last_seen = $1::int8
         WHERE name = ANY (ARRAY(SELECT name
                                 FROM workers
                                 WHERE last_seen > $1::int8 + 2
                                 FOR UPDATE SKIP LOCKED))",
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The settings of the worker that started last, among those with a heartbeat since a time.
pub(crate) async fn newest_settings(
    connection: &mut PgConnection,
    since: i64,
) -> Result<Option<String>> {
    sqlx::query_scalar!(
        "SELECT settings
         FROM workers
         WHERE last_seen > $1
         ORDER BY started DESC
         LIMIT 1",
        since
    )
    .fetch_optional(connection)
    .await
    .map_err(from_sqlx)
}

/// Deletes a worker.
pub(crate) async fn delete(connection: &mut PgConnection, worker: &str) -> Result<()> {
    sqlx::query!(
        "DELETE FROM workers
         WHERE name = $1",
        worker
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes workers that have had no heartbeat since a time and hold no jobs.
pub(crate) async fn delete_old(connection: &mut PgConnection, since: i64) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM workers w
         WHERE w.last_seen < $1
           AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.lock_by = w.name)",
        since
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected())
}

/// Up to `limit` workers, those that are alive first.
pub(crate) async fn list(
    connection: &mut PgConnection,
    now: i64,
    limit: u32,
) -> Result<Vec<WorkerStatus>> {
    let rows = sqlx::query!(
        "SELECT name, last_seen, gate, gate_since, gate_reason
         FROM workers
         ORDER BY last_seen DESC, name
         LIMIT $1",
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let workers = rows.into_iter().map(|row| WorkerStatus {
        name: row.name,
        silent: (now - row.last_seen).max(0),
        gate: row.gate.zip(row.gate_since).and_then(|(gate, since)| {
            GateStatus::read(&gate, (now - since).max(0), row.gate_reason)
        }),
    });
    Ok(workers.collect())
}
