//! Opens the file at start: creates it, sets it up and brings its schema up to date, while another process may be doing
//! the same.

use std::{
    io::ErrorKind,
    path::Path,
    time::{Duration, Instant},
};

use matrix2acrobits_shared::{flow::StoreError, ids, mark::KEY_BYTES, process::failure::Failure};
use sqlx::{
    Connection, SqliteConnection,
    migrate::MigrateError,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::{
    errors::{CORRUPT, NOTADB, code, from_sqlx, is_busy, may_pass},
    schema::{self, migrations},
    statements::meta,
    url::DatabaseUrl,
    write_ahead_log,
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
    /// The file is another program's database.
    #[error(
        "DATABASE_URL: {0} is the database of another program: name a file of this program's own"
    )]
    NotOurs(String),
    /// The file cannot be used at this moment.
    #[error("the database {0} cannot be used now: {1}")]
    NotNow(String, StoreError),
    /// The file opens, but cannot be read.
    #[error("DATABASE_URL: {0} cannot be read: {1}")]
    Unreadable(String, StoreError),
    /// Anything else.
    #[error("DATABASE_URL: {0} cannot be opened: {1}")]
    Other(String, sqlx::Error),
}

/// A problem that may pass on its own is not blamed on DATABASE_URL, so that a supervisor restarts the process.
impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::NotNow(..) => Self::other(error),
            OpenError::Folder(_, ref cause) | OpenError::File(_, ref cause)
                if matches!(
                    cause.kind(),
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded
                ) =>
            {
                Self::other(error)
            }
            error => Self::bad_setting(error),
        }
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
    // Before anything is changed there. Where it cannot be told, the rest will tell.
    if matches!(is_another_programs(database).await, Ok(true)) {
        return Err(OpenError::NotOurs(name));
    }
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
        .map_err(|e| unreadable(&name, e))?;
    Ok((connection, options))
}

async fn is_another_programs(database: &DatabaseUrl) -> Result<bool, sqlx::Error> {
    // Without a log nobody has it open, and reading must not leave one beside it.
    let closed = !write_ahead_log(&database.path()).exists();
    let options = database.options().read_only(true).create_if_missing(false);
    let mut connection = SqliteConnection::connect_with(&options.immutable(closed)).await?;
    let foreign = schema::is_another_programs(&mut connection).await?
        || schema::has_others_migrations(&mut connection).await?;
    // The connection only read, so closing it cannot lose anything.
    let _ = connection.close().await;
    Ok(foreign)
}

/// Writes all of the write-ahead log into the file, and makes the log empty.
pub(crate) async fn empty_log(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = SqliteConnection::connect_with(options).await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&mut connection)
        .await?;
    connection.close().await
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

/// Converts an error of reading from a file that was opened.
pub(crate) fn unreadable(name: &str, error: StoreError) -> OpenError {
    match error {
        StoreError::Busy(cause) | StoreError::Unavailable(cause)
            if cause.downcast_ref().is_some_and(may_pass) =>
        {
            OpenError::NotNow(name.into(), StoreError::Unavailable(cause))
        }
        error => OpenError::Unreadable(name.into(), error),
    }
}

fn open_error(name: &str, error: sqlx::Error) -> OpenError {
    match code(&error) {
        Some(CORRUPT | NOTADB) => OpenError::Damaged(name.into(), error),
        _ if may_pass(&error) => OpenError::NotNow(name.into(), from_sqlx(error)),
        _ => OpenError::Other(name.into(), error),
    }
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
