//! A bucket that events fill and time empties: some at once, then one whenever a share of time has passed. Pure.

use std::time::{Duration, Instant};

/// How many events fit at once, and how soon there is room for another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) at_once: u32,
    pub(crate) one_per: Duration,
}

/// When the bucket will be empty again. An empty one need not be kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket(Instant);

impl Bucket {
    /// An empty one.
    pub(crate) fn new(now: Instant) -> Self {
        Self(now)
    }

    /// How long the next event has to wait for room.
    pub(crate) fn wait(self, rate: Rate, now: Instant) -> Option<Duration> {
        let filled = self.0.saturating_duration_since(now) + rate.one_per;
        let wait = filled.saturating_sub(rate.one_per * rate.at_once);
        (!wait.is_zero()).then_some(wait)
    }

    /// Puts an event in.
    pub(crate) fn fill(&mut self, rate: Rate, now: Instant) {
        self.0 = self.0.max(now) + rate.one_per;
    }

    pub(crate) fn is_empty(self, now: Instant) -> bool {
        self.0 <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_at_once_and_then_one_whenever_a_share_has_passed() {
        let rate = Rate {
            at_once: 3,
            one_per: Duration::from_secs(2),
        };
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        for _ in 0..3 {
            assert_eq!(bucket.wait(rate, now), None);
            bucket.fill(rate, now);
        }
        let seconds = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(bucket.wait(rate, now), Some(Duration::from_secs(2)));
        assert_eq!(bucket.wait(rate, seconds(1)), Some(Duration::from_secs(1)));
        assert_eq!(bucket.wait(rate, seconds(2)), None);
        bucket.fill(rate, seconds(2));
        assert_eq!(bucket.wait(rate, seconds(2)), Some(Duration::from_secs(2)));
        assert!(!bucket.is_empty(seconds(7)) && bucket.is_empty(seconds(8)));
    }
}
