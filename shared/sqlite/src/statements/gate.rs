//! The row of the outage gate, which all workers share.

use matrix2acrobits_shared::{
    flow::{GateView, Result},
    rules::gate::{Condition, SharedGate},
};
use sqlx::{SqliteConnection, SqliteExecutor};

use crate::errors::from_sqlx;

/// The row, and how many workers have had a heartbeat since a time.
pub(crate) async fn read(executor: impl SqliteExecutor<'_>, alive_since: i64) -> Result<GateView> {
    let row = sqlx::query!(
        r#"SELECT version,
               epoch,
               state,
               since_ms,
               next_try_ms,
               slot_ms,
               holder,
               gone AS "gone: bool",
               reason,
               (SELECT count(*)
                FROM Workers
                WHERE last_seen > ?) AS "workers!: i64"
           FROM outage_gate
           WHERE id = 1"#,
        alive_since
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    Ok(GateView {
        workers: usize::try_from(row.workers).unwrap_or(1),
        row: SharedGate {
            version: row.version,
            epoch: row.epoch,
            // The table allows no other words.
            condition: Condition::parse(&row.state).unwrap_or(Condition::Open),
            since_ms: row.since_ms,
            next_try_ms: row.next_try_ms,
            slot_ms: row.slot_ms,
            holder: row.holder,
            gone: row.gone,
            reason: row.reason,
        },
    })
}

/// Writes the row if it still has this version. False if another worker was first.
pub(crate) async fn swap(
    connection: &mut SqliteConnection,
    expected: i64,
    new: &SharedGate,
) -> Result<bool> {
    let state = new.condition.as_str();
    let done = sqlx::query!(
        "UPDATE outage_gate
         SET version = ?,
             epoch = ?,
             state = ?,
             since_ms = ?,
             next_try_ms = ?,
             slot_ms = ?,
             holder = ?,
             gone = ?,
             reason = ?
         WHERE id = 1
           AND version = ?",
        new.version,
        new.epoch,
        state,
        new.since_ms,
        new.next_try_ms,
        new.slot_ms,
        new.holder,
        new.gone,
        new.reason,
        expected
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected() > 0)
}
