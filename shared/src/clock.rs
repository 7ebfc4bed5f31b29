//! The time of day, as a value that is passed in, so that tests can set it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where a process takes the time of day from.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands at `seconds` since 1970 until [`Clock::set`] moves it.
    pub fn manual(seconds: i64) -> Self {
        Self(Some(Arc::new(AtomicI64::new(seconds))))
    }

    /// Moves a manual clock; the machine's clock stays as it is.
    pub fn set(&self, seconds: i64) {
        if let Some(manual) = &self.0 {
            manual.store(seconds, Ordering::SeqCst);
        }
    }

    /// Whole seconds since 1970.
    pub fn unix(&self) -> i64 {
        whole_seconds(self.since_1970())
    }

    /// Milliseconds since 1970.
    pub fn unix_millis(&self) -> u64 {
        u64::try_from(self.since_1970().as_millis()).unwrap_or(u64::MAX)
    }

    /// The first whole second that lies at least `wait` ahead.
    pub fn after(&self, wait: Duration) -> i64 {
        let then = self.since_1970() + wait;
        whole_seconds(then) + i64::from(then.subsec_nanos() > 0)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the machine"
    )]
    fn since_1970(&self) -> Duration {
        match &self.0 {
            Some(manual) => {
                Duration::from_secs(manual.load(Ordering::SeqCst).try_into().unwrap_or(0))
            }
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }
}

fn whole_seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_rounds_up() {
        let clock = Clock::manual(100);
        assert_eq!(clock.after(Duration::from_secs(2)), 102);
        assert_eq!(clock.after(Duration::from_millis(2001)), 103);
        clock.set(200);
        assert_eq!(clock.unix(), 200);
    }
}
