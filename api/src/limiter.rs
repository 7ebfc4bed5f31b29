//! The api's limiter, for logins, new selectors and notifications without our mark. Each key has a bucket, which events
//! fill and time empties. The memory is bounded, and attempts under way are taken into account.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, futures::Notified};

use crate::keyed_hash::{Hashed, HashedMap, KeyedHash};

/// The most buckets of a limiter, about 4 MiB. Beyond that, the emptiest are dropped.
const MOST: usize = 50_000;

/// How many events fit at once, and how soon there is room for another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) at_once: u32,
    pub(crate) one_per: Duration,
}

impl Rate {
    /// At most this many events in this time, even all at once.
    pub(crate) fn most(at_once: u32, window: Duration) -> Self {
        let one_per = window / at_once.max(1);
        Self { at_once, one_per }
    }

    /// A rate that is this many times as high.
    pub(crate) fn times(self, number: u32) -> Self {
        Self {
            at_once: self.at_once.saturating_mul(number),
            one_per: self.one_per / number.max(1),
        }
    }
}

/// A bucket, and how it fills.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) key: Hashed,
    pub(crate) rate: Rate,
}

/// The buckets. They store keyed hashes and no names.
#[derive(Debug)]
pub(crate) struct Limiter {
    hash: KeyedHash,
    buckets: Mutex<HashedMap<Hashed, Bucket>>,
    most: usize,
    ended: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// When the bucket will be empty. Each event adds its share.
    empty_at: Instant,
    /// Attempts that may still fill it.
    under_way: u32,
}

/// Whether something may be tried.
#[derive(Debug)]
pub(crate) enum Admission<A> {
    /// Yes.
    Go(A),
    /// Not until attempts under way have ended: see [`Limiter::change`].
    Wait,
    /// Not before this time has passed.
    Limited(Duration),
}

/// An attempt under way. It does not count if it is dropped without a result.
#[derive(Debug)]
pub(crate) struct Attempt {
    limiter: Arc<Limiter>,
    limits: Vec<Limit>,
}

impl Limiter {
    pub(crate) fn new() -> Self {
        Self::with(MOST)
    }

    fn with(most: usize) -> Self {
        Self {
            hash: KeyedHash::random(),
            buckets: Mutex::default(),
            most,
            ended: Notify::new(),
        }
    }

    /// The key of a bucket.
    pub(crate) fn key<const N: usize>(&self, parts: [&[u8]; N]) -> Hashed {
        self.hash.of(parts)
    }

    /// How long to wait until there is room for an event in all of these buckets.
    pub(crate) fn wait(&self, limits: &[Limit], now: Instant) -> Option<Duration> {
        longest(&self.lock(), limits, now)
    }

    /// Puts an event into all of these buckets. If one is full, puts it into none, and `Err` says how long to wait.
    pub(crate) fn take(&self, limits: &[Limit], now: Instant) -> Result<(), Duration> {
        let mut buckets = self.lock();
        if let Some(wait) = longest(&buckets, limits, now) {
            return Err(wait);
        }
        self.put(&mut buckets, limits, now);
        Ok(())
    }

    /// Puts an event that has happened into all of these buckets.
    pub(crate) fn fill(&self, limits: &[Limit], now: Instant) {
        self.put(&mut self.lock(), limits, now);
    }

    /// Asks to try something that may fill `limits`. The first `checked` of them need room. Attempts under way count as
    /// if they will fill the buckets, so that a thousand attempts at once cannot get around the limits.
    pub(crate) fn begin(
        self: &Arc<Self>,
        limits: Vec<Limit>,
        checked: usize,
        now: Instant,
    ) -> Admission<Attempt> {
        let mut buckets = self.lock();
        let checks = &limits[..checked.min(limits.len())];
        if let Some(wait) = longest(&buckets, checks, now) {
            return Admission::Limited(wait);
        }
        let taken = |limit: &Limit| {
            let bucket = buckets.get(&limit.key);
            bucket.is_some_and(|bucket| bucket.is_taken(limit.rate, now))
        };
        if checks.iter().any(taken) {
            return Admission::Wait;
        }
        self.make_room(&mut buckets, now);
        for limit in &limits {
            buckets
                .entry(limit.key)
                .or_insert(Bucket::new(now))
                .under_way += 1;
        }
        let limiter = self.clone();
        Admission::Go(Attempt { limiter, limits })
    }

    /// Completes when an attempt ends. Get and enable it before calling [`Limiter::begin`].
    pub(crate) fn change(&self) -> Notified<'_> {
        self.ended.notified()
    }

    fn put(&self, buckets: &mut HashedMap<Hashed, Bucket>, limits: &[Limit], now: Instant) {
        self.make_room(buckets, now);
        for limit in limits {
            let bucket = buckets.entry(limit.key).or_insert(Bucket::new(now));
            bucket.fill(limit.rate, now);
        }
    }

    /// Drops empty buckets when there are too many, and the emptier half if that is not enough.
    fn make_room(&self, buckets: &mut HashedMap<Hashed, Bucket>, now: Instant) {
        if buckets.len() < self.most {
            return;
        }
        buckets.retain(|_, bucket| bucket.under_way > 0 || bucket.empty_at > now);
        if buckets.len() < self.most / 2 {
            return;
        }
        let mut times: Vec<_> = buckets.values().map(|bucket| bucket.empty_at).collect();
        let middle = times.len() / 2;
        let median = *times.select_nth_unstable(middle).1;
        buckets.retain(|_, bucket| bucket.under_way > 0 || bucket.empty_at > median);
    }

    fn lock(&self) -> MutexGuard<'_, HashedMap<Hashed, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn longest(
    buckets: &HashedMap<Hashed, Bucket>,
    limits: &[Limit],
    now: Instant,
) -> Option<Duration> {
    let wait = |limit: &Limit| buckets.get(&limit.key)?.wait(limit.rate, now);
    limits.iter().filter_map(wait).max()
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self {
            empty_at: now,
            under_way: 0,
        }
    }

    fn over(self, rate: Rate, events: u32, now: Instant) -> Duration {
        let filled = self.empty_at.saturating_duration_since(now) + rate.one_per * events;
        filled.saturating_sub(rate.one_per * rate.at_once)
    }

    /// How long the next event has to wait for room. None if there is room.
    fn wait(self, rate: Rate, now: Instant) -> Option<Duration> {
        let wait = self.over(rate, 1, now);
        (!wait.is_zero()).then_some(wait)
    }

    /// Whether attempts under way may take all the room.
    fn is_taken(self, rate: Rate, now: Instant) -> bool {
        !self
            .over(rate, self.under_way.saturating_add(1), now)
            .is_zero()
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        self.empty_at = self.empty_at.max(now) + rate.one_per;
    }
}

