//! The connection that writes, how it shares SQLite's one write lock with other processes, and its transactions.

use std::{
    sync::Arc,
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
        jobs::Job,
        pushers::Pusher,
        report::{Account, Phone},
    },
};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    errors::{from_sqlx, is_busy},
    feed::Epoch,
    same_file::SameFile,
    statements::{accounts, arrivals, gate, jobs, mappings, marks, meta, pushers, workers},
};

/// How often to ask for the write lock while another process has it. SQLite's own wait sleeps for up to 100 ms at a
/// time, and meanwhile a busy process took the lock again and again. While the worker drained a backlog, reports waited
/// for more than a second.
const ASK: Duration = Duration::from_millis(1);
/// How long we assume that another process still competes for the lock after we met it.
const MET: Duration = Duration::from_millis(500);
/// How long the lock is kept if no other process was met, because one may still be asking for it.
const ALONE: Duration = Duration::from_millis(200);

/// How a process shares the write lock with others. A process cannot see who waits, so a busy one leaves the lock alone
/// from time to time, for longer than `ASK`.
#[derive(Debug, Clone, Copy)]
pub struct Sharing {
    /// How long to wait for another process' lock.
    busy: Duration,
    /// How long to run one transaction after the other while another process also wants the lock.
    keep: Duration,
    /// How long to leave the lock alone after that.
    leave: Duration,
}

impl Sharing {
    /// For a process on whose writes somebody waits.
    pub fn ahead(busy: Duration) -> Self {
        Self {
            busy,
            keep: Duration::from_millis(16),
            leave: Duration::from_millis(2),
        }
    }

    /// For a process that can wait: one transaction at a time, with many writes in each.
    pub fn behind(busy: Duration) -> Self {
        Self {
            busy,
            keep: Duration::ZERO,
            leave: Duration::from_millis(10),
        }
    }

    /// How long to wait for another process' lock.
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

/// What a process knows about its turns at the write lock.
#[derive(Debug)]
struct Turns {
    /// When it took the lock after giving others a chance.
    taken: Instant,
    /// When it last released the lock.
    free: Instant,
    /// When it last found that another process had the lock.
    met: Option<Instant>,
}

/// The connection, and what is needed to open another one.
pub(crate) struct WriteConnection {
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    sharing: Sharing,
    turns: Turns,
    clock: Clock,
    feed: Feed,
    epoch: Epoch,
    file: Arc<SameFile>,
}

impl WriteConnection {
    pub(crate) fn new(
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        sharing: Sharing,
        clock: Clock,
        feed: Feed,
        epoch: Epoch,
        file: Arc<SameFile>,
    ) -> Self {
        let now = Instant::now();
        Self {
            connection: Some(connection),
            options,
            sharing,
            turns: Turns {
                taken: now,
                free: now,
                met: None,
            },
            clock,
            feed,
            epoch,
            file,
        }
    }
}

/// Makes SQLite report at once that another process has the write lock. Also makes the connection's cache large enough
/// for the pages that a full batch may change: with SQLite's 2 MiB, it wrote and read them again and again.
pub(crate) async fn set_up(connection: &mut SqliteConnection) -> Result<()> {
    for pragma in ["PRAGMA busy_timeout = 0", "PRAGMA cache_size = -8192"] {
        let done = sqlx::query(pragma).execute(&mut *connection).await;
        done.map_err(from_sqlx)?;
    }
    Ok(())
}

#[async_trait]
impl Connection for WriteConnection {
    async fn wait(&mut self) {
        if let Some(pause) = self.sharing.pause(&self.turns, Instant::now()) {
            tokio::time::sleep(pause).await;
        }
    }

    fn mixes(&self) -> bool {
        true
    }

    fn limit(&self) -> Option<Duration> {
        // A transaction waits only for the lock, and that wait has its own limit.
        None
    }

