//! Results of the store's reads: rows for pushes, and listings for the operator.

use serde::Serialize;

use crate::{
    ids::{AppId, Pushkey, Selector, UserId},
    rules::{
        gate::SharedGate,
        jobs::{DEAD_AFTER, Status},
    },
};

/// What a walk over a table finds in a piece of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdPage {
    /// The last id of the piece: the next one begins after it.
    pub last: i64,
    /// The ids that were looked for.
    pub ids: Vec<i64>,
}

/// A row that can receive a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushTarget {
    /// The row's id.
    pub row_id: i64,
    /// Counts the reports that changed the row.
    pub report: i64,
    /// The account on the phone.
    pub selector: Selector,
    /// The app.
    pub app_id: AppId,
    /// The token.
    pub pushkey: Pushkey,
    /// Whether a mapping, a login or an import stands for the row.
    pub owned: bool,
    /// Whether PNM said that the token is gone and the phone has not reported since.
    pub dead: bool,
}

/// A row that holds a pushkey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRow {
    /// What a push needs.
    pub target: PushTarget,
    /// The user who owns the row, by a mapping or a login.
    pub user: Option<UserId>,
}

/// Whether a worker's outage gate lets jobs through to the homeserver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GateState {
    /// Nothing has been tried yet.
    #[default]
    Untried,
    /// The homeserver worked at the last request.
    Open,
    /// The homeserver did not work, so jobs wait.
    Shut,
}

impl GateState {
    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Untried => "untried",
            Self::Open => "open",
            Self::Shut => "shut",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        let all = [Self::Untried, Self::Open, Self::Shut];
        all.into_iter().find(|state| state.as_str() == word)
    }
}

/// What a worker reports about its outage gate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateReport {
    /// Whether jobs pass.
    pub state: GateState,
    /// Why jobs do not pass, for people.
    pub reason: Option<String>,
}

/// What all workers together know about the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateView {
    /// The row.
    pub row: SharedGate,
    /// The number of workers with a recent heartbeat.
    pub workers: usize,
}

/// A worker's outage gate, as the worker last reported it.
#[derive(Debug, Clone)]
pub struct GateStatus {
    /// Whether jobs pass.
    pub state: GateState,
    /// For how many seconds the gate has been in this state.
    pub seconds: i64,
    /// Why the gate is shut, for people.
    pub reason: Option<String>,
}

impl GateStatus {
    /// Reads the database's columns. None for a word that we do not use.
    pub fn read(state: &str, seconds: i64, reason: Option<String>) -> Option<Self> {
        Some(Self {
            state: GateState::parse(state)?,
            seconds,
            reason,
        })
    }
}

/// A worker that runs or ended recently.
#[derive(Debug, Clone)]
pub struct WorkerStatus {
    /// The worker's name.
    pub name: String,
    /// Seconds since the worker's last heartbeat.
    pub silent: i64,
    /// The gate's state in the last heartbeat. None before the first heartbeat.
    pub gate: Option<GateStatus>,
}

impl WorkerStatus {
    /// Whether the worker counts as running. If not, others get its jobs.
    pub fn is_alive(&self) -> bool {
        self.silent < DEAD_AFTER
    }
}

/// The number of jobs by status, for metrics and the status page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct QueueState {
    /// Ready or waiting for their first attempt.
    pub pending: i64,
    /// Held by a worker.
    pub queued: i64,
    /// In backoff.
    pub failed: i64,
    /// Dead letters.
    pub killed: i64,
    /// How long the oldest due job has waited, in seconds.
    pub oldest_ready: i64,
}

impl QueueState {
    /// From counts by status, and the time when the next job is due.
    pub fn new(counts: &[(String, i64)], next_due: Option<i64>, now: i64) -> Self {
        let count = |wanted: Status| {
            let counts = counts
                .iter()
                .filter(|(status, _)| status == wanted.as_str());
            counts.map(|(_, count)| count).sum()
        };
        Self {
            pending: count(Status::Pending),
            queued: count(Status::Queued),
            failed: count(Status::Failed),
            killed: count(Status::Killed),
            oldest_ready: next_due.map_or(0, |due| (now - due).max(0)),
        }
    }
}

/// A job that was given up, and its pusher.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The user, unless the pusher is gone.
    pub user_id: Option<String>,
    /// The app.
    pub app_id: Option<String>,
    /// The token.
    pub pushkey: Option<String>,
    /// Failed attempts.
    pub attempts: i64,
    /// Why the job was given up.
    pub reason: Option<String>,
    /// How many seconds ago it was given up.
    pub seconds: Option<i64>,
}

/// A stored row of what a phone reported.
#[derive(Debug, Clone, Serialize)]
pub struct TokenListing {
    /// The row's id, which orders the pages.
    pub id: i64,
    /// The account on the phone.
    pub selector: String,
    /// The phone's name, empty if it reports none.
    pub device: String,
    /// The user who owns the row, by the mapping or a login.
    pub user_id: Option<String>,
    /// Token for messages.
    pub token_msgs: Option<String>,
    /// App id for messages.
    pub app_id_msgs: Option<String>,
    /// Token for calls.
    pub token_calls: Option<String>,
    /// App id for calls.
    pub app_id_calls: Option<String>,
    /// When PNM called the token gone, in seconds since 1970.
    pub dead_at: Option<i64>,
    /// First report, in seconds since 1970.
    pub created_at: i64,
    /// The last report that was noted, in seconds since 1970.
    pub updated_at: i64,
}

/// A pusher: what the homeserver should hold, and what we know about it.
#[derive(Debug, Clone, Serialize)]
pub struct PusherListing {
    /// The row's id, which orders the pages.
    pub id: i64,
    /// The user.
    pub user_id: String,
    /// The app.
    pub app_id: String,
    /// The token.
    pub pushkey: String,
    /// The account on the phone.
    pub selector: String,
    /// `present` or `absent`.
    pub wanted: String,
    /// `pending`, `registered`, `failed` or `removed`.
    pub state: String,
    /// Failed attempts since the last success.
    pub attempts: i64,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// Last change, in seconds since 1970.
    pub updated_at: i64,
}

/// A job and its pusher.
#[derive(Debug, Clone, Serialize)]
pub struct JobListing {
    /// The job's name, a ULID.
    pub id: String,
    /// `Pending`, `Queued`, `Running`, `Failed` (waiting) or `Killed` (dead letter).
    pub state: String,
    /// The user, unless the job is unreadable.
    pub user_id: Option<String>,
    /// `present` or `absent`.
    pub wanted: Option<String>,
    /// Failed attempts.
    pub attempts: i64,
    /// The next attempt, in seconds since 1970. None for a dead letter.
    pub next_try: Option<i64>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}
