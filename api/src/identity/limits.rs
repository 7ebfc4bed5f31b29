//! Limits on failed logins: per user name at an address, per user name, per address, and per network around it.
//!
//! Logins under way count as if they will fail. A login that only these keep out waits for them and is not refused, so
//! that an office whose phones all start at nine can log in. After a good login, only the first limit applies to that
//! user at that address. So a stranger's failures, with the same name or from the same address, do not lock the user
//! out.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::futures::Notified;

use crate::{
    http::peers::{network, wider},
    keyed_hash::Hashed,
    limiter::{self, Limit, Limiter, Rate},
};

pub(super) use crate::limiter::Admission;

/// The time in which the failures below may happen. A full bucket lets one login through whenever its share of this
/// time has passed.
const WINDOW: Duration = Duration::from_mins(1);
/// Failed logins per [`WINDOW`] for one user name from one address.
const PER_USER_AND_ADDRESS: u32 = 5;
/// Failed logins per [`WINDOW`] for one user name from all addresses.
const PER_USER: u32 = 20;
/// Failed logins per [`WINDOW`] from one address (IPv6: one /64, which is what a customer has).
const PER_ADDRESS: u32 = 20;
/// Failed logins per [`WINDOW`] from the network around it.
const PER_NETWORK: u32 = 100;

/// The most pairs of user name and address that are remembered after a good login.
const MAX_KNOWN: u64 = 10_000;
/// How long such a pair is remembered after its last login.
const KNOWN_FOR: Duration = Duration::from_hours(30 * 24);

/// The failures, and the known users.
#[derive(Debug)]
pub(super) struct Limits {
    limiter: Arc<Limiter>,
    known: moka::sync::Cache<Hashed, ()>,
}

/// A login under way. It does not count if it is dropped without a result.
#[derive(Debug)]
pub(super) struct Attempt {
    limits: Arc<Limits>,
    /// Stands for the user at this address.
    user_here: Hashed,
    under_way: limiter::Attempt,
}

impl Limits {
    pub(super) fn new() -> Self {
        let known = moka::sync::Cache::builder()
            .max_capacity(MAX_KNOWN)
            .time_to_idle(KNOWN_FOR)
            .build();
        Self {
            limiter: Arc::new(Limiter::new()),
            known,
        }
    }

    /// Whether a login with this name from this address may be tried.
    pub(super) fn admit(
        self: &Arc<Self>,
        name: &str,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Admission<Attempt> {
        let limits = self.of(name, address);
        let user_here = limits[0].key;
        // For known users, only the first limit applies.
        let known = self.known.contains_key(&user_here);
        let checked = if known { 1 } else { limits.len() };
        match self.limiter.begin(limits, checked, now) {
            Admission::Go(under_way) => Admission::Go(Attempt {
                limits: self.clone(),
                user_here,
                under_way,
            }),
            Admission::Wait => Admission::Wait,
            Admission::Limited(wait) => Admission::Limited(wait),
        }
    }

    /// Completes when a login under way ends. Get and enable it before calling [`Limits::admit`].
    pub(super) fn change(&self) -> Notified<'_> {
        self.limiter.change()
    }

    fn of(&self, name: &str, address: Option<IpAddr>) -> Vec<Limit> {
        let name = spelling(name);
        let (here, around) = (address.map_or(0, network), address.and_then(wider));
        let limit = |kind: &[u8], name: &str, network: u128, most| Limit {
            key: self
                .limiter
                .key([kind, name.as_bytes(), &network.to_be_bytes()]),
            rate: Rate::most(most, WINDOW),
        };
        let around = around.map(|around| limit(b"network", "", around, PER_NETWORK));
        let mut limits = vec![
            limit(b"both", &name, here, PER_USER_AND_ADDRESS),
            limit(b"name", &name, 0, PER_USER),
            limit(b"address", "", here, PER_ADDRESS),
        ];
        limits.extend(around);
        limits
    }
}

impl Attempt {
    /// The login was good, so the user is known at this address from now on.
    pub(super) fn succeeded(self) {
        self.limits.known.insert(self.user_here, ());
    }

    /// The login was refused.
    pub(super) fn failed(self, now: Instant) {
        self.under_way.count(now);
    }
}

