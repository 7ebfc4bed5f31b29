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
    batch,
    store::{Finished, StoreError, TokenEpoch, is_busy, tokens::Report},
};
use matrix2acrobits_shared::{
    clock::Clock,
    process::{logs::Chain, metrics},
};

/// Most writes in one transaction: enough for the flush not to matter, few enough that the last one
/// does not wait long and that another process gets the write lock in between.
const MAX_BATCH: usize = 256;
/// How often the write lock is asked for while another process has it. SQLite's own waiting sleeps for up to
/// 100 ms at a time, and a busy process took the lock again and again meanwhile: with the worker draining a
/// backlog, reports waited for more than a second.
const ASK: Duration = Duration::from_millis(1);
/// For so long after it was met, another process is reckoned with.
const MET: Duration = Duration::from_millis(500);
/// How long the lock is kept where none was met, for one may be asking all the same.
const ALONE: Duration = Duration::from_millis(200);
/// Most writes that may wait before new ones are refused.
const MAX_WAITING: usize = 4096;

/// How a process shares the write lock with others: nobody is told who waits, so whoever is busy leaves it
/// alone from time to time, for longer than [`ASK`].
#[derive(Debug, Clone, Copy)]
pub struct Sharing {
    /// How long it waits for another process' lock.
    busy: Duration,
    /// How long it goes on, one transaction after the other, while another process wants the lock, too.
    keep: Duration,
    /// How long it leaves the lock alone then.
    leave: Duration,
}

impl Sharing {
    /// For a process whose writes somebody waits for.
    pub fn ahead(busy: Duration) -> Self {
        Self {
            busy,
            keep: Duration::from_millis(16),
            leave: Duration::from_millis(2),
        }
    }

    /// For one that can wait: a transaction at a time, with much in each.
    pub fn behind(busy: Duration) -> Self {
        Self {
            busy,
            keep: Duration::ZERO,
            leave: Duration::from_millis(10),
        }
    }

    /// How long it waits for another process' lock.
    pub(crate) fn busy(&self) -> Duration {
        self.busy
    }

    /// How long to leave the lock alone before the next transaction.
    fn pause(&self, turns: &Turns, now: Instant) -> Option<Duration> {
        let free = now.saturating_duration_since(turns.free);
        let met = turns.met.is_some_and(|met| now < met + MET);
        let keep = if met { self.keep } else { ALONE };
        let rest = self.leave.saturating_sub(free);
        let due = now.saturating_duration_since(turns.taken) > keep;
        (due && !rest.is_zero()).then_some(rest)
    }
}

/// What a process knows of its turns at the write lock.
#[derive(Debug)]
struct Turns {
    /// When it took the lock after others had had a chance.
    taken: Instant,
    /// When it last gave it back.
    free: Instant,
    /// When another process was last found to have it.
    met: Option<Instant>,
}

/// Hands writes to the writer task. Cheap to clone; the task ends when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Work>,
}

/// A write inside the current transaction. It runs twice when another one failed beside it, so it takes nothing away.
pub(crate) trait Write: Send {
    fn run<'c>(
        &'c mut self,
        connection: &'c mut SqliteConnection,
    ) -> BoxFuture<'c, Result<(), StoreError>>;
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

/// Something to write that is cheaper for many at once. A statement costs little compared to the change of
/// threads that sqlx makes for each, so what comes often is written by statements for all that waits.
pub(crate) trait Bulk: Send + Sync + Sized {
    /// What the writing of one comes to.
    type Value: Send;

    /// Writes all of `these`, each as if alone and in this order, and returns a value for each.
    fn write_all(
        connection: &mut SqliteConnection,
        these: &[&Self],
        now: i64,
    ) -> impl Future<Output = Result<Vec<Self::Value>, StoreError>> + Send;
}

/// What waits to be written.
pub(crate) enum Work {
    Report(Pending<Report>),
    Finished(Pending<Finished>),
    Other(Box<dyn Write>),
}

impl From<Pending<Report>> for Work {
    fn from(report: Pending<Report>) -> Self {
        Self::Report(report)
    }
}

impl From<Pending<Finished>> for Work {
    fn from(finished: Pending<Finished>) -> Self {
        Self::Finished(finished)
    }
}

impl Work {
    fn answer(self, committed: Result<(), StoreError>) {
        match self {
            Self::Report(it) => answer(it.reply, it.value, committed),
            Self::Finished(it) => answer(it.reply, it.value, committed),
            Self::Other(write) => write.answer(committed),
        }
    }
}

/// One of many, and who waits for what it comes to.
pub(crate) struct Pending<B: Bulk> {
    it: B,
    value: Option<B::Value>,
    reply: oneshot::Sender<Result<B::Value, StoreError>>,
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
        answer(self.reply, self.value, committed);
    }
}

fn answer<T>(
    reply: oneshot::Sender<Result<T, StoreError>>,
    value: Option<T>,
    committed: Result<(), StoreError>,
) {
    let result = match (committed, value) {
        (Ok(()), Some(value)) => Ok(value),
        (Ok(()), None) => Err(StoreError::Stopped),
        (Err(error), _) => Err(error),
    };
    // Nobody waits any more when a client went away; the write stands.
    let _ = reply.send(result);
}

