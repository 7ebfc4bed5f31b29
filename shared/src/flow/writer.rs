//! The only task of a process that writes to the database. It puts all waiting writes into one transaction, so that one
//! flush of the disk serves many writes (group commit).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::{Finished, Recorded, Result, StoreError, Transaction, batch, feed::Vital};
use crate::{
    process::{logs::Chain, metrics},
    rules::report::{Report, Saved},
};

/// The most writes in one transaction. The number is large enough for the flush not to matter, and small enough that no
/// write waits long and other processes get the write lock in between.
const MAX_BATCH: usize = 256;
/// The most writes that may wait. Further writes are refused.
const MAX_WAITING: usize = 4096;

/// The most urgent writes that may wait. A process has few of them, and each waits for the one before.
const MAX_URGENT: usize = 16;

/// How long a batch is split in search of the writes that wait for a lock, if no part of it succeeds meanwhile. One locked
/// row among 256 writes is found in half of that. After that somebody has locked whole tables, and all writes that wait
/// have waited long enough.
const STUCK: Duration = Duration::from_millis(2500);
/// The same if some parts succeed, because only some rows are locked.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long no write must have failed before the log says that the database takes writes again.
const CALM: Duration = Duration::from_secs(5);

/// How often the writer retries transactions that conflict with another process's.
const MOST_CONFLICTS: u32 = 5;

/// A connection that writes.
#[async_trait]
pub trait Connection: Send {
    /// Waits for its turn, if other processes write as well.
    async fn wait(&mut self);
    /// Whether different kinds of writes may share a transaction.
    fn mixes(&self) -> bool;
    /// The time limit for a transaction, if the database may never respond.
    fn limit(&self) -> Option<Duration>;
    /// Opens a transaction.
    async fn begin(&mut self) -> Result<Box<dyn Transaction + '_>>;
    /// Tells the connection how the last transaction ended. After an error of the environment, the connection opens a
    /// new one.
    async fn ended(&mut self, result: &Result<()>);
    /// Closes the connection.
    async fn close(&mut self);
}

/// Hands writes to the writer task. Cheap to clone. The task ends with the last clone.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Work>,
    urgent: mpsc::Sender<Work>,
}

/// A write that is cheaper for many at once, because a statement can serve all that wait.
pub(super) trait Bulk: Send + Sync + Sized {
    /// The result of one write.
    type Value: Send;

    /// Writes all `items` as if one came after the other, and returns a value for each.
    fn write_all(
        tx: &mut dyn Transaction,
        items: &[&Self],
    ) -> impl Future<Output = Result<Vec<Self::Value>>> + Send;
}

/// Any other write inside the current transaction. It runs again when another write in the transaction fails, so it
/// must not consume its own data.
trait Write: Send {
    fn run<'c>(&'c mut self, tx: &'c mut dyn Transaction) -> BoxFuture<'c, Result<()>>;
    fn answer(self: Box<Self>, committed: Result<()>);
}

/// A waiting write.
enum Work {
    Report(Pending<Report>),
    Finished(Pending<Finished>),
    Other(Box<dyn Write>),
    /// Only the commit matters.
    Nothing(oneshot::Sender<Result<()>>),
}

impl Work {
    /// Whether the two may share a transaction where kinds are kept apart.
    fn is_alike(&self, other: &Self) -> bool {
        matches!(
            (self, other),
            (Self::Report(_), Self::Report(_)) | (Self::Finished(_), Self::Finished(_))
        )
    }

    fn answer(self, committed: Result<()>) {
        match self {
            Self::Report(pending) => answer(pending.reply, pending.value, committed),
            Self::Finished(pending) => answer(pending.reply, pending.value, committed),
            Self::Other(write) => write.answer(committed),
            Self::Nothing(reply) => answer(reply, Some(()), committed),
        }
    }
}

/// A queued write, and the channel for its result.
struct Pending<B: Bulk> {
    item: B,
    value: Option<B::Value>,
    reply: oneshot::Sender<Result<B::Value>>,
}

struct Typed<F, T> {
    write: F,
    value: Option<T>,
    reply: oneshot::Sender<Result<T>>,
}

