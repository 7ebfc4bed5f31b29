//! Decides what errors of SQLite and sqlx mean for the caller.

use std::sync::Arc;

use matrix2acrobits_shared::flow::StoreError;

// https://sqlite.org/rescode.html
const BUSY: u32 = 5;
const LOCKED: u32 = 6;
const NOMEM: u32 = 7;
const IOERR: u32 = 10;
const FULL: u32 = 13;
pub(crate) const CORRUPT: u32 = 11;
pub(crate) const NOTADB: u32 = 26;
/// With READONLY and CANTOPEN: the cause is the database's environment.
const ENVIRONMENT: [u32; 7] = [NOMEM, 8, IOERR, CORRUPT, FULL, 14, NOTADB];

/// SQLite's primary result code.
pub(crate) fn code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?.parse::<u32>().ok()?;
    Some(code & 0xff)
}

/// Whether another process has the lock.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(BUSY | LOCKED))
}

/// Whether the same attempt may succeed later, without a change of the settings.
pub(crate) fn may_pass(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(BUSY | LOCKED | NOMEM | IOERR | FULL))
}

/// Converts an error into the store's kinds.
pub(crate) fn from_sqlx(error: sqlx::Error) -> StoreError {
    if is_busy(&error) {
        return StoreError::Busy(Arc::new(error));
    }
    let this_alone = match &error {
        sqlx::Error::Database(_) => code(&error).is_none_or(|code| !ENVIRONMENT.contains(&code)),
        // A value that cannot be written, or a row that cannot be read.
        sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::RowNotFound => true,
        _ => false,
    };
    if this_alone {
        StoreError::Refused(Arc::new(error))
    } else {
        StoreError::Unavailable(Arc::new(error))
    }
}
