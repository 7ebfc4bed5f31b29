//! The operator's mappings: whose a selector is.

use sqlx::SqliteConnection;

use super::{
    Store, StoreError,
    settle::{Touched, settle},
};
use matrix2acrobits_shared::ids::{Selector, UserId};

/// A selector and the user whose it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Mapping {
    /// The selector.
    pub selector: String,
    /// The Matrix user.
    pub user_id: String,
    /// When it was last changed, in seconds since 1970.
    pub updated_at: i64,
}

impl Store {
    /// Says whose a selector is; the pushers of its phones follow in the same transaction.
    pub async fn put_mapping(&self, selector: Selector, user: UserId) -> Result<(), StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (selector, user, now) = (selector.clone(), user.clone(), clock.unix());
                Box::pin(async move { put_mapping(connection, &selector, &user, now).await })
            })
            .await
    }

    /// Takes a mapping back. False when there was none.
    pub async fn delete_mapping(&self, selector: Selector) -> Result<bool, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (selector, now) = (selector.clone(), clock.unix());
                Box::pin(async move {
                    let selector = selector.as_str();
                    let gone = sqlx::query!("DELETE FROM mappings WHERE selector = ?", selector)
                        .execute(&mut *connection)
                        .await?;
                    settle_selector(connection, selector, now).await?;
                    Ok(gone.rows_affected() > 0)
                })
            })
            .await
    }

    /// One mapping.
    pub async fn mapping(&self, selector: &Selector) -> Result<Option<Mapping>, StoreError> {
        let selector = selector.as_str();
        Ok(sqlx::query_as!(
            Mapping,
            "SELECT selector, user_id, updated_at FROM mappings WHERE selector = ?",
            selector
        )
        .fetch_optional(self.readers())
        .await?)
    }

    /// Up to `limit` mappings in the order of their selectors, those after `after`.
    pub async fn mappings(&self, after: &str, limit: u32) -> Result<Vec<Mapping>, StoreError> {
        Ok(sqlx::query_as!(
            Mapping,
            "SELECT selector, user_id, updated_at FROM mappings WHERE selector > ? ORDER BY selector LIMIT ?",
            after,
            limit
        )
        .fetch_all(self.readers())
        .await?)
    }
}

pub(super) async fn put_mapping(
    connection: &mut SqliteConnection,
    selector: &Selector,
    user: &UserId,
    now: i64,
) -> Result<(), StoreError> {
    let (selector, user) = (selector.as_str(), user.as_str());
    sqlx::query!(
        "INSERT INTO mappings (selector, user_id, created_at, updated_at) VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT (selector) DO UPDATE SET user_id = excluded.user_id, updated_at = excluded.updated_at",
        selector,
        user,
        now
    )
    .execute(&mut *connection)
    .await?;
    settle_selector(connection, selector, now).await
}

async fn settle_selector(
    connection: &mut SqliteConnection,
    selector: &str,
    now: i64,
) -> Result<(), StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id, token_msgs AS "pushkey!", app_id_msgs AS "app_id!" FROM push_tokens
           WHERE selector = ? AND token_msgs IS NOT NULL AND app_id_msgs IS NOT NULL"#,
        selector
    )
    .fetch_all(&mut *connection)
    .await?;
    let touched = rows.iter().map(|row| Touched {
        pushkey: &row.pushkey,
        app_id: &row.app_id,
        row: Some(row.id),
    });
    settle(connection, touched.collect(), now).await
}
