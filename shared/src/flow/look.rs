//! Why a database cannot be used by a command that must neither create nor change it.

use super::StoreError;
use crate::process::{failure::Failure, settings::SettingError};

/// Why a database cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// There is no database.
    #[error("there is no {0}")]
    Missing(String),
    /// The database does not let us in, for this reason.
    #[error("{0}")]
    Closed(String),
    /// The database does not let us in at this moment, for this reason. That may pass.
    #[error("{0}")]
    NotNow(String),
    /// An earlier release wrote it.
    #[error(
        "{0} is older than this program: start the api or the worker once, which brings it up to date"
    )]
    Older(String),
    /// A later release wrote it.
    #[error("{0} was written by a newer version of this program: upgrade this one")]
    Newer(String),
    /// It is the database of another program.
    #[error("{0} is the database of another program")]
    NotOurs(String),
    /// Other processes use the database.
    #[error("{0} is in use by {1}: stop every api and worker first")]
    InUse(String, String),
    /// The database cannot be read.
    #[error("{0} cannot be read: {1}")]
    Unreadable(String, #[source] StoreError),
}

/// A problem that may pass on its own is not blamed on DATABASE_URL.
impl From<LookError> for Failure {
    fn from(error: LookError) -> Self {
        match error {
            LookError::NotNow(_) => Self::other(error),
            _ => SettingError::new("DATABASE_URL", error.to_string()).into(),
        }
    }
}

/// Judges a database by its applied migrations. `ours` are the migrations that this program knows.
pub fn judge(name: &str, applied: &[i64], ours: &[i64]) -> Result<(), LookError> {
    let name = || name.to_owned();
    if !applied.iter().any(|version| ours.contains(version)) {
        Err(LookError::NotOurs(name()))
    } else if applied.iter().any(|version| !ours.contains(version)) {
        Err(LookError::Newer(name()))
    } else if ours.iter().any(|version| !applied.contains(version)) {
        Err(LookError::Older(name()))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_tell_whose_a_database_is_and_how_old() {
        let word = |applied: &[i64]| match judge("it", applied, &[1, 2]) {
            Ok(()) => "ours",
            Err(LookError::NotOurs(_)) => "not ours",
            Err(LookError::Newer(_)) => "newer",
            Err(LookError::Older(_)) => "older",
            Err(other) => panic!("{other}"),
        };
        for (applied, expected) in [
            (&[][..], "not ours"),
            (&[7], "not ours"),
            (&[1], "older"),
            (&[1, 2], "ours"),
            (&[1, 2, 3], "newer"),
            (&[1, 3], "newer"),
        ] {
            assert_eq!(word(applied), expected, "{applied:?}");
        }
    }
}
