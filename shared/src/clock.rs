//! The time of day, as a value that is passed in, so that tests can set it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where a process takes the time of day from. All clones show the same time.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    /// The machine's clock, plus how many milliseconds the server that we follow is ahead of it.
    Machine(Arc<AtomicI64>),
    /// Seconds since 1970.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::Machine(Arc::default()))
    }

    /// A clock that stands at `seconds` since 1970 until [`Clock::set`] moves it.
    pub fn manual(seconds: i64) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(seconds))))
    }

    /// Moves a manual clock. The machine's clock stays as it is.
    pub fn set(&self, seconds: i64) {
        if let Source::Manual(manual) = &self.0 {
            manual.store(seconds, Ordering::SeqCst);
        }
    }

    /// Follows a server's clock from now on, so that processes on several machines have the same time. `server_ms` is
    /// the server's time in milliseconds since 1970. A manual clock stays as it is.
    pub fn follow(&self, server_ms: i64) {
        if let Source::Machine(ahead) = &self.0 {
            let ours = i64::try_from(machine().as_millis()).unwrap_or(i64::MAX);
            ahead.store(server_ms.saturating_sub(ours), Ordering::SeqCst);
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

    fn since_1970(&self) -> Duration {
        match &self.0 {
            Source::Manual(seconds) => {
                Duration::from_secs(seconds.load(Ordering::SeqCst).try_into().unwrap_or(0))
            }
            Source::Machine(ahead) => {
                let ahead = ahead.load(Ordering::SeqCst);
                let by = Duration::from_millis(ahead.unsigned_abs());
                if ahead < 0 {
                    machine().saturating_sub(by)
                } else {
                    machine().saturating_add(by)
                }
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that asks the machine"
)]
fn machine() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
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

    #[test]
    fn a_servers_clock_is_followed_by_all_clones() {
        let clock = Clock::system();
        let clone = clock.clone();
        for server in [1_000_000, 4_000_000_000_000] {
            clock.follow(server);
            let off = clone.unix_millis().abs_diff(server.unsigned_abs());
            assert!(off < 1000, "{off}");
        }
        let manual = Clock::manual(100);
        manual.follow(1_000_000);
        assert_eq!(manual.unix(), 100);
    }
}
