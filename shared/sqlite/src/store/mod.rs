//! The SQLite store: opening it, its errors, and one module per subject. With [`crate::queue`] the only
//! place that holds SQL, so that another database can later stand behind the same functions.

mod finish;
pub mod gate;
pub mod go_proxy;
pub mod import;
pub mod listing;
pub mod mappings;
mod open;
pub mod pushers;
mod report;
mod settle;
pub mod status;
pub mod tokens;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use sqlx::{
    Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use crate::{
    batch::Batch,
    url::DatabaseUrl,
    writer::{Sharing, Writer},
};
use matrix2acrobits_shared::{clock::Clock, ids::Pushkey};

pub(crate) use finish::Finished;
pub use open::OpenError;
pub(crate) use open::is_busy;
pub use tokens::PushTarget;

use pushers::{PusherOf, PusherRow};

/// Connections for reading: lookups are short, and each connection costs a thread.
const READERS: u32 = 4;

/// Why the store could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("database: {0}")]
    Database(#[source] Arc<sqlx::Error>),
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

impl StoreError {
    /// Whether the cause lies around the database (locked, full, unreadable) and not in one statement.
    pub fn is_environment(&self) -> bool {
        match self.sqlx_error() {
            // https://sqlite.org/rescode.html: BUSY, LOCKED, NOMEM, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB
            Some(sqlx::Error::Database(_)) => matches!(
                self.sqlite_code(),
                Some(5 | 6 | 7 | 8 | 10 | 11 | 13 | 14 | 26)
            ),
            Some(_) => true,
            None => matches!(self, Self::Overloaded | Self::Stopped),
        }
    }

    /// Whether another connection held the lock for longer than we wait.
    pub fn is_busy(&self) -> bool {
        matches!(self.sqlite_code(), Some(5 | 6))
    }

    fn sqlx_error(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Database(error) => Some(error),
            Self::Overloaded | Self::Stopped => None,
        }
    }

    /// SQLite's primary result code.
    fn sqlite_code(&self) -> Option<u32> {
        let error = self.sqlx_error()?.as_database_error()?;
        Some(error.code()?.parse::<u32>().ok()? & 0xff)
    }
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
    targets: Batch<Pushkey, Vec<PushTarget>>,
    pushers: Batch<PusherOf, Option<PusherRow>>,
    options: Arc<SqliteConnectOptions>,
}

impl Store {
    /// Opens the file, creates what is missing, brings the schema up to date and starts the writer.
    /// `sharing` says how it gets along with other processes.
    pub async fn open(
        database: &DatabaseUrl,
        sharing: Sharing,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        let busy = sharing.busy();
        let (mut connection, options) = open::open(database, busy).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(busy)
            .idle_timeout(None)
            .max_lifetime(None)
            // A file does not hang up, and asking first would cost as much as the query.
            .test_before_acquire(false)
            .connect_lazy_with(options.clone().pragma("query_only", "on"));
        let epoch = TokenEpoch::default();
        let now_at = TokenEpoch::read(&mut connection)
            .await
            .map_err(|e| OpenError::Unreadable(database.to_string(), e))?;
        epoch.committed(now_at, now_at);
        let writer = Writer::start(
            connection,
            options.clone(),
            sharing,
            clock.clone(),
            epoch.clone(),
        );
        Ok(Self {
            writer,
            epoch,
            targets: tokens::read_targets(readers.clone()),
            pushers: pushers::read_pushers(readers.clone(), clock.clone()),
            clock,
            readers,
            options: Arc::new(options),
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

    /// Bytes that the file and its write-ahead log take; 0 for one that is not there.
    pub async fn file_sizes(&self) -> (u64, u64) {
        let file = self.options.get_filename();
        let mut log = file.as_os_str().to_owned();
        log.push("-wal");
        let size = async |path: &Path| tokio::fs::metadata(path).await.map_or(0, |m| m.len());
        (size(file).await, size(Path::new(&log)).await)
    }

    /// Whether the database answers, for `/health/ready`.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT count(*) FROM token_epoch")
            .execute(&self.readers)
            .await?;
        Ok(())
    }
}

/// A list for `json_each`, which hands many values to one statement that is checked at compile time.
///
/// What SQLite reads is what we wrote as long as no text holds a NUL character, which ends texts there; our
/// ids cannot hold any ([`crate::ids`]).
pub(crate) fn json<T: serde::Serialize>(
    values: impl IntoIterator<Item = T>,
) -> Result<String, StoreError> {
    let values: Vec<T> = values.into_iter().collect();
    serde_json::to_string(&values).map_err(|e| sqlx::Error::Encode(Box::new(e)).into())
}

/// Reads what `json_group_array` made of many rows. In one row they come at once; sqlx hands over each row by
/// itself, and each wakes a thread.
fn from_json<'a, T: serde::Deserialize<'a>>(rows: &'a str) -> Result<T, StoreError> {
    serde_json::from_str(rows).map_err(|e| sqlx::Error::Decode(Box::new(e)).into())
}

/// The ids of the `count` rows that one statement has just inserted, the last of them `last`. In a table with
/// AUTOINCREMENT each row's is by one larger than the largest that ever was
/// (<https://sqlite.org/autoinc.html>), and nobody else writes meanwhile. (With RETURNING each row would wake
/// us in another thread.)
fn inserted(last: i64, count: usize) -> std::ops::RangeInclusive<i64> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    last - count + 1..=last
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
