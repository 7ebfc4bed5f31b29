//! Stops rejections that are wrong in the mass.
//!
//! A homeserver deletes the pusher of a rejected pushkey, and phones do not register again by themselves. If PNM, or
//! one of our app ids there, goes wrong, or if the database was lost or put back, that would silence every phone
//! within minutes. Then we rather let the homeserver try again until someone has looked.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ::metrics::Gauge;

use crate::{
    keyed_hash::{HashedMap, KeyedHash},
    metrics,
};

/// Rejections are stopped from that many bad pushkeys on, if they are also more than half of all.
const ENOUGH_BAD: usize = 20;
/// What is older than this many ticks is forgotten: ten minutes.
const WINDOW_TICKS: u8 = 60;
/// The unit of all times here. Once a tick, old entries are dropped.
const TICK: Duration = Duration::from_secs(10);
/// Most known and most unknown pushkeys remembered, 4 MiB in all; further ones are weighed, but not kept. Strangers
/// can send any number of unknown ones, which must not keep the others out.
const MAX_KNOWN: usize = 150_000;
const MAX_UNKNOWN: usize = 50_000;

/// The guard; one for the process.
#[derive(Debug)]
pub(crate) struct MassGuard {
    hash: KeyedHash,
    window: Mutex<Window>,
    gone: Gauge,
    unknown: Gauge,
}

/// What was last seen of a pushkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Not in the database.
    Unknown,
    /// In the database; nothing is known of it at PNM.
    Known,
    /// PNM took a push to it.
    Sent,
    /// PNM called it gone.
    Gone,
}

impl MassGuard {
    /// A guard that has seen nothing.
    pub(crate) fn new(now: Instant) -> Self {
        let (gone, unknown) = (metrics::mass_guard(), metrics::mass_unknown_guard());
        gone.set(0.0);
        unknown.set(0.0);
        Self {
            hash: KeyedHash::random(),
            window: Mutex::new(Window::new(now)),
            gone,
            unknown,
        }
    }

    /// Notes what was seen of a pushkey. False for one that is unknown or gone, if that must not be believed.
    pub(crate) fn note(&self, app_id: &str, pushkey: &str, seen: Seen, now: Instant) -> bool {
        let token = self.hash.of([app_id, pushkey].map(str::as_bytes)).half();
        let app = App(self.hash.of([app_id.as_bytes()]).quarter());
        let (trips, tripped) = {
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            let trips = window.note(token, app, seen, now);
            (trips, window.tripped(app, seen))
        };
        for trip in trips {
            self.tell(trip, app_id);
        }
        !tripped
    }

    /// Forgets what is old from time to time, also while no notification comes. Runs forever.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            self.sweep(Instant::now());
        }
    }

    fn sweep(&self, now: Instant) {
        let trips = {
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            window.sweep(now)
        };
        for trip in trips {
            // Forgetting stops no rejections, and that they resume is said without the app id.
            self.tell(trip, "");
        }
    }

    fn tell(&self, trip: Trip, app_id: &str) {
        let Trip { of, on, counts } = trip;
        let Counts { bad, all, .. } = counts;
        match (of, on) {
            (Of::App { any }, true) => {
                self.gone.set(f64::from(any));
                tracing::error!(
                    %app_id,
                    gone = bad,
                    tokens = all,
                    "PNM calls most push tokens of this app gone: no more rejections of them until that stops; check \
                     PNM_URL and the app id"
                );
            }
            (Of::App { any }, false) => {
                self.gone.set(f64::from(any));
                tracing::info!(
                    "PNM no longer calls most push tokens of an app gone: rejections resume"
                );
            }
            (Of::Unknown, true) => {
                self.unknown.set(1.0);
                tracing::error!(
                    unknown = bad,
                    pushkeys = all,
                    "most pushkeys that the homeserver names are unknown here: no more rejections of unknown ones until \
                     that stops; check whether the database was lost or restored from an old backup, or whether strangers \
                     send them"
                );
            }
            (Of::Unknown, false) => {
                self.unknown.set(0.0);
                tracing::info!(
                    unknown = bad,
                    pushkeys = all,
                    "most pushkeys that the homeserver names are known again: rejections of unknown ones resume"
                );
            }
        }
    }
}

/// Stands for an app id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct App(u32);

/// What was last seen of each pushkey, over the last ten minutes.
#[derive(Debug)]
struct Window {
    start: Instant,
    /// The tick of the last sweep.
    tick: u64,
    tokens: HashedMap<u64, Token>,
    /// Sent and gone tokens, by app.
    apps: HashedMap<App, Counts>,
    /// Unknown pushkeys among all.
    unknown: Counts,
    /// Apps whose rejections are stopped.
    stopped: u32,
    max_known: usize,
    max_unknown: usize,
}

// Narrow on purpose: with the key 16 bytes a token.
#[derive(Debug, Clone, Copy)]
struct Token {
    app: App,
    /// Ticks since it was seen.
    age: u8,
    seen: Seen,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    bad: usize,
    all: usize,
    tripped: bool,
}

