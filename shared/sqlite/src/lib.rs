//! The store of matrix2acrobits in an SQLite file: the connections, the writer, the change feed, and all SQL in
//! `statements`.

mod connection;
mod copy;
mod errors;
mod feed;
pub mod go_proxy;
mod look;
mod open;
mod same_file;
mod schema;
mod statements;
mod url;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use matrix2acrobits_shared::{
    clock::Clock,
    flow::{
        DeadLetter, GateView, IdPage, JobListing, NamedPhone, Pair, PhoneListing, PushTarget,
        PusherListing, QueueState, Result, SilentCursor, TargetRow, TokenListing, WorkerStatus,
        batch::Batch,
        counts::Counts,
        feed::{Feed, Vital},
        writer::Writer,
    },
    ids::{Pushkey, Selector, UserId},
    mark::{MarkKey, MarkKeys},
    rules::{
        arrival::{Candidate, SILENT_AFTER},
        import::Mapping,
        jobs::{DEAD_AFTER, LONGEST_ASKED, SOON},
        pushers::{Asked, Loaded, Replay, TaskOf},
    },
};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

pub use connection::Sharing;
pub use copy::Copying;
pub use feed::Watcher;
pub use look::{Existing, is_same, look};
pub use open::{OpenError, prepare};
pub use url::DatabaseUrl;

use connection::WriteConnection;
use errors::from_sqlx;
use same_file::SameFile;
use statements::{
    accounts, arrivals, gate, jobs, listing, mappings, marks, meta, pushers, tokens, workers,
};

/// Connections for lookups, which are short. Each costs a thread.
const READERS: u32 = 4;
/// Connections for listings and counts, which can take long. A notification never waits for them.
const OPERATORS: u32 = 2;

/// The open database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sqlite {
    /// Every write goes through here.
    pub writer: Writer,
    /// Tells which cached data commits make out of date.
    pub feed: Feed,
    /// The tasks that the process cannot work without.
    pub vital: Vital,
    /// The clock that gives rows their times.
    pub clock: Clock,
    readers: SqlitePool,
    operators: SqlitePool,
    targets: Batch<Pushkey, Vec<TargetRow>>,
    tasks: Batch<TaskOf, Loaded>,
    job_counts: Counts<Vec<(String, i64)>>,
    pusher_counts: Counts<Vec<(String, i64)>>,
    epoch: feed::Epoch,
    /// Whether the feed reports changes of other processes.
    follows: Arc<AtomicBool>,
    options: Arc<SqliteConnectOptions>,
    file: Arc<SameFile>,
}

