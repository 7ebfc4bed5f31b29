//! The connection that writes, and its transactions.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use matrix2acrobits_shared::{
    clock::Clock,
    flow::{
        Heartbeat, OwnedPair, Pair, PairFacts, Phones, QueuedJob, Result, StoreError, Transaction,
        feed::{Changed, Feed},
        writer::Connection,
    },
    mark::{MarkKey, MarkKeys},
    rules::{
        arrival::Arrivals,
        gate::SharedGate,
        import::Mapping,
        jobs::{Job, Status},
        pushers::Pusher,
        report::{Account, Phone},
    },
};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::watch;

use crate::{
    access::Access,
    errors::{from_sqlx, within},
    message::News,
    pool::{ACQUIRE, Pool, read},
    sent::SentEvents,
    statements::{
        accounts, arrivals, gate, jobs, locks, mappings, marks, meta,
        pushers::{self, Jobs},
        workers,
    },
};

/// The time limit for a transaction. Including the time for connecting, a report gets its response in less than 5
/// seconds, whatever the server does.
const TRANSACTION: Duration = Duration::from_millis(2400);
/// After somebody held a row for too long, the writer hardly waits for locks for this long.
const HASTE: Duration = Duration::from_secs(5);
/// The numbers of new rows after which to analyze the tables, if the statistics assume fewer. Until then PostgreSQL
/// assumes that they are empty, and plans reads and joins accordingly.
const ANALYZE_AFTER: [i64; 4] = [500, 5_000, 50_000, 500_000];

/// The state that the writer and the change feed of a process share.
#[derive(Debug)]
pub(crate) struct Process {
    /// The process' name in its messages.
    pub(crate) name: String,
    pub(crate) feed: Feed,
    /// Counts messages about work for workers.
    pub(crate) work: watch::Sender<u64>,
    /// The events that this process has pushed.
    pub(crate) sent: SentEvents,
    /// We do not know whether one of our commits took place. Then our own messages count as news.
    doubtful: AtomicBool,
}

