//! Records what became of a job: the job's row, its pusher's, and those of users who share the pushkey.

use std::collections::HashMap;

use sqlx::SqliteConnection;

use super::{
    StoreError, json,
    pushers::{FinishSettings, Outcome},
};
use crate::{
    queue::{self, Disposal, Held, QUEUE},
    writer::Bulk,
};

/// A job that has run.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(super) held: Held,
    pub(super) pusher_id: i64,
    /// What it was when the job read the row.
    pub(super) generation: i64,
    pub(super) outcome: Outcome,
    pub(super) settings: FinishSettings,
}

impl Bulk for Finished {
    /// False when the lock was lost.
    type Value = bool;

    async fn write_all(
        connection: &mut SqliteConnection,
        finished: &[&Self],
        now: i64,
    ) -> Result<Vec<bool>, StoreError> {
        let registered = registered(connection, finished, now).await?;
        let mut ours = Vec::with_capacity(finished.len());
        for (it, registered) in finished.iter().zip(registered) {
            ours.push(registered || it.run(connection, now).await?);
        }
        Ok(ours)
    }
}

/// Records those that went as nearly all do: the pusher is set, nothing has changed meanwhile, and nobody
/// shares its pushkey. True for each that is done with by that.
async fn registered(
    connection: &mut SqliteConnection,
    finished: &[&Finished],
    now: i64,
) -> Result<Vec<bool>, StoreError> {
    let Some(first) = finished.first() else {
        return Ok(Vec::new());
    };
    let (worker, settings) = (&first.held.worker, &first.settings);
    let set = |it: &Finished| {
        it.outcome == Outcome::Registered && it.held.worker == *worker && it.settings == *settings
    };
    let ids = json(finished.iter().filter(|it| set(it)).map(|it| it.pusher_id))?;
    let unshared = sqlx::query!(
        r#"SELECT id AS "id!", generation FROM pushers WHERE id IN (SELECT value FROM json_each(?))
               AND NOT EXISTS (SELECT 1 FROM pushers other WHERE other.pushkey = pushers.pushkey
                   AND other.app_id = pushers.app_id AND other.id <> pushers.id)"#,
        ids
    )
    .fetch_all(&mut *connection)
    .await?;
    let unshared: HashMap<i64, i64> = unshared.iter().map(|it| (it.id, it.generation)).collect();
    let plain = |it: &Finished| set(it) && unshared.get(&it.pusher_id) == Some(&it.generation);
    let jobs = finished.iter().filter(|it| plain(it)).map(|it| &it.held);
    let deleted = queue::delete_held(connection, worker, jobs).await?;
    let done = |it: &Finished| plain(it) && deleted.contains(&it.held.job_id);

    let ids = json(finished.iter().filter(|it| done(it)).map(|it| it.pusher_id))?;
    let fingerprint = settings.fingerprint.as_str();
    let refresh_at = now.saturating_add(settings.refresh_after);
    sqlx::query!(
        "UPDATE pushers SET state = 'registered', attempts = 0, last_error = NULL, ask_first = 0,
             registered_as = ?, refresh_at = ?, updated_at = ? WHERE id IN (SELECT value FROM json_each(?))",
        fingerprint,
        refresh_at,
        now,
        ids
    )
    .execute(connection)
    .await?;
    Ok(finished.iter().map(|it| done(it)).collect())
}

impl Finished {
    /// Records the outcome, whatever it is; false when the lock was lost.
    async fn run(&self, connection: &mut SqliteConnection, now: i64) -> Result<bool, StoreError> {
        let (id, outcome) = (self.pusher_id, &self.outcome);
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
        let ours = queue::dispose(connection, &self.held, &disposal, now).await?;
        if !ours {
            // Somebody took us for dead and perhaps acts on this pusher right now, in whatever order the
            // homeserver sees the two. One more look puts it right.
            check_again(connection, id, now).await?;
        } else if unchanged {
            self.record(connection, now).await?;
        }
        self.settle_rivals(connection, now).await?;
        Ok(ours)
    }

    async fn record(&self, connection: &mut SqliteConnection, now: i64) -> Result<(), StoreError> {
        let id = self.pusher_id;
        match &self.outcome {
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
        now: i64,
    ) -> Result<(), StoreError> {
        if self.settings.append {
            return Ok(());
        }
        let (id, outcome) = (self.pusher_id, &self.outcome);
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
    queue::enqueue(connection, &[id], now).await
}
