//! Each transaction, once: lock, read facts, let [`crate::rules`] decide, apply the changes. [`Transaction`] is
//! all that it needs of a database. How transactions are committed in groups and told to others is in
//! [`writer`], how reads are shared in [`batch`] and [`counts`].

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

use crate::rules::{
    arrival::Arrivals,
    gate::SharedGate,
    import::Mapping,
    jobs::Job,
    pushers::{Holder, Pusher},
    report::{Account, Phone},
};

pub use finish::Finished;
pub use imports::{import_mappings, import_tokens};
pub use mappings::{delete_mapping, put_mapping};
pub use phones::{NamedPhone, PhoneListing, SilentCursor, note_arrivals};
pub use queue::{Claim, Claimed, Heartbeat, Held, Stranded};
pub use queue::{beat, begin, claim, drop_job, give_up_suspects, kill_job, register, release};
pub use removals::{forget_strangers, mark_dead, remove_account, remove_tokens};
pub use upkeep::{check_pushers, enqueue_pushers, renew_pushers};
pub use views::{
    DeadLetter, GateReport, GateState, GateStatus, GateView, JobListing, PushTarget, PusherListing,
    QueueState, TargetRow, TokenListing, WorkerStatus,
};

/// Why the store could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database, or the way to it: locked, full, unreadable, gone. All that is asked at this moment fails.
    #[error("database: {0}")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Another connection held the lock for longer than we wait.
    #[error("database: {0}")]
    Busy(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Another transaction held a row of this write for longer than we wait; writes to other rows succeed.
    #[error("database: {0}")]
    Locked(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Another transaction was in the way and has gone on; the same again will succeed.
    #[error("database: {0}")]
    Conflict(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// This one statement, or a row that it met; others may succeed.
    #[error("database: {0}")]
    Refused(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Too many writes wait already.
    #[error("too many writes are waiting")]
    Overloaded,
    /// The process is stopping, or a part of it has died.
    #[error("the writer has stopped")]
    Stopped,
}

impl StoreError {
    /// Whether the cause lies around the database and not in one statement.
    pub fn is_environment(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Conflict(_) | Self::Locked(_))
    }

    /// Whether the same again will succeed.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }

    /// Whether another connection held the lock for longer than we wait.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Locked(_))
    }
}

/// What a function of the store comes to.
pub type Result<T> = std::result::Result<T, StoreError>;

/// An app id and a pushkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair<'a> {
    /// The app.
    pub app_id: &'a str,
    /// The token.
    pub pushkey: &'a str,
}

impl<'a> From<(&'a str, &'a str)> for Pair<'a> {
    fn from((app_id, pushkey): (&'a str, &'a str)) -> Self {
        Self { app_id, pushkey }
    }
}

/// What the database holds about a pair.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PairFacts {
    /// The live rows that hold it and belong to a user, the latest report last.
    pub holders: Vec<Holder>,
    /// Its pushers, with their jobs.
    pub pushers: Vec<Pusher>,
}

/// Which phones' rows.
#[derive(Debug, Clone, Copy)]
pub enum Phones<'a> {
    /// Those of these selectors.
    Selectors(&'a [&'a str]),
    /// The next ones after this id, at most so many.
    After(i64, i64),
    /// The one with this id.
    Id(i64),
    /// Those that nobody stands for (no mapping, no login, not imported) and that were last reported before a time;
    /// those that were reported longest ago first, at most so many.
    OfNobody {
        /// Seconds since 1970.
        before: i64,
        /// At most so many.
        limit: i64,
    },
}

/// A job as the queue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedJob {
    /// Its name, a ULID.
    pub id: String,
    /// The pusher that it is for; none where that cannot be read.
    pub pusher_id: Option<i64>,
    /// Whether all of its row says that it is for this pusher.
    pub readable: bool,
    /// The rest of its row.
    pub job: Job,
}

/// One open transaction: what the flows ask of a database. Facts come back in the order in which they were asked
/// for.
#[async_trait]
pub trait Transaction: Send {
    /// The time that rows are stamped with, in seconds since 1970: the same in the whole transaction.
    fn now(&self) -> i64;

