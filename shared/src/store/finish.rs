//! Records what became of a job: the job's row, its pusher's, and those of users who share the pushkey.

use sqlx::SqliteConnection;

use super::{
    StoreError,
    pushers::{FinishSettings, Outcome},
};
use crate::queue::{self, Disposal, Held, QUEUE};

/// A job that has run.
pub(super) struct Finish<'a> {
    pub(super) held: &'a Held,
    pub(super) pusher_id: i64,
    /// What it was when the job read the row.
    pub(super) generation: i64,
    pub(super) settings: &'a FinishSettings,
    pub(super) now: i64,
}

impl Finish<'_> {
    /// Records `outcome`; false when the lock was lost.
    pub(super) async fn run(
        &self,
        connection: &mut SqliteConnection,
        outcome: &Outcome,
    ) -> Result<bool, StoreError> {
        let (id, now) = (self.pusher_id, self.now);
        let current = sqlx::query_scalar!("SELECT generation FROM pushers WHERE id = ?", id)
            .fetch_optional(&mut *connection)
            .await?;
        let unchanged = current == Some(self.generation);
        let disposal = match outcome {
            Outcome::Retry {
                run_at,
                error,
                strict: true,
                ..
            } => Disposal::Retry {
                run_at: *run_at,
                error,
                strict: true,
            },
            // What is wanted changed while the job ran: whatever it did, it has to run again.
            _ if current.is_some() && !unchanged => Disposal::Again,
            // Ours may be there by an attempt whose answer was lost: delete it.
            Outcome::Outdone => Disposal::Again,
            Outcome::Retry {
                run_at,
                error,
                strict,
                ..
            } => Disposal::Retry {
                run_at: *run_at,
                error,
                strict: *strict,
            },
            Outcome::Dead { error } => Disposal::Kill { error },
            _ => Disposal::Delete,
        };
        let ours = queue::dispose(connection, self.held, &disposal, now).await?;
        if !ours {
            // Somebody took us for dead and perhaps acts on this pusher right now, in whatever order the
            // homeserver sees the two. One more look puts it right.
            check_again(connection, id, now).await?;
        } else if unchanged {
            self.record(connection, outcome).await?;
        }
        self.settle_rivals(connection, outcome).await?;
        Ok(ours)
    }

    async fn record(
        &self,
        connection: &mut SqliteConnection,
        outcome: &Outcome,
    ) -> Result<(), StoreError> {
        let (id, now) = (self.pusher_id, self.now);
        match outcome {
            Outcome::Registered => {
                let fingerprint = self.settings.fingerprint.as_str();
                let refresh_at = now.saturating_add(self.settings.refresh_after);
                sqlx::query!(
                    "UPDATE pushers SET state = 'registered', attempts = 0, last_error = NULL, ask_first = 0,
                         registered_as = ?, refresh_at = ?, updated_at = ? WHERE id = ?",
                    fingerprint,
                    refresh_at,
                    now,
                    id
                )
                .execute(connection)
                .await?;
            }
            Outcome::Removed => {
                sqlx::query!(
                    "UPDATE pushers SET state = 'removed', attempts = 0, last_error = NULL, ask_first = 0,
                         updated_at = ? WHERE id = ?",
                    now,
                    id
                )
                .execute(connection)
                .await?;
            }
            Outcome::Outdone => {
                sqlx::query!(
                    "UPDATE pushers SET wanted = 'absent', state = 'pending', generation = generation + 1,
                         attempts = 0, last_error = NULL, ask_first = 0, updated_at = ? WHERE id = ?",
                    now,
                    id
                )
                .execute(connection)
                .await?;
            }
            Outcome::Retry {
                error, maybe_done, ..
            } => {
                sqlx::query!(
                    "UPDATE pushers SET attempts = attempts + 1, last_error = ?, ask_first = max(ask_first, ?),
                         updated_at = ? WHERE id = ?",
                    error,
                    maybe_done,
                    now,
                    id
                )
                .execute(connection)
                .await?;
            }
            Outcome::Dead { error } => {
                sqlx::query!(
                    "UPDATE pushers SET state = 'failed', attempts = attempts + 1, last_error = ?, updated_at = ?
                     WHERE id = ?",
                    error,
                    now,
                    id
                )
                .execute(connection)
                .await?;
            }
            Outcome::Nothing => {}
        }
        Ok(())
    }

    /// With PUSHER_APPEND=false setting a pusher makes Synapse delete other users' pushers of the same app
    /// id and pushkey. So whoever reported before is wanted absent from now on; and if somebody reported
    /// later, ours may just have deleted theirs, which is checked.
    async fn settle_rivals(
        &self,
        connection: &mut SqliteConnection,
        outcome: &Outcome,
    ) -> Result<(), StoreError> {
        if self.settings.append {
            return Ok(());
        }
        let (id, now) = (self.pusher_id, self.now);
        if *outcome == Outcome::Registered {
            let displaced = sqlx::query_scalar!(
                r#"SELECT older.id AS "id!" FROM pushers mine JOIN pushers older ON older.pushkey = mine.pushkey
                       AND older.app_id = mine.app_id AND older.user_id <> mine.user_id
                   WHERE mine.id = ? AND mine.wanted = 'present' AND older.wanted = 'present' AND older.claim < mine.claim"#,
                id
            )
            .fetch_all(&mut *connection)
            .await?;
            for older in displaced {
                gone_by_itself(connection, older, now).await?;
            }
        }
        if matches!(outcome, Outcome::Dead { .. } | Outcome::Removed) {
            // The homeserver does not hold ours, so whoever yielded to it may have theirs.
            let yielded = sqlx::query_scalar!(
                r#"SELECT older.id AS "id!" FROM pushers mine JOIN pushers older ON older.pushkey = mine.pushkey
                       AND older.app_id = mine.app_id AND older.user_id <> mine.user_id
                   WHERE mine.id = ? AND older.wanted = 'present' AND older.state = 'pending'"#,
                id
            )
            .fetch_all(&mut *connection)
            .await?;
            for older in yielded {
                // Its job may be about to yield at this moment; this has it run again.
                check_again(connection, older, now).await?;
            }
        }
        // Whatever the job did last, an earlier attempt of it may have set ours, even after the death of the
        // worker that made it.
        let touched_homeserver = match outcome {
            Outcome::Retry { maybe_done, .. } => *maybe_done,
            _ => true,
        };
        if touched_homeserver {
            let rivals = sqlx::query_scalar!(
                r#"SELECT newer.id AS "id!" FROM pushers mine JOIN pushers newer ON newer.pushkey = mine.pushkey
                       AND newer.app_id = mine.app_id AND newer.user_id <> mine.user_id
                   WHERE mine.id = ? AND newer.wanted = 'present' AND newer.state IN ('registered', 'pending')
                       AND (newer.claim > mine.claim OR mine.wanted = 'absent')"#,
                id
            )
            .fetch_all(&mut *connection)
            .await?;
            for rival in rivals {
                check_again(connection, rival, now).await?;
            }
        }
        Ok(())
    }
}

