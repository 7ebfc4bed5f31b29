//! The row of the outage gate, which all workers share.

use matrix2acrobits_shared::{
    flow::{GateView, Result},
    rules::gate::{Condition, SharedGate},
};
use sqlx::PgConnection;

use crate::errors::from_sqlx;

/// The row, and how many workers have had a heartbeat since a time.
pub(crate) async fn read(connection: &mut PgConnection, alive_since: i64) -> Result<GateView> {
    let row = sqlx::query!(
        r#"SELECT version,
               epoch,
               state,
               since_ms,
               next_try_ms,
               slot_ms,
               holder,
               gone,
               reason,
               (SELECT count(*)
                FROM workers
                WHERE last_seen > $1) AS "workers!"
           FROM outage_gate
           WHERE id = 1"#,
        alive_since
    )
    .fetch_one(connection)
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
    connection: &mut PgConnection,
    expected: i64,
    new: &SharedGate,
) -> Result<bool> {
    let done = sqlx::query!(
        "UPDATE outage_gate
         SET version = $1,
             epoch = $2,
             state = $3,
             since_ms = $4,
             next_try_ms = $5,
             slot_ms = $6,
             holder = $7,
             gone = $8,
             reason = $9
         WHERE id = 1
           AND version = $10",
        new.version,
        new.epoch,
        new.condition.as_str(),
        new.since_ms,
        new.next_try_ms,
        new.slot_ms,
        new.holder.as_deref(),
        new.gone,
        new.reason.as_deref(),
        expected
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected() > 0)
}
