//! The table `mappings`: the operator's mappings of selectors to users.

use matrix2acrobits_shared::{flow::Result, rules::import::Mapping};
use sqlx::{SqliteConnection, SqliteExecutor};

use super::{Text, from_json, json};
use crate::errors::from_sqlx;

/// The mappings of these selectors, in the same order.
pub(crate) async fn of(
    connection: &mut SqliteConnection,
    selectors: &[&str],
) -> Result<Vec<Option<Mapping>>> {
    let selectors = json(selectors)?;
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(iif(m.selector IS NULL, NULL, json_object(
               'selector', m.selector,
               'user_id', m.user_id,
               'updated_at', m.updated_at))
           ORDER BY i.key) AS BLOB) AS "rows!: Vec<u8>"
           FROM jsonb_each(?) i
           LEFT JOIN mappings m ON m.selector = i.value"#,
        selectors
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    from_json(&rows)
}

/// Maps selectors to users.
pub(crate) async fn put(
    connection: &mut SqliteConnection,
    mappings: &[(&str, &str)],
    now: i64,
) -> Result<()> {
    let rows = json(mappings)?;
    sqlx::query!(
        "INSERT INTO mappings (selector, user_id, created_at, updated_at)
         SELECT value ->> 0, value ->> 1, ?2, ?2
         FROM jsonb_each(?1)
         -- An ON CONFLICT after a SELECT needs a WHERE, or it reads as a join's ON.
         WHERE true
         ON CONFLICT (selector) DO UPDATE
         SET user_id = excluded.user_id,
             updated_at = excluded.updated_at",
        rows,
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes a mapping. False when there was none.
pub(crate) async fn delete(connection: &mut SqliteConnection, selector: &str) -> Result<bool> {
    let done = sqlx::query!(
        "DELETE FROM mappings
         WHERE selector = ?",
        selector
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected() > 0)
}

/// Up to `limit` mappings in the order of their selectors, those after `after`.
pub(crate) async fn page(
    executor: impl SqliteExecutor<'_>,
    after: &str,
    limit: u32,
) -> Result<Vec<Mapping>> {
    let rows = sqlx::query!(
        r#"SELECT selector AS "selector: Text", user_id AS "user_id: Text", updated_at
           FROM mappings
           WHERE selector > ?
           ORDER BY selector
           LIMIT ?"#,
        after,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    let mappings = rows.into_iter().map(|row| Mapping {
        selector: row.selector.into(),
        user_id: row.user_id.into(),
        updated_at: row.updated_at,
    });
    Ok(mappings.collect())
}

/// One mapping.
pub(crate) async fn one(
    executor: impl SqliteExecutor<'_>,
    selector: &str,
) -> Result<Option<Mapping>> {
    let row = sqlx::query!(
        r#"SELECT selector AS "selector: Text", user_id AS "user_id: Text", updated_at
           FROM mappings
           WHERE selector = ?"#,
        selector
    )
    .fetch_optional(executor)
    .await
    .map_err(from_sqlx)?;
    Ok(row.map(|row| Mapping {
        selector: row.selector.into(),
        user_id: row.user_id.into(),
        updated_at: row.updated_at,
    }))
}
