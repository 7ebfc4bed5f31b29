//! Examines the server, for the doctor. It uses its own connections, so that it can also say what is wrong with a
//! database that cannot be opened. Changes nothing.

use std::time::Duration;

use matrix2acrobits_shared::{clock::Clock, flow::server::ServerFacts};
use sqlx::{
    Connection, PgConnection,
    postgres::{PgListener, PgPoolOptions},
};

use crate::{
    DatabaseUrl, OpenError,
    access::Access,
    open::{check_version, has_sessions, open_error},
    statements::{meta, server},
};

/// The name of the doctor's connections.
const NAME: &str = "matrix2acrobits doctor";
/// A channel on which nobody else listens.
const CHANNEL: &str = "matrix2acrobits_doctor";
/// How long a notification may take to arrive.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// A transaction is old after this many seconds, or after this many transactions of others.
const OLD: (i64, i32) = (300, 100_000);
/// The most old transactions to report.
const MOST_OLD: i64 = 3;

/// Facts about the server. An error says what keeps a process from using it.
pub async fn examine(database: &DatabaseUrl) -> Result<ServerFacts, OpenError> {
    let name = database.to_string();
    let access = Access::new(database, "10s").named(NAME).on_standby();
    if !has_sessions(&access, &name).await? {
        return Err(OpenError::Pooled(name));
    }
    let mut connection = access.connect_first(&name).await?;
    check_version(&mut connection, &name).await?;
    let failed = |error| open_error(&name, error);
    let facts = server::facts(&mut connection).await.map_err(failed)?;
    let connections = server::connections(&mut connection, NAME).await;
    let (age, transactions) = OLD;
    let old = server::old_transactions(&mut connection, age, transactions, MOST_OLD).await;
    let facts = ServerFacts {
        local: database.is_local(),
        ahead_ms: ahead(&mut connection, &name).await?,
        hears: !facts.standby && hears(&access, &mut connection).await.unwrap_or_default(),
        connections: connections.map_err(failed)?,
        old_transactions: old.map_err(failed)?,
        ..facts
    };
    // The connection only read, so closing it cannot lose anything.
    let _ = connection.close().await;
    Ok(facts)
}

/// How far the server's clock is ahead of ours, in milliseconds. We assume that the server read its clock midway
/// between our request and the response.
async fn ahead(connection: &mut PgConnection, name: &str) -> Result<i64, OpenError> {
    let clock = Clock::system();
    let ours = || i64::try_from(clock.unix_millis()).unwrap_or(i64::MAX);
    let before = ours();
    let server_time = meta::now_ms(connection).await;
    let server_time =
        server_time.map_err(|error| OpenError::Unreachable(name.to_owned(), error))?;
    Ok(server_time - i64::midpoint(before, ours()))
}

/// Whether a notification from one connection arrives on another.
async fn hears(access: &Access, teller: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(HEARD_WITHIN)
        .connect_lazy_with(access.options().clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(CHANNEL).await?;
    server::tell(teller, CHANNEL).await?;
    let heard = tokio::time::timeout(HEARD_WITHIN, listener.recv()).await;
    Ok(matches!(heard, Ok(Ok(_))))
}