    async fn begin(&mut self) -> Result<Box<dyn Transaction + '_>> {
        self.file.check()?;
        if self.connection.is_none() {
            let connection = SqliteConnection::connect_with(&self.options).await;
            let mut connection = connection.map_err(from_sqlx)?;
            set_up(&mut connection).await?;
            self.connection = Some(connection);
        }
        let Some(connection) = &mut self.connection else {
            return Err(StoreError::Stopped);
        };
        let started = Instant::now();
        let mut chance = started >= self.turns.free + self.sharing.leave;
        // This is not sqlx' own transaction, because that would keep the connection borrowed while we ask again.
        while let Err(error) = sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut *connection)
            .await
        {
            if !is_busy(&error) || started.elapsed() >= self.sharing.busy {
                return Err(from_sqlx(error));
            }
            chance = true;
            self.turns.met = Some(Instant::now());
            tokio::time::sleep(ASK).await;
        }
        if chance {
            self.turns.taken = Instant::now();
        }
        let before = meta::token_epoch(&mut *connection).await?;
        Ok(Box::new(WriteTransaction {
            connection,
            now: self.clock.unix(),
            before,
            changed: Vec::new(),
            feed: &self.feed,
            epoch: &self.epoch,
        }))
    }

    /// A connection on which a transaction failed because of the environment is not used again. After a full disk or an
    /// I/O error, SQLite has rolled back on its own, and sqlx then refuses every further transaction (measured with
    /// sqlx 0.9). Closing rolls back an open transaction.
    async fn ended(&mut self, result: &Result<()>) {
        self.turns.free = Instant::now();
        let Err(error) = result else {
            return;
        };
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        if !error.is_environment()
            && sqlx::query("ROLLBACK")
                .execute(&mut connection)
                .await
                .is_ok()
        {
            self.connection = Some(connection);
        }
    }

    async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            // The process ends, and all acknowledged writes are on the disk.
            let _ = connection.close().await;
        }
    }
}

/// A transaction that writes. Nothing counts until the commit, and [`WriteConnection::ended`] rolls back.
struct WriteTransaction<'c> {
    connection: &'c mut SqliteConnection,
    now: i64,
    before: i64,
    changed: Vec<String>,
    feed: &'c Feed,
    epoch: &'c Epoch,
}