/// Notes that the homeserver has dropped a pusher by itself, and that it is not wanted any more. Should a job
/// be about to set it at this moment, it has to be deleted all the same.
pub(super) async fn gone_by_itself(
    connection: &mut SqliteConnection,
    id: i64,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE pushers SET wanted = 'absent', generation = generation + 1, attempts = 0, last_error = NULL,
             updated_at = ?1, state = iif(EXISTS (SELECT 1 FROM Jobs WHERE job_type = ?2
                 AND idempotency_key = 'pusher:' || pushers.id AND status <> 'Killed'), 'pending', 'removed')
         WHERE id = ?3",
        now,
        QUEUE,
        id
    )
    .execute(&mut *connection)
    .await?;
    queue::discard_dead_letter(connection, id).await
}

/// Has a pusher compared with what the homeserver holds, and set or deleted if need be. Leaves
/// `updated_at` alone, so that a replay by time can be repeated. A job that runs at this moment counts as
/// too early, hence the generation.
pub(super) async fn check_again(
    connection: &mut SqliteConnection,
    id: i64,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE pushers SET ask_first = 1, generation = generation + 1, attempts = 0,
             state = iif(state = 'failed' OR wanted = 'absent', 'pending', state) WHERE id = ?",
        id
    )
    .execute(&mut *connection)
    .await?;
    queue::enqueue(connection, id, now).await
}