impl Process {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            feed: Feed::default(),
            work: watch::Sender::new(0),
            sent: SentEvents::default(),
            doubtful: AtomicBool::new(false),
        }
    }

    /// Handles a message from the feed.
    pub(crate) fn hear(&self, message: &str) {
        let (process, news) = News::read(message);
        if process != self.name || self.doubtful.load(Ordering::SeqCst) {
            self.tell(&news);
        }
        if process != self.name {
            self.sent.heard(&news.sent);
        }
    }

    fn tell(&self, news: &News) {
        self.feed.tell(if news.everything {
            Changed::Everything
        } else {
            Changed::Pushkeys(&news.pushkeys)
        });
        if news.work {
            self.wake();
        }
    }

    /// Makes workers look at the queue and the gate.
    pub(crate) fn wake(&self) {
        self.work
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The connection, and what is needed to open another one.
pub(crate) struct WriteConnection {
    connection: Option<PgConnection>,
    access: Access,
    clock: Clock,
    process: Arc<Process>,
    operators: Pool,
    /// Somebody held a row for too long. Until this time the writer hardly waits for locks, so that one row does not
    /// hold up all writes.
    haste: Option<Instant>,
    inserted: i64,
    /// New rows of the last transaction that are not yet counted.
    fresh: i64,
}

impl WriteConnection {
    pub(crate) fn new(
        access: Access,
        clock: Clock,
        process: Arc<Process>,
        operators: Pool,
    ) -> Self {
        Self {
            connection: None,
            access,
            clock,
            process,
            operators,
            haste: None,
            inserted: 0,
            fresh: 0,
        }
    }

    /// Opens a new connection and a transaction on it. Returns the server's time.
    async fn connect(&mut self) -> Result<i64> {
        self.connection = None;
        let haste = self.in_haste();
        let connecting = async {
            let connection = self.access.connect().await;
            let mut connection = connection.map_err(from_sqlx)?;
            let now = meta::begin(&mut connection, haste).await?;
            Ok((connection, now))
        };
        let (connection, now) = within(ACQUIRE, connecting).await?;
        self.connection = Some(connection);
        Ok(now)
    }

    fn in_haste(&self) -> bool {
        self.haste.is_some_and(|until| Instant::now() < until)
    }

    /// Counts new rows, and has the tables analyzed when that changes plans.
    fn count(&mut self) {
        let before = self.inserted;
        self.inserted += std::mem::take(&mut self.fresh);
        let due = |after: &&i64| (before + 1..=self.inserted).contains(*after);
        if let Some(rows) = ANALYZE_AFTER.iter().find(due) {
            let operators = self.operators.clone();
            tokio::spawn(async move {
                let analyzed: Result<()> = async {
                    // With many rows it takes as long as some thousand reports, and another process may have done it.
                    if read!(&operators, meta::rows_assumed())? >= *rows {
                        return Ok(());
                    }
                    read!(&operators, meta::analyze())
                }
                .await;
                if let Err(error) = analyzed {
                    tracing::debug!(%error, "the tables cannot be analyzed");
                }
            });
        }
    }
}

#[async_trait]
impl Connection for WriteConnection {
    async fn wait(&mut self) {}

    /// Each kind of write locks rows in one order, but the orders of two kinds differ. Mixed transactions could
    /// deadlock with others.
    fn mixes(&self) -> bool {
        false
    }

    fn limit(&self) -> Option<Duration> {
        Some(ACQUIRE + TRANSACTION)
    }

    async fn begin(&mut self) -> Result<Box<dyn Transaction + '_>> {
        let mut now = None;
        let haste = self.in_haste();
        if let Some(connection) = &mut self.connection {
            // The server may have been restarted. Nothing has been written yet, so another connection will do.
            now = within(ACQUIRE, meta::begin(connection, haste)).await.ok();
        }
        let now = match now {
            Some(now) => now,
            None => self.connect().await?,
        };
        self.clock.follow(now);
        self.count();
        let Some(connection) = &mut self.connection else {
            return Err(StoreError::Stopped);
        };
        Ok(Box::new(WriteTransaction {
            connection,
            now: self.clock.unix(),
            now_ms: i64::try_from(self.clock.unix_millis()).unwrap_or(i64::MAX),
            news: News::default(),
            committing: false,
            fresh: &mut self.fresh,
            process: &self.process,
        }))
    }

    /// A connection on which a transaction failed because of the environment, or whose response did not come, is not
    /// used again. Closing it rolls back an open transaction.
    async fn ended(&mut self, result: &Result<()>) {
        let Err(error) = result else {
            return;
        };
        if error.is_busy() {
            self.haste = Some(Instant::now() + HASTE);
        }
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        if !error.is_environment()
            && within(ACQUIRE, meta::rollback(&mut connection))
                .await
                .is_ok()
        {
            self.connection = Some(connection);
        }
    }

    async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            // The process ends, and all acknowledged writes are on the disk.
            let _ = tokio::time::timeout(ACQUIRE, connection.close()).await;
        }
    }
}

/// A transaction that writes. Nothing counts until the commit, and [`WriteConnection::ended`] rolls back.
struct WriteTransaction<'c> {
    connection: &'c mut PgConnection,
    now: i64,
    now_ms: i64,
    news: News,
    /// True from sending COMMIT until its response.
    committing: bool,
    fresh: &'c mut i64,
    process: &'c Process,
}

impl WriteTransaction<'_> {
    /// Notes that there is work if one of these jobs is due.
    fn note_due(&mut self, jobs: &[&Job]) {
        let due = |job: &&Job| {
            matches!(job.status, Status::Pending | Status::Failed) && job.run_at <= self.now
        };
        self.news.work |= jobs.iter().any(due);
    }
}

/// We cannot tell whether a commit without a response took place. So its news is reported in this process as if it had,
/// and the server's later message counts as well.
impl Drop for WriteTransaction<'_> {
    fn drop(&mut self) {
        if self.committing {
            self.process.doubtful.store(true, Ordering::SeqCst);
            self.process.tell(&self.news);
        }
    }
}

