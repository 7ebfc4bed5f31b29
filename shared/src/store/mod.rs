//! The SQLite store: opening it, its errors, and one module per subject. With [`crate::queue`] the only
//! place that holds SQL, so that another database can later stand behind the same functions.

mod finish;
pub mod listing;
pub mod mappings;
pub mod pushers;
mod settle;
pub mod tokens;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use apalis_sqlite::SqliteStorage;
use sqlx::{
    Connection, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::{clock::Clock, config::DatabaseUrl, ids, writer::Writer};

pub use tokens::PushTarget;

/// Connections for reading: lookups are short, and each connection costs a thread.
const READERS: u32 = 4;

/// Why the store could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("database: {0}")]
    Database(Arc<sqlx::Error>),
    /// apalis could not enqueue.
    #[error("queue: {0}")]
    Queue(Arc<apalis_sqlite::Error>),
    /// Too many writes wait already.
    #[error("too many writes are waiting")]
    Overloaded,
    /// The writer has ended: the process is stopping.
    #[error("the writer has stopped")]
    Stopped,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

impl From<apalis_sqlite::Error> for StoreError {
    fn from(error: apalis_sqlite::Error) -> Self {
        Self::Queue(Arc::new(error))
    }
}

impl StoreError {
    /// Whether the cause lies around the database (locked, full, unreadable) and not in one statement.
    pub fn is_environment(&self) -> bool {
        let error: &sqlx::Error = match self {
            Self::Database(error) => error,
            Self::Queue(error) => match error.as_ref() {
                apalis_sqlite::Error::Database(error) => error,
                _ => return false,
            },
            Self::Overloaded | Self::Stopped => return true,
        };
        let sqlx::Error::Database(error) = error else {
            return true;
        };
        // https://sqlite.org/rescode.html: BUSY, LOCKED, NOMEM, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB
        let code = error.code().and_then(|code| code.parse::<u32>().ok());
        code.is_some_and(|code| matches!(code & 0xff, 5 | 6 | 7 | 8 | 10 | 11 | 13 | 14 | 26))
    }
}

/// Why the database could not be opened at start; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is not there and not ours to make.
    #[error("DATABASE_URL: the folder {0} cannot be created: {1}")]
    Folder(String, std::io::Error),
    /// The file cannot be made.
    #[error("DATABASE_URL: the file {0} cannot be created: {1}")]
    File(String, std::io::Error),
    /// The file is no (longer a) database.
    #[error(
        "DATABASE_URL: {0} is damaged or not an SQLite database ({1}): stop both processes, move the \
         file away together with its -wal and -shm files, and restore the last backup"
    )]
    Damaged(String, sqlx::Error),
    /// A newer version has changed the schema.
    #[error("DATABASE_URL: {0} was written by a newer version of this program: upgrade this one")]
    Newer(String),
    /// It opens, but does not answer.
    #[error("DATABASE_URL: {0} cannot be read: {1}")]
    Unreadable(String, StoreError),
    /// Anything else.
    #[error("DATABASE_URL: {0} cannot be opened: {1}")]
    Other(String, sqlx::Error),
}

/// The open database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    /// Every write goes through here.
    pub writer: Writer,
    /// The time that rows are stamped with.
    pub clock: Clock,
    epoch: TokenEpoch,
    readers: SqlitePool,
    options: SqliteConnectOptions,
}

impl Store {
    /// Opens the file, creates what is missing, brings the schema up to date and starts the writer.
    /// `busy` is how long a statement waits for another process' lock.
    pub async fn open(
        database: &DatabaseUrl,
        busy: Duration,
        clock: Clock,
    ) -> Result<Self, OpenError> {
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
            .create_if_missing(false);
        let mut connection = SqliteConnection::connect_with(&options)
            .await
            .map_err(|e| open_error(&name, e))?;
        migrate(&mut connection, &name).await?;
        load_log_key(&mut connection)
            .await
            .map_err(|e| open_error(&name, e))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(busy)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options.clone().pragma("query_only", "on"));
        let epoch = TokenEpoch::default();
        let now_at = TokenEpoch::read(&mut connection)
            .await
            .map_err(|e| OpenError::Unreadable(name.clone(), e))?;
        epoch.committed(now_at, now_at);
        Ok(Self {
            writer: Writer::start(connection, options.clone(), epoch.clone()),
            clock,
            epoch,
            readers,
            options,
        })
    }

    /// Connections that can only read.
    pub fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Whether a token has changed, since the last call, by another hand than this process' writer.
    pub async fn tokens_changed_elsewhere(&self) -> Result<bool, StoreError> {
        let mut connection = self.readers.acquire().await?;
        let now_at = TokenEpoch::read(&mut connection).await?;
        Ok(self.epoch.changed_elsewhere(now_at))
    }

    /// Watches for writes of any connection, this process' included.
    pub async fn watcher(&self) -> Result<Watcher, StoreError> {
        let connection = SqliteConnection::connect_with(&self.options).await?;
        Ok(Watcher {
            connection,
            version: None,
        })
    }

    /// Whether the database answers, for `/health/ready`.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT count(*) FROM token_epoch")
            .execute(&self.readers)
            .await?;
        Ok(())
    }
}