impl Sqlite {
    /// Opens the file, creates what is missing, brings the schema up to date and starts the writer. `sharing` says how
    /// to share the write lock with other processes.
    pub async fn open(
        database: &DatabaseUrl,
        sharing: Sharing,
        clock: Clock,
    ) -> std::result::Result<Self, OpenError> {
        let busy = sharing.busy();
        let (mut connection, options) = open::open(database, busy).await?;
        let read_only = options.clone().pragma("query_only", "on");
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(busy)
                .idle_timeout(None)
                .max_lifetime(None)
                // A file does not hang up, and testing the connection would cost as much as the query.
                .test_before_acquire(false)
                .connect_lazy_with(read_only.clone())
        };
        let (readers, operators) = (pool(READERS), pool(OPERATORS));
        let (feed, vital, epoch) = (Feed::default(), Vital::default(), feed::Epoch::default());
        let file = Arc::new(SameFile::opened(options.get_filename()));
        let name = database.to_string();
        let unreadable = |e| open::unreadable(&name, e);
        let known = meta::token_epoch(&mut connection)
            .await
            .map_err(unreadable)?;
        epoch.committed(known, known);
        connection::set_up(&mut connection)
            .await
            .map_err(unreadable)?;
        let connection = WriteConnection::new(
            connection,
            options.clone(),
            sharing,
            clock.clone(),
            feed.clone(),
            epoch.clone(),
            file.clone(),
        );
        Ok(Self {
            writer: Writer::start(&vital, Box::new(connection)),
            targets: read_targets(&vital, readers.clone()),
            tasks: read_tasks(&vital, readers.clone(), clock.clone()),
            job_counts: Counts::default(),
            pusher_counts: Counts::default(),
            feed,
            vital,
            clock,
            readers,
            operators,
            epoch,
            follows: Arc::default(),
            options: Arc::new(options),
            file,
        })
    }

    /// Connections that can only read.
    pub fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Makes the feed report changes of other processes as well.
    pub fn follow_others(&self) {
        if self.follows.swap(true, Ordering::SeqCst) {
            return;
        }
        let options = SqliteConnectOptions::clone(&self.options);
        let follow = feed::follow(options, self.epoch.clone(), self.feed.clone());
        self.vital.spawn("change feed", follow);
    }

    /// Watches for writes of any connection, including this process'.
    pub async fn watcher(&self) -> Result<Watcher> {
        Watcher::start(&self.options).await
    }

    /// The sizes of the file and its write-ahead log in bytes. 0 for a file that does not exist.
    pub async fn file_sizes(&self) -> (u64, u64) {
        let file = self.options.get_filename();
        let size = async |path: &Path| tokio::fs::metadata(path).await.map_or(0, |m| m.len());
        (size(file).await, size(&write_ahead_log(file)).await)
    }

    /// Moves what the write-ahead log holds into the file. While no process runs, the file is then complete by itself.
    pub async fn empty_log(&self) -> Result<()> {
        // The log that lies beside another file is not its own.
        self.file.check()?;
        open::empty_log(&self.options).await.map_err(from_sqlx)
    }

    /// Whether the database responds.
    pub async fn ping(&self) -> Result<()> {
        self.file.check()?;
        meta::token_epoch(&self.operators).await.map(drop)
    }

    /// The rows that hold this pushkey, the latest report first.
    pub async fn targets(&self, pushkey: &str) -> Result<Vec<TargetRow>> {
        // A reading connection that is opened now would find the tokens of another file, and others unknown.
        self.file.check()?;
        match Pushkey::parse(pushkey) {
            Ok(pushkey) => self.targets.ask(pushkey).await,
            // No row holds an invalid pushkey.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// The live rows that alone hold their pushkey, among the next `limit` live rows with ids below `before`, the
    /// latest phones first. Also the last id that was read. None when there are no more.
    pub async fn live_targets(
        &self,
        before: i64,
        limit: u32,
    ) -> Result<Option<(i64, Vec<PushTarget>)>> {
        tokens::live(&self.operators, before, limit).await
    }

    /// Whether this database has ever held a token: an empty one may be a lost volume.
    pub async fn has_held_a_token(&self) -> Result<bool> {
        tokens::held_any(&self.readers).await
    }

    /// Reads a pusher for its job. `append` says whether users may share a pushkey.
    pub async fn task(&self, asked: Asked, append: bool) -> Result<Loaded> {
        self.tasks.ask(TaskOf { asked, append }).await
    }

    /// What all workers together know about the homeserver.
    pub async fn read_gate(&self) -> Result<GateView> {
        gate::read(&self.readers, self.clock.unix() - DEAD_AFTER).await
    }

    /// The keys whose marks count.
    pub async fn mark_keys(&self) -> Result<MarkKeys> {
        marks::keys(&self.readers).await
    }

    /// How many pushers that the homeserver should hold do not carry the mark of this key yet. Reads all pushers.
    pub async fn count_without_mark(&self, key: &MarkKey) -> Result<i64> {
        marks::count_without(&self.operators, key.name()).await
    }

    /// When the next waiting job is due, in seconds since 1970. None if no job waits.
    pub async fn next_due(&self) -> Result<Option<i64>> {
        jobs::next_due(&self.readers).await
    }

    /// Up to `limit` jobs whose time comes from a wrong clock: they wait longer than `longest` seconds in backoff,
    /// longer than an hour at the homeserver's request, or longer than [`SOON`] otherwise.
    pub async fn wrong_waits(&self, longest: i64, limit: i64) -> Result<Vec<i64>> {
        let now = self.clock.unix();
        let (soon, longest, asked) = (now + SOON, now + longest, now + LONGEST_ASKED + SOON);
        jobs::wait_too_long(&self.operators, soon, longest, asked, limit).await
    }

    /// Up to `limit` jobs in backoff that can be brought forward: to now if `at_once`, or to a later time for which the
    /// homeserver asked.
    pub async fn in_backoff(&self, at_once: bool, limit: i64) -> Result<Vec<i64>> {
        let now = self.clock.unix();
        let until = if at_once { now } else { i64::MAX };
        jobs::in_backoff(&self.operators, now, until, limit).await
    }

    /// Those without a job among the next `limit` pushers that are not as wanted. None when there are no more.
    pub async fn without_job(&self, after: i64, limit: i64) -> Result<Option<IdPage>> {
        pushers::without_job(&self.operators, after, limit).await
    }

    /// Those that are registered with other settings than these among the next `limit` pushers. None when there are no
    /// more.
    pub async fn outdated(&self, settings: &str, after: i64, limit: i64) -> Result<Option<IdPage>> {
        pushers::outdated(&self.operators, settings, after, limit).await
    }

    /// How many pushers a replay covers.
    pub async fn count_replay(&self, replay: &Replay) -> Result<i64> {
        pushers::count_replay(&self.operators, replay).await
    }

    /// The next pushers that a replay covers.
    pub async fn replay_page(&self, replay: &Replay, after: i64, limit: i64) -> Result<Vec<i64>> {
        pushers::replay(&self.operators, replay, after, limit).await
    }

    /// The number of jobs by state, and how long the oldest due job has waited.
    pub async fn queue_state(&self) -> Result<QueueState> {
        let counts = self.job_counts.get(jobs::count(&self.operators)).await?;
        let next_due = jobs::next_due(&self.operators).await?;
        Ok(QueueState::new(&counts, next_due, self.clock.unix()))
    }

    /// The number of pushers by state.
    pub async fn count_pushers(&self) -> Result<Vec<(String, i64)>> {
        self.pusher_counts
            .get(pushers::count(&self.operators))
            .await
    }

    /// How many tokens for messages belong to no user yet, and so have no pusher.
    pub async fn count_unmapped(&self) -> Result<i64> {
        tokens::count_unmapped(&self.operators).await
    }

    /// How many rows nobody stands for.
    pub async fn count_of_nobody(&self) -> Result<i64> {
        accounts::count_of_nobody(&self.operators).await
    }

    /// Up to `limit` rows of tokens with ids above `after`.
    pub async fn list_tokens(&self, after: i64, limit: u32) -> Result<Vec<TokenListing>> {
        listing::tokens(&self.operators, after, limit).await
    }

    /// Up to `limit` pushers with ids above `after`, of one state or all.
    pub async fn list_pushers(
        &self,
        state: Option<&str>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PusherListing>> {
        listing::pushers(&self.operators, state, after, limit).await
    }

    /// Up to `limit` jobs with names after `after`, of one state or all.
    pub async fn list_jobs(
        &self,
        state: Option<&str>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<JobListing>> {
        listing::jobs(&self.operators, state, after, limit).await
    }

    /// Up to `limit` dead letters, the latest first.
    pub async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>> {
        listing::dead_letters(&self.operators, self.clock.unix(), limit).await
    }

    /// Up to `limit` workers, those that are alive first.
    pub async fn workers(&self, limit: u32) -> Result<Vec<WorkerStatus>> {
        workers::list(&self.operators, self.clock.unix(), limit).await
    }

    /// The rows that receipts may be about, for each named phone.
    pub async fn candidates(&self, named: &[NamedPhone]) -> Result<Vec<Vec<Candidate>>> {
        arrivals::candidates(&self.operators, named).await
    }

    /// Up to `limit` phones with ids above `after`, in the order of their ids.
    pub async fn list_phones(&self, after: i64, limit: u32) -> Result<Vec<PhoneListing>> {
        let ids = arrivals::page(&self.operators, after, limit).await?;
        arrivals::phones(&self.operators, &ids).await
    }

    /// The same for one user.
    pub async fn phones_of_user(
        &self,
        user: &UserId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PhoneListing>> {
        let ids = arrivals::of_user(&self.operators, user.as_str(), after, limit).await?;
        arrivals::phones(&self.operators, &ids).await
    }

    /// Those of these phones that exist, by the ids of their rows and in the same order.
    pub async fn phones(&self, ids: &[i64]) -> Result<Vec<PhoneListing>> {
        arrivals::phones(&self.operators, ids).await
    }

    /// Up to `limit` phones of a selector.
    pub async fn phones_of_selector(
        &self,
        selector: &Selector,
        limit: u32,
    ) -> Result<Vec<PhoneListing>> {
        let ids = arrivals::of_selector(&self.operators, selector.as_str(), limit).await?;
        arrivals::phones(&self.operators, &ids).await
    }

    /// Up to `limit` silent phones, the longest silent first, and where the next page begins. None at the end.
    pub async fn silent_phones(
        &self,
        after: SilentCursor,
        limit: u32,
    ) -> Result<(Vec<PhoneListing>, Option<SilentCursor>)> {
        let until = self.clock.unix() - SILENT_AFTER;
        let found = arrivals::silent(&self.operators, until, after, limit).await?;
        let ids: Vec<_> = found.iter().map(|silent| silent.phone).collect();
        let phones = arrivals::phones(&self.operators, &ids).await?;
        Ok((phones, found.last().copied()))
    }

    /// How many phones are silent.
    pub async fn count_silent(&self) -> Result<i64> {
        arrivals::count_silent(&self.operators, self.clock.unix() - SILENT_AFTER).await
    }

    /// One mapping.
    pub async fn mapping(&self, selector: &Selector) -> Result<Option<Mapping>> {
        mappings::one(&self.operators, selector.as_str()).await
    }

    /// Up to `limit` mappings in the order of their selectors, those after `after`.
    pub async fn mappings(&self, after: &str, limit: u32) -> Result<Vec<Mapping>> {
        mappings::page(&self.operators, after, limit).await
    }
}

/// Where SQLite keeps the write-ahead log of this file, which may be a link to the file itself.
fn write_ahead_log(file: &Path) -> PathBuf {
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let mut log = file.into_os_string();
    log.push("-wal");
    log.into()
}

/// Starts the task that [`Sqlite::targets`] asks.
fn read_targets(vital: &Vital, readers: SqlitePool) -> Batch<Pushkey, Vec<TargetRow>> {
    Batch::start(vital, move |pushkeys: Arc<[Pushkey]>| {
        let readers = readers.clone();
        async move { tokens::of(&readers, &pushkeys).await }
    })
}

/// Starts the task that [`Sqlite::task`] asks.
fn read_tasks(vital: &Vital, readers: SqlitePool, clock: Clock) -> Batch<TaskOf, Loaded> {
    Batch::start(vital, move |asked: Arc<[TaskOf]>| {
        let (readers, now) = (readers.clone(), clock.unix());
        async move {
            let ids: Vec<_> = asked.iter().map(|task| task.asked.id).collect();
            let found = pushers::pairs_of(&readers, &ids).await?;
            let pair = |(_, (app_id, pushkey)): &(i64, (String, String))| {
                (app_id.clone(), pushkey.clone())
            };
            let keys: Vec<_> = found.iter().map(pair).collect();
            let keys: Vec<_> = keys
                .iter()
                .map(|(a, p)| Pair::from((a.as_str(), p.as_str())))
                .collect();
            let facts = pushers::pairs(&readers, &keys).await?;
            let loaded = asked.iter().map(|task| {
                let place = found.iter().position(|(id, _)| *id == task.asked.id);
                let Some(pushers) = place.map(|place| &facts[place].pushers) else {
                    return Loaded::Gone;
                };
                if pushers.iter().all(|pusher| pusher.id != task.asked.id) {
                    // The pusher exists, but its app id or pushkey is not valid text and so cannot be looked up.
                    return Loaded::Unreadable;
                }
                Loaded::read(pushers, &task.asked, task.append, now)
            });
            Ok(loaded.collect())
        }
    })
}
