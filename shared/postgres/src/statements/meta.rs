//! Small facts about the database (its keys, its clock, its size), transactions, and messages to other processes.

use matrix2acrobits_shared::flow::Result;
use sqlx::{PgConnection, Row};

use crate::errors::from_sqlx;

/// Opens a transaction, and returns the server's time in milliseconds since 1970. Others hold locks for some
/// milliseconds unless they hang, so in `haste` the transaction waits for them much less.
pub(crate) async fn begin(connection: &mut PgConnection, haste: bool) -> Result<i64> {
    // All in one round trip.
    let sql = if haste {
        "BEGIN; SET LOCAL lock_timeout = '100ms'; SELECT (extract(epoch FROM now()) * 1000)::int8"
    } else {
        "BEGIN; SET LOCAL lock_timeout = '500ms'; SELECT (extract(epoch FROM now()) * 1000)::int8"
    };
    let rows = sqlx::raw_sql(sql).fetch_all(connection).await;
    let rows = rows.map_err(from_sqlx)?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound);
    row.and_then(|row| row.try_get(0)).map_err(from_sqlx)
}

/// Commits the transaction.
pub(crate) async fn commit(connection: &mut PgConnection) -> Result<()> {
    let done = sqlx::raw_sql("COMMIT").execute(connection).await;
    done.map_err(from_sqlx)?;
    Ok(())
}

/// Rolls the transaction back.
pub(crate) async fn rollback(connection: &mut PgConnection) -> Result<()> {
    let done = sqlx::raw_sql("ROLLBACK").execute(connection).await;
    done.map_err(from_sqlx)?;
    Ok(())
}

/// How many rows the statistics assume in the smaller of the two largest tables. -1 before they were first gathered.
pub(crate) async fn rows_assumed(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT min(reltuples)::int8 AS "rows!"
           FROM pg_class
           WHERE oid IN ('push_tokens'::regclass, 'pushers'::regclass)"#
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// Makes PostgreSQL gather statistics about the tables.
pub(crate) async fn analyze(connection: &mut PgConnection) -> Result<()> {
    let tables = "ANALYZE push_tokens, mappings, pushers, jobs";
    let done = sqlx::raw_sql(tables).execute(connection).await;
    done.map_err(from_sqlx)?;
    Ok(())
}

/// The server's time in milliseconds since 1970.
pub(crate) async fn now_ms(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar!(r#"SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8 AS "now!""#)
        .fetch_one(connection)
        .await
        .map_err(from_sqlx)
}

/// Sends messages to the other processes when the transaction is committed.
pub(crate) async fn tell(connection: &mut PgConnection, messages: &[String]) -> Result<()> {
    sqlx::query!(
        "SELECT count(pg_notify('matrix2acrobits', message))
         FROM unnest($1::text[]) message",
        messages
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The key with this name. If there is none, `fresh` is stored and returned.
pub(crate) async fn key(
    connection: &mut PgConnection,
    name: &str,
    fresh: &[u8],
) -> Result<Vec<u8>> {
    sqlx::query!(
        "INSERT INTO meta (name, value)
         VALUES ($1, $2)
         ON CONFLICT DO NOTHING",
        name,
        fresh
    )
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    sqlx::query_scalar!(
        "SELECT value
         FROM meta
         WHERE name = $1",
        name
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// The size of the database on the server's disk, in bytes.
pub(crate) async fn size(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar!(r#"SELECT pg_database_size(current_database()) AS "size!""#)
        .fetch_one(connection)
        .await
        .map_err(from_sqlx)
}
