//! The store of matrix2acrobits in a PostgreSQL database: the connections, the writer, the change feed, and all SQL in
//! `statements`.

mod access;
mod connection;
mod copy;
mod errors;
mod examine;
mod feed;
mod look;
mod message;
mod open;
mod pool;
mod sent;
mod statements;
mod url;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use matrix2acrobits_shared::{
    clock::Clock,
    flow::{
        DeadLetter, GateView, IdPage, JobListing, NamedPhone, Pair, PhoneListing, PushTarget,
        PusherListing, QueueState, Result, SilentCursor, TargetRow, TokenListing, WorkerStatus,
        batch::Batch,
        counts::Counts,
        feed::{Feed, Freshness, SentKey, Vital},
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
use sqlx::{PgConnection, postgres::PgConnectOptions};

pub use copy::Copying;
pub use examine::examine;
pub use feed::Watcher;
pub use look::{Existing, is_same, look};
pub use open::{OpenError, prepare};
pub use url::DatabaseUrl;

use access::Access;
use connection::{Process, WriteConnection};
use feed::Hearing;
use pool::{Pool, read};
use statements::{
    accounts, arrivals, gate, jobs, listing, mappings, marks, meta, pushers, tokens, workers,
};

/// The fewest connections that a process can work with: one that writes, one that listens, one for lookups, and one for
/// listings and counts.
pub const FEWEST_CONNECTIONS: u32 = 4;
/// The longest wait for the response to a lookup.
const LOOKUP: Duration = Duration::from_millis(2400);
/// The time limit for a listing or a count.
const PAGE: &str = "1min";
const PAGE_LIMIT: Duration = Duration::from_secs(65);

/// The open database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Every write goes through here.
    pub writer: Writer,
    /// The tasks that the process cannot work without.
    pub vital: Vital,
    /// The clock that gives rows their times. It follows the server's.
    pub clock: Clock,
    process: Arc<Process>,
    readers: Pool,
    operators: Pool,
    targets: Batch<Pushkey, Vec<TargetRow>>,
    tasks: Batch<TaskOf, Loaded>,
    job_counts: Counts<Vec<(String, i64)>>,
    pusher_counts: Counts<Vec<(String, i64)>>,
    hearing: Hearing,
    /// Whether the feed reports changes of other processes.
    follows: Arc<AtomicBool>,
    /// Whether the feed may have a second connection for a moment.
    spare: bool,
    options: Arc<PgConnectOptions>,
    sent_key: Option<[u8; 16]>,
}

impl Postgres {
    /// Connects, creates what is missing, brings the schema up to date and starts the writer. `connections` is how many
    /// the process may have, at least [`FEWEST_CONNECTIONS`].
    pub async fn open(
        database: &DatabaseUrl,
        connections: u32,
        clock: Clock,
    ) -> std::result::Result<Self, OpenError> {
        let prepared = open::make_ready(database).await?;
        clock.follow(prepared.now);
        let access = Access::indexed(database);
        // One writes, one listens, and where there are some to spare, one is kept for listening anew.
        let connections = connections.max(FEWEST_CONNECTIONS);
        let spare = connections > FEWEST_CONNECTIONS;
        let rest = connections - 2 - u32::from(spare);
        let for_pages = if rest >= 4 { 2 } else { 1 };
        let readers = Pool::new(access.clone(), rest - for_pages, LOOKUP);
        let hearing = Hearing::default();
        let operators = Pool::new(Access::new(database, PAGE), for_pages, PAGE_LIMIT);
        let operators = operators.watched(hearing.clone());
        let vital = Vital::default();
        let process = Arc::new(Process::new(format!("{:016x}", rand::random::<u64>())));
        let connection = WriteConnection::new(
            access.clone(),
            clock.clone(),
            process.clone(),
            operators.clone(),
        );
        Ok(Self {
            writer: Writer::start(&vital, Box::new(connection)),
            targets: read_targets(&vital, readers.clone()),
            tasks: read_tasks(&vital, readers.clone(), clock.clone()),
            job_counts: Counts::default(),
            pusher_counts: Counts::default(),
            vital,
            clock,
            process,
            readers,
            operators,
            hearing,
            follows: Arc::default(),
            spare,
            options: Arc::new(access.options().clone()),
            sent_key: prepared.sent_key,
        })
    }

