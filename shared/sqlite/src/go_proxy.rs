//! Reads the database of the Go proxy that this bridge replaces (nethesis/matrix2acrobits): its only table,
//! `push_tokens`. The database is opened read-only, and may be in use.

use std::{fmt, path::Path, time::Duration, time::UNIX_EPOCH};

use sqlx::{
    Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use crate::write_ahead_log;

/// The columns that we read.
const COLUMNS: [&str; 6] = [
    "selector",
    "token_msgs",
    "appid_msgs",
    "token_calls",
    "appid_calls",
    "updated_at",
];

/// Why the database cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GoProxyError {
    /// The file cannot be opened or read.
    #[error("cannot be read: {0}")]
    Database(#[from] sqlx::Error),
    /// The file is something else.
    #[error("is not the Go proxy's database: it has no table push_tokens with a column {0}")]
    Other(&'static str),
}

/// An unchecked row. In this database, absent and empty are the same.
#[derive(Clone, PartialEq, Eq)]
pub struct GoProxyRow {
    /// The row's id, which orders the pages.
    pub id: i64,
    /// The account on the phone.
    pub selector: String,
    /// Token for messages.
    pub token_msgs: String,
    /// App id for messages.
    pub app_id_msgs: String,
    /// Token for calls.
    pub token_calls: String,
    /// App id for calls.
    pub app_id_calls: String,
    /// The last report, in seconds since 1970, if it can be read.
    pub updated_at: Option<i64>,
}

impl fmt::Debug for GoProxyRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GoProxyRow({})", self.id)
    }
}

/// The open database.
#[derive(Debug)]
pub struct GoProxyDatabase(SqliteConnection);

impl GoProxyDatabase {
    /// Opens the file, which must exist, and checks its columns.
    pub async fn open(path: &Path) -> Result<Self, GoProxyError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(Duration::from_secs(5));
        match Self::checked(&options).await {
            // The database may be in WAL mode, in a folder that we may not write to. Without a -wal file, nobody has
            // the database open, and all data is in the file itself.
            Err(GoProxyError::Database(_)) if !write_ahead_log(path).exists() => {
                Self::checked(&options.immutable(true)).await
            }
            result => result,
        }
    }

    async fn checked(options: &SqliteConnectOptions) -> Result<Self, GoProxyError> {
        let mut connection = SqliteConnection::connect_with(options).await?;
        let columns: Vec<String> =
            sqlx::query_scalar("SELECT name FROM pragma_table_info('push_tokens')")
                .fetch_all(&mut connection)
                .await?;
        let missing = COLUMNS
            .iter()
            .find(|name| !columns.iter().any(|c| c == *name));
        match missing {
            Some(name) => Err(GoProxyError::Other(name)),
            None => Ok(Self(connection)),
        }
    }

    /// The number of rows.
    pub async fn count(&mut self) -> Result<u64, GoProxyError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM push_tokens")
            .fetch_one(&mut self.0)
            .await?;
        Ok(count.try_into().unwrap_or(0))
    }

    /// Up to `limit` rows with ids above `after`.
    pub async fn page(&mut self, after: i64, limit: u32) -> Result<Vec<GoProxyRow>, GoProxyError> {
        let sql = "SELECT rowid, CAST(selector AS BLOB), CAST(token_msgs AS BLOB), CAST(appid_msgs AS BLOB),
                       CAST(token_calls AS BLOB), CAST(appid_calls AS BLOB), CAST(updated_at AS BLOB)
                   FROM push_tokens WHERE rowid > ? ORDER BY rowid LIMIT ?";
        let rows = sqlx::query(sql)
            .bind(after)
            .bind(limit)
            .fetch_all(&mut self.0)
            .await?;
        rows.iter().map(|row| Ok(read(row)?)).collect()
    }
}

fn read(row: &SqliteRow) -> Result<GoProxyRow, sqlx::Error> {
    let text = |index: usize| -> Result<String, sqlx::Error> {
        let bytes: Option<&[u8]> = row.try_get(index)?;
        let text = String::from_utf8_lossy(bytes.unwrap_or_default());
        Ok(text.trim().to_owned())
    };
    Ok(GoProxyRow {
        id: row.try_get(0)?,
        selector: text(1)?,
        token_msgs: text(2)?,
        app_id_msgs: text(3)?,
        token_calls: text(4)?,
        app_id_calls: text(5)?,
        updated_at: time(&text(6)?),
    })
}

/// Seconds since 1970 of `2025-11-28 12:34:56.789 +0000 UTC m=+1.2` (as Go writes it), of the same with a `T`, or of
/// SQLite's CURRENT_TIMESTAMP. The time is always UTC.
fn time(text: &str) -> Option<i64> {
    let time = humantime::parse_rfc3339_weak(text.get(..19)?).ok()?;
    let seconds = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
    seconds.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_go_and_sqlite_write_them() {
        for text in [
            "2025-11-28 12:34:56",
            "2025-11-28 12:34:56.123456789 +0000 UTC",
            "2025-11-28 12:34:56.1 +0000 UTC m=+0.000000001",
            "2025-11-28T12:34:56Z",
        ] {
            assert_eq!(time(text), Some(1_764_333_296), "{text}");
        }
        for text in ["", "yesterday", "1764333296", "2025-11-28 12:34"] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