    /// Keeps other processes away from these selectors until the end.
    async fn lock_selectors(&mut self, selectors: &[&str]) -> Result<()>;
    /// Keeps other processes away from these pairs until the end; after all selectors.
    async fn lock_pairs(&mut self, pairs: &[Pair<'_>]) -> Result<()>;

    /// The accounts of these selectors, each with the rows of this device and of none.
    async fn accounts(&mut self, asked: &[(&str, &str)]) -> Result<Vec<Account>>;
    /// Rows of phones.
    async fn phones(&mut self, which: Phones<'_>) -> Result<Vec<Phone>>;
    /// The operator's word on these selectors.
    async fn mappings(&mut self, selectors: &[&str]) -> Result<Vec<Option<Mapping>>>;
    /// Holders and pushers of these pairs.
    async fn pairs(&mut self, pairs: &[Pair<'_>]) -> Result<Vec<PairFacts>>;
    /// App id and pushkey of these pushers, as far as they exist.
    async fn pairs_of(&mut self, pushers: &[i64]) -> Result<Vec<(String, String)>>;

    /// Makes these rows; returns their ids.
    async fn insert_phones(&mut self, phones: &[&Phone]) -> Result<Vec<i64>>;
    /// Writes these rows.
    async fn update_phones(&mut self, phones: &[&Phone]) -> Result<()>;
    /// Renews the time of these rows.
    async fn touch_phones(&mut self, phones: &[(i64, i64)]) -> Result<()>;
    /// Deletes these rows.
    async fn delete_phones(&mut self, ids: &[i64]) -> Result<()>;
    /// Says whose these selectors are.
    async fn put_mappings(&mut self, mappings: &[(&str, &str)]) -> Result<()>;
    /// Takes that back; false when there was nothing.
    async fn delete_mapping(&mut self, selector: &str) -> Result<bool>;
    /// Makes these pushers; returns their ids.
    async fn insert_pushers(&mut self, pushers: &[&Pusher]) -> Result<Vec<i64>>;
    /// Writes these pushers.
    async fn update_pushers(&mut self, pushers: &[&Pusher]) -> Result<()>;
    /// Gives each of these pushers, which have none, a job that is due at its time.
    async fn insert_jobs(&mut self, pushers: &[(i64, i64)]) -> Result<()>;
    /// Writes these jobs.
    async fn update_jobs(&mut self, jobs: &[&Job]) -> Result<()>;
    /// Deletes these jobs.
    async fn delete_jobs(&mut self, keys: &[i64]) -> Result<()>;

    /// Up to `limit` jobs that are due and that no worker died with.
    async fn due_jobs(&mut self, limit: i64) -> Result<Vec<QueuedJob>>;
    /// The first job that is due and that a worker died with.
    async fn due_suspect(&mut self) -> Result<Option<QueuedJob>>;
    /// Gives these jobs to a worker.
    async fn hand_out(&mut self, keys: &[i64], worker: &str) -> Result<()>;
    /// Notes that a worker begins with this pusher's job, which it holds.
    async fn begin_job(&mut self, pusher_id: i64, worker: &str) -> Result<()>;
    /// Deletes this pusher's job if the worker holds it; false when it does not.
    async fn drop_job(&mut self, pusher_id: i64, worker: &str) -> Result<bool>;
    /// Up to `limit` jobs of workers that have not been heard of since.
    async fn stranded_jobs(&mut self, since: i64, limit: i64) -> Result<Vec<QueuedJob>>;
    /// The jobs that this worker holds.
    async fn jobs_of(&mut self, worker: &str) -> Result<Vec<QueuedJob>>;

    /// Makes a worker known; returns its place in the order in which workers started.
    async fn insert_worker(&mut self, worker: &str, settings: &str) -> Result<i64>;
    /// Notes that a worker lives, and what its gate does.
    async fn beat(&mut self, heartbeat: &Heartbeat) -> Result<()>;
    /// Forgets a worker.
    async fn delete_worker(&mut self, worker: &str) -> Result<()>;
    /// The settings of the worker that started last, among those heard of since.
    async fn newest_settings(&mut self, since: i64) -> Result<Option<String>>;

    /// Writes the gate's row if it still has this version; false if another worker was first.
    async fn swap_gate(&mut self, expected: i64, new: &SharedGate) -> Result<bool>;

    /// Puts a new key of the marks in place; the one before counts until then.
    async fn renew_mark_key(&mut self, fresh: &[u8], until: i64) -> Result<()>;

    /// Makes these jobs due now if they are in backoff still and the homeserver did not ask for it; returns how many.
    async fn make_due(&mut self, keys: &[i64]) -> Result<u64>;
    /// Makes these jobs due now if they still wait; returns how many.
    async fn correct_waits(&mut self, keys: &[i64]) -> Result<u64>;
    /// Deletes up to `limit` pushers that were removed before a time, and workers not heard of since another.
    async fn delete_old(&mut self, removed: i64, seen: i64, limit: i64) -> Result<u64>;

    /// Adds to what is known of the pushes to these phones, by the ids of their rows; those that are gone are passed
    /// over. No cache holds any of it.
    async fn note_arrivals(&mut self, arrivals: &[(i64, Arrivals)]) -> Result<()>;

    /// Notes that what caches hold of this pushkey is no longer true; told to all once it is committed.
    fn changed(&mut self, pushkey: &str);
    /// Makes it true.
    async fn commit(self: Box<Self>) -> Result<()>;
}