    /// Tells which cached data commits make out of date.
    pub fn feed(&self) -> &Feed {
        &self.process.feed
    }

    /// Whether cached data can be trusted.
    pub fn freshness(&self) -> Freshness {
        self.hearing.freshness()
    }

    /// Makes the feed report changes of other processes as well.
    pub fn follow_others(&self) {
        if self.follows.swap(true, Ordering::SeqCst) {
            return;
        }
        // By this name, an administrator and the doctor see how many processes there are.
        let name = self.options.get_application_name().unwrap_or_default();
        let name = format!("{name}{}", statements::server::FEED);
        let follow = feed::follow(
            self.options.as_ref().clone().application_name(&name),
            self.spare,
            self.process.clone(),
            self.hearing.clone(),
            self.clock.clone(),
            self.readers.clone(),
        );
        self.vital.spawn("change feed", follow);
    }

    /// The key of the hashes by which all apis at this database name the events that they have pushed.
    pub fn sent_key(&self) -> Option<[u8; 16]> {
        self.sent_key
    }

    /// Tells the other apis soon that an event was pushed. This may get lost, and the call neither waits nor fails.
    pub fn tell_sent(&self, event: SentKey) {
        self.process.sent.add(event);
    }

    /// Tells `listener` what other apis have pushed. `listener` must be fast and must not wait.
    pub fn listen_sent(&self, listener: impl Fn(&[SentKey]) + Send + Sync + 'static) {
        if self.process.sent.listen(Box::new(listener)) {
            let (process, hearing) = (self.process.clone(), self.hearing.clone());
            let tell = sent::tell(process, hearing, self.writer.clone());
            self.vital.spawn("sent events", tell);
            self.follow_others();
        }
    }

    /// Watches for work from any process.
    pub fn watcher(&self) -> Watcher {
        self.follow_others();
        Watcher::new(&self.process)
    }

    /// The size of the database in bytes.
    pub async fn size(&self) -> Result<u64> {
        let size: Result<i64> = async { read!(&self.operators, meta::size()) }.await;
        Ok(u64::try_from(size?).unwrap_or_default())
    }

    /// Whether the database responds.
    pub async fn ping(&self) -> Result<()> {
        read!(&self.readers, meta::now_ms()).map(drop)
    }

    /// The rows that hold this pushkey, the latest report first.
    pub async fn targets(&self, pushkey: &str) -> Result<Vec<TargetRow>> {
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
        read!(&self.operators, tokens::live(before, limit))
    }

    /// Whether this database has ever held a token: an empty one may be a lost one.
    pub async fn has_held_a_token(&self) -> Result<bool> {
        read!(&self.readers, tokens::held_any())
    }

    /// Reads a pusher for its job. `append` says whether users may share a pushkey.
    pub async fn task(&self, asked: Asked, append: bool) -> Result<Loaded> {
        self.tasks.ask(TaskOf { asked, append }).await
    }

    /// What all workers together know about the homeserver.
    pub async fn read_gate(&self) -> Result<GateView> {
        read!(&self.readers, gate::read(self.clock.unix() - DEAD_AFTER))
    }

    /// The keys whose marks count.
    pub async fn mark_keys(&self) -> Result<MarkKeys> {
        read!(&self.readers, marks::keys())
    }

    /// How many pushers that the homeserver should hold do not carry the mark of this key yet. Reads all pushers.
    pub async fn count_without_mark(&self, key: &MarkKey) -> Result<i64> {
        let name = key.name();
        read!(&self.operators, marks::count_without(&name))
    }

    /// When the next waiting job is due, in seconds since 1970. None if no job waits.
    pub async fn next_due(&self) -> Result<Option<i64>> {
        read!(&self.readers, jobs::next_due())
    }

