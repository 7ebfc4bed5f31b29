//! Decides what errors of PostgreSQL and sqlx mean for the caller.

use std::{sync::Arc, time::Duration};

use matrix2acrobits_shared::flow::{Result, StoreError};

/// The server's code for an error (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
pub(crate) fn code(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?;
    Some(code.into_owned())
}

/// What a server's code means for a failed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unavailable,
    Locked,
    Conflict,
    Refused,
}

/// Codes for trouble that affects all statements, besides the whole classes below. In this order: cancelled (a
/// timeout), no rights, no such database, a prepared statement that is missing or exists already (a pooler gave us
/// another client's connection), no such table (a restore is under way), and a full queue of notifications.
const UNAVAILABLE: [&str; 7] = [
    "57014", "42501", "3D000", "26000", "42P05", "42P01", "54000",
];

fn kind(code: &str) -> Kind {
    match code {
        // Somebody held a lock for longer than our timeout.
        "55P03" => Kind::Locked,
        // Two transactions waited for each other, or touched the same row at the same time.
        "40P01" | "40001" => Kind::Conflict,
        _ if UNAVAILABLE.contains(&code) => Kind::Unavailable,
        // Connection, transaction state (timeouts, a read-only standby), login, resources, shutdown, disk, internal.
        _ if ["08", "25", "28", "53", "57", "58", "XX"].contains(&&code[..2.min(code.len())]) => {
            Kind::Unavailable
        }
        _ => Kind::Refused,
    }
}

/// Whether the lock table is full, which has the same code as a lack of memory. The writer can retry with half of the
/// batch, which needs half of the locks.
fn is_lock_table(error: &dyn sqlx::error::DatabaseError) -> bool {
    let error = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
    error.is_some_and(|error| {
        error.code() == "53200"
            && error
                .hint()
                .is_some_and(|hint| hint.contains("max_locks_per_transaction"))
    })
}

/// Converts an error into the store's kinds.
pub(crate) fn from_sqlx(error: sqlx::Error) -> StoreError {
    let kind = match &error {
        sqlx::Error::Database(database) if is_lock_table(database.as_ref()) => Kind::Refused,
        sqlx::Error::Database(database) => database
            .code()
            .map_or(Kind::Refused, |code| kind(code.as_ref())),
        // A value that cannot be written, or a row that cannot be read.
        sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::RowNotFound => Kind::Refused,
        _ => Kind::Unavailable,
    };
    let error = Arc::new(error);
    match kind {
        Kind::Unavailable => StoreError::Unavailable(error),
        Kind::Locked => StoreError::Locked(error),
        Kind::Conflict => StoreError::Conflict(error),
        Kind::Refused => StoreError::Refused(error),
    }
}

/// Whether an error means that the connection is gone, and not that the server cannot be reached.
pub(crate) fn is_hang_up(error: &StoreError) -> bool {
    let StoreError::Unavailable(cause) = error else {
        return false;
    };
    match cause.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => true,
        // The server ended the connection, because it restarted or because its administrator asked for it.
        Some(error) => code(error).is_some_and(|code| code.starts_with("57P")),
        None => false,
    }
}

/// The server is a standby, which only follows another server.
#[derive(Debug, thiserror::Error)]
#[error("the server is a standby")]
pub(crate) struct Standby;

/// The server did not respond in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
pub(crate) struct NoAnswer(pub(crate) Duration);

/// Waits for a response with a time limit. sqlx itself would wait forever.
pub(crate) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Unavailable(Arc::new(NoAnswer(limit)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        for (code, expected) in [
            ("08006", Kind::Unavailable),
            ("28P01", Kind::Unavailable),
            ("53100", Kind::Unavailable),
            ("53300", Kind::Unavailable),
            ("57P01", Kind::Unavailable),
            ("57014", Kind::Unavailable),
            ("25006", Kind::Unavailable),
            ("25P03", Kind::Unavailable),
            ("26000", Kind::Unavailable),
            ("53200", Kind::Unavailable),
            ("55P03", Kind::Locked),
            ("40P01", Kind::Conflict),
            ("40001", Kind::Conflict),
            ("23505", Kind::Refused),
            ("22021", Kind::Refused),
            ("", Kind::Refused),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }
}
