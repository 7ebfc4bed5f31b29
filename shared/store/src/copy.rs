//! Copies a database into an empty one, whatever kind each is.

use matrix2acrobits_shared::{
    clock::Clock,
    flow::copy::{self, Side},
    process::{failure::Failure, words::Counted},
};

pub use matrix2acrobits_shared::flow::copy::{CopyError, Rows, Sum, Table};

use crate::{Database, DatabaseUrl, LookError, OpenError, Store, StoreError};

/// Why a copy failed. A failed copy writes nothing.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The source cannot be used.
    #[error("--from: {0}")]
    From(#[source] LookError),
    /// The source would be copied into itself.
    #[error("--from and --to are the same database")]
    Same,
    /// The target cannot be opened.
    #[error(transparent)]
    Open(OpenError),
    /// The target cannot be used.
    #[error("--to: {0}")]
    To(#[source] LookError),
    /// The target is not empty.
    #[error("--to: {0} is not empty: it holds {1}")]
    NotEmpty(String, String),
    /// The database cannot be read.
    #[error("{0} cannot be read: {1}")]
    Unreadable(String, #[source] StoreError),
    /// The copy failed midway.
    #[error("nothing was copied: {0}")]
    Copy(#[from] CopyError),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::Unreadable(..)
            | Problem::Copy(_)
            | Problem::From(LookError::Unreadable(..) | LookError::NotNow(_))
            | Problem::To(LookError::Unreadable(..) | LookError::NotNow(_)) => Self::of(problem),
            Problem::Open(error) => error.into(),
            wrong => Self::bad_setting(wrong),
        }
    }
}

/// A copy that is ready to begin. Nobody else uses either database.
pub struct Copy {
    from: Box<dyn Side>,
    to: Box<dyn Side>,
    /// The rows to copy.
    pub rows: Rows,
}

impl std::fmt::Debug for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Copy({:?})", self.rows)
    }
}

impl Copy {
    /// Opens both databases, creates the target if it does not exist, and keeps everybody else out.
    pub async fn open(from: &Database, to: &Database) -> Result<Self, Problem> {
        Store::look(from).await.map_err(Problem::From)?;
        must_differ(from, to).await?;
        let mut source = alone(from).await.map_err(Problem::From)?;
        let rows = rows(from, source.as_mut()).await?;
        match Store::look(to).await {
            Ok(()) | Err(LookError::Missing(_) | LookError::Older(_)) => {}
            // Another program's tables are not for us to fill up.
            Err(error) => return Err(Problem::To(error)),
        }
        prepare(to).await.map_err(Problem::Open)?;
        let mut target = alone(to).await.map_err(Problem::To)?;
        must_be_empty(to, target.as_mut()).await?;
        Ok(Self {
            from: source,
            to: target,
            rows,
        })
    }

    /// Copies and compares. `progress` receives a table and the number of rows copied so far.
    pub async fn run(
        mut self,
        progress: &mut (dyn FnMut(Table, u64) + Send),
    ) -> Result<Vec<(Table, Sum)>, Problem> {
        let now = Clock::system().unix();
        Ok(copy::copy(self.from.as_mut(), self.to, now, progress).await?)
    }
}

/// Only says how many rows there are to copy, and whether a copy is possible. Processes may keep running.
pub async fn dry_run(from: &Database, to: &Database) -> Result<Rows, Problem> {
    Store::look(from).await.map_err(Problem::From)?;
    must_differ(from, to).await?;
    let mut source = beside_others(from).await.map_err(Problem::From)?;
    let rows = rows(from, source.as_mut()).await?;
    match Store::look(to).await {
        Err(LookError::Missing(_)) => return Ok(rows),
        looked => looked.map_err(Problem::To)?,
    }
    let mut target = beside_others(to).await.map_err(Problem::To)?;
    must_be_empty(to, target.as_mut()).await?;
    Ok(rows)
}

/// Refuses to copy a database into itself. Our own lock on the source would keep us out of the target.
async fn must_differ(from: &Database, to: &Database) -> Result<(), Problem> {
    let same = match (&from.url, &to.url) {
        (DatabaseUrl::Sqlite(from), DatabaseUrl::Sqlite(to)) => {
            matrix2acrobits_sqlite::is_same(from, to)
        }
        #[cfg(feature = "postgres")]
        (DatabaseUrl::Postgres(from), DatabaseUrl::Postgres(to)) => {
            // Where it cannot be told, the rest says what is wrong with which side.
            let same = matrix2acrobits_postgres::is_same(from, to).await;
            same.unwrap_or(false)
        }
        #[cfg(feature = "postgres")]
        _ => false,
    };
    if same { Err(Problem::Same) } else { Ok(()) }
}

async fn must_be_empty(database: &Database, side: &mut dyn Side) -> Result<(), Problem> {
    let there = rows(database, side).await?;
    if there.is_empty() {
        return Ok(());
    }
    let name = database.to_string();
    Err(Problem::NotEmpty(name, in_words(&there)))
}

/// The number of rows, for people.
pub fn in_words(rows: &Rows) -> String {
    let words = Table::ALL.map(|table| (rows.of(table), table.name()));
    let words = words.into_iter().filter(|(count, _)| *count > 0);
    let words: Vec<_> = words
        .map(|(count, name)| Counted(count, name.trim_end_matches('s')).to_string())
        .collect();
    if words.is_empty() {
        "nothing".to_owned()
    } else {
        words.join(", ")
    }
}

async fn rows(database: &Database, side: &mut dyn Side) -> Result<Rows, Problem> {
    let rows = side.rows().await;
    rows.map_err(|error| Problem::Unreadable(database.to_string(), error))
}

async fn prepare(database: &Database) -> Result<(), OpenError> {
    match &database.url {
        DatabaseUrl::Sqlite(file) => matrix2acrobits_sqlite::prepare(file).await?,
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => matrix2acrobits_postgres::prepare(url).await?,
    }
    Ok(())
}

async fn alone(database: &Database) -> Result<Box<dyn Side>, LookError> {
    Ok(match &database.url {
        DatabaseUrl::Sqlite(file) => Box::new(matrix2acrobits_sqlite::Copying::alone(file).await?),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => {
            Box::new(matrix2acrobits_postgres::Copying::alone(url).await?)
        }
    })
}

async fn beside_others(database: &Database) -> Result<Box<dyn Side>, LookError> {
    Ok(match &database.url {
        DatabaseUrl::Sqlite(file) => Box::new(matrix2acrobits_sqlite::Copying::look(file).await?),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => Box::new(matrix2acrobits_postgres::Copying::look(url).await?),
    })
}
