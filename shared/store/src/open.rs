//! Why a database could not be opened at start.

use matrix2acrobits_shared::process::failure::Failure;

/// Each error says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An SQLite file.
    #[error(transparent)]
    Sqlite(#[from] matrix2acrobits_sqlite::OpenError),
    /// A PostgreSQL database.
    #[cfg(feature = "postgres")]
    #[error(transparent)]
    Postgres(#[from] matrix2acrobits_postgres::OpenError),
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Sqlite(error) => error.into(),
            #[cfg(feature = "postgres")]
            OpenError::Postgres(error) => error.into(),
        }
    }
}
