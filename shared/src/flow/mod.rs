//! Each transaction, written once for all databases: lock, read facts, let [`crate::rules`] decide, apply the changes.
//! [`Transaction`] is all that the flows need from a database. [`writer`] commits transactions in groups, [`feed`]
//! tells caches about them, and [`batch`] and [`counts`] share reads.

pub mod batch;
pub mod copy;
pub mod counts;
pub mod feed;
mod finish;
mod imports;
pub mod look;
mod mappings;
mod phones;
mod queue;
mod removals;
mod reports;
pub mod server;
mod settle;
mod upkeep;
mod views;
pub mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use crate::mark::{MarkKey, MarkKeys};
use crate::rules::{
    arrival::Arrivals,
    gate::SharedGate,
    import::Mapping,
    jobs::Job,
    pushers::{Holder, Pusher},
    report::{Account, Phone},
};

pub use finish::{Finished, Recorded};
pub use imports::{import_mappings, import_tokens};
pub use mappings::{delete_mapping, put_mapping};
pub use phones::{NamedPhone, PhoneListing, SilentCursor};
pub use queue::{Claim, Claimed, Heartbeat, Held, Others};
pub use queue::{beat, claim, give_up_suspects, kill_job, release};
pub use removals::{forget_strangers, mark_dead, remove_account, remove_of_user, remove_tokens};
pub use upkeep::{MarkRenewal, check_pushers, enqueue_pushers, renew_mark_key, renew_pushers};
pub use views::{
    DeadLetter, GateReport, GateState, GateStatus, GateView, IdPage, JobListing, PushTarget,
    PusherListing, QueueState, TargetRow, TokenListing, WorkerStatus,
};

/// Why the store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database, or the connection to it: locked, full, unreadable, gone. Everything fails at this moment.
    #[error("database: {0}")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Another connection held the lock for longer than our timeout.
    #[error("database: {0}")]
    Busy(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Another transaction held a row of this write for longer than our timeout. Writes to other rows succeed.
    #[error("database: {0}")]
    Locked(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Another transaction was in the way and has moved on. A retry will succeed.
    #[error("database: {0}")]
    Conflict(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The database refused this statement or a row that it touches. Other statements may succeed.
    #[error("database: {0}")]
    Refused(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Too many writes are already waiting.
    #[error("too many writes are waiting")]
    Overloaded,
    /// The process is stopping, or a part of it has died.
    #[error("the writer has stopped")]
    Stopped,
}

impl StoreError {
    /// Whether the cause is the database's environment and not one statement.
    pub fn is_environment(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Conflict(_) | Self::Locked(_))
    }

    /// Whether a retry will succeed.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }

    /// Whether another connection held a lock for longer than our timeout.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Locked(_))
    }
}

/// The result of a function of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// An app id and a pushkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair<'a> {
    /// The app.
    pub app_id: &'a str,
    /// The token.
    pub pushkey: &'a str,
}

/// The same, owned.
pub type OwnedPair = (String, String);

impl<'a> From<(&'a str, &'a str)> for Pair<'a> {
    fn from((app_id, pushkey): (&'a str, &'a str)) -> Self {
        Self { app_id, pushkey }
    }
}

/// These selectors in the order in which transactions lock them, each once.
fn sorted<'a>(selectors: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut selectors: Vec<_> = selectors.collect();
    selectors.sort_unstable();
    selectors.dedup();
    selectors
}

/// What the database knows about a pair.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PairFacts {
    /// The live rows that hold the pair and belong to a user, the latest report last.
    pub holders: Vec<Holder>,
    /// The pair's pushers, with their jobs.
    pub pushers: Vec<Pusher>,
}

/// Which rows of phones to read.
#[derive(Debug, Clone, Copy)]
pub enum Phones<'a> {
    /// The rows of these selectors.
    Selectors(&'a [&'a str]),
    /// The next rows after this id, at most this many.
    After(i64, i64),
    /// The row with this id.
    Id(i64),
    /// The rows that nobody stands for (no mapping, no login, not imported) and that were last reported before a time.
    /// The rows that were reported longest ago come first.
    OfNobody {
        /// Seconds since 1970.
        before: i64,
        /// At most this many.
        limit: i64,
    },
}

/// A job in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedJob {
    /// The job's name, a ULID.
    pub id: String,
    /// The job's pusher. None if it cannot be read.
    pub pusher_id: Option<i64>,
    /// Whether the whole row agrees that the job is for this pusher.
    pub readable: bool,
    /// The rest of the row.
    pub job: Job,
}

/// One open transaction: everything that the flows need from a database. Results come in the order of the arguments.
#[async_trait]
pub trait Transaction: Send {
    /// The time for the rows of this transaction, in seconds since 1970. It does not change during the transaction.
    fn now(&self) -> i64;

