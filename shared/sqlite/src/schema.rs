//! The schema's migrations, and how far a file is with them.

use apalis_sqlite::SqliteStorage;
use sqlx::{SqliteConnection, migrate::Migrator};

/// Our migrations and apalis' own in one list, ordered by version. They share `_sqlx_migrations`, and ours may refer to
/// apalis' tables. (`SqliteStorage::setup` would also set `synchronous=OFF`.)
pub(crate) fn migrations() -> Migrator {
    let ours = sqlx::migrate!("../../migrations/sqlite");
    let apalis = SqliteStorage::migrations();
    Migrator::with_migrations(ours.iter().chain(apalis.iter()).cloned().collect())
}

/// The versions of all migrations that this program knows.
pub(crate) fn known_versions() -> Vec<i64> {
    migrations()
        .iter()
        .map(|migration| migration.version)
        .collect()
}

/// The versions of the migrations that a database has had. None if it has never had any.
pub(crate) async fn versions(
    connection: &mut SqliteConnection,
) -> Result<Option<Vec<i64>>, sqlx::Error> {
    let table: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'",
    )
    .fetch_optional(&mut *connection)
    .await?;
    if table.is_none() {
        return Ok(None);
    }
    let versions = sqlx::query_scalar("SELECT version FROM _sqlx_migrations")
        .fetch_all(connection)
        .await?;
    Ok(Some(versions))
}

/// Whether a file has no tables.
pub(crate) async fn is_empty(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)")
        .fetch_one(connection)
        .await
}

/// Whether a file has tables, but none that lists our migrations, which is the first that we make. One statement,
/// because another process may be making them.
pub(crate) async fn is_another_programs(
    connection: &mut SqliteConnection,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT count(*) > 0 AND count(*) FILTER (WHERE name = '_sqlx_migrations') = 0
         FROM sqlite_schema
         WHERE type = 'table'",
    )
    .fetch_one(connection)
    .await
}

/// Whether a file has had migrations, but none of ours: other programs keep theirs in a table of the same name.
pub(crate) async fn has_others_migrations(
    connection: &mut SqliteConnection,
) -> Result<bool, sqlx::Error> {
    let applied = versions(connection).await?.unwrap_or_default();
    let ours = known_versions();
    Ok(!applied.is_empty() && !applied.iter().any(|version| ours.contains(version)))
}
