//! A connection's settings, and whether it is one: behind a pooler, two of our connections may share one of the
//! server's. No statement here is prepared, because such a pooler may not know prepared statements, and an old server
//! may not know the statements.

use sqlx::{AssertSqlSafe, PgConnection, Row};

/// A setting's name and value. Both are constants of ours, so they need no escaping.
pub(crate) type Setting = (&'static str, &'static str);

/// Gives a connection its settings in one round trip. Returns whether the server is a standby. With any settings of the
/// server, acknowledged writes are on its disk.
pub(crate) async fn set(
    connection: &mut PgConnection,
    settings: &[Setting],
) -> Result<bool, sqlx::Error> {
    let one = |(name, value): &Setting| format!("SET {name} TO '{value}';");
    let mut all: String = settings.iter().map(one).collect();
    all.push_str(
        "SELECT pg_is_in_recovery(),
             set_config('synchronous_commit',
                        replace(current_setting('synchronous_commit'), 'off', 'on'),
                        false)",
    );
    let row = sqlx::raw_sql(AssertSqlSafe(all))
        .fetch_one(connection)
        .await?;
    row.try_get(0)
}

/// Sets how long the statements of this session wait for a lock.
pub(crate) async fn set_lock_timeout(
    connection: &mut PgConnection,
    timeout: &'static str,
) -> Result<(), sqlx::Error> {
    let set = AssertSqlSafe(format!("SET lock_timeout TO '{timeout}'"));
    sqlx::raw_sql(set).execute(connection).await?;
    Ok(())
}

/// The number of the server's process for this connection.
pub(crate) async fn backend(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::raw_sql("SELECT pg_backend_pid()")
        .fetch_one(connection)
        .await?;
    row.try_get(0)
}

/// The server's release, as a number and as text.
pub(crate) async fn version(connection: &mut PgConnection) -> Result<(i32, String), sqlx::Error> {
    let sql =
        "SELECT current_setting('server_version_num')::int4, current_setting('server_version')";
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Tries to begin a transaction that holds a lock of this number, which the whole database has but once.
pub(crate) async fn try_lock(
    connection: &mut PgConnection,
    number: i64,
) -> Result<bool, sqlx::Error> {
    let sql = format!("BEGIN; SELECT pg_try_advisory_xact_lock({number})");
    let row = sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await?;
    row.try_get(0)
}
