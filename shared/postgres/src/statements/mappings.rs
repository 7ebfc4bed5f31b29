//! The table `mappings`: the operator's mappings of selectors to users.

use std::collections::BTreeMap;

use matrix2acrobits_shared::{flow::Result, rules::import::Mapping};
use sqlx::PgConnection;

use crate::errors::from_sqlx;

/// The mappings of these selectors, in the same order.
pub(crate) async fn of(
    connection: &mut PgConnection,
    selectors: &[&str],
) -> Result<Vec<Option<Mapping>>> {
    let rows = sqlx::query!(
        r#"SELECT m.selector AS "selector?",
               m.user_id AS "user_id?",
               m.updated_at AS "updated_at?"
           FROM unnest($1::text[]) WITH ORDINALITY i (selector, place)
           LEFT JOIN LATERAL (SELECT *
                              FROM mappings n
                              WHERE n.selector = i.selector
                              OFFSET 0) m ON true
           ORDER BY i.place"#,
        selectors as &[&str]
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let mappings = rows.into_iter().map(|row| {
        Some(Mapping {
            selector: row.selector?,
            user_id: row.user_id?,
            updated_at: row.updated_at?,
        })
    });
    Ok(mappings.collect())
}

/// Maps selectors to users. If a selector is named twice, the last mapping counts.
pub(crate) async fn put(
    connection: &mut PgConnection,
    mappings: &[(&str, &str)],
    now: i64,
) -> Result<()> {
    // One statement cannot write a row twice.
    let last: BTreeMap<&str, &str> = mappings.iter().copied().collect();
    let (selectors, users): (Vec<&str>, Vec<&str>) = last.into_iter().unzip();
    sqlx::query!(
        "INSERT INTO mappings (selector, user_id, created_at, updated_at)
         SELECT i.selector, i.user_id, $3, $3
         FROM unnest($1::text[], $2::text[]) i (selector, user_id)
         ON CONFLICT (selector) DO UPDATE
         SET user_id = excluded.user_id,
             updated_at = excluded.updated_at",
        &selectors as &[&str],
        &users as &[&str],
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes a mapping. False when there was none.
pub(crate) async fn delete(connection: &mut PgConnection, selector: &str) -> Result<bool> {
    let done = sqlx::query!(
        "DELETE FROM mappings
         WHERE selector = $1",
        selector
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected() > 0)
}

/// Up to `limit` mappings in the order of their selectors, those after `after`.
pub(crate) async fn page(
    connection: &mut PgConnection,
    after: &str,
    limit: u32,
) -> Result<Vec<Mapping>> {
    sqlx::query_as!(
        Mapping,
        "SELECT selector, user_id, updated_at
         FROM mappings
         WHERE selector > $1
         ORDER BY selector
         LIMIT $2",
        after,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// One mapping.
pub(crate) async fn one(connection: &mut PgConnection, selector: &str) -> Result<Option<Mapping>> {
    sqlx::query_as!(
        Mapping,
        "SELECT selector, user_id, updated_at
         FROM mappings
         WHERE selector = $1",
        selector
    )
    .fetch_optional(connection)
    .await
    .map_err(from_sqlx)
}