    /// Up to `limit` jobs whose time comes from a wrong clock: they wait longer than `longest` seconds in backoff,
    /// longer than an hour at the homeserver's request, or longer than [`SOON`] otherwise.
    pub async fn wrong_waits(&self, longest: i64, limit: i64) -> Result<Vec<i64>> {
        let now = self.clock.unix();
        let (soon, longest, asked) = (now + SOON, now + longest, now + LONGEST_ASKED + SOON);
        read!(
            &self.operators,
            jobs::wait_too_long(soon, longest, asked, limit)
        )
    }

    /// Up to `limit` jobs in backoff that can be brought forward: to now if `at_once`, or to a later time for which the
    /// homeserver asked.
    pub async fn in_backoff(&self, at_once: bool, limit: i64) -> Result<Vec<i64>> {
        let now = self.clock.unix();
        let until = if at_once { now } else { i64::MAX };
        read!(&self.operators, jobs::in_backoff(now, until, limit))
    }

    /// Those without a job among the next `limit` pushers that are not as wanted. None when there are no more.
    pub async fn without_job(&self, after: i64, limit: i64) -> Result<Option<IdPage>> {
        read!(&self.operators, pushers::without_job(after, limit))
    }

    /// Those that are registered with other settings than these among the next `limit` pushers. None when there are no
    /// more.
    pub async fn outdated(&self, settings: &str, after: i64, limit: i64) -> Result<Option<IdPage>> {
        read!(&self.operators, pushers::outdated(settings, after, limit))
    }

    /// How many pushers a replay covers.
    pub async fn count_replay(&self, replay: &Replay) -> Result<i64> {
        read!(&self.operators, pushers::count_replay(replay))
    }

    /// The next pushers that a replay covers.
    pub async fn replay_page(&self, replay: &Replay, after: i64, limit: i64) -> Result<Vec<i64>> {
        read!(&self.operators, pushers::replay(replay, after, limit))
    }

    /// The number of jobs by state, and how long the oldest due job has waited.
    pub async fn queue_state(&self) -> Result<QueueState> {
        let counting = async { read!(&self.operators, jobs::count()) };
        let counts = self.job_counts.get(counting).await?;
        let next_due = read!(&self.operators, jobs::next_due())?;
        Ok(QueueState::new(&counts, next_due, self.clock.unix()))
    }

    /// The number of pushers by state.
    pub async fn count_pushers(&self) -> Result<Vec<(String, i64)>> {
        let counting = async { read!(&self.operators, pushers::count()) };
        self.pusher_counts.get(counting).await
    }

    /// How many tokens for messages belong to no user yet, and so have no pusher.
    pub async fn count_unmapped(&self) -> Result<i64> {
        read!(&self.operators, tokens::count_unmapped())
    }

    /// How many rows nobody stands for.
    pub async fn count_of_nobody(&self) -> Result<i64> {
        read!(&self.operators, accounts::count_of_nobody())
    }

    /// Up to `limit` rows of tokens with ids above `after`.
    pub async fn list_tokens(&self, after: i64, limit: u32) -> Result<Vec<TokenListing>> {
        read!(&self.operators, listing::tokens(after, limit))
    }

