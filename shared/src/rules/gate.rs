//! The outage gate: lets jobs through to the homeserver while the homeserver works. While it does not, the gate lets
//! one job at a time try. Pure: no I/O, and the time (milliseconds since 1970) is passed in.
//!
//! [`SharedGate`] is the row that all workers share, and only [`SharedGate::after`] changes it. [`Gate`] is one
//! worker's side: its copy of the row, and what it learnt from its own requests.
//!
//! A request that no recent success vouches for takes a *slot*. With slots, all workers together send at most `BURST`
//! requests at once and one more every `SLOT_MS`. That is 9 in any second, so that no more than 10 arrive if the network
//! delays one. A single worker counts its slots on its own. Several workers take them from the row. A single worker whose
//! requests succeed one by one does not wait for slots: it may send without one until `CREDIT` requests have followed the
//! last success, with or without a slot.

mod row;

use std::time::Duration;

pub use self::row::{Condition, Event, SharedGate};
use self::row::{LEASE_MS, LONGEST_MS, SLOT_MS, TRY_MS};

/// Failures in a row that shut the gate. Refusals that concern one user do not count. With several workers, each one's
/// share is enough.
pub const FAILURES_TO_SHUT: usize = 5;
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
    /// The homeserver asks everybody to wait for this long.
    Limited(Duration),
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

    /// Takes over the row, unless our copy is of the same version. The caller reads and writes the row in turns. So a
    /// lower version is not an old one that comes late: the database is an earlier one, from a backup or a standby that
    /// lagged behind, and all workers go on from there.
    pub fn follow(&mut self, row: SharedGate, workers: usize, now: i64) -> Option<News> {
        self.workers = workers.max(1);
        self.turn_ms = self.turn_ms.min(now + TRY_MS + SLOT_MS);
        if let Some(trial) = &mut self.trial {
            trial.since_ms = trial.since_ms.min(now);
        }
        self.last_end_ms = self.last_end_ms.map(|end| end.min(now));
        let same = |copy: &SharedGate| {
            (row.version, row.epoch, row.condition) == (copy.version, copy.epoch, copy.condition)
        };
        if same(&self.row) {
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
            (_, Condition::Limited) => Some(News::Limited(between(now, self.row.next_try_ms))),
            (_, Condition::Open) => Some(News::Up(between(self.row.since_ms, now))),
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

    /// Whether this worker has finished a request since it started.
    pub fn is_tried(&self) -> bool {
        self.tried
    }

    /// Why jobs do not pass, for people. None while they pass.
    pub fn reason(&self) -> Option<&str> {
        self.row.reason()
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

fn between(from_ms: i64, to_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(to_ms - from_ms).unwrap_or(0))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests;
