//! Opens the database at start: checks whether it can be used and brings its schema up to date, while other processes
//! may be doing the same.

use std::time::{Duration, Instant};

use matrix2acrobits_shared::{
    flow::{Result as StoreResult, StoreError},
    ids,
    mark::KEY_BYTES,
    process::failure::Failure,
    secret::derive_key,
};
use sqlx::{
    Connection, PgConnection,
    migrate::{Migrate, MigrateError, Migrator},
};

use crate::{
    access::Access,
    errors::{code, from_sqlx},
    statements::{meta, session},
    url::DatabaseUrl,
};

/// The oldest supported server, as `server_version_num`.
const OLDEST: i32 = 140_000;
/// The time limit for a change of the schema, and for the wait for another process that changes it.
const MIGRATE: &str = "10min";
/// How long a command waits for another process' lock while it prepares the database.
const PREPARING: &str = "5s";
/// How long a change of the schema waits for the lock of a table. All writes to the table wait behind it. An autovacuum
/// gives way to whoever has waited for `deadlock_timeout`, by default a second.
const TABLE_LOCK: &str = "1200ms";
/// The pause before the next attempt to lock a table, and for how long to repeat that.
const LOCK_PAUSE: Duration = Duration::from_secs(4);
const LOCKED: Duration = Duration::from_mins(10);

/// Why the database could not be opened at start. Each error says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No server responds at this address, or not at this moment.
    #[error("the database {0} does not answer: {1}")]
    Unreachable(String, StoreError),
    /// The server responds, but accepts no connections or no work at this moment.
    #[error("the database {0} cannot be used now: {reason}", reason = reason(.1))]
    NotNow(String, sqlx::Error),
    /// Somebody holds a lock for longer than we wait.
    #[error("the database {0} cannot be used now: {1}")]
    Locked(String, StoreError),
    /// The server takes no writes.
    #[error(
        "the database {0} takes no writes now: it is a standby, or was switched to read-only (a full disk can be why); \
         DATABASE_URL must lead to the primary ({reason})",
        reason = reason(.1)
    )]
    ReadOnly(String, sqlx::Error),
    /// The user or the password is wrong.
    #[error("DATABASE_URL: {0} refuses the login: {reason}", reason = reason(.1))]
    Login(String, sqlx::Error),
    /// There is no such database.
    #[error(
        "DATABASE_URL: {0}: there is no such database: create it with `createdb`, owned by that user ({reason})",
        reason = reason(.1)
    )]
    Missing(String, sqlx::Error),
    /// The server is too old.
    #[error("DATABASE_URL: {0} is PostgreSQL {1}: 14 or newer is needed")]
    TooOld(String, String),
    /// A newer version has changed the schema.
    #[error("DATABASE_URL: {0} was written by a newer version of this program: upgrade this one")]
    Newer(String),
    /// The database belongs to another program.
    #[error(
        "DATABASE_URL: {0} is the database of another program: create one for this program with `createdb`"
    )]
    NotOurs(String),
    /// The user lacks rights that are needed.
    #[error(
        "DATABASE_URL: {0}: its user may not make or use the tables: make it the database's owner ({reason})",
        reason = reason(.1)
    )]
    Rights(String, sqlx::Error),
    /// A pooler gives each transaction another connection of the server.
    #[error(
        "DATABASE_URL: {0} is a connection pooler in transaction mode, which loses locks, settings and LISTEN: connect to \
         PostgreSQL itself, or set pool_mode=session for this database in PgBouncer"
    )]
    Pooled(String),
    /// Anything else.
    #[error("DATABASE_URL: {0} cannot be used: {reason}", reason = reason(.1))]
    Other(String, sqlx::Error),
}

/// The server's own text, without the words that sqlx puts around it.
fn reason(error: &sqlx::Error) -> String {
    let said = error
        .as_database_error()
        .map(|said| said.message().to_owned());
    said.unwrap_or_else(|| error.to_string())
}

/// A problem that may pass on its own is not blamed on DATABASE_URL, so that a supervisor restarts the process.
impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            error if error.may_pass() => Self::other(error),
            error => Self::bad_setting(error),
        }
    }
}

