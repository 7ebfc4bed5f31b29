//! The worker's side of the store: what a job should bring about, what became of it, and the upkeep that
//! makes sure that no pusher is forgotten.

use std::{collections::HashMap, sync::Arc};

use serde::Deserialize;
use sqlx::{SqliteConnection, SqlitePool};

use super::{
    Store, StoreError,
    finish::{Finished, check_again},
    from_json, json,
};
use crate::{
    batch::Batch,
    queue::{self, CHUNK, Disposal, Held, QUEUE},
};
use matrix2acrobits_shared::{
    clock::Clock,
    ids::{AppId, Pushkey, Selector, UserId},
};

/// A removed pusher's row is kept this long, in seconds, for the operator to see.
const TOMBSTONE_AGE: i64 = 7 * 86_400;
/// A dead worker's row is kept this long, in seconds.
const WORKER_AGE: i64 = 3600;

/// A pusher as its job finds it.
#[derive(Debug, Clone)]
pub struct PusherRow {
    /// Its id.
    pub id: i64,
    /// The user whose notifications it carries.
    pub user_id: UserId,
    /// The app.
    pub app_id: AppId,
    /// The token.
    pub pushkey: Pushkey,
    /// The account on the phone.
    pub selector: Selector,
    /// What should be, and how sure we are of what is.
    pub goal: Goal,
    /// What is wanted has changed this often; compared when the job finishes.
    pub generation: i64,
    /// Failed attempts that were recorded.
    pub attempts: i64,
}

/// What a job has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Set it.
    Set,
    /// It may be there already: look, and set it only if it is missing or differs. Setting a pusher again
    /// makes Synapse drop what it still had to send.
    Check,
    /// Delete it.
    Delete,
    /// Nothing: it is as it should be.
    Nothing,
    /// Another user reported the same app id and pushkey later and has the pusher; only one may.
    Outdone,
    /// Another user reported the same later, and it is not known yet whether the homeserver takes theirs:
    /// ours stays as it is until then.
    Yield,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The homeserver holds the pusher.
    Registered,
    /// The homeserver does not hold it.
    Removed,
    /// There was nothing to do.
    Nothing,
    /// Another user's later report stands.
    Outdone,
    /// Try again.
    Retry {
        /// When, in seconds since 1970.
        run_at: i64,
        /// Why, for people.
        error: String,
        /// The homeserver may have done it nevertheless.
        maybe_done: bool,
        /// Nothing brings the time forward: the homeserver asked for it.
        strict: bool,
    },
    /// The homeserver refuses, and will again.
    Dead {
        /// Why, for people.
        error: String,
    },
}

/// What the worker's settings have to do with a finished job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishSettings {
    /// See `PusherSettings::fingerprint`.
    pub fingerprint: String,
    /// Whether users share an app id and pushkey.
    pub append: bool,
    /// After this many seconds a report has the pusher checked.
    pub refresh_after: i64,
}

/// Which pushers a replay is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// Dead letters.
    Dead,
    /// All.
    All,
    /// Those of one user.
    User(UserId),
    /// Those that changed at or after this time, in seconds since 1970.
    Since(i64),
}

impl Store {
    /// Reads a pusher for its job. `append`: whether users share a pushkey. None when it is gone.
    pub async fn pusher(
        &self,
        id: i64,
        job_attempts: i64,
        append: bool,
    ) -> Result<Option<PusherRow>, StoreError> {
        self.pushers
            .ask(PusherOf {
                id,
                job_attempts,
                append,
            })
            .await
    }

    /// Records what became of a job, in one transaction with the job itself. False when the lock was lost
    /// meanwhile: then the pusher is checked once more.
    pub async fn finish(
        &self,
        held: Held,
        pusher_id: i64,
        generation: i64,
        outcome: Outcome,
        settings: FinishSettings,
    ) -> Result<bool, StoreError> {
        self.writer
            .write_bulk(Finished {
                held,
                pusher_id,
                generation,
                outcome,
                settings,
            })
            .await
    }

