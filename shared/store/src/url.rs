//! The settings of the database: its kind, where it is, and how many connections this process may use.

use std::{fmt, str::FromStr};

use matrix2acrobits_shared::process::settings::{SettingError, SharedArgs, number};

/// The most connections that a process may have.
const MOST_CONNECTIONS: u32 = 1000;
/// The fewest connections. SQLite ignores the setting.
#[cfg(feature = "postgres")]
const FEWEST_CONNECTIONS: u32 = matrix2acrobits_postgres::FEWEST_CONNECTIONS;
#[cfg(not(feature = "postgres"))]
const FEWEST_CONNECTIONS: u32 = 1;

/// Where the database is.
#[derive(Debug, Clone)]
pub enum DatabaseUrl {
    /// An SQLite file.
    Sqlite(matrix2acrobits_sqlite::DatabaseUrl),
    /// A PostgreSQL database.
    #[cfg(feature = "postgres")]
    Postgres(matrix2acrobits_postgres::DatabaseUrl),
}

impl FromStr for DatabaseUrl {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let text = text.trim();
        if text.starts_with("postgres:") || text.starts_with("postgresql:") {
            #[cfg(feature = "postgres")]
            return text.parse().map(Self::Postgres);
            #[cfg(not(feature = "postgres"))]
            return Err(SettingError::new(
                "DATABASE_URL",
                "names a PostgreSQL database, which this program was built without",
            ));
        }
        text.parse().map(Self::Sqlite)
    }
}

/// Shown without a password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => file.fmt(f),
            #[cfg(feature = "postgres")]
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

/// The settings of the database.
#[derive(Debug, Clone)]
pub struct Database {
    /// Where it is.
    pub url: DatabaseUrl,
    /// How many connections this process may have to PostgreSQL.
    pub max_connections: u32,
}

impl Database {
    /// Reads all settings.
    pub fn of(settings: &SharedArgs) -> Result<Self, SettingError> {
        Self::at(settings.database_url()?.expose(), settings)
    }

    /// The database at this URL, with the rest from the settings.
    pub fn at(url: &str, settings: &SharedArgs) -> Result<Self, SettingError> {
        let url: DatabaseUrl = url.parse()?;
        #[cfg(feature = "postgres")]
        let url = match url {
            DatabaseUrl::Postgres(url) => {
                // EXTRA_CA_FILE is checked even if this database does not use TLS.
                settings.outgoing()?;
                url.check_files()?;
                DatabaseUrl::Postgres(url.trusting(settings.extra_ca_file()))
            }
            file @ DatabaseUrl::Sqlite(_) => file,
        };
        let max_connections = number(
            "DATABASE_MAX_CONNECTIONS",
            &settings.database_max_connections,
            FEWEST_CONNECTIONS,
            MOST_CONNECTIONS,
        )?;
        Ok(Self {
            url,
            max_connections,
        })
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}