impl OpenError {
    /// Whether the same attempt may succeed later.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(..) | Self::NotNow(..) | Self::Locked(..) | Self::ReadOnly(..)
        )
    }
}

/// Converts the error of an attempt to connect.
pub(crate) fn open_error(name: &str, error: sqlx::Error) -> OpenError {
    let name = name.to_owned();
    match code(&error).as_deref() {
        Some("28P01" | "28000") => OpenError::Login(name, error),
        Some("3D000") => OpenError::Missing(name, error),
        Some("42501" | "3F000") => OpenError::Rights(name, error),
        Some("25006") => OpenError::ReadOnly(name, error),
        Some(code) if is_lock(code) => OpenError::Locked(name, from_sqlx(error)),
        // Too many connections, starting up or shutting down, no room.
        Some(code) if ["53", "57", "58", "25"].contains(&&code[..2]) => {
            OpenError::NotNow(name, error)
        }
        None if matches!(error, sqlx::Error::AnyDriverError(_)) => OpenError::ReadOnly(name, error),
        None if matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => {
            OpenError::Unreachable(name, from_sqlx(error))
        }
        _ => OpenError::Other(name, error),
    }
}

/// Whether each of our connections has a connection of the server for itself. Only then do locks, settings and LISTEN
/// last beyond a transaction. Two connections take turns: they must never share a process of the server, and each must
/// stay with its own.
pub(crate) async fn has_sessions(access: &Access, name: &str) -> Result<bool, OpenError> {
    let failed = |error| open_error(name, error);
    let (mut one, mut other) = (
        access.connect_first(name).await?,
        access.connect_first(name).await?,
    );
    let mut seen = Vec::new();
    for _ in 0..3 {
        let pair = (
            session::backend(&mut one).await.map_err(failed)?,
            session::backend(&mut other).await.map_err(failed)?,
        );
        seen.push(pair);
    }
    for connection in [one, other] {
        // These connections only read, so closing them cannot lose anything.
        let _ = connection.close().await;
    }
    Ok(seen.iter().all(|pair| *pair == seen[0] && pair.0 != pair.1))
}

/// Facts about a database that is ready.
pub(crate) struct Prepared {
    /// The server's time in milliseconds since 1970.
    pub(crate) now: i64,
    /// The key of the hashes of pushed events.
    pub(crate) sent_key: Option<[u8; 16]>,
}

/// Checks the server, brings the schema up to date and creates missing keys, for a command: somebody waits for it.
pub async fn prepare(database: &DatabaseUrl) -> Result<(), OpenError> {
    let access = Access::new(database, MIGRATE).with([("lock_timeout", PREPARING)]);
    set_up(access, database.to_string()).await.map(drop)
}

/// The same for a process that starts, perhaps while another one brings the schema up to date.
pub(crate) async fn make_ready(database: &DatabaseUrl) -> Result<Prepared, OpenError> {
    set_up(Access::new(database, MIGRATE), database.to_string()).await
}

async fn set_up(access: Access, name: String) -> Result<Prepared, OpenError> {
    if !has_sessions(&access, &name).await? {
        return Err(OpenError::Pooled(name));
    }
    let mut connection = access.connect_first(&name).await?;
    let failed = |error| open_error(&name, error);
    check_version(&mut connection, &name).await?;
    if is_another_programs(&mut connection).await.map_err(failed)?
        || has_others_migrations(&mut connection)
            .await
            .map_err(failed)?
    {
        return Err(OpenError::NotOurs(name));
    }
    migrate(&mut connection, &name).await?;
    let unreadable = |error| match error {
        StoreError::Locked(_) => OpenError::Locked(name.clone(), error),
        error => OpenError::Unreachable(name.clone(), error),
    };
    let sent_key = load_keys(&mut connection).await.map_err(unreadable)?;
    let now = meta::now_ms(&mut connection).await.map_err(unreadable)?;
    // Everything is committed.
    let _ = connection.close().await;
    Ok(Prepared { now, sent_key })
}

