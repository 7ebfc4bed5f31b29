//! The outage gate: lets jobs through to the homeserver while it is well, and one at a time to find out whether
//! it is back. Pure: no I/O, and the time (milliseconds since 1970) is passed in.
//!
//! [`SharedGate`] is the row that all workers share; [`SharedGate::after`] is the only place that changes it.
//! [`Gate`] is one worker's side: its copy of the row, and what its own requests told it.
//!
//! A request that no recent success vouches for takes a *slot*. Slots are handed out so that all workers
//! together send at most [`BURST`] requests at once and one more every [`SLOT_MS`]: 10 in any second at most. A
//! single worker counts its slots by itself; several take them from the row. A single worker whose requests succeed one by
//! one does not wait for slots: at most [`CREDIT`] requests follow the last success without one, slots included.

use std::time::Duration;

/// Failures in a row, not about one user, that shut the gate; several workers share them out.
pub const FAILURES_TO_SHUT: usize = 5;
/// Slots that may be taken at once.
const BURST: i64 = 5;
/// Time until one more slot is there.
const SLOT_MS: i64 = 200;
/// A success vouches for the homeserver for this long.
const LATELY_MS: i64 = 50;
/// So many requests it vouches for even though another one has failed meanwhile: enough to meet a success where
/// half of the answers fail, and few beside those that are under way when the homeserver goes down.
const SPARE: usize = 5;
/// So many requests after a success need no slot, where there is none.
const CREDIT: usize = 5;
/// Nor do failures shut the gate so soon after a success: half of the answers of a homeserver may fail, and
/// the failures in a row that come about by chance would have shut it most of the time.
const FLAKY_MS: i64 = 3000;
/// After a failure among requests that took no slots, this worker sends nothing for this long.
const HOLD_MS: i64 = 1000;
/// Time between two tries, and the least that a 429 makes everybody wait.
const TRY_MS: i64 = 1000;
/// How long the worker that tries is left alone with it, unless it renews that; longer than a probe takes.
const LEASE_MS: i64 = 8000;
/// How long the worker that tries waits for a job to try with, before another gets its turn.
const TRIAL_MS: i64 = 2000;
/// After an answered probe so many jobs may fail, one after the other, before the next probe: where half of the
/// answers fail, one alone says little.
const TRIES: u32 = 3;
/// While the homeserver answers probes and nothing else, a job in backoff is tried no sooner than this long
/// after the last request, so that backoff means something and its return is noticed all the same.
const QUIET_MS: i64 = 10_000;
/// Nobody waits longer than a homeserver may ask for. What lies further ahead comes from a clock that was wrong.
const LONGEST_MS: i64 = 3_600_000;

/// Whether jobs pass, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// They pass.
    Open,
    /// The homeserver is down: it is probed once a second.
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

/// What all workers know together of the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedGate {
    /// Grows with every change; who writes names the version that they read.
    pub version: i64,
    /// Grows with every shut.
    pub epoch: i64,
    /// Whether jobs pass.
    pub condition: Condition,
    /// When the gate last ceased to be open.
    pub since_ms: i64,
    /// While the gate is shut, nobody tries before; while somebody tries, nobody else does before.
    pub next_try_ms: i64,
    /// Slots are taken up to this time.
    pub slot_ms: i64,
    /// The worker that finds out whether the homeserver is back.
    pub holder: Option<String>,
    /// Whether a probe has failed since the last one that was answered.
    pub gone: bool,
    /// Why the gate is shut, for people.
    pub reason: Option<String>,
}