impl Attempt {
    /// Counts the attempt as an event.
    pub(crate) fn count(self, now: Instant) {
        let mut buckets = self.limiter.lock();
        for limit in &self.limits {
            if let Some(bucket) = buckets.get_mut(&limit.key) {
                bucket.fill(limit.rate, now);
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut buckets = self.limiter.lock();
        for limit in &self.limits {
            if let Some(bucket) = buckets.get_mut(&limit.key) {
                bucket.under_way = bucket.under_way.saturating_sub(1);
            }
        }
        drop(buckets);
        self.limiter.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Rate = Rate {
        at_once: 3,
        one_per: Duration::from_secs(2),
    };

    fn limit(limiter: &Limiter, name: &str, rate: Rate) -> Limit {
        Limit {
            key: limiter.key([name.as_bytes()]),
            rate,
        }
    }

    #[test]
    fn some_at_once_and_then_one_whenever_a_share_has_passed() {
        let limiter = Limiter::new();
        let (mine, yours) = (limit(&limiter, "a", THREE), limit(&limiter, "b", THREE));
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        for _ in 0..3 {
            assert_eq!(limiter.take(&[mine], now), Ok(()));
        }
        let seconds = Duration::from_secs;
        assert_eq!(limiter.take(&[mine], now), Err(seconds(2)));
        assert_eq!(limiter.take(&[mine], at(1)), Err(seconds(1)));
        assert_eq!(limiter.take(&[mine], at(2)), Ok(()));
        assert_eq!(limiter.wait(&[mine], at(2)), Some(seconds(2)));
        assert_eq!(limiter.wait(&[yours], at(2)), None);
    }

    #[test]
    fn all_of_several_or_none() {
        let limiter = Limiter::new();
        let [small, large] =
            [("s", THREE), ("l", THREE.times(2))].map(|(name, rate)| limit(&limiter, name, rate));
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(limiter.take(&[small, large], now), Ok(()));
        }
        for _ in 0..10 {
            assert!(limiter.take(&[small, large], now).is_err());
        }
        for _ in 0..3 {
            assert_eq!(
                limiter.take(&[large], now),
                Ok(()),
                "a refusal takes nothing"
            );
        }
        assert_eq!(limiter.take(&[large], now), Err(Duration::from_secs(1)));
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_fullest() {
        let now = Instant::now();
        let limiter = Arc::new(Limiter::with(100));
        let of = |n: u32| limit(&limiter, &n.to_string(), THREE);
        let Admission::Go(under_way) = limiter.begin(vec![of(1000)], 1, now) else {
            panic!("the first")
        };
        let full = of(1001);
        for n in 0..10_000 {
            limiter.fill(&[of(n)], now);
            if n % 10 == 0 {
                limiter.fill(&[full], now);
            }
        }
        let buckets = limiter.lock();
        assert!(buckets.len() <= 101, "{}", buckets.len());
        assert!(buckets.contains_key(&full.key) && buckets.contains_key(&of(1000).key));
        drop(buckets);
        drop(under_way);
        // Time empties the buckets.
        limiter.fill(&[of(1)], now + Duration::from_hours(1));
        for n in 0..100 {
            limiter.fill(&[of(n)], now + Duration::from_hours(2));
        }
        assert!(!limiter.lock().contains_key(&full.key));
    }

    #[tokio::test]
    async fn attempts_at_once_wait_for_each_other_and_are_told() {
        let limiter = Arc::new(Limiter::new());
        let it = limit(&limiter, "a", THREE);
        let now = Instant::now();
        let begin = || limiter.begin(vec![it], 1, now);
        let mut attempts: Vec<_> = (0..3)
            .map(|_| match begin() {
                Admission::Go(attempt) => attempt,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(matches!(begin(), Admission::Wait));
        let change = limiter.change();
        tokio::pin!(change);
        change.as_mut().enable();
        drop(attempts.pop());
        change.await;
        assert!(matches!(begin(), Admission::Go(_)));
        for attempt in attempts {
            attempt.count(now);
        }
        assert!(matches!(begin(), Admission::Go(_)));
        limiter.fill(&[it], now);
        assert!(matches!(begin(), Admission::Limited(wait) if wait == THREE.one_per));
        // A limit that is not checked still counts the attempt.
        let Admission::Go(attempt) = limiter.begin(vec![it], 0, now) else {
            panic!("nothing is checked")
        };
        attempt.count(now);
        assert_eq!(limiter.wait(&[it], now), Some(2 * THREE.one_per));
    }
}
