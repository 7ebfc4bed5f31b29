//! Listings for the operator: tokens, pushers, jobs, dead letters. Each statement reads only what it shows.

use matrix2acrobits_shared::flow::{DeadLetter, JobListing, PusherListing, Result, TokenListing};
use sqlx::SqliteExecutor;

use super::Text;
use crate::errors::from_sqlx;

/// Up to `limit` rows of tokens with ids above `after`.
pub(crate) async fn tokens(
    executor: impl SqliteExecutor<'_>,
    after: i64,
    limit: u32,
) -> Result<Vec<TokenListing>> {
    let rows = sqlx::query!(
        r#"SELECT t.id,
               t.selector AS "selector: Text",
               t.device AS "device: Text",
               coalesce(m.user_id, t.owner) AS "user_id: Text",
               t.token_msgs AS "token_msgs: Text",
               t.app_id_msgs AS "app_id_msgs: Text",
               t.token_calls AS "token_calls: Text",
               t.app_id_calls AS "app_id_calls: Text",
               t.dead_at,
               t.created_at,
               t.updated_at
           FROM push_tokens t
           LEFT JOIN mappings m ON m.selector = t.selector
           WHERE t.id > ?
           ORDER BY t.id
           LIMIT ?"#,
        after,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    let rows = rows.into_iter().map(|row| TokenListing {
        id: row.id,
        selector: row.selector.into(),
        device: row.device.into(),
        user_id: row.user_id.map(String::from),
        token_msgs: row.token_msgs.map(String::from),
        app_id_msgs: row.app_id_msgs.map(String::from),
        token_calls: row.token_calls.map(String::from),
        app_id_calls: row.app_id_calls.map(String::from),
        dead_at: row.dead_at,
        created_at: row.created_at,
        updated_at: row.updated_at,
    });
    Ok(rows.collect())
}

/// Up to `limit` pushers with ids above `after`, of one state or all.
pub(crate) async fn pushers(
    executor: impl SqliteExecutor<'_>,
    state: Option<&str>,
    after: i64,
    limit: u32,
) -> Result<Vec<PusherListing>> {
    let rows = sqlx::query!(
        r#"SELECT id,
               user_id AS "user_id: Text",
               app_id AS "app_id: Text",
               pushkey AS "pushkey: Text",
               selector AS "selector: Text",
               wanted,
               state,
               attempts,
               last_error AS "last_error: Text",
               updated_at
           FROM pushers
           WHERE id > ?1
             AND (?2 IS NULL OR state = ?2)
           ORDER BY id
           LIMIT ?3"#,
        after,
        state,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    let rows = rows.into_iter().map(|row| PusherListing {
        id: row.id,
        user_id: row.user_id.into(),
        app_id: row.app_id.into(),
        pushkey: row.pushkey.into(),
        selector: row.selector.into(),
        wanted: row.wanted,
        state: row.state,
        attempts: row.attempts,
        last_error: row.last_error.map(String::from),
        updated_at: row.updated_at,
    });
    Ok(rows.collect())
}

/// Up to `limit` jobs with names after `after`, of one state or all.
pub(crate) async fn jobs(
    executor: impl SqliteExecutor<'_>,
    state: Option<&str>,
    after: &str,
    limit: u32,
) -> Result<Vec<JobListing>> {
    let rows = sqlx::query!(
        r#"SELECT j.id AS "id!: Text",
               j.status AS "state!: Text",
               p.user_id AS "user_id?: Text",
               p.wanted AS "wanted?",
               CAST(j.attempts AS INTEGER) AS "attempts!: i64",
               iif(j.status = 'Killed', NULL, CAST(j.run_at AS INTEGER)) AS "next_try: i64",
               iif(json_valid(j.last_result), j.last_result ->> '$.Err', j.last_result) AS "last_error: Text"
           FROM Jobs j
           LEFT JOIN pushers p ON p.id = j.pusher_id
           WHERE j.job_type = 'sync_pusher'
             AND j.id > ?1
             AND (?2 IS NULL OR j.status = ?2)
           ORDER BY j.id
           LIMIT ?3"#,
        after,
        state,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    let rows = rows.into_iter().map(|row| JobListing {
        id: row.id.into(),
        state: row.state.into(),
        user_id: row.user_id.map(String::from),
        wanted: row.wanted,
        attempts: row.attempts,
        next_try: row.next_try,
        last_error: row.last_error.map(String::from),
    });
    Ok(rows.collect())
}

/// Up to `limit` dead letters, the latest first.
pub(crate) async fn dead_letters(
    executor: impl SqliteExecutor<'_>,
    now: i64,
    limit: u32,
) -> Result<Vec<DeadLetter>> {
    let rows = sqlx::query!(
        r#"SELECT p.user_id AS "user_id?: Text",
               p.app_id AS "app_id?: Text",
               p.pushkey AS "pushkey?: Text",
               CAST(j.attempts AS INTEGER) AS "attempts!: i64",
               iif(json_valid(j.last_result), j.last_result ->> '$.Err', j.last_result) AS "reason: Text",
               max(?1 - CAST(j.done_at AS INTEGER), 0) AS "seconds: i64"
           FROM (SELECT *
                 FROM Jobs INDEXED BY jobs_dead
                 WHERE status = 'Killed'
                   AND job_type = 'sync_pusher'
                 ORDER BY done_at DESC
                 LIMIT ?2) j
           LEFT JOIN pushers p ON p.id = j.pusher_id
           ORDER BY j.done_at DESC, j.id DESC"#,
        now,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    let rows = rows.into_iter().map(|row| DeadLetter {
        user_id: row.user_id.map(String::from),
        app_id: row.app_id.map(String::from),
        pushkey: row.pushkey.map(String::from),
        attempts: row.attempts,
        reason: row.reason.map(String::from),
        seconds: row.seconds,
    });
    Ok(rows.collect())
}
