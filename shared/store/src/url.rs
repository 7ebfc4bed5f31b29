//! `DATABASE_URL`: which database, and where.

use std::{fmt, str::FromStr};

use matrix2acrobits_shared::process::settings::SettingError;

/// Where the database is.
#[derive(Debug, Clone)]
pub enum DatabaseUrl {
    /// An SQLite file.
    Sqlite(matrix2acrobits_sqlite::DatabaseUrl),
}

impl FromStr for DatabaseUrl {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        text.parse().map(Self::Sqlite)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => file.fmt(f),
        }
    }
}
