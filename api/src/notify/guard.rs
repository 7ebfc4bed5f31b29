//! Stops rejections when PNM calls too many tokens gone at once.
//!
//! A homeserver deletes the pusher of a rejected token, and phones do not register again by themselves. If
//! PNM, or our app id there, goes wrong, that would silence every phone within minutes. Then we rather let
//! the homeserver try again until someone has looked.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ::metrics::Gauge;

use crate::{keyed_hash::KeyedHash, metrics};

/// Rejections are stopped from that many gone tokens on, if they are also more than half of all.
const ENOUGH_GONE: usize = 20;
/// Verdicts older than this many ticks are forgotten: ten minutes.
const WINDOW_TICKS: u64 = 60;
/// What verdicts are dated by; once a tick the old ones are swept out.
const TICK: Duration = Duration::from_secs(10);
/// Most tokens remembered, 4 MiB; what comes on top is weighed, but not kept.
const MAX_TOKENS: usize = 200_000;

/// The guard; one for the process.
#[derive(Debug)]
pub(crate) struct MassGuard {
    hash: KeyedHash,
    window: Mutex<Window>,
    gauge: Gauge,
}

impl MassGuard {
    /// A guard that has seen nothing.
    pub(crate) fn new(now: Instant) -> Self {
        let gauge = metrics::mass_guard();
        gauge.set(0.0);
        Self {
            hash: KeyedHash::random(),
            window: Mutex::new(Window::new(now, MAX_TOKENS)),
            gauge,
        }
    }

    /// Notes that PNM took a push to this token.
    pub(crate) fn sent(&self, app_id: &str, pushkey: &str, now: Instant) {
        self.note(app_id, pushkey, false, now);
    }

    /// Notes that PNM calls this token gone; false if it must not be believed.
    pub(crate) fn may_reject(&self, app_id: &str, pushkey: &str, now: Instant) -> bool {
        !self.note(app_id, pushkey, true, now)
    }

    fn note(&self, app_id: &str, pushkey: &str, gone: bool, now: Instant) -> bool {
        let token = self.hash.of([app_id, pushkey].map(str::as_bytes)).half();
        let (before, after, counts) = {
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            let before = window.tripped;
            let counts = window.note(token, gone, now);
            (before, window.tripped, counts)
        };
        match (before, after) {
            (false, true) => {
                self.gauge.set(1.0);
                tracing::error!(
                    gone = counts.gone,
                    tokens = counts.all,
                    "PNM calls most push tokens gone: no more rejections until that stops; check PNM_URL and \
                     the app ids"
                );
            }
            (true, false) => {
                self.gauge.set(0.0);
                tracing::info!(
                    gone = counts.gone,
                    tokens = counts.all,
                    "PNM no longer calls most push tokens gone: rejections go on"
                );
            }
            _ => {}
        }
        after
    }
}

/// PNM's last verdict about each token, over the last ten minutes.
#[derive(Debug)]
struct Window {
    start: Instant,
    /// The tick of the last sweep.
    tick: u64,
    verdicts: HashMap<u64, Verdict>,
    gone: usize,
    tripped: bool,
    max_tokens: usize,
}

#[derive(Debug, Clone, Copy)]
struct Verdict {
    // Narrow on purpose: with the key 16 bytes a token. Enough for 1,300 years of ticks.
    tick: u32,
    gone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    gone: usize,
    all: usize,
}

impl Window {
    fn new(start: Instant, max_tokens: usize) -> Self {
        Self {
            start,
            tick: 0,
            verdicts: HashMap::new(),
            gone: 0,
            tripped: false,
            max_tokens,
        }
    }

    fn note(&mut self, token: u64, gone: bool, now: Instant) -> Counts {
        let tick = now.saturating_duration_since(self.start).as_secs() / TICK.as_secs();
        if tick > self.tick {
            self.sweep(tick);
        }
        let verdict = Verdict {
            tick: u32::try_from(self.tick).unwrap_or(u32::MAX),
            gone,
        };
        let mut counts = Counts { gone: 0, all: 0 };
        if let Some(known) = self.verdicts.get_mut(&token) {
            self.gone -= usize::from(known.gone);
            self.gone += usize::from(gone);
            *known = verdict;
        } else if self.verdicts.len() < self.max_tokens {
            self.verdicts.insert(token, verdict);
            self.gone += usize::from(gone);
        } else {
            counts = Counts {
                gone: usize::from(gone),
                all: 1,
            };
        }
        counts.gone += self.gone;
        counts.all += self.verdicts.len();
        self.tripped = counts.gone >= ENOUGH_GONE && counts.gone * 2 > counts.all;
        counts
    }