    /// Makes a job whose payload cannot be read a dead letter, and the pusher that its key names as well, or
    /// reconciliation would revive it.
    pub async fn kill_job(&self, held: Held, error: String) -> Result<bool, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (held, error, now) = (held.clone(), error.clone(), clock.unix());
                Box::pin(async move {
                    let (job, error) = (held.job_id.as_str(), error.as_str());
                    let kill = Disposal::Kill { error };
                    let ours = queue::dispose(connection, &held, &kill, now).await?;
                    if ours {
                        sqlx::query!(
                            "UPDATE pushers SET state = 'failed', last_error = ?, updated_at = ? WHERE id = (
                                 SELECT CAST(substr(idempotency_key, 8) AS INTEGER) FROM Jobs WHERE id = ?)",
                            error,
                            now,
                            job
                        )
                        .execute(connection)
                        .await?;
                    }
                    Ok(ours)
                })
            })
            .await
    }

    /// Deletes a job whose pusher is gone.
    pub async fn drop_job(&self, held: Held) -> Result<bool, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (held, now) = (held.clone(), clock.unix());
                Box::pin(
                    async move { queue::dispose(connection, &held, &Disposal::Delete, now).await },
                )
            })
            .await
    }

    /// Gives a job to every pusher that is not as wanted and has none, at most [`CHUNK`] at a time.
    pub async fn reconcile(&self) -> Result<u64, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let now = clock.unix();
                Box::pin(async move {
                    let ids = sqlx::query_scalar!(
                        r#"SELECT id AS "id!" FROM pushers WHERE state = 'pending' AND NOT EXISTS (
                               SELECT 1 FROM Jobs WHERE job_type = ?1 AND idempotency_key = 'pusher:' || pushers.id
                                   AND status <> 'Killed')
                           LIMIT ?2"#,
                        QUEUE,
                        CHUNK
                    )
                    .fetch_all(&mut *connection)
                    .await?;
                    queue::enqueue(connection, &ids, now).await?;
                    Ok(ids.len() as u64)
                })
            })
            .await
    }

    /// Has registered pushers set anew whose settings (URL, format) are not today's, a chunk at a time.
    pub async fn renew_outdated(&self, fingerprint: String) -> Result<u64, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (fingerprint, now) = (fingerprint.clone(), clock.unix());
                Box::pin(async move {
                    let ids = sqlx::query_scalar!(
                        r#"UPDATE pushers SET state = 'pending', ask_first = 1, updated_at = ?1 WHERE id IN (
                               SELECT id FROM pushers WHERE state = 'registered' AND wanted = 'present'
                                   AND registered_as IS NOT NULL AND registered_as <> ?2 LIMIT ?3)
                           RETURNING id AS "id!""#,
                        now,
                        fingerprint,
                        CHUNK
                    )
                    .fetch_all(&mut *connection)
                    .await?;
                    queue::enqueue(connection, &ids, now).await?;
                    Ok(ids.len() as u64)
                })
            })
            .await
    }

    /// How many pushers a replay is about.
    pub async fn count_replay(&self, replay: &Replay) -> Result<i64, StoreError> {
        let (dead, user, since) = replay_filter(replay);
        Ok(sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM pushers WHERE state <> 'removed' AND (NOT ?1 OR state = 'failed')
                   AND (?2 IS NULL OR user_id = ?2) AND (?3 IS NULL OR updated_at >= ?3)"#,
            dead,
            user,
            since
        )
        .fetch_one(self.readers())
        .await?)
    }

    /// Enqueues the next chunk of a replay, those with ids above `after`. Each is checked against the
    /// homeserver first. Returns the last id and how many; none when the replay is through.
    pub async fn replay_chunk(
        &self,
        replay: Replay,
        after: i64,
    ) -> Result<Option<(i64, u64)>, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (replay, now) = (replay.clone(), clock.unix());
                Box::pin(async move { replay_chunk(connection, &replay, after, now).await })
            })
            .await
    }

    /// Deletes what nobody needs any more, at most [`CHUNK`] rows of a kind: tombstones of pushers, rows of
    /// workers that are gone. Returns how many.
    pub async fn housekeep(&self) -> Result<u64, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let now = clock.unix();
                Box::pin(async move {
                    let (old, dead) = (now - TOMBSTONE_AGE, now - WORKER_AGE);
                    let pushers = sqlx::query!(
                        "DELETE FROM pushers WHERE id IN (SELECT id FROM pushers WHERE state = 'removed'
                             AND updated_at < ?1 AND NOT EXISTS (SELECT 1 FROM Jobs WHERE job_type = ?2
                                 AND idempotency_key = 'pusher:' || pushers.id) LIMIT ?3)",
                        old,
                        QUEUE,
                        CHUNK
                    )
                    .execute(&mut *connection)
                    .await?;
                    let workers = sqlx::query!(
                        "DELETE FROM Workers WHERE worker_type = ?1 AND last_seen < ?2
                             AND NOT EXISTS (SELECT 1 FROM Jobs WHERE lock_by = Workers.id)",
                        QUEUE,
                        dead
                    )
                    .execute(connection)
                    .await?;
                    Ok(pushers.rows_affected() + workers.rows_affected())
                })
            })
            .await
    }
}

/// What a job asks about its pusher.
#[derive(Debug, Clone, Copy)]
pub(super) struct PusherOf {
    id: i64,
    job_attempts: i64,
    append: bool,
}