    /// Keeps other processes away from these selectors until the transaction ends.
    async fn lock_selectors(&mut self, selectors: &[&str]) -> Result<()>;
    /// Keeps other processes away from these pairs until the transaction ends. Call it after locking all selectors.
    async fn lock_pairs(&mut self, pairs: &[Pair<'_>]) -> Result<()>;

    /// The accounts of these selectors, each with the rows of this device and without a device.
    async fn accounts(&mut self, asked: &[(&str, &str)]) -> Result<Vec<Account>>;
    /// Rows of phones.
    async fn phones(&mut self, which: Phones<'_>) -> Result<Vec<Phone>>;
    /// The mappings of these selectors.
    async fn mappings(&mut self, selectors: &[&str]) -> Result<Vec<Option<Mapping>>>;
    /// Holders and pushers of these pairs.
    async fn pairs(&mut self, pairs: &[Pair<'_>]) -> Result<Vec<PairFacts>>;
    /// App id and pushkey of those of these pushers that exist.
    async fn pairs_of(&mut self, pushers: &[i64]) -> Result<Vec<OwnedPair>>;
    /// App id and pushkey of the pushers with these pushkeys that the homeserver should hold.
    async fn pairs_with(&mut self, pushkeys: &[&str]) -> Result<Vec<OwnedPair>>;

    /// Creates these rows and returns their ids.
    async fn insert_phones(&mut self, phones: &[&Phone]) -> Result<Vec<i64>>;
    /// Writes these rows.
    async fn update_phones(&mut self, phones: &[&Phone]) -> Result<()>;
    /// Renews the time of these rows.
    async fn touch_phones(&mut self, phones: &[(i64, i64)]) -> Result<()>;
    /// Deletes these rows.
    async fn delete_phones(&mut self, ids: &[i64]) -> Result<()>;
    /// Maps these selectors to users.
    async fn put_mappings(&mut self, mappings: &[(&str, &str)]) -> Result<()>;
    /// Deletes a mapping. False when there was none.
    async fn delete_mapping(&mut self, selector: &str) -> Result<bool>;
    /// Creates these pushers and returns their ids.
    async fn insert_pushers(&mut self, pushers: &[&Pusher]) -> Result<Vec<i64>>;
    /// Writes these pushers.
    async fn update_pushers(&mut self, pushers: &[&Pusher]) -> Result<()>;
    /// Gives a job to each of these pushers, which have none. Each comes with the time when its job is due.
    async fn insert_jobs(&mut self, pushers: &[(i64, i64)]) -> Result<()>;
    /// Writes these jobs.
    async fn update_jobs(&mut self, jobs: &[&Job]) -> Result<()>;
    /// Deletes these jobs.
    async fn delete_jobs(&mut self, keys: &[i64]) -> Result<()>;

    /// Up to `limit` due jobs that no worker died with.
    async fn due_jobs(&mut self, limit: i64) -> Result<Vec<QueuedJob>>;
    /// Up to `limit` due jobs that a worker died with, in the order of their times.
    async fn due_suspects(&mut self, limit: i64) -> Result<Vec<QueuedJob>>;
    /// Gives these jobs to a worker.
    async fn hand_out(&mut self, keys: &[i64], worker: &str) -> Result<()>;
    /// Notes that a worker begins this pusher's job, which it holds.
    async fn begin_job(&mut self, pusher_id: i64, worker: &str) -> Result<()>;
    /// Deletes this pusher's job if the worker holds it. False when it does not.
    async fn drop_job(&mut self, pusher_id: i64, worker: &str) -> Result<bool>;
    /// Up to `limit` jobs of workers that have had no heartbeat since this time.
    async fn stranded_jobs(&mut self, since: i64, limit: i64) -> Result<Vec<QueuedJob>>;
    /// The jobs that this worker holds.
    async fn jobs_of(&mut self, worker: &str) -> Result<Vec<QueuedJob>>;

    /// Registers a worker. Returns its place in the order in which workers started.
    async fn insert_worker(&mut self, worker: &str, settings: &str) -> Result<i64>;
    /// Notes that a worker is alive, and the state of its gate.
    async fn beat(&mut self, heartbeat: &Heartbeat) -> Result<()>;
    /// Deletes a worker.
    async fn delete_worker(&mut self, worker: &str) -> Result<()>;
    /// The settings of the worker that started last, among those with a heartbeat since this time.
    async fn newest_settings(&mut self, since: i64) -> Result<Option<String>>;

    /// Writes the gate's row if it still has this version. False if another worker was first.
    async fn swap_gate(&mut self, expected: i64, new: &SharedGate) -> Result<bool>;

    /// The key that marks are made with.
    async fn mark_key(&mut self) -> Result<Option<MarkKey>>;
    /// The keys whose marks count. No other process renews them until the transaction ends.
    async fn lock_mark_keys(&mut self) -> Result<MarkKeys>;
    /// How many pushers that the homeserver should hold carry the mark of the key with this name.
    async fn count_with_mark(&mut self, name: &str) -> Result<i64>;
    /// Stores a new key for the marks. The previous key counts until this time.
    async fn renew_mark_key(&mut self, fresh: &[u8], until: i64) -> Result<()>;

    /// Makes these jobs due if they are still in backoff: now, or at the time until which the homeserver asked to wait.
    /// Returns how many.
    async fn make_due(&mut self, keys: &[i64]) -> Result<u64>;
    /// Makes these jobs due now if they still wait. Returns how many.
    async fn correct_waits(&mut self, keys: &[i64]) -> Result<u64>;
    /// Deletes up to `limit` pushers that were removed before the time `removed`, and workers without a heartbeat since
    /// `seen`.
    async fn delete_old(&mut self, removed: i64, seen: i64, limit: i64) -> Result<u64>;

    /// Adds to what we know about the pushes to these phones, by the ids of their rows. Rows that are gone are skipped.
    /// Caches do not hold this.
    async fn note_arrivals(&mut self, arrivals: &[(i64, Arrivals)]) -> Result<()>;

    /// Notes that cached data of this pushkey is out of date. The feed tells all caches after the commit.
    fn changed(&mut self, pushkey: &str);
    /// Commits the transaction.
    async fn commit(self: Box<Self>) -> Result<()>;
}
