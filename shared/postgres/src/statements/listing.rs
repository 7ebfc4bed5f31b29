//! Listings for the operator: tokens, pushers, jobs, dead letters. Each statement reads only what it shows.

use matrix2acrobits_shared::flow::{DeadLetter, JobListing, PusherListing, Result, TokenListing};
use sqlx::PgConnection;

use super::jobs::{name, pusher_of};
use crate::errors::from_sqlx;

/// Up to `limit` rows of tokens with ids above `after`.
pub(crate) async fn tokens(
    connection: &mut PgConnection,
    after: i64,
    limit: u32,
) -> Result<Vec<TokenListing>> {
    sqlx::query_as!(
        TokenListing,
        r#"SELECT t.id,
               t.selector,
               t.device,
               coalesce(m.user_id, t.owner) AS user_id,
               t.token_msgs,
               t.app_id_msgs,
               t.token_calls,
               t.app_id_calls,
               t.dead_at,
               t.created_at,
               t.updated_at
           FROM push_tokens t
           LEFT JOIN mappings m ON m.selector = t.selector
           WHERE t.id > $1
           ORDER BY t.id
           LIMIT $2"#,
        after,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Up to `limit` pushers with ids above `after`, of one state or all.
pub(crate) async fn pushers(
    connection: &mut PgConnection,
    state: Option<&str>,
    after: i64,
    limit: u32,
) -> Result<Vec<PusherListing>> {
    sqlx::query_as!(
        PusherListing,
        "SELECT id, user_id, app_id, pushkey, selector, wanted, state, attempts, last_error, updated_at
         FROM pushers
         WHERE id > $1
           AND ($2::text IS NULL OR state = $2)
         ORDER BY id
         LIMIT $3",
        after,
        state,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Up to `limit` jobs after the one with the name `after`, of one state or all.
pub(crate) async fn jobs(
    connection: &mut PgConnection,
    state: Option<&str>,
    after: &str,
    limit: u32,
) -> Result<Vec<JobListing>> {
    let rows = sqlx::query!(
        r#"SELECT j.pusher_id,
               j.created_ms,
               j.state,
               p.user_id AS "user_id?",
               p.wanted AS "wanted?",
               j.attempts,
               CASE WHEN j.state = 'Killed' THEN NULL ELSE j.run_at END AS next_try,
               j.last_error
           FROM jobs j
           LEFT JOIN LATERAL (SELECT user_id, wanted
                              FROM pushers
                              WHERE id = j.pusher_id
                              OFFSET 0) p ON true
           WHERE j.pusher_id > $1
             AND ($2::text IS NULL OR j.state = $2)
           ORDER BY j.pusher_id
           LIMIT $3"#,
        pusher_of(after),
        state,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let rows = rows.into_iter().map(|row| JobListing {
        id: name(row.created_ms, row.pusher_id),
        state: row.state,
        user_id: row.user_id,
        wanted: row.wanted,
        attempts: row.attempts,
        next_try: row.next_try,
        last_error: row.last_error,
    });
    Ok(rows.collect())
}

/// Up to `limit` dead letters, the latest first.
pub(crate) async fn dead_letters(
    connection: &mut PgConnection,
    now: i64,
    limit: u32,
) -> Result<Vec<DeadLetter>> {
    sqlx::query_as!(
        DeadLetter,
        r#"SELECT p.user_id AS "user_id?",
               p.app_id AS "app_id?",
               p.pushkey AS "pushkey?",
               j.attempts AS "attempts!",
               j.last_error AS reason,
               greatest($1 - j.done_at, 0) AS seconds
           FROM (SELECT *
                 FROM jobs
                 WHERE state = 'Killed'
                 ORDER BY done_at DESC
                 LIMIT $2) j
           LEFT JOIN LATERAL (SELECT user_id, app_id, pushkey
                              FROM pushers
                              WHERE id = j.pusher_id
                              OFFSET 0) p ON true
           ORDER BY j.done_at DESC, j.pusher_id DESC"#,
        now,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}