impl<F, T> Write for Typed<F, T>
where
    F: for<'c> FnMut(&'c mut dyn Transaction) -> BoxFuture<'c, Result<T>> + Send,
    T: Send,
{
    fn run<'c>(&'c mut self, tx: &'c mut dyn Transaction) -> BoxFuture<'c, Result<()>> {
        Box::pin(async move {
            self.value = Some((self.write)(tx).await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        answer(self.reply, self.value, committed);
    }
}

fn answer<T>(reply: oneshot::Sender<Result<T>>, value: Option<T>, committed: Result<()>) {
    let result = match (committed, value) {
        (Ok(()), Some(value)) => Ok(value),
        (Ok(()), None) => Err(StoreError::Stopped),
        (Err(error), _) => Err(error),
    };
    // The caller may have gone away.
    let _ = reply.send(result);
}

impl Writer {
    /// Starts the writer task.
    pub fn start(vital: &Vital, connection: Box<dyn Connection>) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let (urgent, ahead) = mpsc::channel(MAX_URGENT);
        vital.spawn("writer", run(connection, waiting, ahead));
        Self { queue, urgent }
    }

    /// Saves a report, together with other waiting reports.
    pub async fn save_report(&self, report: Report) -> Result<Saved> {
        self.enqueue(report, Work::Report).await
    }

    /// Records the outcome of a job, together with other waiting outcomes.
    pub async fn finish(&self, finished: Finished) -> Result<Recorded> {
        self.enqueue(finished, Work::Finished).await
    }

    /// Runs `write` in a transaction, and returns its value after the commit. Refuses at once if too many writes wait.
    pub async fn write<T, F>(&self, write: F) -> Result<T>
    where
        F: for<'c> FnMut(&'c mut dyn Transaction) -> BoxFuture<'c, Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        Self::other(&self.queue, write).await
    }

    /// The same for a write that must not wait for others: it comes next, in a transaction of its own. So it passes
    /// reports that wait for a lock. It must be small, and few may be under way.
    pub async fn write_ahead<T, F>(&self, write: F) -> Result<T>
    where
        F: for<'c> FnMut(&'c mut dyn Transaction) -> BoxFuture<'c, Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        Self::other(&self.urgent, write).await
    }

    /// Commits an empty transaction ahead of all others, for what every commit takes along.
    pub async fn commit(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        Self::send(&self.urgent, Work::Nothing(reply))?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    async fn other<T, F>(queue: &mpsc::Sender<Work>, write: F) -> Result<T>
    where
        F: for<'c> FnMut(&'c mut dyn Transaction) -> BoxFuture<'c, Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let write = Typed {
            write,
            value: None,
            reply,
        };
        Self::send(queue, Work::Other(Box::new(write)))?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    async fn enqueue<B: Bulk>(&self, item: B, work: fn(Pending<B>) -> Work) -> Result<B::Value> {
        let (reply, answer) = oneshot::channel();
        let work = work(Pending {
            item,
            value: None,
            reply,
        });
        Self::send(&self.queue, work)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    fn send(queue: &mpsc::Sender<Work>, work: Work) -> Result<()> {
        queue.try_send(work).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StoreError::Stopped,
        })
    }
}

async fn run(
    mut connection: Box<dyn Connection>,
    mut waiting: mpsc::Receiver<Work>,
    mut urgent: mpsc::Receiver<Work>,
) {
    let mut health = Health::default();
    let mut batch = Vec::with_capacity(MAX_BATCH);
    loop {
        let mut first = tokio::select! {
            biased;
            Some(work) = urgent.recv() => Some(work),
            taken = batch::take(&mut waiting, &mut batch, MAX_BATCH) => {
                if !taken {
                    break;
                }
                None
            }
        };
        connection.wait().await;
        batch::take_more(&mut waiting, &mut batch, MAX_BATCH);
        // A write that the database refuses must not make the others fail. So the writer tries each half in its own
        // transaction, down to a single write.
        let mut parts = parts(std::mem::take(&mut batch), connection.mixes());
        let mut conflicts = 0;
        let taken = Instant::now();
        let mut succeeded = taken;
        loop {
            let ahead = first.take().or_else(|| urgent.try_recv().ok());
            let is_ahead = ahead.is_some();
            let Some(mut part) = ahead.map(|work| vec![work]).or_else(|| parts.pop()) else {
                break;
            };
            let started = Instant::now();
            let result = commit(connection.as_mut(), &mut part).await;
            metrics::committed(started.elapsed());
            if result.as_ref().is_err_and(StoreError::is_conflict) && conflicts < MOST_CONFLICTS {
                conflicts += 1;
                parts.push(part);
                continue;
            }
            health.note(&result, &part);
            if result.is_ok() && !is_ahead {
                succeeded = Instant::now();
            }
            // All writes that waited for a database that does not respond, or for a table that somebody has locked,
            // have waited long enough.
            let waited = connection.limit().is_some_and(|limit| match &result {
                Err(error) if error.is_environment() => started.elapsed() > limit / 4,
                Err(error) => {
                    let waited = succeeded.elapsed() > STUCK || taken.elapsed() > PATIENCE;
                    error.is_busy() && waited
                }
                Ok(()) => false,
            });
            if waited {
                part.extend(parts.drain(..).flatten());
                while let Ok(work) = waiting.try_recv() {
                    part.push(work);
                }
            } else if part.len() > 1 && result.as_ref().is_err_and(|e| !e.is_environment()) {
                let rest = part.split_off(part.len() / 2);
                parts.extend([rest, part]);
                continue;
            }
            for work in part {
                work.answer(result.clone());
            }
        }
    }
    connection.close().await;
}

