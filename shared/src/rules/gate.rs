//! The outage gate: lets jobs through to the homeserver while the homeserver works. While it does not, the gate lets
//! one job at a time try. Pure: no I/O, and the time (milliseconds since 1970) is passed in.
//!
//! [`SharedGate`] is the row that all workers share, and only [`SharedGate::after`] changes it. [`Gate`] is one
//! worker's side: its copy of the row, and what it learnt from its own requests.
//!
//! A request that no recent success vouches for takes a *slot*. With slots, all workers together send at most `BURST`
//! requests at once and one more every `SLOT_MS`, so at most 10 in any second. A single worker counts its slots on
//! its own. Several workers take them from the row. A single worker whose requests succeed one by one does not wait for
//! slots: it may send without one until `CREDIT` requests have followed the last success, with or without a slot.

use std::time::Duration;

/// Failures in a row that shut the gate. Refusals that concern one user do not count. With several workers, each one's
/// share is enough.
pub const FAILURES_TO_SHUT: usize = 5;
/// Slots that may be taken at once.
const BURST: i64 = 5;
/// Time until one more slot is there.
const SLOT_MS: i64 = 200;
/// How far the workers' ideas of the server's time may be apart. A clock that is set back by less only costs this wait.
const CLOCKS_DIFFER_MS: i64 = 5_000;
/// A success vouches for later requests for this long.
const LATELY_MS: i64 = 50;
/// How many requests a success vouches for although another request has failed since. This is enough to meet a success
/// where half of the requests fail, and few compared to those under way when the homeserver goes down.
const SPARE: usize = 5;
/// How many requests after a success may be sent although no slot is free.
const CREDIT: usize = 5;
/// Failures do not shut the gate this soon after a success. If half of a homeserver's responses fail, failures in a row
/// that happen by chance would otherwise keep the gate shut most of the time.
const FLAKY_MS: i64 = 3000;
/// After a failure among requests that took no slots, this worker sends nothing for this long.
const HOLD_MS: i64 = 1000;
/// Time between two tries, and the shortest wait that a 429 causes.
const TRY_MS: i64 = 1000;
/// How long one worker has the turn unless it renews the lease. Longer than a probe takes.
const LEASE_MS: i64 = 8000;
/// How long the worker that has the turn waits for a job to try with, before another worker gets the turn.
const TRIAL_MS: i64 = 2000;
/// How many jobs may fail, one after the other, after a probe that succeeded, before the next probe. Where half of the
/// requests fail, one failure says little.
const TRIES: u32 = 3;
/// While the homeserver responds to probes and nothing else, a job in backoff is brought forward only this long after
/// the last request. So backoff still has an effect, and we still notice when the homeserver is back.
const QUIET_MS: i64 = 10_000;
/// A job that has been inside for longer keeps no other out: the homeserver may have lost its request, and a connection
/// that hangs must not hold up the backlog.
const OVERDUE_MS: i64 = 5_000;
/// A request that has no response for this long may be lost.
pub const LOST_MS: i64 = 10_000;
/// Nobody waits longer than a homeserver may ask for. A time further ahead comes from a clock that was wrong.
const LONGEST_MS: i64 = 3_600_000;

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
    fn slot(&self, now: i64) -> Result<Self, i64> {
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
    fn plausible(mut self, now: i64) -> Self {
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

/// What a finished request says about the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// The homeserver works, whatever it said about this one user.
    Well,
    /// The homeserver does not work.
    Unwell(String),
    /// The homeserver asks all clients to wait.
    Limited(Duration),
    /// Our configuration is wrong.
    Misconfigured(String),
}

/// What has changed, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The homeserver is down.
    Down(String),
    /// Our configuration is wrong.
    Misconfigured(String),
    /// The homeserver works again, after this long.
    Up(Duration),
}

/// What the worker has to do next while the gate is shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask for the turn.
    Claim,
    /// Bring a job in backoff forward, to try with it.
    BringForward,
    /// Tell the other workers that this one still has the turn.
    Renew,
    /// Let another worker try.
    PassOn,
}

/// Lets one job make requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    epoch: i64,
    trial: bool,
    began_ms: i64,
}

/// Whether a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Enter(Ticket),
    /// Yes, if the row has a free slot.
    Slot,
    /// No, not before this time.
    Until(i64),
    /// No, not until something changes.
    Wait,
}