#[async_trait]
impl Transaction for WriteTransaction<'_> {
    fn now(&self) -> i64 {
        self.now
    }

    // The file's write lock keeps others away from everything.
    async fn lock_selectors(&mut self, _: &[&str]) -> Result<()> {
        Ok(())
    }
    async fn lock_pairs(&mut self, _: &[Pair<'_>]) -> Result<()> {
        Ok(())
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
        pushers::pairs(&mut *self.connection, pairs).await
    }
    async fn pairs_of(&mut self, ids: &[i64]) -> Result<Vec<OwnedPair>> {
        let pairs = pushers::pairs_of(&mut *self.connection, ids).await?;
        Ok(pairs.into_iter().map(|(_, pair)| pair).collect())
    }
    async fn pairs_with(&mut self, pushkeys: &[&str]) -> Result<Vec<OwnedPair>> {
        pushers::pairs_with(&mut *self.connection, pushkeys).await
    }

    async fn insert_phones(&mut self, phones: &[&Phone]) -> Result<Vec<i64>> {
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
        jobs::insert(self.connection, pushers).await
    }
    async fn update_jobs(&mut self, jobs: &[&Job]) -> Result<()> {
        jobs::update(self.connection, jobs).await
    }
    async fn delete_jobs(&mut self, keys: &[i64]) -> Result<()> {
        jobs::delete(self.connection, keys).await
    }

    async fn due_jobs(&mut self, limit: i64) -> Result<Vec<QueuedJob>> {
        let keys = jobs::due(self.connection, self.now, limit).await?;
        jobs::read(self.connection, keys).await
    }
    async fn due_suspects(&mut self, limit: i64) -> Result<Vec<QueuedJob>> {
        let keys = jobs::due_suspects(self.connection, self.now, limit).await?;
        jobs::read(self.connection, keys).await
    }
    async fn hand_out(&mut self, keys: &[i64], worker: &str) -> Result<()> {
        jobs::hand_out(self.connection, keys, worker, self.now).await
    }
    async fn begin_job(&mut self, pusher_id: i64, worker: &str) -> Result<()> {
        jobs::begin(self.connection, pusher_id, worker).await
    }
    async fn drop_job(&mut self, pusher_id: i64, worker: &str) -> Result<bool> {
        jobs::drop_held(self.connection, pusher_id, worker).await
    }
    async fn stranded_jobs(&mut self, since: i64, limit: i64) -> Result<Vec<QueuedJob>> {
        let keys = jobs::stranded(self.connection, since, limit).await?;
        jobs::read(self.connection, keys).await
    }
    async fn jobs_of(&mut self, worker: &str) -> Result<Vec<QueuedJob>> {
        let keys = jobs::held_by(self.connection, worker).await?;
        jobs::read(self.connection, keys).await
    }

    async fn insert_worker(&mut self, worker: &str, settings: &str) -> Result<i64> {
        workers::insert(self.connection, worker, self.now).await?;
        workers::insert_settings(self.connection, None, worker, settings).await
    }
    async fn beat(&mut self, heartbeat: &Heartbeat) -> Result<()> {
        let (worker, now) = (heartbeat.worker.as_ref(), self.now);
        workers::insert(self.connection, worker, now).await?;
        let started = Some(heartbeat.started);
        workers::insert_settings(self.connection, started, worker, &heartbeat.settings).await?;
        workers::correct_last_seen(self.connection, now).await?;
        workers::note_gate(self.connection, heartbeat, now).await
    }
    async fn delete_worker(&mut self, worker: &str) -> Result<()> {
        workers::delete(self.connection, worker).await
    }
    async fn newest_settings(&mut self, since: i64) -> Result<Option<String>> {
        workers::newest_settings(self.connection, since).await
    }
    async fn swap_gate(&mut self, expected: i64, new: &SharedGate) -> Result<bool> {
        gate::swap(self.connection, expected, new).await
    }
    async fn mark_key(&mut self) -> Result<Option<MarkKey>> {
        marks::current(&mut *self.connection).await
    }
    async fn lock_mark_keys(&mut self) -> Result<MarkKeys> {
        marks::keys(&mut *self.connection).await
    }
    async fn count_with_mark(&mut self, name: &str) -> Result<i64> {
        marks::count_with(&mut *self.connection, name).await
    }
    async fn renew_mark_key(&mut self, fresh: &[u8], until: i64) -> Result<()> {
        marks::keep_before(self.connection).await?;
        marks::put(self.connection, fresh, &until.to_be_bytes()).await?;
        // Other processes notice the new key in the same way as changes of tokens.
        meta::count_change(self.connection).await
    }
    async fn make_due(&mut self, keys: &[i64]) -> Result<u64> {
        jobs::make_due(self.connection, keys, self.now).await
    }
    async fn correct_waits(&mut self, keys: &[i64]) -> Result<u64> {
        jobs::correct_waits(self.connection, keys, self.now).await
    }
    async fn delete_old(&mut self, removed: i64, seen: i64, limit: i64) -> Result<u64> {
        let pushers = pushers::delete_removed(self.connection, removed, limit).await?;
        Ok(pushers + workers::delete_old(self.connection, seen).await?)
    }

    async fn note_arrivals(&mut self, rows: &[(i64, Arrivals)]) -> Result<()> {
        let now = self.now();
        arrivals::note(self.connection, rows, now).await
    }

    fn changed(&mut self, pushkey: &str) {
        self.changed.push(pushkey.to_owned());
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        let after = meta::token_epoch(&mut *self.connection).await?;
        let committed = sqlx::query("COMMIT").execute(&mut *self.connection).await;
        if let Err(error) = committed {
            // We cannot tell whether the commit is in the file.
            self.feed.tell(Changed::Everything);
            return Err(from_sqlx(error));
        }
        let by_others = self.epoch.committed(self.before, after);
        self.feed.tell(if by_others {
            Changed::Everything
        } else {
            Changed::Pushkeys(&self.changed)
        });
        Ok(())
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
            // Another process was met, so the two alternate: a few transactions ahead, one behind.
            (ahead, 10, Some(start), 11, None),
            (ahead, 17, Some(start), 18, Some(1)),
            (behind, 4, Some(start), 4, Some(10)),
            (behind, 4, Some(start), 9, Some(5)),
            // The lock was already left alone for long enough.
            (ahead, 17, Some(start), 19, None),
            (behind, 4, Some(start), 14, None),
            // No other process was met, or not recently.
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
