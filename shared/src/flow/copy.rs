//! Copies the contents of a database into an empty one, whatever kind each is, and compares the two. Rows travel as
//! JSON objects whose fields are the columns that both kinds have.

use std::collections::BTreeMap;

use async_trait::async_trait;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Result, StoreError};
use crate::rules::jobs::{Job, Status};

/// How many rows are read and written at once.
pub const PAGE: i64 = 1000;

/// A row: columns and their values.
pub type Row = BTreeMap<String, Value>;

/// The tables, in the order in which they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// The keys of the marks and of the hashes in the logs.
    Keys,
    /// The operator's mappings.
    Mappings,
    /// The tokens.
    Phones,
    /// What we know about the pushes to phones.
    Arrivals,
    /// What the homeserver should hold.
    Pushers,
    /// The queue.
    Jobs,
    /// The highest ids ever used.
    Ids,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 7] = [
        Self::Keys,
        Self::Mappings,
        Self::Phones,
        Self::Arrivals,
        Self::Pushers,
        Self::Jobs,
        Self::Ids,
    ];

    /// The table's name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Mappings => "mappings",
            Self::Phones => "phones",
            Self::Arrivals => "arrivals",
            Self::Pushers => "pushers",
            Self::Jobs => "jobs",
            Self::Ids => "ids",
        }
    }

    /// The column that orders the table's rows.
    fn key(self) -> &'static str {
        match self {
            Self::Keys | Self::Ids => "name",
            Self::Mappings => "selector",
            Self::Phones | Self::Pushers => "id",
            Self::Arrivals => "phone",
            Self::Jobs => "key",
        }
    }
}

/// Where a page begins: after this number or this text, depending on the column that orders the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct After {
    /// After this number.
    pub number: i64,
    /// After this text.
    pub text: String,
}

impl After {
    /// Before the first row.
    const NOTHING: Self = Self {
        number: i64::MIN,
        text: String::new(),
    };

    fn row(table: Table, row: &Row) -> Self {
        let key = row.get(table.key());
        let number = key.and_then(Value::as_i64);
        let text = key.and_then(Value::as_str);
        Self {
            number: number.unwrap_or(i64::MAX),
            text: text.unwrap_or_default().to_owned(),
        }
    }
}

/// How many rows of each kind there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rows {
    /// Mappings.
    pub mappings: i64,
    /// Phones.
    pub phones: i64,
    /// Phones with known pushes or receipts.
    pub arrivals: i64,
    /// Pushers.
    pub pushers: i64,
    /// Jobs.
    pub jobs: i64,
    /// Jobs that cannot be copied, because their row does not say for which pusher they are. A worker gives a new job
    /// to each pusher that needs one.
    pub lost_jobs: i64,
}

impl Rows {
    /// Whether there is nothing worth keeping.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The number of rows in this table. 0 for keys and ids, which are not counted.
    pub fn of(&self, table: Table) -> i64 {
        match table {
            Table::Keys | Table::Ids => 0,
            Table::Mappings => self.mappings,
            Table::Phones => self.phones,
            Table::Arrivals => self.arrivals,
            Table::Pushers => self.pushers,
            Table::Jobs => self.jobs,
        }
    }
}

/// A job in a copy. Its `key` is its pusher's id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopiedJob {
    /// When the job was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// The other columns.
    #[serde(flatten)]
    pub job: Job,
}

/// One side of a copy: a database in a transaction.
#[async_trait]
pub trait Side: Send {
    /// How much there is.
    async fn rows(&mut self) -> Result<Rows>;
    /// The next [`PAGE`] rows of a table, in the order of their keys. Texts are compared by their bytes.
    async fn page(&mut self, table: Table, after: &After) -> Result<Vec<Row>>;
    /// Writes rows. Keys and ids replace the existing ones.
    async fn insert(&mut self, table: Table, rows: &[Row]) -> Result<()>;
    /// Commits the transaction.
    async fn commit(self: Box<Self>) -> Result<()>;
}

/// What was copied of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many rows.
    pub rows: u64,
    /// A hash of all rows.
    pub hash: String,
}

/// Why a copy failed. A failed copy writes nothing.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Rows could not be read.
    #[error("{} {place} cannot be read: {error}", table.name())]
    Read {
        /// The table.
        table: Table,
        /// Which rows.
        place: String,
        /// Why.
        #[source]
        error: StoreError,
    },
    /// Rows could not be written.
    #[error("{} {place} cannot be written: {error}", table.name())]
    Write {
        /// The table.
        table: Table,
        /// Which rows.
        place: String,
        /// Why.
        #[source]
        error: StoreError,
    },
    /// The source's rows could not be counted.
    #[error("the rows cannot be counted: {0}")]
    Count(#[source] StoreError),
    /// The source has rows that its pages do not show.
    #[error(
        "{} has {counted} rows, but only {found} of them have a valid key: delete the others (an empty selector, for \
         example)", table.name()
    )]
    LeftBehind {
        /// The table.
        table: Table,
        /// How many rows it has.
        counted: i64,
        /// How many of them the pages showed.
        found: u64,
    },
    /// The rows in the target differ from those sent.
    #[error(
        "{} arrived as {} rows with the sum {}, but {} with the sum {} were sent",
        table.name(), arrived.rows, arrived.hash, sent.rows, sent.hash
    )]
    Differs {
        /// The table.
        table: Table,
        /// The rows as they were read.
        sent: Sum,
        /// The rows in the target.
        arrived: Sum,
    },
    /// The last step failed.
    #[error("the copy cannot be committed: {0}")]
    Commit(#[source] StoreError),
}