/// Brings the schema up to date. Other processes go on writing meanwhile, and an operator may have a transaction open. A
/// change that waited for that would hold up all writes to its table, so it gives up soon and tries again later.
async fn migrate(connection: &mut PgConnection, name: &str) -> Result<(), OpenError> {
    let failed = |error| open_error(name, cause(error));
    // Several processes may start at the same time.
    connection.lock().await.map_err(failed)?;
    let mut migrations = migrations();
    migrations.set_locking(false);
    let started = Instant::now();
    let mut warned = false;
    session::set_lock_timeout(connection, TABLE_LOCK)
        .await
        .map_err(|error| open_error(name, error))?;
    loop {
        let error = match migrations.run_direct(None, connection, false).await {
            Ok(()) => break,
            Err(MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..)) => {
                return Err(OpenError::Newer(name.to_owned()));
            }
            Err(error) => cause(error),
        };
        let is_locked = code(&error).is_some_and(|code| is_lock(&code));
        if !is_locked || started.elapsed() > LOCKED {
            return Err(open_error(name, error));
        }
        if !std::mem::replace(&mut warned, true) {
            tracing::warn!(
                error = reason(&error),
                "the schema cannot be changed while somebody's transaction holds a table; trying again for {} minutes \
                 (`matrix2acrobits-worker doctor` names old transactions)",
                LOCKED.as_secs() / 60
            );
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    connection.unlock().await.map_err(failed)
}

/// Whether somebody else's lock was in the way, by a server's code.
fn is_lock(code: &str) -> bool {
    // A timeout, and a deadlock.
    matches!(code, "55P03" | "40P01")
}

fn cause(error: MigrateError) -> sqlx::Error {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error,
        other => sqlx::Error::Migrate(Box::new(other)),
    }
}

/// Refuses a server that is too old.
pub(crate) async fn check_version(
    connection: &mut PgConnection,
    name: &str,
) -> Result<(), OpenError> {
    let failed = |error| open_error(name, error);
    let (number, version) = session::version(connection).await.map_err(failed)?;
    if number < OLDEST {
        return Err(OpenError::TooOld(name.to_owned(), version));
    }
    Ok(())
}

fn migrations() -> Migrator {
    sqlx::migrate!("../../migrations/postgres")
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

/// Whether a database has no tables.
pub(crate) async fn is_empty(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT NOT EXISTS (SELECT 1
                            FROM pg_tables
                            WHERE schemaname NOT IN ('pg_catalog', 'information_schema'))",
    )
    .fetch_one(connection)
    .await
}

/// Whether a database has tables, but none that lists our migrations, which is the first that we make. One statement,
/// because another process may be making them.
async fn is_another_programs(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT count(*) > 0 AND to_regclass('_sqlx_migrations') IS NULL
         FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p')
           AND n.nspname NOT IN ('pg_catalog', 'information_schema')
           -- An extension brings its own.
           AND NOT EXISTS (SELECT 1
                           FROM pg_depend d
                           WHERE d.classid = 'pg_class'::regclass
                             AND d.objid = c.oid
                             AND d.deptype = 'e')",
    )
    .fetch_one(connection)
    .await
}

/// Whether a database has had migrations, but none of ours: other programs keep theirs in a table of the same name.
async fn has_others_migrations(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let applied = versions(connection).await?.unwrap_or_default();
    let ours = known_versions();
    Ok(!applied.is_empty() && !applied.iter().any(|version| ours.contains(version)))
}

/// Creates missing keys, and sets the key of the hashes in the logs. Returns a key for the hashes of pushed events,
/// derived from the log key because that one never changes. The key of the marks does.
async fn load_keys(connection: &mut PgConnection) -> StoreResult<Option<[u8; 16]>> {
    let fresh: [u8; 16] = rand::random();
    let key = meta::key(connection, "log_key", &fresh).await?;
    // The key of the marks must exist before anybody asks for it.
    meta::key(connection, "mark_key", &rand::random::<[u8; KEY_BYTES]>()).await?;
    let key: Option<[u8; 16]> = key.try_into().ok();
    key.into_iter().for_each(ids::set_log_key);
    Ok(key.map(|key| derive_key(&key, "sent events")))
}