/// One job that finds out whether the homeserver is back.
#[derive(Debug, Clone, Copy)]
struct Trial {
    since_ms: i64,
    failures: u32,
    running: bool,
    /// Whether to bring a job in backoff forward at once.
    hurry: bool,
}

/// One worker's side of the gate.
#[derive(Debug)]
pub struct Gate {
    me: String,
    concurrency: usize,
    /// How long jobs wait when the configuration is wrong, at most as long as a homeserver may ask for.
    long_ms: i64,
    row: SharedGate,
    /// Workers that live, this one included.
    workers: usize,
    failures: usize,
    /// When a request last succeeded. Forgotten when the gate shuts or opens.
    last_well_ms: Option<i64>,
    /// Requests that this success vouched for after a failure.
    spent: usize,
    /// Requests since the last success.
    unproved: usize,
    /// When the homeserver last worked, as far as this worker knows.
    worked_ms: Option<i64>,
    /// Whether the last request was sent without a slot.
    running_free: bool,
    hold_ms: i64,
    /// Requests that shut the gate and are not in the row yet.
    shutting: usize,
    /// When the jobs that are inside began.
    inside: Vec<i64>,
    /// The latest beginning of a job that succeeded.
    well_began_ms: i64,
    trial: Option<Trial>,
    /// When the last request ended, whatever the outcome.
    last_end_ms: Option<i64>,
    /// No claim before this time, because this worker had the turn and found no job.
    turn_ms: i64,
    tried: bool,
}

impl Gate {
    /// A gate that knows of no success yet.
    pub fn new(me: &str, concurrency: usize, long: Duration) -> Self {
        Self {
            me: me.to_owned(),
            concurrency,
            long_ms: millis(long).min(LONGEST_MS),
            row: SharedGate::new(),
            workers: 1,
            failures: 0,
            last_well_ms: None,
            spent: 0,
            unproved: 0,
            worked_ms: None,
            running_free: false,
            hold_ms: 0,
            shutting: 0,
            inside: Vec::new(),
            well_began_ms: 0,
            trial: None,
            last_end_ms: None,
            turn_ms: 0,
            tried: false,
        }
    }

    /// Takes over the row, if it is newer than our copy.
    pub fn follow(&mut self, row: SharedGate, workers: usize, now: i64) -> Option<News> {
        self.workers = workers.max(1);
        self.turn_ms = self.turn_ms.min(now + TRY_MS + SLOT_MS);
        if let Some(trial) = &mut self.trial {
            trial.since_ms = trial.since_ms.min(now);
        }
        self.last_end_ms = self.last_end_ms.map(|end| end.min(now));
        if row.version <= self.row.version && row.epoch <= self.row.epoch {
            // The clock may have been set back since.
            self.row = std::mem::take(&mut self.row).plausible(now);
            return None;
        }
        let before = std::mem::replace(&mut self.row, row.plausible(now));
        // Keep the slots that this worker took without the row.
        self.row.slot_ms = self.row.slot_ms.max(before.slot_ms);
        if self.row.epoch != before.epoch || self.row.condition != before.condition {
            self.failures = 0;
            self.last_well_ms = None;
            self.worked_ms = (self.row.condition == Condition::Open).then_some(now);
        }
        if self.row.holder.as_ref() != Some(&self.me) {
            self.trial = None;
        }
        let reason = || self.row.reason.clone().unwrap_or_default();
        match (before.condition, self.row.condition) {
            (old, new) if old == new => None,
            (_, Condition::Down) => Some(News::Down(reason())),
            (_, Condition::Misconfigured) => Some(News::Misconfigured(reason())),
            (Condition::Down | Condition::Misconfigured, Condition::Open) => {
                let ms = u64::try_from(now - self.row.since_ms).unwrap_or(0);
                Some(News::Up(Duration::from_millis(ms)))
            }
            _ => None,
        }
    }

    /// Whether jobs pass.
    pub fn is_open(&self) -> bool {
        self.row.condition == Condition::Open && self.shutting == 0
    }

    /// Whether the gate wants one job to try.
    pub fn is_trying(&self) -> bool {
        self.trial.is_some_and(|trial| !trial.running) && self.shutting == 0
    }

    /// Whether nothing passes.
    pub fn is_shut(&self) -> bool {
        !self.is_open() && self.trial.is_none()
    }

    /// Whether this worker has finished a request since it started.
    pub fn is_tried(&self) -> bool {
        self.tried
    }

