//! A PostgreSQL database as one side of a copy.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use matrix2acrobits_shared::flow::{
    Result, StoreError,
    copy::{After, Row, Rows, Side, Table},
    look::LookError,
};
use sqlx::{Connection, PgConnection};

use crate::{
    DatabaseUrl,
    access::Access,
    errors::{from_sqlx, within},
    look::closed,
    statements::{copy, meta},
};

/// How long another process' session may take to end.
const CLOSING: Duration = Duration::from_secs(2);
/// The pause before the next check for other sessions.
const PAUSE: Duration = Duration::from_millis(50);
/// The time limit for a statement, and the longest wait for its response.
const STATEMENT: &str = "5min";
const ANSWER: Duration = Duration::from_mins(6);

/// The database, in a transaction.
#[derive(Debug)]
pub struct Copying(PgConnection);

impl Copying {
    /// Only looks, alongside running processes.
    pub async fn look(database: &DatabaseUrl) -> std::result::Result<Self, LookError> {
        let mut connection = open(database).await?;
        let beginning = copy::begin_reading(&mut connection).await;
        unreadable(database, beginning)?;
        Ok(Self(connection))
    }

    /// Keeps everybody else out.
    pub async fn alone(database: &DatabaseUrl) -> std::result::Result<Self, LookError> {
        let mut connection = open(database).await?;
        let started = Instant::now();
        loop {
            let others = unreadable(database, copy::others(&mut connection).await)?;
            match others {
                None => break,
                Some(others) if started.elapsed() > CLOSING => {
                    return Err(LookError::InUse(database.to_string(), others));
                }
                Some(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        match copy::begin_alone(&mut connection).await {
            Err(StoreError::Locked(_)) => {
                let others = "another program".to_owned();
                Err(LookError::InUse(database.to_string(), others))
            }
            begun => {
                unreadable(database, begun)?;
                Ok(Self(connection))
            }
        }
    }
}

async fn open(database: &DatabaseUrl) -> std::result::Result<PgConnection, LookError> {
    // While one side of the copy works, the other is idle in its transaction.
    let access =
        Access::new(database, STATEMENT).with([("idle_in_transaction_session_timeout", "0")]);
    let connected = access.connect_first(&database.to_string()).await;
    connected.map_err(|error| closed(&error))
}

fn unreadable<T>(database: &DatabaseUrl, result: Result<T>) -> std::result::Result<T, LookError> {
    result.map_err(|error| LookError::Unreadable(database.to_string(), error))
}

#[async_trait]
impl Side for Copying {
    async fn rows(&mut self) -> Result<Rows> {
        within(ANSWER, copy::rows(&mut self.0)).await
    }

    async fn page(&mut self, table: Table, after: &After) -> Result<Vec<Row>> {
        let connection = &mut self.0;
        let page = async {
            match table {
                Table::Keys => copy::keys(connection, &after.text).await,
                Table::Mappings => copy::mappings(connection, &after.text).await,
                Table::Phones => copy::phones(connection, after.number).await,
                Table::Arrivals => copy::arrivals(connection, after.number).await,
                Table::Pushers => copy::pushers(connection, after.number).await,
                Table::Jobs => copy::jobs(connection, after.number).await,
                Table::Ids => copy::ids(connection, &after.text).await,
            }
        };
        within(ANSWER, page).await
    }

    async fn insert(&mut self, table: Table, rows: &[Row]) -> Result<()> {
        let connection = &mut self.0;
        let inserting = async {
            match table {
                Table::Keys => copy::insert_keys(connection, rows).await,
                Table::Mappings => copy::insert_mappings(connection, rows).await,
                Table::Phones => copy::insert_phones(connection, rows).await,
                Table::Arrivals => copy::insert_arrivals(connection, rows).await,
                Table::Pushers => copy::insert_pushers(connection, rows).await,
                Table::Jobs => copy::insert_jobs(connection, rows).await,
                Table::Ids => copy::insert_ids(connection, rows).await,
            }
        };
        within(ANSWER, inserting).await
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        within(ANSWER, meta::commit(&mut self.0)).await?;
        // This only makes the database fast at once. PostgreSQL would do it on its own later.
        let _ = within(ANSWER, meta::analyze(&mut self.0)).await;
        let closing = async { self.0.close().await.map_err(from_sqlx) };
        let _ = within(ANSWER, closing).await;
        Ok(())
    }
}
