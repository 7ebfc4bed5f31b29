//! Workers: apalis' table `Workers`, the states of their gates, and their settings.

use matrix2acrobits_shared::flow::{GateStatus, Heartbeat, Result, WorkerStatus};
use sqlx::{SqliteConnection, SqliteExecutor};

use super::Text;
use crate::errors::from_sqlx;

/// Registers a worker.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    worker: &str,
    now: i64,
) -> Result<()> {
    sqlx::query!(
        "INSERT INTO Workers (id, worker_type, storage_name, layers, last_seen, started_at)
         VALUES (?1, 'sync_pusher', 'SqliteStorage', '', ?2, ?2)
         -- Its row may be gone: another worker took it for dead while this machine slept.
         ON CONFLICT (id) DO UPDATE
         SET last_seen = excluded.last_seen",
        worker,
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Notes a worker's settings. Returns its place in the order in which workers started.
pub(crate) async fn insert_settings(
    connection: &mut SqliteConnection,
    started: Option<i64>,
    worker: &str,
    settings: &str,
) -> Result<i64> {
    let done = sqlx::query!(
        "INSERT INTO worker_settings (started, worker, settings)
         VALUES (?, ?, ?)
         ON CONFLICT DO NOTHING",
        started,
        worker,
        settings
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(started.unwrap_or_else(|| done.last_insert_rowid()))
}

/// The settings of the worker that started last, among those with a heartbeat since a time.
pub(crate) async fn newest_settings(
    connection: &mut SqliteConnection,
    since: i64,
) -> Result<Option<String>> {
    sqlx::query_scalar!(
        "SELECT s.settings
         FROM worker_settings s
         JOIN Workers w ON w.id = s.worker
         WHERE w.last_seen > ?
         ORDER BY s.started DESC
         LIMIT 1",
        since
    )
    .fetch_optional(connection)
    .await
    .map_err(from_sqlx)
}

/// Corrects workers that were last seen in the future, which happens when the clock is set back. Otherwise workers that
/// died before would count as alive until that time comes again.
pub(crate) async fn correct_last_seen(connection: &mut SqliteConnection, now: i64) -> Result<()> {
    sqlx::query!(
        "UPDATE Workers
         SET last_seen = ?1
         WHERE last_seen > ?1 + 2",
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Notes the state of a worker's gate, if it has changed.
pub(crate) async fn note_gate(
    connection: &mut SqliteConnection,
    heartbeat: &Heartbeat,
    now: i64,
) -> Result<()> {
    let worker = heartbeat.worker.as_ref();
    let (state, reason) = (
        heartbeat.gate.state.as_str(),
        heartbeat.gate.reason.as_deref(),
    );
    sqlx::query!(
        "INSERT INTO gates (worker, state, since, reason)
         VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (worker) DO UPDATE
         SET state = excluded.state,
             reason = excluded.reason,
             since = iif(state = excluded.state, since, excluded.since)
         WHERE state <> excluded.state
            OR reason IS NOT excluded.reason",
        worker,
        state,
        now,
        reason
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes a worker.
pub(crate) async fn delete(connection: &mut SqliteConnection, worker: &str) -> Result<()> {
    sqlx::query!(
        "DELETE FROM Workers
         WHERE id = ?",
        worker
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes workers that have had no heartbeat since a time and hold no jobs.
pub(crate) async fn delete_old(connection: &mut SqliteConnection, since: i64) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM Workers
         WHERE worker_type = 'sync_pusher'
           AND last_seen < ?
           AND NOT EXISTS (SELECT 1 FROM Jobs WHERE lock_by = Workers.id)",
        since
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected())
}

/// Up to `limit` workers, those that are alive first.
pub(crate) async fn list(
    executor: impl SqliteExecutor<'_>,
    now: i64,
    limit: u32,
) -> Result<Vec<WorkerStatus>> {
    let rows = sqlx::query!(
        r#"SELECT w.id AS "id: Text",
               w.last_seen,
               g.state AS "state?",
               g.since AS "since?",
               g.reason AS "reason?: Text"
           FROM Workers w
           LEFT JOIN gates g ON g.worker = w.id
           WHERE w.worker_type = 'sync_pusher'
           ORDER BY w.last_seen DESC, w.id
           LIMIT ?"#,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    let workers = rows.into_iter().map(|row| WorkerStatus {
        name: row.id.into(),
        silent: (now - row.last_seen).max(0),
        gate: row.state.zip(row.since).and_then(|(state, since)| {
            GateStatus::read(&state, (now - since).max(0), row.reason.map(String::from))
        }),
    });
    Ok(workers.collect())
}
