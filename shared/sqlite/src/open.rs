//! Opens the file at start: creates it, sets it up and brings its schema up to date, while another process may be doing
//! the same.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use apalis_sqlite::SqliteStorage;
use matrix2acrobits_shared::{
    flow::StoreError, ids, matrix::mark::KEY_BYTES, process::failure::Failure,
};
use sqlx::{
    Connection, SqliteConnection,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::{
    errors::{CORRUPT, NOTADB, code, is_busy},
    statements::meta,
    url::DatabaseUrl,
};

/// The pause before a retry, in which another process may finish the same work.
const PAUSE: Duration = Duration::from_millis(50);
/// How long to wait for another process' lock while preparing the file.
const PREPARING: Duration = Duration::from_secs(5);

/// Why the database could not be opened at start. Each error says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder does not exist and cannot be created.
    #[error("DATABASE_URL: the folder {0} cannot be created: {1}")]
    Folder(String, std::io::Error),
    /// The file cannot be created.
    #[error("DATABASE_URL: the file {0} cannot be created: {1}")]
    File(String, std::io::Error),
    /// The file is not a database, or damaged.
    #[error(
        "DATABASE_URL: {0} is damaged or not an SQLite database ({1}): stop both processes, move the \
         file away together with its -wal and -shm files, and restore the last backup"
    )]
    Damaged(String, sqlx::Error),
    /// A newer version has changed the schema.
    #[error("DATABASE_URL: {0} was written by a newer version of this program: upgrade this one")]
    Newer(String),
    /// The file opens, but cannot be read.
    #[error("DATABASE_URL: {0} cannot be read: {1}")]
    Unreadable(String, StoreError),
    /// Anything else.
    #[error("DATABASE_URL: {0} cannot be opened: {1}")]
    Other(String, sqlx::Error),
}

/// A file that cannot be opened is blamed on DATABASE_URL.
impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::bad_setting(error)
    }
}

/// Returns a connection for writing, and the options for more connections. `busy` is how long to wait for another
/// process' lock.
pub(crate) async fn open(
    database: &DatabaseUrl,
    busy: Duration,
) -> Result<(SqliteConnection, SqliteConnectOptions), OpenError> {
    let path = database.path();
    create_file(&path)?;
    let name = path.display().to_string();
    let options = database
        .options()
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(busy)
        .pragma("journal_size_limit", "67108864")
        // 32 MiB of log between checkpoints instead of 4. Each checkpoint flushes the disk again, and under load there
        // was one for every second commit.
        .pragma("wal_autocheckpoint", "8000")
        // The data that SQLite keeps to undo a statement that fails midway. In a file, it was 8 % of a report's cost.
        .pragma("temp_store", "memory")
        .create_if_missing(false);
    let mut connection = connect(&options, busy)
        .await
        .map_err(|e| open_error(&name, e))?;
    migrate(&mut connection, &name).await?;
    load_keys(&mut connection)
        .await
        .map_err(|e| OpenError::Unreadable(name, e))?;
    Ok((connection, options))
}

/// Creates the file if it does not exist, and brings its schema up to date.
pub async fn prepare(database: &DatabaseUrl) -> Result<(), OpenError> {
    let (connection, _) = open(database, PREPARING).await?;
    // Everything is committed.
    let _ = connection.close().await;
    Ok(())
}

/// Connects, with retries. SQLite's own wait does not cover two processes that change a new file's journal mode at the
/// same time: to prevent a deadlock, one of them gets an error at once.
async fn connect(
    options: &SqliteConnectOptions,
    busy: Duration,
) -> Result<SqliteConnection, sqlx::Error> {
    let started = Instant::now();
    loop {
        match SqliteConnection::connect_with(options).await {
            Err(error) if is_busy(&error) && started.elapsed() < busy => {
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Creates the file, readable only by its owner, and its immediate folder. SQLite gives the -wal and -shm files the
/// file's permissions.
fn create_file(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::OpenOptionsExt;
    if path.exists() {
        return Ok(());
    }
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
    {
        match std::fs::create_dir(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(OpenError::Folder(folder.display().to_string(), e));
            }
            _ => {}
        }
    }
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(|_| ())
        .map_err(|e| OpenError::File(path.display().to_string(), e))
}

fn open_error(name: &str, error: sqlx::Error) -> OpenError {
    match code(&error) {
        Some(CORRUPT | NOTADB) => OpenError::Damaged(name.into(), error),
        _ => OpenError::Other(name.into(), error),
    }
}

/// Our migrations and apalis' own in one list, ordered by version. They share `_sqlx_migrations`, and ours may refer to
/// apalis' tables. (`SqliteStorage::setup` would also set `synchronous=OFF`.)
fn migrations() -> Migrator {
    let ours = sqlx::migrate!("../../migrations/sqlite");
    let apalis = SqliteStorage::migrations();
    Migrator::with_migrations(ours.iter().chain(apalis.iter()).cloned().collect())
}

/// Migrates. If another process migrates at the same time, this one finds an existing table, and retries.
async fn migrate(connection: &mut SqliteConnection, name: &str) -> Result<(), OpenError> {
    const TRIES: u32 = 40;
    let migrations = migrations();
    for attempt in 1.. {
        let error = match migrations.run_direct(None, connection, false).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let error = match error {
            MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..) => {
                return Err(OpenError::Newer(name.into()));
            }
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => e,
            other => sqlx::Error::Migrate(Box::new(other)),
        };
        let error = open_error(name, error);
        if attempt == TRIES || matches!(error, OpenError::Damaged(..)) {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
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

/// Creates missing keys, and sets the key of the hashes in the logs.
async fn load_keys(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let fresh: [u8; 16] = rand::random();
    let key = meta::key(connection, "log_key", &fresh).await?;
    // The key of the marks must exist before anybody asks for it.
    meta::key(connection, "mark_key", &rand::random::<[u8; KEY_BYTES]>()).await?;
    if let Ok(key) = key.try_into() {
        ids::set_log_key(key);
    }
    Ok(())
}
