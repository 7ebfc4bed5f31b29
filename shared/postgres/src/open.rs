//! Opening the database at start: whether it can be used, and bringing its schema up to date, while other processes may
//! be doing the same.

use std::time::Duration;

use matrix2acrobits_shared::{
    flow::{Result as StoreResult, StoreError},
    ids,
    matrix::mark::KEY_BYTES,
    process::failure::Failure,
    secret::derive_key,
};
use sqlx::{
    Connection, PgConnection,
    migrate::{MigrateError, Migrator},
    postgres::PgConnectOptions,
};

use crate::{
    errors::{NoAnswer, code, from_sqlx},
    statements::meta,
    url::DatabaseUrl,
};

/// The oldest server that is supported, as `server_version_num` has it.
const OLDEST: i32 = 140_000;
/// How long connecting takes at most.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the schema's changes take at most; another process' are waited for.
const MIGRATE: &str = "10min";

/// Why the database could not be opened at start; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody answers there, or not now.
    #[error("the database {0} does not answer: {1}")]
    Unreachable(String, StoreError),
    /// It answers, and takes nobody, or nothing, now.
    #[error("the database {0} cannot be used now: {1}")]
    NotNow(String, sqlx::Error),
    /// The user or the password is wrong.
    #[error("DATABASE_URL: {0} refuses the login: {1}")]
    Login(String, sqlx::Error),
    /// There is no such database.
    #[error(
        "DATABASE_URL: {0}: there is no such database: create it with `createdb`, owned by that user ({1})"
    )]
    Missing(String, sqlx::Error),
    /// The server is too old.
    #[error("DATABASE_URL: {0} is PostgreSQL {1}: 14 or newer is needed")]
    TooOld(String, String),
    /// A newer version has changed the schema.
    #[error("DATABASE_URL: {0} was written by a newer version of this program: upgrade this one")]
    Newer(String),
    /// The user may not do what is needed.
    #[error(
        "DATABASE_URL: {0}: its user may not make or use the tables: make it the database's owner ({1})"
    )]
    Rights(String, sqlx::Error),
    /// Anything else.
    #[error("DATABASE_URL: {0} cannot be used: {1}")]
    Other(String, sqlx::Error),
}

/// What time may mend is no matter of DATABASE_URL: a supervisor starts the process again.
impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unreachable(..) | OpenError::NotNow(..) => Self::other(error),
            _ => Self::bad_setting(error),
        }
    }
}

/// What became of an attempt, in words.
pub(crate) fn open_error(name: &str, error: sqlx::Error) -> OpenError {
    let name = name.to_owned();
    match code(&error).as_deref() {
        Some("28P01" | "28000") => OpenError::Login(name, error),
        Some("3D000") => OpenError::Missing(name, error),
        Some("42501") => OpenError::Rights(name, error),
        // Too many connections, starting up or shutting down, no room, read-only.
        Some(code) if ["53", "57", "58", "25"].contains(&&code[..2]) => {
            OpenError::NotNow(name, error)
        }
        None if matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => {
            OpenError::Unreachable(name, from_sqlx(error))
        }
        _ => OpenError::Other(name, error),
    }
}

/// Connection options that all connections have: who it is, and how long a statement takes at most.
pub(crate) fn options(database: &DatabaseUrl, statement_timeout: &str) -> PgConnectOptions {
    let options = database.options();
    let options = match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("matrix2acrobits"),
    };
    options.options([
        // The triggers of the schema tell others of what no program of ours has done.
        ("matrix2acrobits.program", "1"),
        ("statement_timeout", statement_timeout),
        ("lock_timeout", statement_timeout),
        ("idle_in_transaction_session_timeout", "5s"),
        ("default_transaction_isolation", "read committed"),
        ("default_transaction_read_only", "off"),
        ("jit", "off"),
    ])
}