#[async_trait]
impl Transaction for WriteTransaction<'_> {
    fn now(&self) -> i64 {
        self.now
    }

    async fn lock_selectors(&mut self, selectors: &[&str]) -> Result<()> {
        locks::selectors(self.connection, selectors).await
    }
    async fn lock_pairs(&mut self, pairs: &[Pair<'_>]) -> Result<()> {
        locks::pairs(self.connection, pairs).await
    }

    async fn accounts(&mut self, asked: &[(&str, &str)]) -> Result<Vec<Account>> {
        accounts::accounts(self.connection, asked).await
    }
    async fn phones(&mut self, which: Phones<'_>) -> Result<Vec<Phone>> {
        accounts::phones(self.connection, which).await
    }
    async fn mappings(&mut self, selectors: &[&str]) -> Result<Vec<Option<Mapping>>> {
        mappings::of(self.connection, selectors).await
    }
    async fn pairs(&mut self, pairs: &[Pair<'_>]) -> Result<Vec<PairFacts>> {
        pushers::pairs(self.connection, pairs, Jobs::Lock).await
    }
    async fn pairs_of(&mut self, ids: &[i64]) -> Result<Vec<OwnedPair>> {
        let pairs = pushers::pairs_of(self.connection, ids).await?;
        Ok(pairs.into_iter().map(|(_, pair)| pair).collect())
    }
    async fn pairs_with(&mut self, pushkeys: &[&str]) -> Result<Vec<OwnedPair>> {
        pushers::pairs_with(self.connection, pushkeys).await
    }

    async fn insert_phones(&mut self, phones: &[&Phone]) -> Result<Vec<i64>> {
        *self.fresh += i64::try_from(phones.len()).unwrap_or(i64::MAX);
        accounts::insert(self.connection, phones, self.now).await
    }
    async fn update_phones(&mut self, phones: &[&Phone]) -> Result<()> {
        accounts::update(self.connection, phones).await
    }
    async fn touch_phones(&mut self, phones: &[(i64, i64)]) -> Result<()> {
        accounts::touch(self.connection, phones).await
    }
    async fn delete_phones(&mut self, ids: &[i64]) -> Result<()> {
        accounts::delete(self.connection, ids).await
    }
    async fn put_mappings(&mut self, mappings: &[(&str, &str)]) -> Result<()> {
        mappings::put(self.connection, mappings, self.now).await
    }
    async fn delete_mapping(&mut self, selector: &str) -> Result<bool> {
        mappings::delete(self.connection, selector).await
    }
    async fn insert_pushers(&mut self, pushers: &[&Pusher]) -> Result<Vec<i64>> {
        pushers::insert(self.connection, pushers).await
    }
    async fn update_pushers(&mut self, pushers: &[&Pusher]) -> Result<()> {
        pushers::update(self.connection, pushers).await
    }
    async fn insert_jobs(&mut self, pushers: &[(i64, i64)]) -> Result<()> {
        self.news.work = true;
        jobs::insert(self.connection, pushers, self.now_ms).await
    }
    async fn update_jobs(&mut self, jobs: &[&Job]) -> Result<()> {
        self.note_due(jobs);
        jobs::update(self.connection, jobs).await
    }
    async fn delete_jobs(&mut self, keys: &[i64]) -> Result<()> {
        jobs::delete(self.connection, keys).await
    }

    async fn note_arrivals(&mut self, rows: &[(i64, Arrivals)]) -> Result<()> {
        let now = self.now();
        arrivals::note(self.connection, rows, now).await
    }

    async fn due_jobs(&mut self, limit: i64) -> Result<Vec<QueuedJob>> {
        jobs::due(self.connection, self.now, limit).await
    }
    async fn due_suspects(&mut self, limit: i64) -> Result<Vec<QueuedJob>> {
        jobs::due_suspects(self.connection, self.now, limit).await
    }
    async fn hand_out(&mut self, keys: &[i64], worker: &str) -> Result<()> {
        jobs::hand_out(self.connection, keys, worker).await
    }
    async fn begin_job(&mut self, pusher_id: i64, worker: &str) -> Result<()> {
        jobs::begin(self.connection, pusher_id, worker).await
    }
    async fn drop_job(&mut self, pusher_id: i64, worker: &str) -> Result<bool> {
        jobs::drop_held(self.connection, pusher_id, worker).await
    }
    async fn stranded_jobs(&mut self, since: i64, limit: i64) -> Result<Vec<QueuedJob>> {
        jobs::stranded(self.connection, since, limit).await
    }
    async fn jobs_of(&mut self, worker: &str) -> Result<Vec<QueuedJob>> {
        jobs::held_by(self.connection, worker).await
    }

    async fn insert_worker(&mut self, worker: &str, settings: &str) -> Result<i64> {
        workers::insert(self.connection, worker, settings, self.now).await
    }
    async fn beat(&mut self, heartbeat: &Heartbeat) -> Result<()> {
        workers::beat(self.connection, heartbeat, self.now).await?;
        workers::correct_last_seen(self.connection, self.now).await
    }
    async fn delete_worker(&mut self, worker: &str) -> Result<()> {
        workers::delete(self.connection, worker).await
    }
    async fn newest_settings(&mut self, since: i64) -> Result<Option<String>> {
        workers::newest_settings(self.connection, since).await
    }
    async fn swap_gate(&mut self, expected: i64, new: &SharedGate) -> Result<bool> {
        let swapped = gate::swap(self.connection, expected, new).await?;
        self.news.work |= swapped;
        Ok(swapped)
    }
    async fn mark_key(&mut self) -> Result<Option<MarkKey>> {
        marks::current(self.connection).await
    }
    async fn lock_mark_keys(&mut self) -> Result<MarkKeys> {
        marks::lock(self.connection).await?;
        marks::keys(self.connection).await
    }
    async fn count_with_mark(&mut self, name: &str) -> Result<i64> {
        marks::count_with(self.connection, name).await
    }
    async fn renew_mark_key(&mut self, fresh: &[u8], until: i64) -> Result<()> {
        marks::keep_before(self.connection).await?;
        marks::put(self.connection, fresh, &until.to_be_bytes()).await?;
        self.news.everything = true;
        Ok(())
    }
    async fn make_due(&mut self, keys: &[i64]) -> Result<u64> {
        let due = jobs::make_due(self.connection, keys, self.now).await?;
        self.news.work |= due > 0;
        Ok(due)
    }
    async fn correct_waits(&mut self, keys: &[i64]) -> Result<u64> {
        let due = jobs::correct_waits(self.connection, keys, self.now).await?;
        self.news.work |= due > 0;
        Ok(due)
    }
    /// Pushers are deleted with their pairs locked, because a report may be about to want one again.
    async fn delete_old(&mut self, removed: i64, seen: i64, limit: i64) -> Result<u64> {
        let found = pushers::removed(self.connection, removed, limit).await?;
        let mut deleted = 0;
        if !found.is_empty() {
            let pairs = found
                .iter()
                .map(|(_, (app_id, pushkey))| Pair { app_id, pushkey });
            locks::pairs(self.connection, &pairs.collect::<Vec<_>>()).await?;
            let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
            deleted = pushers::delete_removed(self.connection, &ids, removed).await?;
        }
        Ok(deleted + workers::delete_old(self.connection, seen).await?)
    }

    fn changed(&mut self, pushkey: &str) {
        self.news.pushkeys.push(pushkey.to_owned());
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        self.news.sent = self.process.sent.take();
        let messages = self.news.messages(&self.process.name);
        if !messages.is_empty() {
            meta::tell(self.connection, &messages).await?;
        }
        self.committing = true;
        meta::commit(self.connection).await?;
        self.committing = false;
        self.process.tell(&self.news);
        Ok(())
    }
}