/// Copies everything and compares the result with the source, in one transaction, so that an interrupted copy leaves
/// nothing behind. `now` is in seconds since 1970. `progress` is called after every page. Returns the sum of each
/// table.
pub async fn copy(
    from: &mut dyn Side,
    mut to: Box<dyn Side>,
    now: i64,
    progress: &mut (dyn FnMut(Table, u64) + Send),
) -> std::result::Result<Vec<(Table, Sum)>, CopyError> {
    let mut sums = Vec::new();
    let counted = from.rows().await.map_err(CopyError::Count)?;
    for table in Table::ALL {
        let mut summing = Summing::new();
        let mut after = After::NOTHING;
        loop {
            let mut rows = read(from, table, &after).await?;
            let Some(last) = rows.last() else { break };
            let next = After::row(table, last);
            if table == Table::Jobs {
                rows = released(rows, now).map_err(|error| failed_read(table, &after, error))?;
            }
            let written = to.insert(table, &rows).await;
            written.map_err(|error| CopyError::Write {
                table,
                place: place(&after),
                error,
            })?;
            summing.add(&rows);
            after = next;
            progress(table, summing.rows);
        }
        let is_counted = !matches!(table, Table::Keys | Table::Ids);
        if is_counted && i64::try_from(summing.rows) != Ok(counted.of(table)) {
            return Err(CopyError::LeftBehind {
                table,
                counted: counted.of(table),
                found: summing.rows,
            });
        }
        sums.push((table, summing.end()));
    }
    for (table, sent) in &sums {
        let arrived = sum(to.as_mut(), *table).await?;
        if arrived != *sent {
            return Err(CopyError::Differs {
                table: *table,
                sent: sent.clone(),
                arrived,
            });
        }
    }
    to.commit().await.map_err(CopyError::Commit)?;
    Ok(sums)
}

async fn sum(side: &mut dyn Side, table: Table) -> std::result::Result<Sum, CopyError> {
    let mut summing = Summing::new();
    let mut after = After::NOTHING;
    loop {
        let rows = read(side, table, &after).await?;
        let Some(last) = rows.last() else {
            return Ok(summing.end());
        };
        after = After::row(table, last);
        summing.add(&rows);
    }
}

async fn read(
    side: &mut dyn Side,
    table: Table,
    after: &After,
) -> std::result::Result<Vec<Row>, CopyError> {
    let page = side.page(table, after).await;
    page.map_err(|error| failed_read(table, after, error))
}

fn failed_read(table: Table, after: &After, error: StoreError) -> CopyError {
    CopyError::Read {
        table,
        place: place(after),
        error,
    }
}

/// Describes the rows of a page. The texts that order rows are selectors and names.
fn place(after: &After) -> String {
    match (after.number, after.text.as_str()) {
        (i64::MIN, "") => "from the first".to_owned(),
        (i64::MAX, text) => format!("after {text:?}"),
        (number, _) => format!("after number {number}"),
    }
}

/// No worker runs during a copy. So jobs that a worker holds go back to the queue, as if the worker had died.
fn released(rows: Vec<Row>, now: i64) -> Result<Vec<Row>> {
    let released = |row: Row| {
        let mut copied: CopiedJob = serde_json::from_value(row.into_iter().collect())?;
        match copied.job.status {
            Status::Queued | Status::Running => drop(copied.job.recover(now)),
            Status::Foreign => copied.job.again(now),
            Status::Pending | Status::Failed | Status::Killed => copied.job.release(),
        }
        to_row(&copied)
    };
    let rows: std::result::Result<_, serde_json::Error> = rows.into_iter().map(released).collect();
    rows.map_err(refused)
}

fn to_row(value: &impl Serialize) -> std::result::Result<Row, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(value)?)
}

/// Reads a page that the database wrote as one JSON text.
pub fn from_json(page: &[u8]) -> Result<Vec<Row>> {
    // A wrong byte must cause an error and must not become another character.
    let page = std::str::from_utf8(page).map_err(refused)?;
    serde_json::from_str(page).map_err(refused)
}

/// Writes a page as one JSON text.
pub fn to_json(rows: &[Row]) -> Result<String> {
    serde_json::to_string(rows).map_err(refused)
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Refused(std::sync::Arc::new(error))
}

struct Summing {
    rows: u64,
    context: Context,
}

impl Summing {
    fn new() -> Self {
        Self {
            rows: 0,
            context: Context::new(&SHA256),
        }
    }

    fn add(&mut self, rows: &[Row]) {
        for row in rows {
            self.rows += 1;
            for (name, value) in row {
                // JSON texts contain no line breaks, so values cannot run into each other.
                self.context.update(format!("{name}\n{value}\n").as_bytes());
            }
            self.context.update(b"\n");
        }
    }

    fn end(self) -> Sum {
        let hash = self.context.finish();
        let short = hash.as_ref().first_chunk().copied();
        Sum {
            rows: self.rows,
            hash: format!("{:016x}", u64::from_be_bytes(short.unwrap_or_default())),
        }
    }
}
