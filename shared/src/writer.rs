//! The one task of a process that writes to the database. It puts whatever waits into one transaction,
//! so that `synchronous=FULL` costs one flush for many writes (group commit).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::{mpsc, oneshot};

use crate::{
    metrics,
    store::{StoreError, TokenEpoch, is_busy},
    telemetry::Chain,
};

/// Most writes in one transaction: enough for the flush not to matter, few enough that the last one
/// does not wait long and that another process gets the write lock in between.
const MAX_BATCH: usize = 256;
/// How often the write lock is asked for while another process has it, and how long it is left alone after a
/// commit when more waits: longer, so that whoever asks gets it. SQLite's own waiting sleeps for up to 100 ms
/// at a time, and a busy process took the lock again and again meanwhile: with the worker draining a backlog,
/// reports waited for more than a second.
const ASK: Duration = Duration::from_millis(1);
const LEAVE: Duration = Duration::from_millis(2);
/// Most writes that may wait before new ones are refused.
const MAX_WAITING: usize = 4096;

/// Hands writes to the writer task. Cheap to clone; the task ends when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Box<dyn Write>>,
}

/// A write inside the current transaction. It may run twice (see [`commit_batch`]), so it takes nothing away.
trait Write: Send {
    fn run<'c>(
        &'c mut self,
        connection: &'c mut SqliteConnection,
    ) -> BoxFuture<'c, Result<(), StoreError>>;
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Typed<F, T> {
    write: F,
    value: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Write for Typed<F, T>
where
    F: for<'c> FnMut(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, StoreError>> + Send,
    T: Send,
{
    fn run<'c>(
        &'c mut self,
        connection: &'c mut SqliteConnection,
    ) -> BoxFuture<'c, Result<(), StoreError>> {
        Box::pin(async move {
            self.value = Some((self.write)(connection).await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let result = match (committed, self.value) {
            (Ok(()), Some(value)) => Ok(value),
            (Ok(()), None) => Err(StoreError::Stopped),
            (Err(error), _) => Err(error),
        };
        // Nobody waits any more when a client went away; the write stands.
        let _ = self.reply.send(result);
    }
}

impl Writer {
    /// Starts the task on `connection`, which is its own; with `options` it opens another where that breaks.
    /// It waits for another process' lock for `busy` at most. `epoch` learns which changes are its own.
    pub(crate) fn start(
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        busy: Duration,
        epoch: TokenEpoch,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let database = Database {
            connection: Some(connection),
            options,
            busy,
            epoch,
        };
        tokio::spawn(run(database, waiting));
        Self { queue }
    }

    /// Runs `write` in a transaction and returns its value once that is committed. Refuses at once when
    /// too much waits.
    pub async fn write<T, F>(&self, write: F) -> Result<T, StoreError>
    where
        F: for<'c> FnMut(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, StoreError>>
            + Send
            + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(Typed {
            write,
            value: None,
            reply,
        });
        self.queue.try_send(work).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StoreError::Stopped,
        })?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

/// The connection, and how to get another.
struct Database {
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    busy: Duration,
    epoch: TokenEpoch,
}

async fn run(mut database: Database, mut waiting: mpsc::Receiver<Box<dyn Write>>) {
    if let Some(connection) = &mut database.connection {
        // If this fails, SQLite waits, too; nothing is lost by it.
        let _ = wait_ourselves(connection).await;
    }
    let failing = AtomicBool::new(false);
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while waiting.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let started = Instant::now();
        let result = database.commit(&mut batch).await;
        metrics::committed(started.elapsed());
        report_health(&failing, &result);
        if batch.len() > 1 && result.as_ref().is_err_and(|e| !e.is_environment()) {
            // One write that the database refuses must not take the others down with it.
            for mut work in batch.drain(..) {
                let alone = database.commit(std::slice::from_mut(&mut work)).await;
                report_health(&failing, &alone);
                work.answer(alone);
            }
        } else {
            for work in batch.drain(..) {
                work.answer(result.clone());
            }
        }
        if !waiting.is_empty() {
            tokio::time::sleep(LEAVE).await;
        }
    }
    if let Some(connection) = database.connection {
        let _ = connection.close().await;
    }
}

impl Database {
    /// Runs `batch` in one transaction. A connection on which that failed is not used again: after a full
    /// disk or an I/O error SQLite has rolled back by itself, sqlx' own rollback fails for that, and it then
    /// refuses every further transaction (measured with sqlx 0.9).
    async fn commit(&mut self, batch: &mut [Box<dyn Write>]) -> Result<(), StoreError> {
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            let mut connection = SqliteConnection::connect_with(&self.options).await?;
            wait_ourselves(&mut connection).await?;
            connection
        };
        let result = commit_batch(&mut connection, batch, self.busy, &self.epoch).await;
        let broken = result.as_ref().is_err_and(StoreError::is_environment);
        self.connection = (!broken).then_some(connection);
        result
    }
}

/// Has this connection be told at once that another process has the write lock.
async fn wait_ourselves(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("PRAGMA busy_timeout = 0")
        .execute(connection)
        .await?;
    Ok(())
}

async fn commit_batch(
    connection: &mut SqliteConnection,
    batch: &mut [Box<dyn Write>],
    busy: Duration,
    epoch: &TokenEpoch,
) -> Result<(), StoreError> {
    let started = Instant::now();
    let mut transaction = loop {
        match connection.begin_with("BEGIN IMMEDIATE").await {
            Err(error) if is_busy(&error) && started.elapsed() < busy => {
                tokio::time::sleep(ASK).await;
            }
            result => break result?,
        }
    };
    let before = TokenEpoch::read(&mut transaction).await?;
    for work in batch {
        work.run(&mut transaction).await?;
    }
    let after = TokenEpoch::read(&mut transaction).await?;
    transaction.commit().await?;
    epoch.committed(before, after);
    Ok(())
}

/// One line when the database starts to fail and one when it works again, however many writes it hits.
fn report_health(failing: &AtomicBool, result: &Result<(), StoreError>) {
    match result {
        Ok(()) => {
            if failing.swap(false, Ordering::Relaxed) {
                tracing::info!("the database takes writes again");
            }
        }
        Err(error) => {
            metrics::write_failed(error.is_busy());
            if !failing.swap(true, Ordering::Relaxed) {
                tracing::error!(error = %Chain(error), "the database does not take writes");
            }
        }
    }
}
