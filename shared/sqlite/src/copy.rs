//! An SQLite file as one side of a copy.

use std::time::Duration;

use async_trait::async_trait;
use matrix2acrobits_shared::flow::{
    Result, StoreError,
    copy::{After, Row, Rows, Side, Table},
    look::LookError,
};
use sqlx::{
    Connection, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteLockingMode},
};

use crate::{DatabaseUrl, errors::from_sqlx, statements::copy};

/// How long another process that has the file open may take to close it.
const CLOSING: Duration = Duration::from_secs(2);

/// The file, in a transaction.
#[derive(Debug)]
pub struct Copying(SqliteConnection);

impl Copying {
    /// Only looks, alongside running processes.
    pub async fn look(database: &DatabaseUrl) -> std::result::Result<Self, LookError> {
        begin(database, database.options().read_only(true), "BEGIN").await
    }

    /// Keeps everybody else out. In WAL mode, every process that has the file open holds a shared lock on it, so an
    /// exclusive lock shows that no other process does
    /// (<https://sqlite.org/wal.html#use_of_wal_without_shared_memory>).
    pub async fn alone(database: &DatabaseUrl) -> std::result::Result<Self, LookError> {
        let options = database
            .options()
            .locking_mode(SqliteLockingMode::Exclusive)
            .foreign_keys(true);
        begin(database, options, "BEGIN EXCLUSIVE").await
    }
}

async fn begin(
    database: &DatabaseUrl,
    options: SqliteConnectOptions,
    begin: &'static str,
) -> std::result::Result<Copying, LookError> {
    let options = options.create_if_missing(false).busy_timeout(CLOSING);
    let beginning = async {
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::raw_sql(begin).execute(&mut connection).await?;
        Ok(connection)
    };
    let name = || database.to_string();
    match beginning.await.map_err(from_sqlx) {
        Ok(connection) => Ok(Copying(connection)),
        Err(StoreError::Busy(_)) => Err(LookError::InUse(name(), "another program".into())),
        Err(error) => Err(LookError::Unreadable(name(), error)),
    }
}

#[async_trait]
impl Side for Copying {
    async fn rows(&mut self) -> Result<Rows> {
        copy::rows(&mut self.0).await
    }

    async fn page(&mut self, table: Table, after: &After) -> Result<Vec<Row>> {
        let connection = &mut self.0;
        match table {
            Table::Keys => copy::keys(connection, &after.text).await,
            Table::Mappings => copy::mappings(connection, &after.text).await,
            Table::Phones => copy::phones(connection, after.number).await,
            Table::Arrivals => copy::arrivals(connection, after.number).await,
            Table::Pushers => copy::pushers(connection, after.number).await,
            Table::Jobs => copy::jobs(connection, after.number).await,
            Table::Ids => copy::ids(connection, &after.text).await,
        }
    }

    async fn insert(&mut self, table: Table, rows: &[Row]) -> Result<()> {
        let connection = &mut self.0;
        match table {
            Table::Keys => copy::insert_keys(connection, rows).await,
            Table::Mappings => copy::insert_mappings(connection, rows).await,
            Table::Phones => copy::insert_phones(connection, rows).await,
            Table::Arrivals => copy::insert_arrivals(connection, rows).await,
            Table::Pushers => copy::insert_pushers(connection, rows).await,
            Table::Jobs => copy::insert_jobs(connection, rows).await,
            Table::Ids => copy::insert_ids(connection, rows).await,
        }
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        let done = sqlx::raw_sql("COMMIT").execute(&mut self.0).await;
        done.map_err(from_sqlx)?;
        // Closing moves all data from the log into the file.
        self.0.close().await.map_err(from_sqlx)
    }
}