    /// Up to `limit` pushers with ids above `after`, of one state or all.
    pub async fn list_pushers(
        &self,
        state: Option<&str>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PusherListing>> {
        read!(&self.operators, listing::pushers(state, after, limit))
    }

    /// Up to `limit` jobs after the one with the name `after`, of one state or all.
    pub async fn list_jobs(
        &self,
        state: Option<&str>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<JobListing>> {
        read!(&self.operators, listing::jobs(state, after, limit))
    }

    /// Up to `limit` dead letters, the latest first.
    pub async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>> {
        read!(
            &self.operators,
            listing::dead_letters(self.clock.unix(), limit)
        )
    }

    /// Up to `limit` workers, those that are alive first.
    pub async fn workers(&self, limit: u32) -> Result<Vec<WorkerStatus>> {
        read!(&self.operators, workers::list(self.clock.unix(), limit))
    }

    /// The rows that receipts may be about, for each named phone.
    pub async fn candidates(&self, named: &[NamedPhone]) -> Result<Vec<Vec<Candidate>>> {
        read!(&self.operators, arrivals::candidates(named))
    }

    /// Up to `limit` phones with ids above `after`, in the order of their ids.
    pub async fn list_phones(&self, after: i64, limit: u32) -> Result<Vec<PhoneListing>> {
        let ids = read!(&self.operators, arrivals::page(after, limit))?;
        self.phones(&ids).await
    }

    /// The same for one user.
    pub async fn phones_of_user(
        &self,
        user: &UserId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PhoneListing>> {
        let ids = read!(
            &self.operators,
            arrivals::of_user(user.as_str(), after, limit)
        )?;
        self.phones(&ids).await
    }

    /// Those of these phones that exist, by the ids of their rows and in the same order.
    pub async fn phones(&self, ids: &[i64]) -> Result<Vec<PhoneListing>> {
        read!(&self.operators, arrivals::phones(ids))
    }

    /// Up to `limit` phones of a selector.
    pub async fn phones_of_selector(
        &self,
        selector: &Selector,
        limit: u32,
    ) -> Result<Vec<PhoneListing>> {
        let ids = read!(
            &self.operators,
            arrivals::of_selector(selector.as_str(), limit)
        )?;
        self.phones(&ids).await
    }

    /// Up to `limit` silent phones, the longest silent first, and where the next page begins. None at the end.
    pub async fn silent_phones(
        &self,
        after: SilentCursor,
        limit: u32,
    ) -> Result<(Vec<PhoneListing>, Option<SilentCursor>)> {
        let until = self.clock.unix() - SILENT_AFTER;
        let found = read!(&self.operators, arrivals::silent(until, after, limit))?;
        let ids: Vec<_> = found.iter().map(|silent| silent.phone).collect();
        let phones = self.phones(&ids).await?;
        Ok((phones, found.last().copied()))
    }

    /// How many phones are silent.
    pub async fn count_silent(&self) -> Result<i64> {
        let until = self.clock.unix() - SILENT_AFTER;
        read!(&self.operators, arrivals::count_silent(until))
    }

    /// One mapping.
    pub async fn mapping(&self, selector: &Selector) -> Result<Option<Mapping>> {
        read!(&self.operators, mappings::one(selector.as_str()))
    }

    /// Up to `limit` mappings in the order of their selectors, those after `after`.
    pub async fn mappings(&self, after: &str, limit: u32) -> Result<Vec<Mapping>> {
        read!(&self.operators, mappings::page(after, limit))
    }
}

/// Starts the task that [`Postgres::targets`] asks.
fn read_targets(vital: &Vital, readers: Pool) -> Batch<Pushkey, Vec<TargetRow>> {
    Batch::start(vital, move |pushkeys: Arc<[Pushkey]>| {
        let readers = readers.clone();
        async move { read!(&readers, tokens::of(&pushkeys)) }
    })
}

/// Starts the task that [`Postgres::task`] asks.
fn read_tasks(vital: &Vital, readers: Pool, clock: Clock) -> Batch<TaskOf, Loaded> {
    Batch::start(vital, move |asked: Arc<[TaskOf]>| {
        let (readers, now) = (readers.clone(), clock.unix());
        async move { read!(&readers, load(&asked, now)) }
    })
}

async fn load(connection: &mut PgConnection, asked: &[TaskOf], now: i64) -> Result<Vec<Loaded>> {
    let ids: Vec<_> = asked.iter().map(|task| task.asked.id).collect();
    let found = pushers::pairs_of(connection, &ids).await?;
    let keys = found
        .iter()
        .map(|(_, (app_id, pushkey))| Pair { app_id, pushkey });
    let keys: Vec<_> = keys.collect();
    let facts = pushers::pairs(connection, &keys, pushers::Jobs::Read).await?;
    let loaded = asked.iter().map(|task| {
        let place = found.iter().position(|(id, _)| *id == task.asked.id);
        place.map_or(Loaded::Gone, |place| {
            Loaded::read(&facts[place].pushers, &task.asked, task.append, now)
        })
    });
    Ok(loaded.collect())
}