/// What changes the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A worker starts; perhaps somebody has mended the configuration.
    Started,
    /// The homeserver does not work, by the word of a request from this epoch.
    Down(i64, String),
    /// The homeserver asks everybody to wait until this time.
    Limited(i64),
    /// Our configuration is wrong, by the word of a request from this epoch; wait until this time.
    Misconfigured(i64, String, i64),
    /// The homeserver works, by the word of a request from this epoch.
    Well(i64),
    /// This worker wants to find out whether the homeserver is back.
    Claim(String),
    /// This worker is still about it.
    Renew(String),
    /// Its probe was answered.
    Answered(String),
    /// Its probe was not answered.
    NotAnswered(String),
    /// It has no job to try with.
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

    /// The row after an event; none if the event changes nothing.
    pub fn after(&self, event: &Event, now: i64) -> Option<Self> {
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
                waits.then(|| Self {
                    next_try_ms: now,
                    ..next()
                })
            }
            // An answer to what was sent before the gate shut says nothing new.
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
            // However old the request is: the homeserver asks for it now.
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

    /// The row with one more slot taken, or when there is one.
    fn slot(&self, now: i64) -> Result<Self, i64> {
        let most = (BURST - 1) * SLOT_MS;
        // Further ahead than anybody can take them: the clock was set back.
        let taken = if self.slot_ms > now + most + SLOT_MS {
            now
        } else {
            self.slot_ms.max(now)
        };
        if taken > now + most {
            return Err(taken - most);
        }
        Ok(Self {
            version: self.version + 1,
            slot_ms: taken + SLOT_MS,
            ..self.clone()
        })
    }

    /// The same, without times that only a wrong clock can have made.
    fn plausible(mut self, now: i64) -> Self {
        let longest = match (&self.holder, self.condition) {
            (Some(_), _) => LEASE_MS,
            (None, Condition::Down) => TRY_MS,
            (None, _) => LONGEST_MS,
        };
        self.next_try_ms = self.next_try_ms.min(now + longest);
        self
    }
}

impl Default for SharedGate {
    fn default() -> Self {
        Self::new()
    }
}

/// What a finished request says of the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// It works, whatever it said of this one user.
    Well,
    /// It does not.
    Unwell(String),
    /// It asks everybody to wait.
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
    /// The homeserver works again: after this long.
    Up(Duration),
}

/// What the worker that watches the gate has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask to be the one who finds out.
    Claim,
    /// Bring a job in backoff forward: none is due to try with.
    BringForward,
    /// Tell the others that this worker is still about it.
    Renew,
    /// Let another worker try.
    PassOn,
}

/// Lets one job make requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    epoch: i64,
    trial: bool,
}

/// Whether a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Enter(Ticket),
    /// If a slot can be had from the row.
    Slot,
    /// Not before this time.
    Until(i64),
    /// Not until something changes.
    Wait,
}

/// One job that finds out whether the homeserver is back.
#[derive(Debug, Clone, Copy)]
struct Trial {
    since_ms: i64,
    failures: u32,
    running: bool,
    /// A job in backoff is brought forward at once.
    hurry: bool,
}

/// One worker's side of the gate.
#[derive(Debug)]
pub struct Gate {
    me: String,
    concurrency: usize,
    /// How long everything waits when the configuration is wrong.
    long_ms: i64,
    row: SharedGate,
    /// Workers that live, this one included.
    workers: usize,
    failures: usize,
    /// A success that vouches for the homeserver.
    last_well_ms: Option<i64>,
    /// Requests that it vouched for after a failure.
    spent: usize,
    /// Requests since the last success.
    unproved: usize,
    /// When the homeserver last worked, as far as this worker knows.
    worked_ms: Option<i64>,
    /// Whether requests were sent without slots lately.
    running_free: bool,
    hold_ms: i64,
    /// Requests that shut the gate and are not in the row yet.
    shutting: usize,
    inside: usize,
    trial: Option<Trial>,
    /// When the last request ended, whatever became of it.
    last_end_ms: Option<i64>,
    /// This worker had its turn and found no job.
    turn_ms: i64,
    tried: bool,
}

impl Gate {
    /// Begins with nothing to vouch for the homeserver.
    pub fn new(me: &str, concurrency: usize, long: Duration) -> Self {
        Self {
            me: me.to_owned(),
            concurrency,
            long_ms: millis(long),
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
            inside: 0,
            trial: None,
            last_end_ms: None,
            turn_ms: 0,
            tried: false,
        }
    }

