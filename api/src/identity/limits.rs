//! Limits on failed logins: per user name at an address, per user name, and per address.
//!
//! Each is a bucket that failures fill and time empties. Logins under way count as if they will fail, so that
//! a thousand guesses at once are no way around; whom only these keep out waits for them instead of being
//! refused, so that an office whose phones all start at nine is not. Who logs in well once from an address is
//! then held there to the first limit alone: a stranger's failures, under the same name or from the same
//! address, do not lock him out.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, futures::Notified};

use crate::{
    http::peers::network,
    keyed_hash::{Hashed, KeyedHash},
};

/// The time in which the failures below may happen; a full bucket lets one login through whenever its share
/// of this has passed.
const WINDOW: Duration = Duration::from_mins(1);
/// Failed logins per [`WINDOW`] for one user name from one address.
const PER_USER_AND_ADDRESS: u32 = 5;
/// Failed logins per [`WINDOW`] for one user name from all addresses.
const PER_USER: u32 = 20;
/// Failed logins per [`WINDOW`] from one address (IPv6: one /64, which is what a customer has).
const PER_ADDRESS: u32 = 20;
const MOST: [u32; 3] = [PER_USER_AND_ADDRESS, PER_USER, PER_ADDRESS];

/// Most buckets kept, about 4 MiB; beyond that the emptiest go.
const MAX_BUCKETS: usize = 50_000;
/// Most pairs of user name and address remembered as having logged in well.
const MAX_KNOWN: u64 = 10_000;
/// For how long after the last time.
const KNOWN_FOR: Duration = Duration::from_hours(30 * 24);

/// The buckets. They hold keyed hashes, no names.
#[derive(Debug)]
pub(super) struct Limits {
    hash: KeyedHash,
    buckets: Mutex<HashMap<Hashed, Bucket>>,
    known: moka::sync::Cache<Hashed, ()>,
    ended: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// When its failures are forgotten; each adds its share of the window.
    clear_at: Instant,
    under_way: u32,
}

/// Whether a login may be tried.
#[derive(Debug)]
pub(super) enum Admission {
    /// Yes.
    Go(Attempt),
    /// Once logins under way have ended, which [`Limits::change`] tells.
    Wait,
    /// Not before that time has passed.
    Limited(Duration),
}

/// A login under way. Dropped without a word it counts for nothing.
#[derive(Debug)]
pub(super) struct Attempt {
    limits: Arc<Limits>,
    keys: [Hashed; 3],
}

impl Limits {
    pub(super) fn new() -> Self {
        let known = moka::sync::Cache::builder()
            .max_capacity(MAX_KNOWN)
            .time_to_idle(KNOWN_FOR)
            .build();
        Self {
            hash: KeyedHash::random(),
            buckets: Mutex::default(),
            known,
            ended: Notify::new(),
        }
    }

    /// Whether a login under this name from this address may be tried.
    pub(super) fn admit(
        self: &Arc<Self>,
        name: &str,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Admission {
        let keys = self.keys(name, address);
        // The first limit alone for those who are known.
        let checked = if self.known.contains_key(&keys[0]) {
            1
        } else {
            keys.len()
        };
        let mut buckets = self.lock();
        let checks = keys.iter().zip(MOST).take(checked);
        let (mut limited, mut wait) = (None, false);
        for bucket in checks.filter_map(|(key, most)| Some((buckets.get(key)?, most))) {
            match bucket.0.room(bucket.1, now) {
                Room::Free => {}
                Room::Taken => wait = true,
                Room::None(time) => limited = limited.max(Some(time)),
            }
        }
        if let Some(time) = limited {
            return Admission::Limited(time);
        }
        if wait {
            return Admission::Wait;
        }
        make_room(&mut buckets, now, MAX_BUCKETS);
        for key in keys {
            let fresh = Bucket {
                clear_at: now,
                under_way: 0,
            };
            buckets.entry(key).or_insert(fresh).under_way += 1;
        }
        let limits = self.clone();
        Admission::Go(Attempt { limits, keys })
    }

    /// Comes true when a login under way ends. Ask for it, enable it, then [`Limits::admit`].
    pub(super) fn change(&self) -> Notified<'_> {
        self.ended.notified()
    }

