//! The outage gate's row, which all workers share, and what changes it. Pure.

use crate::rules::jobs::LONGEST_ASKED;

/// Slots that may be taken at once.
const BURST: i64 = 5;
/// Time until one more slot is there.
pub(super) const SLOT_MS: i64 = 225;
/// How far the workers' ideas of the server's time may be apart. A clock that is set back by less only costs this wait.
const CLOCKS_DIFFER_MS: i64 = 5_000;
/// Time between two tries, and the shortest wait that a 429 causes.
pub(super) const TRY_MS: i64 = 1000;
/// How long one worker has the turn unless it renews the lease. Longer than a probe takes.
pub(super) const LEASE_MS: i64 = 8000;
/// Nobody waits longer than a homeserver may ask for. A time further ahead comes from a clock that was wrong.
pub(super) const LONGEST_MS: i64 = LONGEST_ASKED * 1000;

/// Whether jobs pass, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Jobs pass.
    Open,
    /// The homeserver is down. A worker probes it once a second.
    Down,
    /// The homeserver asked everybody to wait.
    Limited,
    /// Our configuration is wrong.
    Misconfigured,
}

impl Condition {
    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Down => "down",
            Self::Limited => "limited",
            Self::Misconfigured => "misconfigured",
        }
    }

    /// Reads the word in the database.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Open, Self::Down, Self::Limited, Self::Misconfigured]
            .into_iter()
            .find(|condition| condition.as_str() == word)
    }
}

/// What all workers together know about the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedGate {
    /// Grows with every change. A writer names the version that it has read.
    pub version: i64,
    /// Grows every time the gate shuts.
    pub epoch: i64,
    /// Whether jobs pass.
    pub condition: Condition,
    /// When the gate last ceased to be open.
    pub since_ms: i64,
    /// While the gate is shut, no worker tries before this time. While one worker tries, no other worker does before
    /// this time.
    pub next_try_ms: i64,
    /// Slots are taken up to this time.
    pub slot_ms: i64,
    /// The worker that has the turn to find out whether the homeserver is back.
    pub holder: Option<String>,
    /// Whether a probe has failed since the last one that succeeded.
    pub gone: bool,
    /// Why the gate is shut, for people.
    pub reason: Option<String>,
}

/// An event that may change the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A worker starts. Perhaps the operator has corrected the configuration.
    Started,
    /// The homeserver does not work, as a request from this epoch shows.
    Down(i64, String),
    /// The homeserver asks all clients to wait until this time.
    Limited(i64),
    /// Our configuration is wrong, as a request from this epoch shows. Wait until this time.
    Misconfigured(i64, String, i64),
    /// The homeserver works, as a request from this epoch shows.
    Well(i64),
    /// This worker wants the turn to find out whether the homeserver is back.
    Claim(String),
    /// This worker still has the turn.
    Renew(String),
    /// This worker's probe succeeded.
    Answered(String),
    /// This worker's probe failed.
    NotAnswered(String),
    /// This worker has no job to try with.
    PassOn(String),
    /// A request takes a slot.
    Slot,
}

impl SharedGate {
    /// The row before anything has happened.
    pub fn new() -> Self {
        Self {
            version: 0,
            epoch: 0,
            condition: Condition::Open,
            since_ms: 0,
            next_try_ms: 0,
            slot_ms: 0,
            holder: None,
            gone: false,
            reason: None,
        }
    }

    /// Why jobs do not pass, for people. None while they pass.
    pub fn reason(&self) -> Option<&str> {
        match self.condition {
            Condition::Open => None,
            Condition::Limited => Some("HTTP 429: the homeserver asks everybody to wait"),
            Condition::Down | Condition::Misconfigured => self.reason.as_deref(),
        }
    }

    /// The row after an event. None if the event changes nothing.
    pub fn after(&self, event: &Event, now: i64) -> Option<Self> {
        self.clone().plausible(now).then(event, now)
    }

