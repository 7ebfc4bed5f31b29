//! Log lines that strangers can bring about: at most one a minute, with the number of those that were left out.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const PAUSE: Duration = Duration::from_mins(1);

/// Says when it is time for another line. The lines in between are for `DEBUG`.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    times: u64,
}

impl Seldom {
    /// For a static.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State {
            last: None,
            times: 0,
        }))
    }

    /// Notes that it happened. If a line is due, how often it happened since the last one, this time included.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.times += 1;
        let recent = |last| now.saturating_duration_since(last) < PAUSE;
        if state.last.is_some_and(recent) {
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_with_the_number_of_all() {
        let seldom = Seldom::default();
        let start = Instant::now();
        assert_eq!(seldom.due(start), Some(1));
        for second in 1..60 {
            assert_eq!(seldom.due(start + Duration::from_secs(second)), None);
        }
        assert_eq!(seldom.due(start + PAUSE), Some(60));
        assert_eq!(seldom.due(start + PAUSE), None);
    }
}