/// Starts what [`Store::pusher`] asks.
pub(super) fn read_pushers(
    readers: SqlitePool,
    clock: Clock,
) -> Batch<PusherOf, Option<PusherRow>> {
    Batch::start(move |asked: Arc<[PusherOf]>| {
        let (readers, clock) = (readers.clone(), clock.clone());
        async move { pushers(&readers, &asked, clock.unix()).await }
    })
}

async fn pushers(
    readers: &SqlitePool,
    asked: &[PusherOf],
    now: i64,
) -> Result<Vec<Option<PusherRow>>, StoreError> {
    let ids = json(asked.iter().map(|it| it.id))?;
    let rows = sqlx::query_scalar!(
        r#"SELECT json_group_array(json_object('id', id, 'user_id', user_id, 'app_id', app_id, 'pushkey', pushkey,
               'selector', selector, 'wanted', wanted, 'state', state, 'generation', generation,
               'ask_first', ask_first, 'attempts', attempts, 'refresh_at', refresh_at, 'newer',
               (SELECT newer.state FROM pushers newer WHERE newer.pushkey = pushers.pushkey
                   AND newer.app_id = pushers.app_id AND newer.user_id <> pushers.user_id
                   AND newer.wanted = 'present' AND newer.claim > pushers.claim AND newer.state <> 'failed'
                   ORDER BY newer.state = 'registered' DESC LIMIT 1))) AS "rows!: String"
           FROM pushers WHERE id IN (SELECT value FROM json_each(?))"#,
        ids
    )
    .fetch_one(readers)
    .await?;
    let rows: Vec<Stored> = from_json(&rows)?;
    let rows: HashMap<i64, Stored> = rows.into_iter().map(|row| (row.id, row)).collect();
    let pushers = asked.iter().map(|it| rows.get(&it.id)?.for_job(it, now));
    Ok(pushers.collect())
}

/// A pusher's row as it is stored.
#[derive(Debug, Deserialize)]
struct Stored {
    id: i64,
    user_id: String,
    app_id: String,
    pushkey: String,
    selector: String,
    wanted: String,
    state: String,
    generation: i64,
    ask_first: i64,
    attempts: i64,
    refresh_at: Option<i64>,
    /// The state of another user's pusher of the same app id and pushkey that was reported later.
    newer: Option<String>,
}

impl Stored {
    fn for_job(&self, asked: &PusherOf, now: i64) -> Option<PusherRow> {
        Some(PusherRow {
            id: self.id,
            user_id: UserId::parse(&self.user_id).ok()?,
            app_id: AppId::parse(&self.app_id).ok()?,
            pushkey: Pushkey::parse(&self.pushkey).ok()?,
            selector: Selector::parse(&self.selector).ok()?,
            goal: self.goal(asked, now),
            generation: self.generation,
            attempts: self.attempts,
        })
    }

    fn goal(&self, asked: &PusherOf, now: i64) -> Goal {
        let due = self.refresh_at.is_none_or(|at| now >= at);
        let ask_first = self.ask_first == 1;
        match (self.wanted == "present", self.state.as_str()) {
            (true, _) if self.newer.as_deref() == Some("registered") && !asked.append => {
                Goal::Outdone
            }
            (true, _) if self.newer.is_some() && !asked.append => Goal::Yield,
            (true, "registered") if ask_first || due => Goal::Check,
            (true, "registered") | (false, "removed") => Goal::Nothing,
            // More attempts than were recorded: a worker died in one, perhaps after the homeserver did it.
            (true, _) if ask_first || asked.job_attempts > self.attempts => Goal::Check,
            (true, _) => Goal::Set,
            (false, _) => Goal::Delete,
        }
    }
}

fn replay_filter(replay: &Replay) -> (bool, Option<&str>, Option<i64>) {
    match replay {
        Replay::Dead => (true, None, None),
        Replay::All => (false, None, None),
        Replay::User(user) => (false, Some(user.as_str()), None),
        Replay::Since(time) => (false, None, Some(*time)),
    }
}

async fn replay_chunk(
    connection: &mut SqliteConnection,
    replay: &Replay,
    after: i64,
    now: i64,
) -> Result<Option<(i64, u64)>, StoreError> {
    let (dead, user, since) = replay_filter(replay);
    let ids = sqlx::query_scalar!(
        r#"SELECT id AS "id!" FROM pushers WHERE id > ?1 AND state <> 'removed' AND (NOT ?2 OR state = 'failed')
               AND (?3 IS NULL OR user_id = ?3) AND (?4 IS NULL OR updated_at >= ?4) ORDER BY id LIMIT ?5"#,
        after,
        dead,
        user,
        since,
        CHUNK
    )
    .fetch_all(&mut *connection)
    .await?;
    let Some(&last) = ids.last() else {
        return Ok(None);
    };
    for id in &ids {
        check_again(connection, *id, now).await?;
    }
    Ok(Some((last, ids.len() as u64)))
}