    fn keys(&self, name: &str, address: Option<IpAddr>) -> [Hashed; 3] {
        let (name, network) = (spelling(name), address.map_or(0, network).to_be_bytes());
        let key = |kind: &[u8], name: &[u8], network: &[u8]| self.hash.of([kind, name, network]);
        [
            key(b"both", name.as_bytes(), &network),
            key(b"name", name.as_bytes(), &[]),
            key(b"address", &[], &network),
        ]
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Hashed, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Room {
    Free,
    /// For now by logins under way.
    Taken,
    /// For this long.
    None(Duration),
}

impl Bucket {
    fn room(&self, most: u32, now: Instant) -> Room {
        let share = WINDOW / most;
        let filled = self.clear_at.saturating_duration_since(now) + share;
        if filled > WINDOW {
            Room::None(filled.saturating_sub(WINDOW))
        } else if filled + share * self.under_way > WINDOW {
            Room::Taken
        } else {
            Room::Free
        }
    }
}

impl Attempt {
    /// The login was good: its user is known at its address from now on.
    pub(super) fn succeeded(self) {
        self.limits.known.insert(self.keys[0], ());
    }

    /// The login was refused.
    pub(super) fn failed(self, now: Instant) {
        let mut buckets = self.limits.lock();
        for (key, most) in self.keys.iter().zip(MOST) {
            if let Some(bucket) = buckets.get_mut(key) {
                bucket.clear_at = bucket.clear_at.max(now) + WINDOW / most;
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut buckets = self.limits.lock();
        for key in &self.keys {
            if let Some(bucket) = buckets.get_mut(key) {
                bucket.under_way = bucket.under_way.saturating_sub(1);
            }
        }
        drop(buckets);
        self.limits.ended.notify_waiters();
    }
}

/// Throws out empty buckets once there are `most`, and if that is not enough the emptier half.
fn make_room<K: Eq + Hash>(buckets: &mut HashMap<K, Bucket>, now: Instant, most: usize) {
    if buckets.len() < most {
        return;
    }
    buckets.retain(|_, bucket| bucket.under_way > 0 || bucket.clear_at > now);
    if buckets.len() < most / 2 {
        return;
    }
    let mut times: Vec<_> = buckets.values().map(|bucket| bucket.clear_at).collect();
    let middle = times.len() / 2;
    let median = *times.select_nth_unstable(middle).1;
    buckets.retain(|_, bucket| bucket.under_way > 0 || bucket.clear_at > median);
}

/// The name as all its spellings have it: `Bob`, `bob@example.org` and `@bob:example.org` are one user, who
/// must not have three times the guesses.
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

        fn admit(&self, name: &str, address: &str, seconds: u64) -> Admission {
            let address = Some(address.parse().unwrap());
            self.limits.admit(name, address, self.at(seconds))
        }

        fn go(&self, name: &str, address: &str, seconds: u64) -> Attempt {
            match self.admit(name, address, seconds) {
                Admission::Go(attempt) => attempt,
                other => panic!("{other:?}"),
            }
        }

        /// Tries, and counts nothing.
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
        // Others, and he from elsewhere, go on.
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
        // But not without end.
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

    #[tokio::test]
    async fn who_waits_is_told() {
        let bench = Bench::new();
        let attempt = bench.go("bob", "192.0.2.1", 0);
        let change = bench.limits.change();
        tokio::pin!(change);
        change.as_mut().enable();
        attempt.failed(bench.at(0));
        change.await;
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_fullest() {
        let now = Instant::now();
        let bucket = |seconds| Bucket {
            clear_at: now + Duration::from_secs(seconds),
            under_way: 0,
        };
        let mut buckets: HashMap<_, _> = (0..100).map(|n| (n, bucket(n))).collect();
        make_room(&mut buckets, now, 101);
        assert_eq!(buckets.len(), 100);
        buckets.insert(
            0,
            Bucket {
                under_way: 1,
                ..bucket(0)
            },
        );
        make_room(&mut buckets, now, 100);
        assert_eq!(buckets.len(), 50);
        assert!(buckets.contains_key(&0) && buckets.contains_key(&99));
        assert!(!buckets.contains_key(&20));
        // All equally full.
        let mut buckets: HashMap<_, _> = (0..100).map(|n| (n, bucket(1))).collect();
        make_room(&mut buckets, now, 100);
        assert!(buckets.len() < 100);
        // Time empties them.
        let mut buckets: HashMap<_, _> = (0..100).map(|n| (n, bucket(1))).collect();
        make_room(&mut buckets, now + Duration::from_secs(1), 100);
        assert!(buckets.is_empty());
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
