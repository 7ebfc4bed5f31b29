//! Remembers the phones whose unchanged report we answered a moment ago. Such a report writes nothing, so the database
//! cannot say that it came while PNM called the phone's token gone.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::notify::delivery::TIME_FOR_A_REQUEST;

/// How long a report is remembered at least: as long as a push may take, and a little.
const REMEMBERED: Duration = Duration::from_secs(20);
const _: () = assert!(REMEMBERED.as_secs() > TIME_FOR_A_REQUEST.as_secs());
/// The most phones of one generation, some 3 MB. Beyond that, the generation before is forgotten early.
const MOST: usize = 100_000;

/// The rows of these phones, and when they last reported.
#[derive(Debug)]
pub(crate) struct Repeats(Mutex<Generations>);

#[derive(Debug)]
struct Generations {
    current: HashMap<i64, Instant>,
    begun: Instant,
    previous: HashMap<i64, Instant>,
}

impl Repeats {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Generations {
            current: HashMap::new(),
            begun: now,
            previous: HashMap::new(),
        }))
    }

    /// Notes that the phone with this row reported, and that its row stayed as it was.
    pub(crate) fn note(&self, row: i64, now: Instant) {
        let mut generations = self.lock();
        let Generations {
            current,
            begun,
            previous,
        } = &mut *generations;
        if now.saturating_duration_since(*begun) >= REMEMBERED || current.len() >= MOST {
            *previous = mem::take(current);
            *begun = now;
        }
        current.insert(row, now);
    }

    /// Whether the phone with this row has reported since then.
    pub(crate) fn reported_since(&self, row: i64, then: Instant) -> bool {
        let generations = self.lock();
        let found = generations.current.get(&row);
        let found = found.or_else(|| generations.previous.get(&row));
        found.is_some_and(|at| *at >= then)
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_for_what_began_before_it() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let repeats = Repeats::new(start);
        repeats.note(7, at(5));
        assert!(repeats.reported_since(7, at(4)));
        assert!(!repeats.reported_since(7, at(6)), "PNM was asked later");
        assert!(!repeats.reported_since(8, at(4)), "another phone");
        // A generation later.
        repeats.note(8, at(24));
        assert!(repeats.reported_since(7, at(4)));
        repeats.note(7, at(25));
        assert!(repeats.reported_since(7, at(24)), "the later report counts");
        for later in [50, 80] {
            repeats.note(9, at(later));
        }
        assert!(!repeats.reported_since(7, at(4)));
    }

    #[test]
    fn only_so_many_phones_are_remembered() {
        let start = Instant::now();
        let repeats = Repeats::new(start);
        let most = i64::try_from(MOST).unwrap();
        for row in 0..3 * most {
            repeats.note(row, start);
        }
        let generations = repeats.lock();
        assert_eq!(
            (generations.current.len(), generations.previous.len()),
            (MOST, MOST)
        );
        drop(generations);
        assert!(repeats.reported_since(3 * most - 1, start));
        assert!(!repeats.reported_since(0, start));
    }
}
