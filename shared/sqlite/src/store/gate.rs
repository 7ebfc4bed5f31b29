//! The row of the outage gate, which all workers share: read, and swapped against the version that was read.

use matrix2acrobits_shared::rules::gate::{Condition, SharedGate};

use super::{Store, StoreError};
use crate::queue::DEAD_AFTER;

/// The row, and how many workers live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateView {
    /// The row.
    pub row: SharedGate,
    /// Workers that have beaten lately.
    pub workers: usize,
}

impl Store {
    /// What all workers know together of the homeserver.
    pub async fn read_gate(&self) -> Result<GateView, StoreError> {
        let alive_since = self.clock.unix() - DEAD_AFTER;
        let row = sqlx::query!(
            r#"SELECT version, epoch, state, since_ms, next_try_ms, slot_ms, holder, gone AS "gone: bool", reason,
                   (SELECT count(*) FROM Workers WHERE last_seen > ?) AS "workers!: i64"
               FROM outage_gate WHERE id = 1"#,
            alive_since
        )
        .fetch_one(self.readers())
        .await?;
        Ok(GateView {
            workers: usize::try_from(row.workers).unwrap_or(1),
            row: SharedGate {
                version: row.version,
                epoch: row.epoch,
                // The table allows no other word.
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

    /// Writes the row if it still has the version `expected`, and returns it; none if another worker was first.
    pub async fn swap_gate(
        &self,
        expected: i64,
        new: SharedGate,
    ) -> Result<Option<SharedGate>, StoreError> {
        self.writer
            .write(move |connection| {
                let new = new.clone();
                Box::pin(async move {
                    let state = new.condition.as_str();
                    let swapped = sqlx::query!(
                        "UPDATE outage_gate
                         SET version = ?, epoch = ?, state = ?, since_ms = ?, next_try_ms = ?, slot_ms = ?,
                             holder = ?, gone = ?, reason = ?
                         WHERE id = 1 AND version = ?",
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
                    .await?;
                    Ok((swapped.rows_affected() > 0).then_some(new))
                })
            })
            .await
    }
}
