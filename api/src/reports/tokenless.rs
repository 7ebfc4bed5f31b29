//! The last reports without a token. Their field names show what an operator mistyped in a template.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use matrix2acrobits_shared::clock::Clock;

/// How many reports are remembered.
const REMEMBERED: usize = 10;

/// Remembers when these reports came and which fields they had, but no values.
#[derive(Debug)]
pub(crate) struct Tokenless {
    clock: Clock,
    kept: Mutex<VecDeque<(i64, Vec<String>)>>,
}

impl Tokenless {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            kept: Mutex::new(VecDeque::with_capacity(REMEMBERED)),
        }
    }

    pub(crate) fn note(&self, names: Vec<String>) {
        let now = self.clock.unix();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == REMEMBERED {
            kept.pop_front();
        }
        kept.push_back((now, names));
    }

    /// The seconds that have passed since each report, and the names of its fields, the latest first.
    pub(crate) fn last(&self) -> Vec<(i64, Vec<String>)> {
        let now = self.clock.unix();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let last = kept.iter().rev();
        last.map(|(at, names)| ((now - at).max(0), names.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_few_are_remembered() {
        let clock = Clock::manual(1_000);
        let reports = Tokenless::new(clock.clone());
        assert!(reports.last().is_empty());
        for number in 0..100 {
            clock.set(1_000 + number);
            reports.note(vec![format!("field{number}")]);
        }
        clock.set(1_101);
        let last = reports.last();
        assert_eq!(last.len(), REMEMBERED);
        assert_eq!(last[0], (2, vec!["field99".to_owned()]));
    }
}