    /// Why jobs do not pass, for people. None while they pass.
    pub fn reason(&self) -> Option<&str> {
        match self.row.condition {
            Condition::Open => None,
            Condition::Limited => Some("HTTP 429: the homeserver asks everybody to wait"),
            Condition::Down | Condition::Misconfigured => self.row.reason.as_deref(),
        }
    }

    /// Asks to let one more job in.
    pub fn admit(&mut self, now: i64) -> Admission {
        match self.may_enter(now) {
            Some(ticket) => self.with_slot(ticket, now, true),
            None => self
                .next_overdue(now)
                .map_or(Admission::Wait, Admission::Until),
        }
    }

    /// When the next job inside keeps no other out any more, if there is room for others then.
    fn next_overdue(&self, now: i64) -> Option<i64> {
        let room = self.is_open() && self.inside.len() < 2 * self.concurrency;
        let overdue = self.inside.iter().map(|began| began + OVERDUE_MS);
        overdue.filter(|at| *at > now).min().filter(|_| room)
    }

    /// Lets one more job in, after a slot was taken from the row. None if the gate has shut meanwhile.
    pub fn enter_with_slot(&mut self, now: i64) -> Option<Ticket> {
        let ticket = self.may_enter(now)?;
        self.enter(ticket);
        Some(ticket)
    }

    /// Asks for one more request of a job that is inside. None if the gate has shut meanwhile.
    pub fn again(&mut self, ticket: Ticket, now: i64) -> Option<Admission> {
        self.is_current(ticket)
            .then(|| self.with_slot(ticket, now, false))
    }

    /// Whether the gate has not shut since this ticket was given.
    pub fn is_current(&self, ticket: Ticket) -> bool {
        ticket.epoch == self.row.epoch && self.shutting == 0
    }

    /// Whether the homeserver has lost a request that was sent at this time: it has not answered for long, but has answered a
    /// job that began later.
    pub fn is_lost(&self, sent_ms: i64, now: i64) -> bool {
        now - sent_ms >= LOST_MS && self.well_began_ms > sent_ms
    }

    fn may_enter(&self, now: i64) -> Option<Ticket> {
        let trial = !self.is_open();
        let room = if trial {
            self.is_trying()
        } else {
            let timely = |began: &&i64| now - **began < OVERDUE_MS;
            self.inside.iter().filter(timely).count() < self.concurrency
                && self.inside.len() < 2 * self.concurrency
        };
        room.then_some(Ticket {
            epoch: self.row.epoch,
            trial,
            began_ms: now,
        })
    }

    fn enter(&mut self, ticket: Ticket) {
        self.inside.push(ticket.began_ms);
        if let (true, Some(trial)) = (ticket.trial, &mut self.trial) {
            trial.running = true;
        }
    }

    fn with_slot(&mut self, ticket: Ticket, now: i64, enters: bool) -> Admission {
        let mut free = !ticket.trial && self.is_vouched_for(now);
        if !free {
            if now < self.hold_ms && self.hold_ms <= now + HOLD_MS {
                return Admission::Until(self.hold_ms);
            }
            if self.workers > 1 {
                return Admission::Slot;
            }
            match self.row.slot(now) {
                Ok(row) => self.row.slot_ms = row.slot_ms,
                Err(_) if !ticket.trial && self.has_credit() => free = true,
                Err(at) => return Admission::Until(at),
            }
        }
        self.running_free = free;
        self.unproved += 1;
        self.spent += usize::from(free && self.failures > 0);
        if enters {
            self.enter(ticket);
        }
        Admission::Enter(ticket)
    }

    fn is_vouched_for(&self, now: i64) -> bool {
        let lately = |well| (well..well + LATELY_MS).contains(&now);
        (self.failures == 0 || self.spent < SPARE) && self.last_well_ms.is_some_and(lately)
    }

    /// Whether the last request that ended was a success, and few have been sent since.
    fn has_credit(&self) -> bool {
        self.failures == 0 && self.last_well_ms.is_some() && self.unproved < CREDIT
    }

    /// A job has ended.
    pub fn leave(&mut self, ticket: Ticket, now: i64) {
        if let Some(at) = self
            .inside
            .iter()
            .position(|began| *began == ticket.began_ms)
        {
            self.inside.swap_remove(at);
        }
        if let (true, Some(trial)) = (ticket.trial, &mut self.trial) {
            trial.running = false;
            trial.since_ms = now;
        }
    }

