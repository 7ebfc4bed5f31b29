//! What the status page shows beyond counts: workers and dead letters.

use super::{Store, StoreError};
use crate::queue::{DEAD_AFTER, GateState, QUEUE};

/// A worker that runs, or was gone only lately.
#[derive(Debug, Clone)]
pub struct WorkerStatus {
    /// Its name.
    pub name: String,
    /// Seconds since its last heartbeat.
    pub silent: i64,
    /// What it last said of the homeserver; none before its first heartbeat.
    pub gate: Option<GateStatus>,
}

impl WorkerStatus {
    /// Whether it counts as running; if not, its jobs go to others.
    pub fn is_alive(&self) -> bool {
        self.silent < DEAD_AFTER
    }
}

/// A worker's outage gate.
#[derive(Debug, Clone)]
pub struct GateStatus {
    /// Whether jobs pass.
    pub state: GateState,
    /// For how many seconds it has been so.
    pub seconds: i64,
    /// Why it is shut, for people.
    pub reason: Option<String>,
}

/// A job that was given up, and its pusher.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The user, unless the pusher is gone.
    pub user_id: Option<String>,
    /// The app.
    pub app_id: Option<String>,
    /// The token.
    pub pushkey: Option<String>,
    /// Failed attempts.
    pub attempts: i64,
    /// Why it was given up.
    pub reason: Option<String>,
    /// How many seconds ago.
    pub seconds: Option<i64>,
}

impl Store {
    /// Up to `limit` workers, those that live first.
    pub async fn workers(&self, limit: u32) -> Result<Vec<WorkerStatus>, StoreError> {
        let now = self.clock.unix();
        let rows = sqlx::query!(
            r#"SELECT w.id, w.last_seen, g.state AS "state?", g.since AS "since?", g.reason
               FROM Workers w LEFT JOIN gates g ON g.worker = w.id
               WHERE w.worker_type = ? ORDER BY w.last_seen DESC, w.id LIMIT ?"#,
            QUEUE,
            limit
        )
        .fetch_all(self.readers())
        .await?;
        let gate = |state: Option<String>, since: Option<i64>, reason| {
            let state = GateState::parse(&state?)?;
            let seconds = (now - since?).max(0);
            Some(GateStatus {
                state,
                seconds,
                reason,
            })
        };
        Ok(rows
            .into_iter()
            .map(|row| WorkerStatus {
                name: row.id,
                silent: (now - row.last_seen).max(0),
                gate: gate(row.state, row.since, row.reason),
            })
            .collect())
    }

    /// Up to `limit` dead letters, the latest first.
    pub async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        let now = self.clock.unix();
        Ok(sqlx::query_as!(
            DeadLetter,
            r#"SELECT p.user_id AS "user_id?", p.app_id AS "app_id?", p.pushkey AS "pushkey?", j.attempts AS "attempts!",
                   iif(json_valid(j.last_result), json_extract(j.last_result, '$.Err'), j.last_result) AS "reason: String",
                   max(?1 - j.done_at, 0) AS "seconds: i64"
               FROM Jobs j LEFT JOIN pushers p ON j.idempotency_key = 'pusher:' || p.id
               WHERE j.job_type = ?2 AND j.status = 'Killed' ORDER BY j.done_at DESC, j.id DESC LIMIT ?3"#,
            now,
            QUEUE,
            limit
        )
        .fetch_all(self.readers())
        .await?)
    }
}
