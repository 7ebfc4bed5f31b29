//! Looks at a database without creating or changing it, for commands that only read.

use matrix2acrobits_shared::{
    flow::{self, Phones, look::LookError, look::judge},
    rules::import::{Imported, MappingRow, TokenRow, judge_mapping, judge_tokens},
};
use sqlx::{Connection, PgConnection};

use crate::{
    DatabaseUrl, OpenError,
    access::Access,
    errors::from_sqlx,
    open::{is_empty, known_versions, versions},
    statements::{accounts, mappings, session},
};

/// Checks that a database exists and has the schema that this program knows. Neither creates nor changes it.
pub async fn look(database: &DatabaseUrl) -> Result<(), LookError> {
    let connection = open(database).await?;
    // The connection only read, so closing it cannot lose anything.
    let _ = connection.close().await;
    Ok(())
}

/// Whether two URLs lead to the same database: a lock that is taken through one is held for the other. The names of
/// hosts do not tell, and not every user may read the server's identifier.
pub async fn is_same(one: &DatabaseUrl, other: &DatabaseUrl) -> Result<bool, LookError> {
    let connect = async |database| {
        let access = Access::new(database, "5s").on_standby();
        let connected = access.connect_first(&database.to_string()).await;
        connected.map_err(|error| closed(&error))
    };
    let (mut holder, mut asker) = (connect(one).await?, connect(other).await?);
    let number = rand::random();
    let failed = |database: &DatabaseUrl, error| {
        LookError::Unreadable(database.to_string(), from_sqlx(error))
    };
    let held = session::try_lock(&mut holder, number).await;
    let held = held.map_err(|error| failed(one, error))?;
    let free = session::try_lock(&mut asker, number).await;
    let free = free.map_err(|error| failed(other, error))?;
    for connection in [holder, asker] {
        // Nothing was written, so closing them cannot lose anything.
        let _ = connection.close().await;
    }
    Ok(held && !free)
}

async fn open(database: &DatabaseUrl) -> Result<PgConnection, LookError> {
    let name = database.to_string();
    let access = Access::new(database, "1min")
        .with([("default_transaction_read_only", "on")])
        .on_standby();
    let connected = access.connect_first(&name).await;
    let mut connection = connected.map_err(|error| closed(&error))?;
    let unreadable = |error| LookError::Unreadable(name.clone(), from_sqlx(error));
    let applied = versions(&mut connection).await.map_err(unreadable)?;
    if applied.is_none() && is_empty(&mut connection).await.map_err(unreadable)? {
        return Err(LookError::Missing(format!("table in {name}")));
    }
    judge(&name, &applied.unwrap_or_default(), &known_versions())?;
    Ok(connection)
}

/// Converts an error of connecting for a command that only looks.
pub(crate) fn closed(error: &OpenError) -> LookError {
    // The caller names the setting.
    let text = error.to_string().replacen("DATABASE_URL: ", "", 1);
    if error.may_pass() {
        LookError::NotNow(text)
    } else {
        LookError::Closed(text)
    }
}

/// A database that is only read, with the statements of the current schema.
#[derive(Debug)]
pub struct Existing(PgConnection);

impl Existing {
    /// Opens the database, which must have this release's schema.
    pub async fn open(database: &DatabaseUrl) -> Result<Self, LookError> {
        open(database).await.map(Self)
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
