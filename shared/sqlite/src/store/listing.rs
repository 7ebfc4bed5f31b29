//! Pages for the operator: tokens, pushers, jobs.

use super::{Store, StoreError};
use crate::queue::QUEUE;

/// What a phone reported, as stored.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TokenRow {
    /// Its id; pages are in this order.
    pub id: i64,
    /// The account on the phone.
    pub selector: String,
    /// The phone, where it says so.
    pub device: String,
    /// The user whose it is, from the mapping or the login.
    pub user_id: Option<String>,
    /// Token for messages.
    pub token_msgs: Option<String>,
    /// App id for messages.
    pub app_id_msgs: Option<String>,
    /// Token for calls.
    pub token_calls: Option<String>,
    /// App id for calls.
    pub app_id_calls: Option<String>,
    /// When PNM called the token gone, in seconds since 1970.
    pub dead_at: Option<i64>,
    /// First report, in seconds since 1970.
    pub created_at: i64,
    /// Last report that was noted, in seconds since 1970.
    pub updated_at: i64,
}

/// What the homeserver should hold and what we know of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PusherListing {
    /// Its id; pages are in this order.
    pub id: i64,
    /// The user.
    pub user_id: String,
    /// The app.
    pub app_id: String,
    /// The token.
    pub pushkey: String,
    /// The account on the phone.
    pub selector: String,
    /// `present` or `absent`.
    pub wanted: String,
    /// `pending`, `registered`, `failed` or `removed`.
    pub state: String,
    /// Failed attempts since the last success.
    pub attempts: i64,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// Last change, in seconds since 1970.
    pub updated_at: i64,
}

/// A job and its pusher.
#[derive(Debug, Clone, serde::Serialize)]
pub struct JobListing {
    /// `Jobs.id`.
    pub id: String,
    /// `Pending`, `Queued`, `Failed` (waiting) or `Killed` (dead letter).
    pub state: String,
    /// The user, unless the job is unreadable.
    pub user_id: Option<String>,
    /// `present` or `absent`.
    pub wanted: Option<String>,
    /// Failed attempts.
    pub attempts: i64,
    /// Next try, in seconds since 1970; none for a dead letter.
    pub next_try: Option<i64>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

impl Store {
    /// Up to `limit` rows of tokens with ids above `after`.
    pub async fn list_tokens(&self, after: i64, limit: u32) -> Result<Vec<TokenRow>, StoreError> {
        Ok(sqlx::query_as!(
            TokenRow,
            "SELECT t.id, t.selector, t.device, coalesce(m.user_id, t.owner) AS user_id, t.token_msgs, t.app_id_msgs,
                 t.token_calls, t.app_id_calls, t.dead_at, t.created_at, t.updated_at
             FROM push_tokens t LEFT JOIN mappings m ON m.selector = t.selector
             WHERE t.id > ? ORDER BY t.id LIMIT ?",
            after,
            limit
        )
        .fetch_all(self.readers())
        .await?)
    }

    /// Up to `limit` pushers with ids above `after`, of one state or all.
    pub async fn list_pushers(
        &self,
        state: Option<&str>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PusherListing>, StoreError> {
        Ok(sqlx::query_as!(
            PusherListing,
            "SELECT id, user_id, app_id, pushkey, selector, wanted, state, attempts, last_error, updated_at
             FROM pushers WHERE id > ?1 AND (?2 IS NULL OR state = ?2) ORDER BY id LIMIT ?3",
            after,
            state,
            limit
        )
        .fetch_all(self.readers())
        .await?)
    }

    /// Up to `limit` jobs with ids after `after`, of one state or all.
    pub async fn list_jobs(
        &self,
        state: Option<&str>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<JobListing>, StoreError> {
        Ok(sqlx::query_as!(
            JobListing,
            r#"SELECT j.id AS "id!", j.status AS "state!", p.user_id AS "user_id?", p.wanted AS "wanted?", j.attempts AS "attempts!",
                   iif(j.status = 'Killed', NULL, j.run_at) AS "next_try: i64",
                   iif(json_valid(j.last_result), json_extract(j.last_result, '$.Err'), j.last_result) AS "last_error: String"
               FROM Jobs j LEFT JOIN pushers p ON j.idempotency_key = 'pusher:' || p.id
               WHERE j.job_type = ?1 AND j.id > ?2 AND (?3 IS NULL OR j.status = ?3) ORDER BY j.id LIMIT ?4"#,
            QUEUE,
            after,
            state,
            limit
        )
        .fetch_all(self.readers())
        .await?)
    }

    /// Pushers by state, for metrics.
    pub async fn count_pushers(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let rows =
            sqlx::query!(r#"SELECT state, count(*) AS "count!" FROM pushers GROUP BY state"#)
                .fetch_all(self.readers())
                .await?;
        Ok(rows.into_iter().map(|row| (row.state, row.count)).collect())
    }
}