/// Splits a batch into parts, each for one transaction. The first part is last.
fn parts(batch: Vec<Work>, mixes: bool) -> Vec<Vec<Work>> {
    if mixes {
        return vec![batch];
    }
    let mut parts: Vec<Vec<Work>> = Vec::new();
    for work in batch {
        match parts.last_mut() {
            Some(part) if part.last().is_some_and(|last| last.is_alike(&work)) => part.push(work),
            _ => parts.push(vec![work]),
        }
    }
    parts.reverse();
    parts
}

/// The database did not respond in time.
#[derive(Debug, thiserror::Error)]
#[error("the transaction was not done within {0:?}")]
struct TooLate(Duration);

/// Runs a batch in one transaction.
async fn commit(connection: &mut dyn Connection, batch: &mut [Work]) -> Result<()> {
    let limit = connection.limit();
    let work = async {
        let mut tx = connection.begin().await?;
        write_all(tx.as_mut(), batch).await?;
        tx.commit().await
    };
    let result = match limit {
        None => work.await,
        Some(limit) => {
            let done = tokio::time::timeout(limit, work).await;
            done.unwrap_or_else(|_| Err(StoreError::Unavailable(Arc::new(TooLate(limit)))))
        }
    };
    connection.ended(&result).await;
    result
}

/// Writes in the order of the requests. Neighbours of one kind are written together.
async fn write_all(tx: &mut dyn Transaction, batch: &mut [Work]) -> Result<()> {
    let (mut reports, mut finished) = (Vec::new(), Vec::new());
    for work in batch {
        match work {
            Work::Report(pending) => {
                write_bulk(tx, &mut finished).await?;
                reports.push(pending);
            }
            Work::Finished(pending) => {
                write_bulk(tx, &mut reports).await?;
                finished.push(pending);
            }
            Work::Other(write) => {
                write_bulk(tx, &mut reports).await?;
                write_bulk(tx, &mut finished).await?;
                write.run(tx).await?;
            }
            Work::Nothing(_) => {}
        }
    }
    write_bulk(tx, &mut reports).await?;
    write_bulk(tx, &mut finished).await
}

async fn write_bulk<B: Bulk>(
    tx: &mut dyn Transaction,
    pending: &mut Vec<&mut Pending<B>>,
) -> Result<()> {
    if pending.is_empty() {
        return Ok(());
    }
    let items: Vec<&B> = pending.iter().map(|pending| &pending.item).collect();
    let values = B::write_all(tx, &items).await?;
    for (pending, value) in pending.drain(..).zip(values) {
        pending.value = Some(value);
    }
    Ok(())
}

/// Logs one line when the database starts to fail and one when it works again, however many writes fail.
#[derive(Debug, Default)]
struct Health {
    /// When the last write failed, until the database is said to take writes again.
    failed: Option<Instant>,
}

impl Health {
    fn note(&mut self, result: &Result<()>, part: &[Work]) {
        match result {
            Ok(()) => {
                // A database that takes no writes does commit an empty transaction. And while some writes fail, others
                // may succeed.
                let wrote = part.iter().any(|work| !matches!(work, Work::Nothing(_)));
                if wrote && self.failed.is_some_and(|failed| failed.elapsed() > CALM) {
                    self.failed = None;
                    tracing::info!("the database takes writes again");
                }
            }
            Err(error) => {
                metrics::write_failed(error.is_busy());
                if self.failed.replace(Instant::now()).is_none() {
                    tracing::error!(error = %Chain(error), "the database does not take writes");
                }
            }
        }
    }
}
