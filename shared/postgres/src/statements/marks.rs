//! The key of the marks that pushers carry, in `meta`. It is made once, and changes when the operator asks for it.

use matrix2acrobits_shared::{
    flow::Result,
    mark::{MarkKey, MarkKeys},
};
use sqlx::PgConnection;

use crate::errors::from_sqlx;

/// The keys whose marks count.
pub(crate) async fn keys(connection: &mut PgConnection) -> Result<MarkKeys> {
    let rows = sqlx::query!(
        "SELECT name, value
         FROM meta
         WHERE name = ANY ('{mark_key,mark_key_before,mark_key_until}')"
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let value = |name: &str| {
        let row = rows.iter().find(|row| row.name == name)?;
        Some(row.value.as_slice())
    };
    MarkKeys::read(value).ok_or_else(|| {
        let problem = "the key of the marks is not there or not readable";
        from_sqlx(sqlx::Error::Decode(problem.into()))
    })
}

/// Keeps others from renewing the key until the end of the transaction. Otherwise two renewals at the same time would
/// both keep the same key as the previous one.
pub(crate) async fn lock(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!(
        "SELECT name
         FROM meta
         WHERE name = 'mark_key'
         FOR UPDATE"
    )
    .fetch_optional(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The key that marks are made with.
pub(crate) async fn current(connection: &mut PgConnection) -> Result<Option<MarkKey>> {
    let row = sqlx::query!(
        "SELECT m.value
         FROM meta m
         WHERE m.name = 'mark_key'"
    )
    .fetch_optional(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(row.and_then(|row| MarkKey::read(&row.value)))
}

/// Keeps the current key as the previous one.
pub(crate) async fn keep_before(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!(
        "INSERT INTO meta AS m (name, value)
         SELECT 'mark_key_before', value
         FROM meta
         WHERE name = 'mark_key'
         ON CONFLICT (name) DO UPDATE
         SET value = excluded.value"
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Stores a new key, and the time until which the previous one counts.
pub(crate) async fn put(connection: &mut PgConnection, fresh: &[u8], until: &[u8]) -> Result<()> {
    sqlx::query!(
        "INSERT INTO meta (name, value)
         VALUES ('mark_key_until', $1),
             ('mark_key', $2)
         ON CONFLICT (name) DO UPDATE
         SET value = excluded.value",
        until,
        fresh
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// How many pushers that the homeserver should hold do not carry the mark of the key with this name yet, as far as we
/// know: a job may be about to set one with an older mark. Reads all pushers.
pub(crate) async fn count_without(connection: &mut PgConnection, name: &str) -> Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM pushers
           WHERE wanted = 'present'
             AND state IN ('registered', 'pending')
             AND right(registered_as, length($1)) IS DISTINCT FROM $1"#,
        name
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// How many pushers that the homeserver should hold carry the mark of the key with this name. Reads all pushers.
pub(crate) async fn count_with(connection: &mut PgConnection, name: &str) -> Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM pushers
           WHERE wanted = 'present'
             AND state IN ('registered', 'pending')
             AND right(registered_as, length($1)) = $1"#,
        name
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}
