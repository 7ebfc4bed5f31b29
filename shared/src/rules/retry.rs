//! How long to wait after a failed attempt. Only this module uses the `backoff` crate, which is unmaintained. To
//! replace the crate, replace the body of [`RetryPolicy::delay`].

use std::time::Duration;

use backoff::{ExponentialBackoffBuilder, backoff::Backoff};

/// Largest jitter, as a fraction of the step: a delay is the step plus up to this much.
const JITTER: f64 = 0.25;

/// Exponential delays with a cap and jitter.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Delay after the first failure.
    pub initial: Duration,
    /// The longest step, to which jitter is added.
    pub max: Duration,
    /// Each step is this many times the previous one. At least 1.
    pub multiplier: f64,
}

impl RetryPolicy {
    /// The delay after the `failures`-th failure in a row, counted from 1.
    pub fn delay(&self, failures: u32) -> Duration {
        let step = self.step(failures);
        // The crate spreads delays around its interval. For jitter to only add, the interval is the middle of [step,
        // step * (1 + JITTER)].
        let middle = step.mul_f64(1.0 + JITTER / 2.0);
        ExponentialBackoffBuilder::new()
            .with_initial_interval(middle)
            .with_max_interval(middle)
            .with_randomization_factor(JITTER / (2.0 + JITTER))
            .with_multiplier(1.0)
            .with_max_elapsed_time(None)
            .build()
            .next_backoff()
            .unwrap_or(step)
    }

    /// The longest possible delay.
    pub fn longest(&self) -> Duration {
        self.max.mul_f64(1.0 + JITTER)
    }

    /// The delay without its jitter.
    fn step(&self, failures: u32) -> Duration {
        // At this exponent the cap has long been reached, and larger powers only risk infinity.
        let exponent = i32::try_from(failures.saturating_sub(1))
            .unwrap_or(i32::MAX)
            .min(64);
        let factor = self.multiplier.max(1.0).powi(exponent);
        let seconds = (self.initial.as_secs_f64() * factor).min(self.max.as_secs_f64());
        Duration::from_secs_f64(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        initial: Duration::from_secs(1),
        max: Duration::from_mins(5),
        multiplier: 2.0,
    };

    #[test]
    fn grows_to_the_cap_and_jitter_only_adds() {
        for (failures, step) in [
            (1, 1),
            (2, 2),
            (3, 4),
            (9, 256),
            (10, 300),
            (11, 300),
            (u32::MAX, 300),
        ] {
            for _ in 0..200 {
                let delay = POLICY.delay(failures).as_secs_f64();
                let step = f64::from(step);
                assert!(
                    delay >= step - 1e-6 && delay <= step * 1.25 + 1e-6,
                    "{failures}: {delay}"
                );
            }
        }
    }

    #[test]
    fn jitter_spreads() {
        let delays: std::collections::BTreeSet<_> = (0..50).map(|_| POLICY.delay(5)).collect();
        assert!(delays.len() > 10);
    }

    #[test]
    fn zero_counts_as_the_first_failure_and_a_small_multiplier_never_shrinks() {
        let policy = RetryPolicy {
            multiplier: 0.1,
            ..POLICY
        };
        assert!(policy.delay(0) >= Duration::from_secs(1));
        assert!(policy.delay(5) >= Duration::from_secs(1));
    }
}
