//! Looks at a database without creating or changing it, for commands that only read.

use std::time::Duration;

use matrix2acrobits_shared::{
    flow::{
        self, Phones,
        look::{LookError, judge},
    },
    rules::import::{Imported, MappingRow, TokenRow, judge_mapping, judge_tokens},
};
use sqlx::{Connection, SqliteConnection};

use crate::{
    DatabaseUrl,
    errors::from_sqlx,
    same_file,
    schema::{is_empty, known_versions, versions},
    statements::{accounts, mappings},
};

/// Checks that a database exists and has the schema that this program knows. Neither creates nor changes it.
pub async fn look(database: &DatabaseUrl) -> Result<(), LookError> {
    let name = database.to_string();
    if !database.path().exists() {
        return Err(LookError::Missing(format!("file {name}")));
    }
    let unreadable = |e| LookError::Unreadable(name.clone(), from_sqlx(e));
    let options = database
        .options()
        .read_only(true)
        .create_if_missing(false)
        .busy_timeout(Duration::from_secs(5));
    let connection = SqliteConnection::connect_with(&options).await;
    let mut connection = connection.map_err(unreadable)?;
    let applied = versions(&mut connection).await.map_err(unreadable)?;
    if applied.is_none() && is_empty(&mut connection).await.map_err(unreadable)? {
        return Err(LookError::Missing(format!("table in {name}")));
    }
    // The connection only read, so closing it cannot lose anything.
    let _ = connection.close().await;
    judge(&name, &applied.unwrap_or_default(), &known_versions())
}

/// Whether two URLs lead to the same file.
pub fn is_same(one: &DatabaseUrl, other: &DatabaseUrl) -> bool {
    let identity = |database: &DatabaseUrl| {
        let file = std::fs::metadata(database.path()).ok()?;
        Some(same_file::identity(&file))
    };
    identity(one).is_some_and(|file| identity(other) == Some(file))
}

/// A database that is only read, with the statements of the current schema.
#[derive(Debug)]
pub struct Existing(SqliteConnection);

impl Existing {
    /// Opens the database, which must have this release's schema.
    pub async fn open(database: &DatabaseUrl) -> Result<Self, LookError> {
        look(database).await?;
        let options = database.options().read_only(true).create_if_missing(false);
        let connection = SqliteConnection::connect_with(&options).await;
        let connection =
            connection.map_err(|e| LookError::Unreadable(database.to_string(), from_sqlx(e)))?;
        Ok(Self(connection))
    }

    /// What would become of these mappings.
    pub async fn judge_mappings(&mut self, rows: &[MappingRow]) -> flow::Result<Vec<Imported>> {
        let selectors: Vec<_> = rows.iter().map(|row| row.selector.as_str()).collect();
        let stored = mappings::of(&mut self.0, &selectors).await?;
        let judged = rows.iter().zip(&stored);
        Ok(judged
            .map(|(row, stored)| judge_mapping(row, stored.as_ref()))
            .collect())
    }

    /// What would become of these tokens.
    pub async fn judge_tokens(&mut self, rows: &[TokenRow]) -> flow::Result<Vec<Imported>> {
        let selectors: Vec<_> = rows
            .iter()
            .map(|row| row.report.from.selector.as_str())
            .collect();
        let stored = accounts::phones(&mut self.0, Phones::Selectors(&selectors)).await?;
        Ok(judge_tokens(rows, &stored))
    }
}