    /// Follows the row, if it is newer than what is known of it.
    pub fn follow(&mut self, row: SharedGate, workers: usize, now: i64) -> Option<News> {
        self.workers = workers.max(1);
        if row.version <= self.row.version && row.epoch <= self.row.epoch {
            return None;
        }
        let before = std::mem::replace(&mut self.row, row.plausible(now));
        // Slots that were taken without the row.
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

    /// Whether a job is wanted that finds out.
    pub fn is_trying(&self) -> bool {
        self.trial.is_some_and(|trial| !trial.running) && self.shutting == 0
    }

    /// Whether nothing passes.
    pub fn is_shut(&self) -> bool {
        !self.is_open() && self.trial.is_none()
    }

    /// Whether this worker has heard from the homeserver.
    pub fn is_tried(&self) -> bool {
        self.tried
    }

    /// Why jobs do not pass, for people; none while they do.
    pub fn reason(&self) -> Option<&str> {
        match self.row.condition {
            Condition::Open => None,
            Condition::Limited => Some("HTTP 429: the homeserver asks everybody to wait"),
            Condition::Down | Condition::Misconfigured => self.row.reason.as_deref(),
        }
    }

    /// Asks for one more job.
    pub fn admit(&mut self, now: i64) -> Admission {
        match self.may_enter() {
            Some(ticket) => self.with_slot(ticket, now, true),
            None => Admission::Wait,
        }
    }

    /// A slot was taken from the row for one more job; none if the gate has shut meanwhile.
    pub fn enter_with_slot(&mut self) -> Option<Ticket> {
        let ticket = self.may_enter()?;
        self.enter(ticket);
        Some(ticket)
    }

    /// Asks for one more request of a job that is inside; none if the gate has shut meanwhile.
    pub fn again(&mut self, ticket: Ticket, now: i64) -> Option<Admission> {
        self.is_current(ticket)
            .then(|| self.with_slot(ticket, now, false))
    }

    /// Whether the gate has not shut since this ticket was given.
    pub fn is_current(&self, ticket: Ticket) -> bool {
        ticket.epoch == self.row.epoch && self.shutting == 0
    }

    fn may_enter(&self) -> Option<Ticket> {
        let trial = !self.is_open();
        let room = if trial {
            self.is_trying()
        } else {
            self.inside < self.concurrency
        };
        room.then_some(Ticket {
            epoch: self.row.epoch,
            trial,
        })
    }

    fn enter(&mut self, ticket: Ticket) {
        self.inside += 1;
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
        self.inside = self.inside.saturating_sub(1);
        if let (true, Some(trial)) = (ticket.trial, &mut self.trial) {
            trial.running = false;
            trial.since_ms = now;
        }
    }

    /// Takes note of what a request said. An event is to be brought into the row; until
    /// [`Gate::recorded`] says that it is, a gate that it shuts is shut.
    pub fn record(&mut self, ticket: Ticket, sign: &Sign, now: i64) -> Option<Event> {
        self.last_end_ms = Some(now);
        self.tried = true;
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

    /// An event that [`Gate::record`] gave is in the row, or changes nothing in it any more.
    pub fn recorded(&mut self, event: &Event) {
        if !matches!(event, Event::Well(_)) {
            self.shutting = self.shutting.saturating_sub(1);
        }
    }

    /// What to do next, and when; nothing while the gate is open.
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

    /// This worker has the turn: what it must do first is to probe, unless the wait was one for a fixed time.
    pub fn must_probe(&self) -> bool {
        self.row.condition == Condition::Down
    }

    /// The homeserver answered the probe, or the wait is over: one job may try. `back`: it had not answered
    /// before. One that has answered probes all the time is not back, and backoff stands.
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

    /// Whether the last probe of any worker found nobody.
    pub fn is_gone(&self) -> bool {
        self.row.gone
    }

    /// A job was brought forward; the next one not at once.
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
