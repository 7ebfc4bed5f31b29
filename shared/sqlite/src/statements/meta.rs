//! Small facts about the database: the keys, and the counter of changes that make cached tokens out of date.

use matrix2acrobits_shared::flow::Result;
use sqlx::{SqliteConnection, SqliteExecutor};

use crate::errors::from_sqlx;

/// The counter. Triggers keep it for changes by any program.
pub(crate) async fn token_epoch(executor: impl SqliteExecutor<'_>) -> Result<i64> {
    sqlx::query_scalar!(
        "SELECT value
         FROM token_epoch"
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)
}

/// Counts a change that all caches have to notice.
pub(crate) async fn count_change(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query!(
        "UPDATE token_epoch
         SET value = value + 1"
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The key with this name. If there is none, `fresh` is stored and returned.
pub(crate) async fn key(
    connection: &mut SqliteConnection,
    name: &str,
    fresh: &[u8],
) -> Result<Vec<u8>> {
    // An insert needs the write lock, which somebody may hold for long.
    if let Some(key) = stored_key(connection, name).await? {
        return Ok(key);
    }
    sqlx::query!(
        "INSERT INTO meta (name, value)
         VALUES (?, ?)
         ON CONFLICT DO NOTHING",
        name,
        fresh
    )
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    // Another process may have been first.
    let key = stored_key(connection, name).await?;
    Ok(key.unwrap_or_else(|| fresh.to_vec()))
}

async fn stored_key(connection: &mut SqliteConnection, name: &str) -> Result<Option<Vec<u8>>> {
    sqlx::query_scalar!(
        "SELECT value
         FROM meta
         WHERE name = ?",
        name
    )
    .fetch_optional(connection)
    .await
    .map_err(from_sqlx)
}
