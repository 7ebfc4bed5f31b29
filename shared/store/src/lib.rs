//! The store: the functions that the api and the worker call, for whatever database. The transactions themselves are in
//! `shared::flow`. This module chooses which transactions a function runs, and in what chunks.

pub mod copy;
mod import;
mod open;
mod url;
mod watcher;

use std::{sync::Arc, time::Duration};

#[cfg(feature = "postgres")]
use matrix2acrobits_postgres::Postgres;
use matrix2acrobits_shared::{
    clock::Clock,
    flow::{
        self, Claim, Claimed, DeadLetter, Finished, GateView, Heartbeat, Held, IdPage, JobListing,
        MarkRenewal, NamedPhone, Others, PhoneListing, PushTarget, PusherListing, QueueState,
        Recorded, Result, SilentCursor, TargetRow, TokenListing, WorkerStatus,
        feed::{Changed, Freshness, SentKey, Vital},
        server::ServerFacts,
        writer::Writer,
    },
    ids::{Pushkey, Selector, UserId},
    mark::{KEY_BYTES, MarkKey, MarkKeys},
    process::{failure::Failure, settings::SharedArgs},
    rules::{
        arrival::{Arrivals, Candidate},
        gate::SharedGate,
        import::Mapping,
        jobs::CHUNK,
        pushers::{Asked, Loaded, Replay},
        report::{Report, Reporter, Saved},
    },
};
use matrix2acrobits_sqlite::{Sharing, Sqlite};

pub use import::Import;
pub use matrix2acrobits_shared::flow::{StoreError, look::LookError};
pub use matrix2acrobits_sqlite::go_proxy;
pub use open::OpenError;
pub use url::{Database, DatabaseUrl};
pub use watcher::Watcher;

/// A removed pusher's row stays this long for the operator to see, in seconds.
const TOMBSTONE_AGE: i64 = 7 * 86_400;
/// A dead worker's row stays this long, in seconds.
const WORKER_AGE: i64 = 3600;

/// How long the marks of a key count after a new key replaced it. The worker needs time to renew all pushers.
pub const OLD_MARKS_COUNT: Duration = Duration::from_hours(24);

/// Which processes go first at a shared database.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    /// An api, because somebody waits for its writes.
    Ahead,
    /// A worker or a command, which can wait.
    Behind,
}

/// The open database. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Store {
    /// In an SQLite file.
    Sqlite(Sqlite),
    /// In a PostgreSQL database.
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
}

/// How many rows that nobody stands for were deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Rows that were last reported long ago.
    pub old: usize,
    /// Rows beyond the maximum number.
    pub surplus: usize,
}

/// Calls a database's own function.
macro_rules! ask {
    ($store:expr, $function:ident ( $($argument:expr),* )) => {
        match $store {
            Store::Sqlite(database) => database.$function($($argument),*).await,
            #[cfg(feature = "postgres")]
            Store::Postgres(database) => database.$function($($argument),*).await,
        }
    };
}

impl Store {
    /// Opens the database, creates what is missing, brings the schema up to date and starts the writer.
    pub async fn open(
        database: &Database,
        role: Role,
        clock: Clock,
    ) -> std::result::Result<Self, OpenError> {
        match &database.url {
            DatabaseUrl::Sqlite(file) => {
                let sharing = match role {
                    Role::Ahead => Sharing::ahead(Duration::from_secs(5)),
                    Role::Behind => Sharing::behind(Duration::from_secs(30)),
                };
                Ok(Self::Sqlite(Sqlite::open(file, sharing, clock).await?))
            }
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => {
                let opened = Postgres::open(url, database.max_connections, clock).await?;
                Ok(Self::Postgres(opened))
            }
        }
    }

    /// Opens a database that must exist and have this release's schema, for a command. The output for a new, empty database
    /// would mislead, and a command must not change the schema under running processes.
    pub async fn open_existing(settings: &SharedArgs) -> std::result::Result<Self, Failure> {
        let database = Database::of(settings)?;
        Self::look(&database).await?;
        Ok(Self::open(&database, Role::Behind, Clock::system()).await?)
    }

