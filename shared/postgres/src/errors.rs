//! What PostgreSQL's and sqlx' errors mean for those who asked.

use std::{sync::Arc, time::Duration};

use matrix2acrobits_shared::flow::{Result, StoreError};

/// The server's code for an error (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
pub(crate) fn code(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?;
    Some(code.into_owned())
}

/// What a code of the server says of a failed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unavailable,
    Locked,
    Conflict,
    Refused,
}

/// Codes that tell of trouble for all, apart from those that whole classes have: cancelled (a time-out); no rights; no such
/// database; a prepared statement that is not there, or there already (a pooler gave us another's connection); no such
/// table (a restore is under way); the queue of what is told to others is full.
const UNAVAILABLE: [&str; 7] = [
    "57014", "42501", "3D000", "26000", "42P05", "42P01", "54000",
];

fn kind(code: &str) -> Kind {
    match code {
        // Somebody held a lock for longer than we wait.
        "55P03" => Kind::Locked,
        // Two transactions waited for each other, or touched the same row at once.
        "40P01" | "40001" => Kind::Conflict,
        _ if UNAVAILABLE.contains(&code) => Kind::Unavailable,
        // Connection, transaction state (time-outs, a read-only standby), login, resources, shutdown, disk, internal.
        _ if ["08", "25", "28", "53", "57", "58", "XX"].contains(&&code[..2.min(code.len())]) => {
            Kind::Unavailable
        }
        _ => Kind::Refused,
    }
}

/// Whether the table of locks is full, which has the code of a lack of memory: half of a batch needs half of it.
fn is_lock_table(error: &dyn sqlx::error::DatabaseError) -> bool {
    let error = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
    error.is_some_and(|error| {
        error.code() == "53200"
            && error
                .hint()
                .is_some_and(|hint| hint.contains("max_locks_per_transaction"))
    })
}

/// The store's word for an error.
pub(crate) fn from_sqlx(error: sqlx::Error) -> StoreError {
    let kind = match &error {
        sqlx::Error::Database(database) if is_lock_table(database.as_ref()) => Kind::Refused,
        sqlx::Error::Database(database) => database
            .code()
            .map_or(Kind::Refused, |code| kind(code.as_ref())),
        // A value that cannot be written or a row that cannot be read.
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

/// Whether an error tells that the connection is gone, and not that the server cannot be reached.
pub(crate) fn is_hang_up(error: &StoreError) -> bool {
    let StoreError::Unavailable(cause) = error else {
        return false;
    };
    match cause.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => true,
        // The server ended it: restarted, or asked by its administrator.
        Some(error) => code(error).is_some_and(|code| code.starts_with("57P")),
        None => false,
    }
}

/// The server only repeats what another one does.
#[derive(Debug, thiserror::Error)]
#[error("the server is a standby")]
pub(crate) struct Standby;

/// The server did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
pub(crate) struct NoAnswer(pub(crate) Duration);

/// Waits for an answer so long; sqlx itself waits for ever.
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