/// Rejections of a kind stop, or go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trip {
    of: Of,
    on: bool,
    counts: Counts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Those of an app's gone tokens; `any` says for how many apps they are stopped now.
    App { any: u32 },
    /// Those of unknown pushkeys.
    Unknown,
}

impl Counts {
    fn add(&mut self, bad: bool) {
        self.all += 1;
        self.bad += usize::from(bad);
    }

    fn remove(&mut self, bad: bool) {
        self.all -= 1;
        self.bad -= usize::from(bad);
    }

    /// True if that changes anything.
    fn judge(&mut self) -> bool {
        let tripped = self.bad >= ENOUGH_BAD && self.bad * 2 > self.all;
        std::mem::replace(&mut self.tripped, tripped) != tripped
    }
}

impl Window {
    fn new(start: Instant) -> Self {
        Self {
            start,
            tick: 0,
            tokens: HashedMap::default(),
            apps: HashedMap::default(),
            unknown: Counts::default(),
            stopped: 0,
            max_known: MAX_KNOWN,
            max_unknown: MAX_UNKNOWN,
        }
    }

    /// Whether rejections for what was seen are stopped.
    fn tripped(&self, app: App, seen: Seen) -> bool {
        match seen {
            Seen::Unknown => self.unknown.tripped,
            Seen::Gone => self.apps.get(&app).is_some_and(|counts| counts.tripped),
            Seen::Known | Seen::Sent => false,
        }
    }

    fn note(&mut self, token: u64, app: App, seen: Seen, now: Instant) -> Vec<Trip> {
        let mut trips = self.sweep(now);
        let mut noted = Token { app, age: 0, seen };
        if let Some(known) = self.tokens.get(&token).copied() {
            // PNM's last word stands until it says another.
            if seen == Seen::Known && known.seen != Seen::Unknown {
                noted.seen = known.seen;
            }
            self.uncount(known);
        }
        self.count(noted);
        self.judge(app, &mut trips);
        if self.has_room(token, noted) {
            self.tokens.insert(token, noted);
        } else {
            self.uncount(noted);
        }
        trips
    }

    fn has_room(&self, token: u64, noted: Token) -> bool {
        let unknown = self.unknown.bad;
        self.tokens.contains_key(&token)
            || match noted.seen {
                // It is counted already.
                Seen::Unknown => unknown <= self.max_unknown,
                _ => self.unknown.all - unknown <= self.max_known,
            }
    }

    fn count(&mut self, token: Token) {
        self.unknown.add(token.seen == Seen::Unknown);
        if let Seen::Sent | Seen::Gone = token.seen {
            let counts = self.apps.entry(token.app).or_default();
            counts.add(token.seen == Seen::Gone);
        }
    }

    fn uncount(&mut self, token: Token) {
        self.unknown.remove(token.seen == Seen::Unknown);
        if let (Seen::Sent | Seen::Gone, Some(counts)) = (token.seen, self.apps.get_mut(&token.app))
        {
            counts.remove(token.seen == Seen::Gone);
        }
    }

    fn judge(&mut self, app: App, trips: &mut Vec<Trip>) {
        if let Some(counts) = self.apps.get_mut(&app)
            && counts.judge()
        {
            let counts = *counts;
            self.trip(counts, trips);
        }
        self.judge_unknown(trips);
    }

    fn judge_unknown(&mut self, trips: &mut Vec<Trip>) {
        if self.unknown.judge() {
            trips.push(Trip {
                of: Of::Unknown,
                on: self.unknown.tripped,
                counts: self.unknown,
            });
        }
    }

    fn trip(&mut self, counts: Counts, trips: &mut Vec<Trip>) {
        if counts.tripped {
            self.stopped += 1;
        } else {
            self.stopped -= 1;
        }
        trips.push(Trip {
            of: Of::App { any: self.stopped },
            on: counts.tripped,
            counts,
        });
    }

    /// Forgets what is old.
    fn sweep(&mut self, now: Instant) -> Vec<Trip> {
        let tick = now.saturating_duration_since(self.start).as_secs() / TICK.as_secs();
        let mut trips = Vec::new();
        if tick <= self.tick {
            return trips;
        }
        let passed = u8::try_from(tick - self.tick).unwrap_or(u8::MAX);
        self.tick = tick;
        let mut old = Vec::new();
        self.tokens.retain(|_, token| {
            token.age = token.age.saturating_add(passed);
            let keep = token.age <= WINDOW_TICKS;
            if !keep {
                old.push(*token);
            }
            keep
        });
        for token in old {
            self.uncount(token);
        }
        let changed: Vec<Counts> = self
            .apps
            .values_mut()
            .filter_map(|counts| counts.judge().then_some(*counts))
            .collect();
        for counts in changed {
            self.trip(counts, &mut trips);
        }
        self.judge_unknown(&mut trips);
        self.apps.retain(|_, counts| counts.all > 0);
        // Gives memory back after a busy hour, without doing so at every sweep.
        if self.tokens.capacity() > 4 * self.tokens.len().max(1024) {
            self.tokens.shrink_to(2 * self.tokens.len());
        }
        trips
    }
}

#[cfg(test)]
mod tests;