/// A common form for all spellings of a name. `Bob`, `bob@example.org` and `@bob:example.org` are one user, and must
/// not get three times the guesses.
fn spelling(name: &str) -> String {
    let bare = name.trim().trim_start_matches('@');
    bare.split(['@', ':'])
        .next()
        .unwrap_or_default()
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        limits: Arc<Limits>,
        start: Instant,
    }

    #[derive(Debug, PartialEq)]
    enum Seen {
        Go,
        Wait,
        Limited(u64),
    }

    impl Bench {
        fn new() -> Self {
            Self {
                limits: Arc::new(Limits::new()),
                start: Instant::now(),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn admit(&self, name: &str, address: &str, seconds: u64) -> Admission<Attempt> {
            let address = Some(address.parse().unwrap());
            self.limits.admit(name, address, self.at(seconds))
        }

        fn go(&self, name: &str, address: &str, seconds: u64) -> Attempt {
            match self.admit(name, address, seconds) {
                Admission::Go(attempt) => attempt,
                other => panic!("{other:?}"),
            }
        }

        /// Tries without counting.
        fn see(&self, name: &str, address: &str, seconds: u64) -> Seen {
            match self.admit(name, address, seconds) {
                Admission::Go(_) => Seen::Go,
                Admission::Wait => Seen::Wait,
                Admission::Limited(time) => Seen::Limited(time.as_secs()),
            }
        }

        fn fail(&self, name: &str, address: &str, seconds: u64) {
            self.go(name, address, seconds).failed(self.at(seconds));
        }
    }

    #[test]
    fn five_failures_a_minute_for_a_name_at_an_address() {
        let bench = Bench::new();
        for _ in 0..5 {
            bench.fail("bob", "192.0.2.1", 0);
        }
        assert_eq!(bench.see("bob", "192.0.2.1", 0), Seen::Limited(12));
        assert_eq!(bench.see("bob", "192.0.2.1", 11), Seen::Limited(1));
        // Other users, and the same user from elsewhere, can still log in.
        assert_eq!(bench.see("alice", "192.0.2.1", 0), Seen::Go);
        assert_eq!(bench.see("bob", "192.0.2.2", 0), Seen::Go);
        bench.fail("bob", "192.0.2.1", 12);
        assert_eq!(bench.see("bob", "192.0.2.1", 12), Seen::Limited(12));
        for _ in 0..5 {
            bench.fail("bob", "192.0.2.1", 72);
        }
    }

    #[test]
    fn what_is_not_refused_counts_for_nothing() {
        let bench = Bench::new();
        for _ in 0..50 {
            drop(bench.go("bob", "192.0.2.1", 0));
            bench.go("bob", "192.0.2.1", 0).succeeded();
        }
        assert_eq!(bench.see("bob", "192.0.2.1", 0), Seen::Go);
    }

    #[test]
    fn twenty_a_minute_for_a_name_and_its_owner_goes_on() {
        let bench = Bench::new();
        bench.go("bob", "192.0.2.99", 0).succeeded();
        for number in 0..20 {
            bench.fail("bob", &format!("198.51.100.{number}"), 0);
        }
        assert_eq!(bench.see("bob", "198.51.100.77", 0), Seen::Limited(3));
        assert_eq!(
            bench.see("BOB@example.org", "198.51.100.77", 0),
            Seen::Limited(3)
        );
        assert_eq!(bench.see("bob", "192.0.2.99", 0), Seen::Go);
        // The owner's own failures are limited as well.
        for _ in 0..5 {
            bench.fail("bob", "192.0.2.99", 0);
        }
        assert_eq!(bench.see("bob", "192.0.2.99", 0), Seen::Limited(12));
    }

    #[test]
    fn twenty_a_minute_for_an_address() {
        let bench = Bench::new();
        bench.go("alice", "2001:db8:0:1::1", 0).succeeded();
        for number in 0..20 {
            bench.fail(
                &format!("user{number}"),
                &format!("2001:db8:0:1::{number}"),
                0,
            );
        }
        assert_eq!(
            bench.see("bob", "2001:db8:0:1:ffff::1", 0),
            Seen::Limited(3)
        );
        assert_eq!(bench.see("bob", "2001:db8:0:2::1", 0), Seen::Go);
        assert_eq!(bench.see("alice", "2001:db8:0:1::1", 0), Seen::Go);
        assert_eq!(bench.see("bob", "2001:db8:0:1:ffff::1", 3), Seen::Go);
    }

    #[test]
    fn guesses_at_once_wait_for_each_other() {
        let bench = Bench::new();
        let mut attempts: Vec<_> = (0..5).map(|_| bench.go("bob", "192.0.2.1", 0)).collect();
        assert_eq!(bench.see("bob", "192.0.2.1", 0), Seen::Wait);
        drop(attempts.pop());
        assert_eq!(bench.see("bob", "192.0.2.1", 0), Seen::Go);
        for attempt in attempts {
            attempt.failed(bench.at(0));
        }
        bench.fail("bob", "192.0.2.1", 0);
        assert_eq!(bench.see("bob", "192.0.2.1", 0), Seen::Limited(12));
    }

    #[test]
    fn a_hundred_a_minute_for_the_network_around_an_address() {
        for (addresses, inside, outside) in [
            ("198.51.100.", "198.51.100.77", "198.51.101.1"),
            ("2001:db8:0:", "2001:db8:0:ffff::1", "2001:db8:1::1"),
        ] {
            let bench = Bench::new();
            bench.go("alice", inside, 0).succeeded();
            for number in 0..100 {
                let end = if addresses.contains(':') { "::1" } else { "" };
                let address = format!("{addresses}{number}{end}");
                bench.fail(&format!("user{number}"), &address, 0);
            }
            assert_eq!(bench.see("bob", inside, 0), Seen::Limited(0), "{inside}");
            assert_eq!(bench.see("alice", inside, 0), Seen::Go);
            assert_eq!(bench.see("bob", outside, 0), Seen::Go);
            assert_eq!(bench.see("bob", inside, 1), Seen::Go);
        }
    }

    #[test]
    fn one_user_has_one_spelling() {
        for name in [
            "bob",
            "BOB",
            " Bob ",
            "bob@example.org",
            "@bob:example.org",
            "@Bob",
        ] {
            assert_eq!(spelling(name), "bob", "{name}");
        }
        assert_eq!(spelling(""), "");
    }
}
