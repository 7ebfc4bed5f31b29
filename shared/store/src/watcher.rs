//! Notices that a process has written to the database.

use matrix2acrobits_shared::flow::Result;

/// Sees the writes that a worker has to know about.
#[derive(Debug)]
pub enum Watcher {
    /// In an SQLite file.
    Sqlite(matrix2acrobits_sqlite::Watcher),
    /// In a PostgreSQL database.
    #[cfg(feature = "postgres")]
    Postgres(matrix2acrobits_postgres::Watcher),
}

impl Watcher {
    /// Whether a process has written since the last call. True the first time.
    pub async fn changed(&mut self) -> Result<bool> {
        match self {
            Self::Sqlite(watcher) => watcher.changed().await,
            #[cfg(feature = "postgres")]
            Self::Postgres(watcher) => Ok(watcher.changed()),
        }
    }
}