    /// Takes note of a finished request. The caller writes a returned event into the row and then calls
    /// [`Gate::recorded`]. Until then, an event that shuts the gate keeps it shut for this worker.
    pub fn record(&mut self, ticket: Ticket, sign: &Sign, now: i64) -> Option<Event> {
        self.last_end_ms = Some(now);
        self.tried = true;
        if *sign == Sign::Well {
            // A time in the future is from a clock that was set back.
            self.well_began_ms = self.well_began_ms.min(now).max(ticket.began_ms);
        }
        let open = self.row.condition == Condition::Open;
        let event = match sign {
            Sign::Limited(wait) => {
                let wait = millis(*wait).clamp(TRY_MS, LONGEST_MS);
                Event::Limited(now + wait)
            }
            _ if !self.is_current(ticket) => return None,
            Sign::Well if open => {
                (self.failures, self.spent, self.unproved) = (0, 0, 0);
                self.last_well_ms = Some(now);
                self.worked_ms = Some(now);
                return None;
            }
            Sign::Well => Event::Well(ticket.epoch),
            Sign::Unwell(reason) => {
                self.failures += 1;
                if std::mem::take(&mut self.running_free) {
                    self.hold_ms = now + HOLD_MS;
                }
                let enough = FAILURES_TO_SHUT.div_ceil(self.workers).max(2);
                let flaky = |worked| (worked..worked + FLAKY_MS).contains(&now);
                if open && (self.failures < enough || self.worked_ms.is_some_and(flaky)) {
                    return None;
                }
                if let Some(trial) = &mut self.trial {
                    trial.failures += 1;
                    if trial.failures < TRIES {
                        return None;
                    }
                }
                Event::Down(ticket.epoch, reason.clone())
            }
            Sign::Misconfigured(reason) => {
                Event::Misconfigured(ticket.epoch, reason.clone(), now + self.long_ms)
            }
        };
        self.row.after(&event, now)?;
        if !matches!(event, Event::Well(_)) {
            self.shutting += 1;
            self.trial = None;
        }
        Some(event)
    }

    /// An event that [`Gate::record`] returned is now in the row, or no longer changes the row.
    pub fn recorded(&mut self, event: &Event) {
        if !matches!(event, Event::Well(_)) {
            self.shutting = self.shutting.saturating_sub(1);
        }
    }

    /// What to do next, and when. None while the gate is open.
    pub fn next_step(&self, now: i64) -> Option<(i64, Step)> {
        if self.row.condition == Condition::Open || self.shutting > 0 {
            return None;
        }
        let Some(trial) = self.trial else {
            return Some((self.row.next_try_ms.max(self.turn_ms), Step::Claim));
        };
        if trial.running {
            return Some((self.row.next_try_ms - LEASE_MS / 2, Step::Renew));
        }
        let end = trial.since_ms + TRIAL_MS;
        let quiet = self.last_end_ms.map_or(now, |end| end + QUIET_MS);
        let forward = if trial.hurry { now } else { quiet };
        if forward < end {
            Some((forward, Step::BringForward))
        } else {
            Some((end, Step::PassOn))
        }
    }

    /// Whether the worker that has the turn must probe first. If the gate waited for a fixed time, it need not.
    pub fn must_probe(&self) -> bool {
        self.row.condition == Condition::Down
    }

    /// One job may try, because the probe succeeded or the wait is over. `back` says that earlier probes failed. A
    /// homeserver that has responded to probes all along is not back, so jobs in backoff keep waiting.
    pub fn try_one(&mut self, back: bool, now: i64) {
        if self.row.condition != Condition::Open && self.row.holder.as_ref() == Some(&self.me) {
            self.trial = Some(Trial {
                since_ms: now,
                failures: 0,
                running: false,
                hurry: back,
            });
        }
    }

    /// Whether a probe of any worker has failed since the last one that succeeded.
    pub fn is_gone(&self) -> bool {
        self.row.gone
    }

    /// A job was brought forward. The next one is not brought forward at once.
    pub fn brought_forward(&mut self, now: i64) {
        self.last_end_ms = Some(now);
        if let Some(trial) = &mut self.trial {
            trial.hurry = false;
        }
    }

    /// This worker lets others try first.
    pub fn passed_on(&mut self, now: i64) {
        self.trial = None;
        self.turn_ms = now + TRY_MS + SLOT_MS;
    }

    /// The name under which this worker claims its turn.
    pub fn me(&self) -> &str {
        &self.me
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests;