impl Writer {
    /// Starts the task on `connection`, which is its own; with `options` it opens another where that breaks.
    /// `epoch` learns which changes are its own.
    pub(crate) fn start(
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        sharing: Sharing,
        clock: Clock,
        epoch: TokenEpoch,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let database = Database {
            connection: Some(connection),
            options,
            sharing,
            turns: Turns {
                taken: Instant::now(),
                free: Instant::now(),
                met: None,
            },
            clock,
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
        self.enqueue(Work::Other(work))?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    /// Writes `it` together with others of its kind. As [`Writer::write`] otherwise.
    pub(crate) async fn write_bulk<B: Bulk>(&self, it: B) -> Result<B::Value, StoreError>
    where
        Work: From<Pending<B>>,
    {
        let (reply, answer) = oneshot::channel();
        let pending = Pending {
            it,
            value: None,
            reply,
        };
        self.enqueue(pending.into())?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    fn enqueue(&self, work: Work) -> Result<(), StoreError> {
        self.queue.try_send(work).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StoreError::Stopped,
        })
    }
}

/// The connection, and how to get another.
struct Database {
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    sharing: Sharing,
    turns: Turns,
    clock: Clock,
    epoch: TokenEpoch,
}

async fn run(mut database: Database, mut waiting: mpsc::Receiver<Work>) {
    if let Some(connection) = &mut database.connection {
        // If this fails, SQLite waits and keeps less; nothing is lost by it.
        let _ = set_up(connection).await;
    }
    let failing = AtomicBool::new(false);
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while batch::take(&mut waiting, &mut batch, MAX_BATCH).await {
        if let Some(pause) = database.sharing.pause(&database.turns, Instant::now()) {
            tokio::time::sleep(pause).await;
            batch::take_more(&mut waiting, &mut batch, MAX_BATCH);
        }
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
    }
    if let Some(connection) = database.connection {
        let _ = connection.close().await;
    }
}

impl Database {
    /// Runs `batch` in one transaction. A connection on which that failed is not used again: after a full
    /// disk or an I/O error SQLite has rolled back by itself, sqlx' own rollback fails for that, and it then
    /// refuses every further transaction (measured with sqlx 0.9).
    async fn commit(&mut self, batch: &mut [Work]) -> Result<(), StoreError> {
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            let mut connection = SqliteConnection::connect_with(&self.options).await?;
            set_up(&mut connection).await?;
            connection
        };
        let result = self.commit_on(&mut connection, batch).await;
        self.turns.free = Instant::now();
        let broken = result.as_ref().is_err_and(StoreError::is_environment);
        self.connection = (!broken).then_some(connection);
        result
    }

    async fn commit_on(
        &mut self,
        connection: &mut SqliteConnection,
        batch: &mut [Work],
    ) -> Result<(), StoreError> {
        let started = Instant::now();
        let mut chance = started >= self.turns.free + self.sharing.leave;
        let mut transaction = loop {
            match connection.begin_with("BEGIN IMMEDIATE").await {
                Err(error) if is_busy(&error) && started.elapsed() < self.sharing.busy => {
                    chance = true;
                    self.turns.met = Some(Instant::now());
                    tokio::time::sleep(ASK).await;
                }
                result => break result?,
            }
        };
        if chance {
            self.turns.taken = Instant::now();
        }
        let before = TokenEpoch::read(&mut transaction).await?;
        write_all(&mut transaction, batch, self.clock.unix()).await?;
        let after = TokenEpoch::read(&mut transaction).await?;
        transaction.commit().await?;
        self.epoch.committed(before, after);
        Ok(())
    }
}

/// Has this connection be told at once that another process has the write lock, and keep as many pages as a
/// full batch may change: with SQLite's 2 MiB it wrote and read them again and again.
async fn set_up(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    for pragma in ["PRAGMA busy_timeout = 0", "PRAGMA cache_size = -8192"] {
        sqlx::query(pragma).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn write_all(
    connection: &mut SqliteConnection,
    batch: &mut [Work],
    now: i64,
) -> Result<(), StoreError> {
    let (mut reports, mut finished) = (Vec::new(), Vec::new());
    for work in batch {
        match work {
            Work::Report(it) => reports.push(it),
            Work::Finished(it) => finished.push(it),
            Work::Other(write) => write.run(connection).await?,
        }
    }
    write_bulk(connection, reports, now).await?;
    write_bulk(connection, finished, now).await
}

async fn write_bulk<B: Bulk>(
    connection: &mut SqliteConnection,
    pending: Vec<&mut Pending<B>>,
    now: i64,
) -> Result<(), StoreError> {
    if pending.is_empty() {
        return Ok(());
    }
    let these: Vec<&B> = pending.iter().map(|pending| &pending.it).collect();
    let values = B::write_all(connection, &these, now).await?;
    for (pending, value) in pending.into_iter().zip(values) {
        pending.value = Some(value);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_left_alone_when_others_have_waited_long_enough() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let pause = |sharing: Sharing, free, met, now| {
            let turns = Turns {
                taken: start,
                free: at(free),
                met,
            };
            let pause = sharing.pause(&turns, at(now));
            pause.map(|pause| pause.as_millis())
        };
        let busy = Duration::from_secs(5);
        let (ahead, behind) = (Sharing::ahead(busy), Sharing::behind(busy));
        for (sharing, free, met, now, expected) in [
            // Another one was met: a few transactions of one, one of the other.
            (ahead, 10, Some(start), 11, None),
            (ahead, 17, Some(start), 18, Some(1)),
            (behind, 4, Some(start), 4, Some(10)),
            (behind, 4, Some(start), 9, Some(5)),
            // It was left alone for long enough already.
            (ahead, 17, Some(start), 19, None),
            (behind, 4, Some(start), 14, None),
            // Nobody was met, or not lately.
            (ahead, 100, None, 101, None),
            (ahead, 201, None, 201, Some(2)),
            (behind, 100, None, 101, None),
            (behind, 501, Some(start), 501, Some(10)),
        ] {
            assert_eq!(
                pause(sharing, free, met, now),
                expected,
                "{free} {met:?} {now}"
            );
        }
    }
}