    fn sweep(&mut self, tick: u64) {
        self.tick = tick;
        self.verdicts
            .retain(|_, verdict| u64::from(verdict.tick) + WINDOW_TICKS >= tick);
        self.gone = self
            .verdicts
            .values()
            .filter(|verdict| verdict.gone)
            .count();
        // Gives memory back after a busy hour, without doing so at every sweep.
        if self.verdicts.capacity() > 4 * self.verdicts.len().max(1024) {
            self.verdicts.shrink_to(2 * self.verdicts.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn window() -> (Window, Instant) {
        let start = Instant::now();
        (Window::new(start, 1000), start)
    }

    /// Notes tokens `from..to` and says whether the last one left the guard tripped.
    fn note(window: &mut Window, tokens: std::ops::Range<u64>, gone: bool, now: Instant) -> bool {
        for token in tokens {
            window.note(token, gone, now);
        }
        window.tripped
    }

    #[test]
    fn trips_at_the_twentieth_if_more_than_half_are_gone() {
        let cases = [
            // sent, gone, tripped
            (0, 19, false),
            (0, 20, true),
            (1, 19, false),
            (19, 20, true),
            (20, 20, false),
            (20, 21, true),
            (500, 400, false),
        ];
        for (sent, gone, tripped) in cases {
            let (mut window, now) = window();
            note(&mut window, 0..sent, false, now);
            assert_eq!(
                note(&mut window, 500..500 + gone, true, now),
                tripped,
                "{sent} {gone}"
            );
        }
    }

    #[test]
    fn the_verdict_that_makes_it_twenty_is_withheld_already() {
        let now = Instant::now();
        let guard = MassGuard::new(now);
        let believed = |n: u32| guard.may_reject("app", &format!("k{n}"), now);
        assert!((0..19).all(believed));
        assert!(!believed(19));
        assert!(!believed(0), "and so is every other from then on");
        for n in 0..20 {
            guard.sent("app", &format!("alive{n}"), now);
        }
        assert!(
            guard.may_reject("app", "k0", now),
            "half is not more than half"
        );
    }

    #[test]
    fn a_token_counts_once_with_its_last_verdict() {
        let (mut window, now) = window();
        for _ in 0..100 {
            note(&mut window, 1..2, true, now);
        }
        assert!(!window.tripped);
        assert!(note(&mut window, 0..30, true, now));
        assert!(
            !note(&mut window, 0..15, false, now),
            "15 of 30 have come back"
        );
        let counts = window.note(0, false, now);
        assert_eq!(counts, Counts { gone: 15, all: 30 });
    }

    #[test]
    fn verdicts_are_forgotten_after_ten_minutes() {
        let (mut window, start) = window();
        assert!(note(&mut window, 0..30, true, start));
        assert!(note(&mut window, 30..31, true, start + 10 * MINUTE));
        let counts = window.note(31, true, start + 10 * MINUTE + TICK);
        assert_eq!(counts, Counts { gone: 2, all: 2 });
        assert!(!window.tripped);
        window.note(1, false, start + 100 * MINUTE);
        assert_eq!((window.verdicts.len(), window.gone), (1, 0));
    }

    #[test]
    fn goes_on_while_the_retries_are_called_gone_too() {
        let (mut window, start) = window();
        for minute in 0..60 {
            let tripped = note(&mut window, 0..20, true, start + minute * MINUTE);
            assert!(tripped, "minute {minute}");
        }
    }

    #[test]
    fn is_bounded_and_weighs_what_it_cannot_keep() {
        let start = Instant::now();
        let mut window = Window::new(start, 100);
        note(&mut window, 0..50, false, start);
        note(&mut window, 50..1000, false, start);
        assert_eq!(window.verdicts.len(), 100);
        assert_eq!(window.note(2000, true, start), Counts { gone: 1, all: 101 });
        assert!(note(&mut window, 0..60, true, start));
        let later = start + 20 * MINUTE;
        window.note(1, false, later);
        assert_eq!(window.verdicts.len(), 1);
    }

    #[test]
    fn a_clock_that_stands_or_steps_back_does_no_harm() {
        let (mut window, start) = window();
        let later = start + MINUTE;
        window.note(1, true, later);
        assert_eq!(window.note(2, true, start), Counts { gone: 2, all: 2 });
    }
}