    /// For the end of a process: moves into an SQLite file what is still beside it, so that nobody loses anything who
    /// copies or moves the file while no process runs.
    pub async fn wrap_up(&self) -> Result<()> {
        match self {
            Self::Sqlite(file) => file.empty_log().await,
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Checks that a database exists and has the schema that this program knows. Neither creates nor changes it.
    pub async fn look(database: &Database) -> std::result::Result<(), LookError> {
        match &database.url {
            DatabaseUrl::Sqlite(file) => matrix2acrobits_sqlite::look(file).await,
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => matrix2acrobits_postgres::look(url).await,
        }
    }

    /// Facts about the database server. None if the database is a file.
    pub async fn examine(
        database: &Database,
    ) -> Option<std::result::Result<ServerFacts, OpenError>> {
        match &database.url {
            DatabaseUrl::Sqlite(_) => None,
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => {
                let examined = matrix2acrobits_postgres::examine(url).await;
                Some(examined.map_err(Into::into))
            }
        }
    }

    fn writer(&self) -> &Writer {
        match self {
            Self::Sqlite(database) => &database.writer,
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => &database.writer,
        }
    }

    /// The clock that gives rows their times.
    pub fn clock(&self) -> &Clock {
        match self {
            Self::Sqlite(database) => &database.clock,
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => &database.clock,
        }
    }

    /// The tasks that the process cannot work without: the store's own, and those that the caller spawns here.
    pub fn vital(&self) -> &Vital {
        match self {
            Self::Sqlite(database) => &database.vital,
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => &database.vital,
        }
    }

    /// Returns when a vital task has panicked. Then the process has to end with an error.
    pub async fn died(&self) {
        self.vital().died().await;
    }

    /// Whether a vital task has panicked.
    pub fn has_died(&self) -> bool {
        self.vital().has_died()
    }

    /// Tells `listener` which cached data a commit of this process or another makes out of date: after the commit, and
    /// before any caller of this process gets its result. `listener` must be fast and must not wait.
    pub fn listen(&self, listener: impl Fn(Changed<'_>) + Send + Sync + 'static) {
        match self {
            Self::Sqlite(database) => {
                database.feed.listen(listener);
                database.follow_others();
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => {
                database.feed().listen(listener);
                database.follow_others();
            }
        }
    }

    /// Whether cached data can be trusted, for listeners.
    pub fn freshness(&self) -> Freshness {
        match self {
            // The file is local. Either changes are noticed, or nothing works.
            Self::Sqlite(_) => Freshness::Fresh,
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => database.freshness(),
        }
    }

    /// The key of the hashes by which all apis at this database name the events that they have pushed. None if the apis
    /// tell each other nothing.
    pub fn sent_key(&self) -> Option<[u8; 16]> {
        match self {
            Self::Sqlite(_) => None,
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => database.sent_key(),
        }
    }

    /// Tells the other apis soon that an event was pushed. This may get lost, and the call neither waits nor fails.
    pub fn tell_sent(&self, event: SentKey) {
        match self {
            Self::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => database.tell_sent(event),
        }
    }

    /// Tells `listener` what other apis have pushed. `listener` must be fast and must not wait.
    pub fn listen_sent(&self, listener: impl Fn(&[SentKey]) + Send + Sync + 'static) {
        match self {
            Self::Sqlite(_) => drop(listener),
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => database.listen_sent(listener),
        }
    }

    /// Watches for writes of any process, including this one.
    pub async fn watcher(&self) -> Result<Watcher> {
        match self {
            Self::Sqlite(database) => database.watcher().await.map(Watcher::Sqlite),
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => Ok(Watcher::Postgres(database.watcher())),
        }
    }

    /// The size of the database and its log in bytes. PostgreSQL's log counts as 0.
    pub async fn file_sizes(&self) -> Result<(u64, u64)> {
        match self {
            Self::Sqlite(database) => Ok(database.file_sizes().await),
            #[cfg(feature = "postgres")]
            Self::Postgres(database) => Ok((database.size().await?, 0)),
        }
    }

    /// Whether the database responds and all vital tasks are alive, for `/health/ready`.
    pub async fn ping(&self) -> Result<()> {
        if self.has_died() {
            return Err(StoreError::Stopped);
        }
        ask!(self, ping())
    }
}

/// Reports, removals and pushes.
impl Store {
    /// Saves a report and, in the same transaction, enqueues the jobs for the homeserver.
    pub async fn save_report(&self, report: Report) -> Result<Saved> {
        self.writer().save_report(report).await
    }

    /// Forgets the tokens of a phone (of all phones with this selector if no phone is named) and enqueues the removal
    /// of their pushers. If `token` is given, phones that have another token stay.
    pub async fn remove_account(&self, from: Reporter, token: Option<Pushkey>) -> Result<Saved> {
        let removal = Arc::new((from, token));
        self.writer()
            .write(move |tx| {
                let removal = removal.clone();
                Box::pin(async move {
                    let (from, token) = removal.as_ref();
                    flow::remove_account(tx, from, token.as_ref()).await
                })
            })
            .await
    }

    /// Forgets the tokens of a selector that belong to this user, by the mapping or else by a login. Returns how many rows
    /// it deleted.
    pub async fn remove_of_user(&self, selector: Selector, user: UserId) -> Result<usize> {
        self.writer()
            .write(move |tx| {
                let (selector, user) = (selector.clone(), user.clone());
                Box::pin(async move { flow::remove_of_user(tx, &selector, &user).await })
            })
            .await
    }

    /// Forgets the tokens of one selector, or all tokens, for the operator. Returns how many rows it deleted.
    pub async fn remove_tokens(&self, selector: Option<Selector>) -> Result<usize> {
        let (mut removed, mut after) = (0, 0);
        loop {
            let named = selector.clone();
            let removing = self.writer().write(move |tx| {
                let named = named.clone();
                Box::pin(async move { flow::remove_tokens(tx, named.as_ref(), after, CHUNK).await })
            });
            let (gone, last) = removing.await?;
            removed += gone;
            if last == after || selector.is_some() {
                return Ok(removed);
            }
            after = last;
        }
    }

    /// The rows that hold this pushkey, the latest report first.
    pub async fn targets(&self, pushkey: &str) -> Result<Vec<TargetRow>> {
        ask!(self, targets(pushkey))
    }

    /// The live rows that alone hold their pushkey, among the next `limit` live rows with ids below `before`, the
    /// latest phones first. Also the last id that was read. None when there are no more.
    pub async fn live_targets(
        &self,
        before: i64,
        limit: u32,
    ) -> Result<Option<(i64, Vec<PushTarget>)>> {
        ask!(self, live_targets(before, limit))
    }

    /// Remembers that PNM called this row's token gone, until the phone reports again. False when the phone has
    /// reported since `target` was read, because PNM's verdict is out of date then. `pushed_to` is the selector that
    /// the pusher carries.
    pub async fn mark_dead(&self, target: &PushTarget, pushed_to: Option<&str>) -> Result<bool> {
        let (row, report, pushed_to) = (target.row_id, target.report, pushed_to.map(str::to_owned));
        self.writer()
            .write(move |tx| {
                let pushed_to = pushed_to.clone();
                Box::pin(
                    async move { flow::mark_dead(tx, row, report, pushed_to.as_deref()).await },
                )
            })
            .await
    }

    /// Whether this database has ever held a token. One that has not may be a lost volume.
    pub async fn has_held_a_token(&self) -> Result<bool> {
        ask!(self, has_held_a_token())
    }
}

/// Pushes and receipts, and the phones behind them.
impl Store {
    /// Adds to what we know about the pushes to phones, by the ids of their rows.
    pub async fn note_arrivals(&self, arrivals: Arc<[(i64, Arrivals)]>) -> Result<()> {
        self.writer()
            .write(move |tx| {
                let arrivals = arrivals.clone();
                Box::pin(async move { tx.note_arrivals(&arrivals).await })
            })
            .await
    }

    /// The rows that receipts may be about, for each named phone.
    pub async fn candidates(&self, named: &[NamedPhone]) -> Result<Vec<Vec<Candidate>>> {
        ask!(self, candidates(named))
    }

    /// Up to `limit` phones with ids above `after`, in the order of their ids.
    pub async fn list_phones(&self, after: i64, limit: u32) -> Result<Vec<PhoneListing>> {
        ask!(self, list_phones(after, limit))
    }

    /// The same for one user.
    pub async fn phones_of_user(
        &self,
        user: &UserId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PhoneListing>> {
        ask!(self, phones_of_user(user, after, limit))
    }

    /// Those of these phones that exist, by the ids of their rows and in the same order.
    pub async fn phones(&self, ids: &[i64]) -> Result<Vec<PhoneListing>> {
        ask!(self, phones(ids))
    }

    /// Up to `limit` phones of a selector.
    pub async fn phones_of_selector(
        &self,
        selector: &Selector,
        limit: u32,
    ) -> Result<Vec<PhoneListing>> {
        ask!(self, phones_of_selector(selector, limit))
    }

    /// Up to `limit` silent phones, the longest silent first, and where the next page begins. None at the end.
    pub async fn silent_phones(
        &self,
        after: SilentCursor,
        limit: u32,
    ) -> Result<(Vec<PhoneListing>, Option<SilentCursor>)> {
        ask!(self, silent_phones(after, limit))
    }

    /// How many phones are silent.
    pub async fn count_silent(&self) -> Result<i64> {
        ask!(self, count_silent())
    }
}

/// The operator's mappings.
impl Store {
    /// Maps a selector to a user. The pushers of its phones follow in the same transaction.
    pub async fn put_mapping(&self, selector: Selector, user: UserId) -> Result<()> {
        self.writer()
            .write(move |tx| {
                let (selector, user) = (selector.clone(), user.clone());
                Box::pin(async move { flow::put_mapping(tx, &selector, &user).await })
            })
            .await
    }

    /// Deletes a mapping. False when there was none.
    pub async fn delete_mapping(&self, selector: Selector) -> Result<bool> {
        self.writer()
            .write(move |tx| {
                let selector = selector.clone();
                Box::pin(async move { flow::delete_mapping(tx, &selector).await })
            })
            .await
    }

    /// One mapping.
    pub async fn mapping(&self, selector: &Selector) -> Result<Option<Mapping>> {
        ask!(self, mapping(selector))
    }

    /// Up to `limit` mappings in the order of their selectors, those after `after`.
    pub async fn mappings(&self, after: &str, limit: u32) -> Result<Vec<Mapping>> {
        ask!(self, mappings(after, limit))
    }
}

/// The worker's jobs.
impl Store {
    /// Registers a worker under a unique name. Returns its place in the order in which workers started.
    pub async fn register_worker(&self, worker: Arc<str>, settings: String) -> Result<i64> {
        self.writer()
            .write(move |tx| {
                let (worker, settings) = (worker.clone(), settings.clone());
                Box::pin(async move { tx.insert_worker(&worker, &settings).await })
            })
            .await
    }

    /// Notes that a worker is alive, and recovers the jobs of dead workers.
    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Others> {
        // Other workers must not take this one for dead because reports wait for a lock.
        let beating = self.writer().write_ahead(move |tx| {
            let heartbeat = heartbeat.clone();
            Box::pin(async move { flow::beat(tx, &heartbeat).await })
        });
        let (mut others, suspects) = beating.await?;
        if suspects.is_empty() {
            return Ok(others);
        }
        let giving_up = self.writer().write(move |tx| {
            let suspects = suspects.clone();
            Box::pin(async move { flow::give_up_suspects(tx, &suspects).await })
        });
        others.killed = giving_up.await?;
        others.recovered += others.killed;
        Ok(others)
    }

    /// Gives back all jobs of a worker that stops. Returns how many.
    pub async fn release_worker(&self, worker: Arc<str>) -> Result<usize> {
        self.writer()
            .write(move |tx| {
                let worker = worker.clone();
                Box::pin(async move { flow::release(tx, &worker).await })
            })
            .await
    }

    /// Takes due jobs.
    pub async fn claim(&self, claim: Claim) -> Result<Claimed> {
        // Looking needs no write lock, but taking does.
        if claim.knows.is_none() {
            let due = self.next_due().await?;
            if claim.limit == 0 || due.is_none_or(|due| due > self.clock().unix()) {
                return Ok(Claimed::default());
            }
        }
        self.writer()
            .write(move |tx| {
                let claim = claim.clone();
                Box::pin(async move { flow::claim(tx, &claim).await })
            })
            .await
    }

    /// Notes that a worker begins a job that another worker died with.
    pub async fn begin(&self, held: Held) -> Result<()> {
        self.writer()
            .write(move |tx| {
                let held = held.clone();
                Box::pin(async move { tx.begin_job(held.pusher_id, &held.worker).await })
            })
            .await
    }

    /// Reads a pusher for its job. `append` says whether users may share a pushkey.
    pub async fn task(&self, held: &Held, append: bool) -> Result<Loaded> {
        let asked = Asked {
            id: held.pusher_id,
            job_attempts: held.attempts,
            worker: held.worker.clone(),
        };
        ask!(self, task(asked, append))
    }

    /// Records the outcome of a job and updates the job, in one transaction. When the lock was lost meanwhile, a job
    /// checks the pusher once more.
    pub async fn finish(&self, finished: Finished) -> Result<Recorded> {
        self.writer().finish(finished).await
    }

    /// Makes a dead letter of a job whose pusher cannot be read. False when the lock was lost.
    pub async fn kill_job(&self, held: Held, error: String) -> Result<bool> {
        self.writer()
            .write(move |tx| {
                let (held, error) = (held.clone(), error.clone());
                Box::pin(async move { flow::kill_job(tx, &held, &error).await })
            })
            .await
    }

    /// Deletes a job whose pusher is gone. False when the lock was lost.
    pub async fn drop_job(&self, held: Held) -> Result<bool> {
        self.writer()
            .write(move |tx| {
                let held = held.clone();
                Box::pin(async move { tx.drop_job(held.pusher_id, &held.worker).await })
            })
            .await
    }

    /// What all workers together know about the homeserver.
    pub async fn read_gate(&self) -> Result<GateView> {
        ask!(self, read_gate())
    }

    /// Writes the gate's row if it still has the version `expected`, and returns it. None if another worker was first.
    pub async fn swap_gate(&self, expected: i64, new: SharedGate) -> Result<Option<SharedGate>> {
        let row = new.clone();
        let swapping = self.writer().write(move |tx| {
            let row = row.clone();
            Box::pin(async move { tx.swap_gate(expected, &row).await })
        });
        Ok(swapping.await?.then_some(new))
    }

    /// The keys whose marks count.
    pub async fn mark_keys(&self) -> Result<MarkKeys> {
        ask!(self, mark_keys())
    }

    /// Makes a new key for marks. Marks of the previous key count for [`OLD_MARKS_COUNT`]. Refused while pushers carry
    /// marks of the key before that one, which still counts.
    pub async fn renew_mark_key(&self) -> Result<MarkRenewal> {
        let fresh: [u8; KEY_BYTES] = rand::random();
        let counts = i64::try_from(OLD_MARKS_COUNT.as_secs()).unwrap_or(i64::MAX);
        self.writer()
            .write(move |tx| {
                Box::pin(async move { flow::renew_mark_key(tx, &fresh, counts).await })
            })
            .await
    }

    /// How many pushers that the homeserver should hold do not carry the mark of this key yet. Reads all pushers.
    pub async fn count_without_mark(&self, key: &MarkKey) -> Result<i64> {
        ask!(self, count_without_mark(key))
    }

    /// When the next waiting job is due, in seconds since 1970. None if no job waits.
    pub async fn next_due(&self) -> Result<Option<i64>> {
        ask!(self, next_due())
    }

    /// Makes a job in backoff due now, if there is one for which the homeserver did not ask to wait.
    pub async fn make_one_due(&self) -> Result<()> {
        self.bring_forward(true, 1).await.map(drop)
    }

    /// Makes all jobs in backoff due: now, or at the time until which the homeserver asked to wait. Returns how many
    /// changed.
    pub async fn make_all_due(&self) -> Result<u64> {
        self.bring_forward(false, i64::MAX).await
    }

    /// The store finds the jobs without a lock, and changes them in small transactions.
    async fn bring_forward(&self, at_once: bool, most: i64) -> Result<u64> {
        let waiting = ask!(self, in_backoff(at_once, most))?;
        let mut due = 0;
        for chunk in waiting.chunks(usize::try_from(CHUNK).unwrap_or(1)) {
            let keys: Arc<[i64]> = chunk.into();
            let making = self.writer().write(move |tx| {
                let keys = keys.clone();
                Box::pin(async move { tx.make_due(&keys).await })
            });
            due += making.await?;
        }
        Ok(due)
    }

    /// Corrects waiting times after a jump of the machine's clock. A job in backoff waits at most `longest` seconds, or
    /// an hour if the homeserver asked to wait. Any other job is due almost at once. A time further ahead comes from a
    /// clock that was wrong, so such a job becomes due now. Returns how many.
    ///
    /// This does not depend on when and by how much the clock jumped, so it may run at any time, in any number of
    /// workers. After a jump ahead, all jobs are due a little early, and the gate limits the rate.
    pub async fn correct_waits(&self, longest: i64) -> Result<u64> {
        let mut corrected = 0;
        loop {
            let wrong: Arc<[i64]> = ask!(self, wrong_waits(longest, CHUNK))?.into();
            if wrong.is_empty() {
                return Ok(corrected);
            }
            let correcting = self.writer().write(move |tx| {
                let wrong = wrong.clone();
                Box::pin(async move { tx.correct_waits(&wrong).await })
            });
            corrected += correcting.await?;
        }
    }
}

/// Upkeep and replays.
impl Store {
    /// Gives a job to every pusher that is not as wanted and has no job, except those that wait for another user's.
    /// `append` says whether users may share a pushkey. Returns how many.
    pub async fn reconcile(&self, append: bool) -> Result<usize> {
        let (mut enqueued, mut after) = (0, 0);
        loop {
            let Some(IdPage { last, ids }) = ask!(self, without_job(after, CHUNK))? else {
                return Ok(enqueued);
            };
            after = last;
            let ids: Arc<[i64]> = ids.into();
            if !ids.is_empty() {
                let enqueuing = self.writer().write(move |tx| {
                    let ids = ids.clone();
                    Box::pin(async move { flow::enqueue_pushers(tx, &ids, append).await })
                });
                enqueued += enqueuing.await?;
            }
        }
    }

    /// Makes the worker set registered pushers again whose fingerprint (URL, format, mark) is another one, one chunk per
    /// call. `settings` are the caller's, without the key of the marks; nothing is done unless they are the newest.
    /// Returns after which id to continue, and how many pushers this chunk had. None at the end.
    pub async fn renew_outdated(
        &self,
        settings: &str,
        fingerprint: &str,
        after: i64,
    ) -> Result<Option<(i64, usize)>> {
        let Some(IdPage { last, ids }) = ask!(self, outdated(fingerprint, after, CHUNK))? else {
            return Ok(None);
        };
        if ids.is_empty() {
            return Ok(Some((last, 0)));
        }
        let ids: Arc<[i64]> = ids.into();
        let (settings, fingerprint): (Arc<str>, Arc<str>) = (settings.into(), fingerprint.into());
        let renewing = self.writer().write(move |tx| {
            let (ids, settings, fingerprint) = (ids.clone(), settings.clone(), fingerprint.clone());
            Box::pin(async move { flow::renew_pushers(tx, &ids, &settings, &fingerprint).await })
        });
        Ok(Some((last, renewing.await?)))
    }

    /// Deletes rows that nobody needs any more: removed pushers and workers that are gone. Returns how many.
    pub async fn housekeep(&self) -> Result<u64> {
        let mut deleted = 0;
        loop {
            let now = self.clock().unix();
            let (removed, seen) = (now - TOMBSTONE_AGE, now - WORKER_AGE);
            let deleting = self.writer().write(move |tx| {
                Box::pin(async move { tx.delete_old(removed, seen, CHUNK).await })
            });
            match deleting.await? {
                0 => return Ok(deleted),
                some => deleted += some,
            }
        }
    }

    /// Forgets rows that nobody stands for: those whose last report is more than `stay` seconds old, and the oldest
    /// ones beyond `most`. It works in small transactions, and an index counts the rows.
    pub async fn forget_strangers(&self, stay: i64, most: i64) -> Result<Forgotten> {
        let before = self.clock().unix() - stay;
        let mut forgotten = Forgotten::default();
        loop {
            match self.forget_chunk(before, CHUNK).await? {
                0 => break,
                gone => forgotten.old += gone,
            }
        }
        let mut surplus = ask!(self, count_of_nobody())? - most;
        while surplus > 0 {
            let gone = self.forget_chunk(i64::MAX, surplus.min(CHUNK)).await?;
            if gone == 0 {
                break;
            }
            forgotten.surplus += gone;
            surplus -= i64::try_from(gone).unwrap_or(i64::MAX);
        }
        Ok(forgotten)
    }

    async fn forget_chunk(&self, before: i64, limit: i64) -> Result<usize> {
        self.writer()
            .write(move |tx| {
                Box::pin(async move { flow::forget_strangers(tx, before, limit).await })
            })
            .await
    }

    /// How many pushers a replay covers.
    pub async fn count_replay(&self, replay: &Replay) -> Result<i64> {
        ask!(self, count_replay(replay))
    }

    /// Enqueues the next chunk of a replay, pushers with ids above `after`. The worker compares each with the
    /// homeserver's first. Returns the last id and how many. None when the replay is complete.
    pub async fn replay_chunk(&self, replay: &Replay, after: i64) -> Result<Option<(i64, usize)>> {
        let ids: Arc<[i64]> = ask!(self, replay_page(replay, after, CHUNK))?.into();
        let Some(last) = ids.last().copied() else {
            return Ok(None);
        };
        let checking = self.writer().write(move |tx| {
            let ids = ids.clone();
            Box::pin(async move { flow::check_pushers(tx, &ids).await })
        });
        Ok(Some((last, checking.await?)))
    }
}

/// Pages and counts for the operator.
impl Store {
    /// The number of jobs by state, and how long the oldest due job has waited.
    pub async fn queue_state(&self) -> Result<QueueState> {
        ask!(self, queue_state())
    }

    /// The number of pushers by state.
    pub async fn count_pushers(&self) -> Result<Vec<(String, i64)>> {
        ask!(self, count_pushers())
    }

    /// How many tokens for messages belong to no user yet, and so have no pusher.
    pub async fn count_unmapped(&self) -> Result<i64> {
        ask!(self, count_unmapped())
    }

    /// Up to `limit` rows of tokens with ids above `after`.
    pub async fn list_tokens(&self, after: i64, limit: u32) -> Result<Vec<TokenListing>> {
        ask!(self, list_tokens(after, limit))
    }

    /// Up to `limit` pushers with ids above `after`, of one state or all.
    pub async fn list_pushers(
        &self,
        state: Option<&str>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PusherListing>> {
        ask!(self, list_pushers(state, after, limit))
    }

    /// Up to `limit` jobs with names after `after`, of one state or all.
    pub async fn list_jobs(
        &self,
        state: Option<&str>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<JobListing>> {
        ask!(self, list_jobs(state, after, limit))
    }

    /// Up to `limit` dead letters, the latest first.
    pub async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>> {
        ask!(self, dead_letters(limit))
    }

    /// Up to `limit` workers, those that are alive first.
    pub async fn workers(&self, limit: u32) -> Result<Vec<WorkerStatus>> {
        ask!(self, workers(limit))
    }
}
