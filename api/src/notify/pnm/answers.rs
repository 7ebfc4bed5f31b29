//! PNM's answers since the start, for the status page: how many of each kind, and the last few.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use matrix2acrobits_shared::clock::Clock;

use super::outcome::Outcome;

/// How many are remembered one by one.
pub(crate) const REMEMBERED: usize = 10;

/// Counts and remembers; one short lock for each answer.
#[derive(Debug)]
pub(crate) struct Answers {
    clock: Clock,
    kept: Mutex<Kept>,
}

#[derive(Debug, Clone, Default)]
struct Kept {
    counts: [u64; Outcome::ALL.len()],
    last: VecDeque<(i64, Outcome)>,
}

/// What is known at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Summary {
    /// Outcomes that have occurred, and how often.
    pub(crate) counts: Vec<(Outcome, u64)>,
    /// The last few with the seconds that have passed since, the latest first.
    pub(crate) last: Vec<(i64, Outcome)>,
}

impl Answers {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            kept: Mutex::new(Kept {
                last: VecDeque::with_capacity(REMEMBERED),
                ..Kept::default()
            }),
        }
    }

    pub(crate) fn note(&self, outcome: Outcome) {
        let now = self.clock.unix();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = Outcome::ALL.iter().position(|of| *of == outcome) {
            kept.counts[index] += 1;
        }
        if kept.last.len() == REMEMBERED {
            kept.last.pop_front();
        }
        kept.last.push_back((now, outcome));
    }

    pub(crate) fn summary(&self) -> Summary {
        let now = self.clock.unix();
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let counts = Outcome::ALL.into_iter().zip(kept.counts);
        let last = kept.last.into_iter().rev();
        Summary {
            counts: counts.filter(|(_, count)| *count > 0).collect(),
            last: last.map(|(at, of)| ((now - at).max(0), of)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::pnm::outcome::Trouble;

    #[test]
    fn counts_all_and_remembers_a_few() {
        let clock = Clock::manual(1_000);
        let answers = Answers::new(clock.clone());
        assert!(answers.summary().counts.is_empty());
        for second in 0..100 {
            clock.set(1_000 + second);
            answers.note(Outcome::Sent);
        }
        let timeout = Outcome::Trouble(Trouble::Timeout);
        answers.note(timeout);
        clock.set(1_102);
        let summary = answers.summary();
        assert_eq!(summary.counts, [(Outcome::Sent, 100), (timeout, 1)]);
        assert_eq!(summary.last.len(), REMEMBERED);
        assert_eq!(summary.last[..2], [(3, timeout), (3, Outcome::Sent)]);
    }
}