/// Tells this process' changes of tokens from those of others, by the counter that triggers keep in the
/// database, so that a cache need not be emptied for the former.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenEpoch(Arc<Mutex<Epoch>>);

#[derive(Debug, Default)]
struct Epoch {
    known: Option<i64>,
    elsewhere: bool,
}

impl TokenEpoch {
    /// The counter in the database.
    pub(crate) async fn read(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar!("SELECT value FROM token_epoch")
            .fetch_one(connection)
            .await?)
    }

    /// Our writer found `before` and left `after`.
    pub(crate) fn committed(&self, before: i64, after: i64) {
        let mut epoch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        epoch.elsewhere |= epoch.known.is_some_and(|known| known != before);
        epoch.known = Some(after);
    }

    /// A reader finds `now_at`, which is never older than what our writer committed.
    fn changed_elsewhere(&self, now_at: i64) -> bool {
        let mut epoch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = epoch.known.is_some_and(|known| now_at > known);
        epoch.known = epoch.known.max(Some(now_at));
        std::mem::take(&mut epoch.elsewhere) || changed
    }
}

/// Sees that the database was written to. It has a connection of its own, since SQLite counts the writes of
/// all others (<https://sqlite.org/pragma.html#pragma_data_version>).
#[derive(Debug)]
pub struct Watcher {
    connection: SqliteConnection,
    version: Option<i64>,
}

impl Watcher {
    /// Whether somebody has written since the last call; true the first time.
    pub async fn changed(&mut self) -> Result<bool, StoreError> {
        let version = sqlx::query_scalar("PRAGMA data_version")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(self.version.replace(version) != Some(version))
    }
}

/// Makes the file, readable by its owner alone, and its immediate folder. SQLite gives the -wal and -shm
/// files the permissions of the file.
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
    let code = match &error {
        sqlx::Error::Database(e) => e.code().and_then(|code| code.parse::<u32>().ok()),
        _ => None,
    };
    match code.map(|code| code & 0xff) {
        Some(11 | 26) => OpenError::Damaged(name.into(), error),
        _ => OpenError::Other(name.into(), error),
    }
}

/// Our migrations and apalis' own in one stream, ordered by version: they share `_sqlx_migrations`, and
/// ours may refer to its tables. (`SqliteStorage::setup` would also set `synchronous=OFF`.)
fn migrations() -> Migrator {
    let ours = sqlx::migrate!("../migrations");
    let theirs = SqliteStorage::migrations();
    Migrator::with_migrations(ours.iter().chain(theirs.iter()).cloned().collect())
}

/// The api and the worker may start at the same moment; whoever comes second finds a table already there
/// and looks again.
async fn migrate(connection: &mut SqliteConnection, name: &str) -> Result<(), OpenError> {
    const TRIES: u32 = 20;
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
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn load_log_key(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let fresh: [u8; 16] = rand::random();
    let fresh = fresh.as_slice();
    sqlx::query!(
        "INSERT INTO meta (name, value) VALUES ('log_key', ?) ON CONFLICT DO NOTHING",
        fresh
    )
    .execute(&mut *connection)
    .await?;
    let key = sqlx::query_scalar!("SELECT value FROM meta WHERE name = 'log_key'")
        .fetch_one(connection)
        .await?;
    if let Ok(key) = key.try_into() {
        ids::set_log_key(key);
    }
    Ok(())
}