    fn then(&self, event: &Event, now: i64) -> Option<Self> {
        let open = self.condition == Condition::Open;
        let mine = |worker: &String| !open && self.holder.as_ref() == Some(worker);
        let next = || Self {
            version: self.version + 1,
            ..self.clone()
        };
        let shut = |condition, next_try_ms, reason: Option<&String>| Self {
            epoch: self.epoch + 1,
            condition,
            since_ms: if open { now } else { self.since_ms },
            next_try_ms,
            holder: None,
            reason: reason.cloned(),
            ..next()
        };
        match event {
            Event::Started => {
                let waits = matches!(self.condition, Condition::Down | Condition::Misconfigured)
                    && self.next_try_ms > now
                    && self.holder.is_none();
                // Workers that work alone count slots on their own, and several that start at once do not know of each
                // other yet. So nobody starts with slots to spare.
                Some(Self {
                    next_try_ms: if waits { now } else { self.next_try_ms },
                    slot_ms: self.slots_taken(now).max(now + BURST * SLOT_MS),
                    ..next()
                })
            }
            // A response to a request from before the gate shut says nothing new.
            Event::Down(epoch, _) | Event::Misconfigured(epoch, ..) | Event::Well(epoch)
                if *epoch != self.epoch =>
            {
                None
            }
            Event::Down(_, reason) => {
                let wait = if open { 0 } else { TRY_MS };
                Some(shut(Condition::Down, now + wait, Some(reason)))
            }
            Event::Misconfigured(_, reason, until) => {
                Some(shut(Condition::Misconfigured, *until, Some(reason)))
            }
            // The age of the request does not matter: the homeserver asks for the wait now.
            Event::Limited(until) => {
                let waits = matches!(
                    self.condition,
                    Condition::Limited | Condition::Misconfigured
                ) && self.holder.is_none()
                    && self.next_try_ms >= *until;
                (!waits).then(|| shut(Condition::Limited, *until, None))
            }
            Event::Well(_) => (!open).then(|| Self {
                condition: Condition::Open,
                holder: None,
                gone: false,
                reason: None,
                ..next()
            }),
            Event::Claim(worker) => {
                if open || now < self.next_try_ms {
                    return None;
                }
                let probes = self.condition == Condition::Down;
                let row = if probes { self.slot(now).ok()? } else { next() };
                Some(Self {
                    holder: Some(worker.clone()),
                    next_try_ms: now + LEASE_MS,
                    ..row
                })
            }
            Event::Renew(worker) => mine(worker).then(|| Self {
                next_try_ms: now + LEASE_MS,
                ..next()
            }),
            Event::Answered(worker) => (mine(worker) && self.gone).then(|| Self {
                gone: false,
                ..next()
            }),
            Event::NotAnswered(worker) | Event::PassOn(worker) => mine(worker).then(|| Self {
                holder: None,
                next_try_ms: now + TRY_MS,
                gone: self.gone || matches!(event, Event::NotAnswered(_)),
                ..next()
            }),
            Event::Slot => self.slot(now).ok(),
        }
    }

    /// The row with one more slot taken, or the time when a slot is free.
    pub(super) fn slot(&self, now: i64) -> Result<Self, i64> {
        let most = (BURST - 1) * SLOT_MS;
        let taken = self.slots_taken(now);
        if taken > now + most {
            return Err(taken - most);
        }
        Ok(Self {
            version: self.version + 1,
            slot_ms: taken + SLOT_MS,
            ..self.clone()
        })
    }

    /// Slots are taken up to this time, which is not in the past.
    fn slots_taken(&self, now: i64) -> i64 {
        // They cannot be taken further ahead, so the clock was set back.
        let plausible = self.slot_ms <= now + BURST * SLOT_MS + CLOCKS_DIFFER_MS;
        if plausible {
            self.slot_ms.max(now)
        } else {
            now
        }
    }

    /// The same row, without a time to wait for that only a wrong clock can have produced. The workers' clocks differ a
    /// little.
    pub(super) fn plausible(mut self, now: i64) -> Self {
        let longest = match (&self.holder, self.condition) {
            (Some(_), _) => LEASE_MS,
            (None, Condition::Down) => TRY_MS,
            (None, _) => LONGEST_MS,
        };
        if self.next_try_ms > now + longest + CLOCKS_DIFFER_MS {
            self.next_try_ms = now;
        }
        self
    }
}

impl Default for SharedGate {
    fn default() -> Self {
        Self::new()
    }
}
