//! Parses a `DATABASE_URL` that names an SQLite file.

use std::{fmt, path::PathBuf, str::FromStr};

use matrix2acrobits_shared::process::settings::{SettingError, parse};
use sqlx::sqlite::SqliteConnectOptions;

/// The SQLite file that `DATABASE_URL` names.
#[derive(Debug, Clone)]
pub struct DatabaseUrl {
    options: SqliteConnectOptions,
}

impl DatabaseUrl {
    /// Connection options for that file.
    pub fn options(&self) -> SqliteConnectOptions {
        self.options.clone()
    }

    /// The file's path.
    pub fn path(&self) -> PathBuf {
        self.options.get_filename().to_path_buf()
    }
}

impl FromStr for DatabaseUrl {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        parse("DATABASE_URL", text, |text| {
            let form = "must look like sqlite://folder/file.db, sqlite:///absolute/file.db or \
                        postgres://user:password@host/database";
            if !text.starts_with("sqlite:") {
                return Err(form.into());
            }
            if text.contains(":memory:") || text.contains("mode=memory") {
                return Err("must be a file: the api and the worker share it".into());
            }
            let options = SqliteConnectOptions::from_str(text).map_err(|_| form.to_owned())?;
            if options.get_filename().as_os_str().is_empty() {
                return Err(form.into());
            }
            Ok(Self { options })
        })
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.options.get_filename().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_urls() {
        for text in ["sqlite://data/x.db", "sqlite:x.db", "sqlite:///abs/x.db"] {
            assert!(text.parse::<DatabaseUrl>().is_ok(), "{text}");
        }
        for text in [
            "",
            "x.db",
            "postgres://x/y",
            "sqlite::memory:",
            "sqlite://",
            "sqlite://x?mode=memory",
        ] {
            assert!(text.parse::<DatabaseUrl>().is_err(), "{text}");
        }
    }
}