/// The same for connections whose statements all look up rows by an index: PostgreSQL must not think better of it while a
/// table is young or its statistics are old.
pub(crate) fn indexed(database: &DatabaseUrl) -> PgConnectOptions {
    options(database, "2s").options([
        ("enable_seqscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
    ])
}

/// Connects, for the first time.
pub(crate) async fn connect(
    options: &PgConnectOptions,
    name: &str,
) -> Result<PgConnection, OpenError> {
    match tokio::time::timeout(CONNECT, PgConnection::connect_with(options)).await {
        Ok(connected) => connected.map_err(|error| open_error(name, error)),
        Err(_) => Err(OpenError::Unreachable(
            name.to_owned(),
            StoreError::Unavailable(std::sync::Arc::new(NoAnswer(CONNECT))),
        )),
    }
}

/// What is known of a database that is ready.
pub(crate) struct Prepared {
    /// The server's time in milliseconds since 1970.
    pub(crate) now: i64,
    /// The key for the memory of pushed events.
    pub(crate) sent_key: Option<[u8; 16]>,
}

/// Checks the server, brings the schema up to date and makes the keys. Returns the server's time in milliseconds since 1970.
pub async fn prepare(database: &DatabaseUrl) -> Result<i64, OpenError> {
    Ok(make_ready(database).await?.now)
}

/// The same, with all that is known then.
pub(crate) async fn make_ready(database: &DatabaseUrl) -> Result<Prepared, OpenError> {
    let name = database.to_string();
    let mut connection = connect(&options(database, MIGRATE), &name).await?;
    let failed = |error| open_error(&name, error);
    let version: String = sqlx::query_scalar("SHOW server_version_num")
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
    if version.parse::<i32>().is_ok_and(|version| version < OLDEST) {
        let version: String = sqlx::query_scalar("SHOW server_version")
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
        return Err(OpenError::TooOld(name, version));
    }
    // It holds an advisory lock meanwhile: several processes may start at once.
    match migrations().run_direct(None, &mut connection, false).await {
        Ok(()) => {}
        Err(MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..)) => {
            return Err(OpenError::Newer(name));
        }
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
            return Err(failed(error));
        }
        Err(other) => return Err(failed(sqlx::Error::Migrate(Box::new(other)))),
    }
    let unreadable = |error| OpenError::Unreachable(name.clone(), error);
    let sent_key = load_keys(&mut connection).await.map_err(unreadable)?;
    let now = meta::now_ms(&mut connection).await.map_err(unreadable)?;
    // All is committed.
    let _ = connection.close().await;
    Ok(Prepared { now, sent_key })
}

fn migrations() -> Migrator {
    sqlx::migrate!("../../migrations/postgres")
}

/// The versions of all migrations that this program knows.
pub(crate) fn known_versions() -> Vec<i64> {
    migrations().iter().map(|it| it.version).collect()
}

/// The versions of the migrations that a database has seen; none if it has never seen any.
pub(crate) async fn versions(
    connection: &mut PgConnection,
) -> Result<Option<Vec<i64>>, sqlx::Error> {
    let table: Option<String> = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations')::text")
        .fetch_one(&mut *connection)
        .await?;
    if table.is_none() {
        return Ok(None);
    }
    let versions = sqlx::query_scalar("SELECT version FROM _sqlx_migrations")
        .fetch_all(connection)
        .await?;
    Ok(Some(versions))
}

/// Whether a database holds any table.
pub(crate) async fn is_empty(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT NOT EXISTS (SELECT 1
                            FROM pg_tables
                            WHERE schemaname NOT IN ('pg_catalog', 'information_schema'))",
    )
    .fetch_one(connection)
    .await
}

/// Makes the keys that are not there yet, and has the logs use theirs. Returns the one made of it for pushed events: it
/// never changes, as that of the marks does.
async fn load_keys(connection: &mut PgConnection) -> StoreResult<Option<[u8; 16]>> {
    let fresh: [u8; 16] = rand::random();
    let key = meta::key(connection, "log_key", &fresh).await?;
    // The key of the marks has to be there before anybody asks for it.
    meta::key(connection, "mark_key", &rand::random::<[u8; KEY_BYTES]>()).await?;
    let key: Option<[u8; 16]> = key.try_into().ok();
    key.into_iter().for_each(ids::set_log_key);
    Ok(key.map(|key| derive_key(&key, "sent events")))
}
