//! Pushes one event to one phone once: knows what was sent lately, by the other apis at a PostgreSQL database, too, and
//! lets a repeat that comes while the push is under way share its result.
//!
//! Made by hand, because a moka cache of that size takes 37 MiB and 3.1 µs a push (measured, 0.12.16), and
//! no clock can be passed to it.

use std::{
    collections::{VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use matrix2acrobits_shared::flow::feed::SentKey;
use matrix2acrobits_store::Store;
use tokio::sync::oneshot;

use crate::{
    keyed_hash::{Hashed, HashedMap, HashedSet, KeyedHash},
    metrics,
};

/// How long a success is remembered.
pub(crate) const MEMORY: Duration = Duration::from_mins(10);

/// Most successes remembered; the oldest go first. 100,000 take 4 MiB and last for ten minutes at 166 pushes
/// a second; under more load the time shrinks, to 6 s at 16,000 a second. A homeserver repeats a push that
/// it saw succeed never, and one whose answer it missed after 1 s. What other apis have sent takes room as well.
pub(crate) const CAPACITY: usize = 100_000;

/// Stands for one event at one phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EventKey(Hashed);

/// The memory, for results of type `V`.
#[derive(Debug)]
pub(crate) struct Dedupe<V> {
    hash: KeyedHash,
    capacity: usize,
    /// What times are counted from.
    start: Instant,
    /// Tells the other apis what was sent, if there may be any.
    store: Option<Store>,
    state: Mutex<State<V>>,
}

#[derive(Debug)]
struct State<V> {
    under_way: HashedMap<EventKey, Vec<oneshot::Sender<V>>>,
    /// By half of their keys: that two of so few meet is as good as impossible, and nobody can bring it about.
    sent: HashedSet<u64>,
    /// The keys of `sent`, oldest first, with the second until which each is remembered.
    order: VecDeque<(u32, u64)>,
}

/// What a push has to do.
#[derive(Debug)]
pub(crate) enum Turn<'a, V: Clone> {
    /// Go ahead, and tell the result.
    First(Lead<'a, V>),
    /// Nothing: it was sent within [`MEMORY`].
    Sent,
    /// Wait for the result of the one under way; an error says that it ended without.
    Shared(oneshot::Receiver<V>),
}

/// The right to push; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lead<'a, V: Clone> {
    dedupe: &'a Dedupe<V>,
    key: EventKey,
    finished: bool,
}

impl<V: Clone> Dedupe<V> {
    /// An empty memory for at most `capacity` successes, none of which comes before `start`.
    pub(crate) fn new(capacity: usize, start: Instant) -> Self {
        Self {
            hash: KeyedHash::random(),
            capacity,
            start,
            store: None,
            state: Mutex::new(State {
                under_way: HashedMap::default(),
                // These take memory only as they are filled; growing by themselves they would take a third more.
                sent: HashedSet::with_capacity_and_hasher(capacity, RandomState::default()),
                order: VecDeque::with_capacity(capacity),
            }),
        }
    }

    /// The memory that all apis at this database share, as far as they can be told of each other's.
    pub(crate) fn shared(store: &Store, start: Instant) -> Arc<Self>
    where
        V: Send + 'static,
    {
        let alone = Self::new(CAPACITY, start);
        let Some(key) = store.sent_key() else {
            return Arc::new(alone);
        };
        let shared = Arc::new(Self {
            hash: KeyedHash::new(key),
            store: Some(store.clone()),
            ..alone
        });
        // The store holds the listener, and the memory the store.
        let memory = Arc::downgrade(&shared);
        store.listen_sent(move |events| {
            if let Some(memory) = memory.upgrade() {
                memory.learn(events, Instant::now());
            }
        });
        shared
    }

    /// Another api has sent these.
    fn learn(&self, events: &[SentKey], now: Instant) {
        let until = self.until(now);
        let mut state = self.lock();
        state.forget(self.seconds(now));
        for event in events {
            let key = EventKey(Hashed::from_bits(*event));
            state.remember(key, until, self.capacity);
        }
        metrics::told_of_pushes(events.len());
    }

    /// The key of an event at a phone, from the texts that name both.
    pub(crate) fn key(&self, parts: [&str; 4]) -> EventKey {
        EventKey(self.hash.of(parts.map(str::as_bytes)))
    }

    /// Says what to do about `key` now.
    pub(crate) fn turn(&self, key: EventKey, now: Instant) -> Turn<'_, V> {
        let second = self.seconds(now);
        let mut state = self.lock();
        state.forget(second);
        if state.sent.contains(&key.0.half()) {
            return Turn::Sent;
        }
        match state.under_way.entry(key) {
            Entry::Vacant(free) => {
                free.insert(Vec::new());
                Turn::First(Lead {
                    dedupe: self,
                    key,
                    finished: false,
                })
            }
            Entry::Occupied(mut waiting) => {
                let (teller, listener) = oneshot::channel();
                waiting.get_mut().push(teller);
                Turn::Shared(listener)
            }
        }
    }

    /// Whole seconds since the start; enough for a hundred years.
    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.start).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// Until when something is remembered: rounded up, so that it is never forgotten early.
    fn until(&self, now: Instant) -> u32 {
        self.seconds(now + MEMORY + Duration::from_nanos(999_999_999))
    }

    fn lock(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V> State<V> {
    fn forget(&mut self, second: u32) {
        while self
            .order
            .front()
            .is_some_and(|(until, _)| *until <= second)
        {
            self.forget_oldest();
        }
    }

    fn remember(&mut self, key: EventKey, until: u32, capacity: usize) {
        let key = key.0.half();
        // Two apis may have sent it, and the change feed may tell it twice.
        if !self.sent.insert(key) {
            return;
        }
        self.order.push_back((until, key));
        if self.order.len() > capacity {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.sent.remove(&key);
        }
    }
}

impl<V: Clone> Lead<'_, V> {
    /// Tells everyone who waits how it went; a success is remembered from `now` on.
    pub(crate) fn finish(mut self, result: &V, success: bool, now: Instant) {
        self.finished = true;
        let until = self.dedupe.until(now);
        let waiting = {
            let mut state = self.dedupe.lock();
            if success {
                state.remember(self.key, until, self.dedupe.capacity);
            }
            state.under_way.remove(&self.key)
        };
        if let (true, Some(store)) = (success, &self.dedupe.store) {
            store.tell_sent(self.key.0.to_bits());
        }
        for teller in waiting.into_iter().flatten() {
            // The caller may have gone away.
            let _ = teller.send(result.clone());
        }
    }
}

impl<V: Clone> Drop for Lead<'_, V> {
    fn drop(&mut self) {
        // A push that ended without a result must not block the next try. Once finished, the key may be
        // another push's already.
        if !self.finished {
            self.dedupe.lock().under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(dedupe: &Dedupe<u8>, key: EventKey, now: Instant) -> Lead<'_, u8> {
        match dedupe.turn(key, now) {
            Turn::First(lead) => lead,
            other => panic!("not the first: {other:?}"),
        }
    }

    fn is_sent(dedupe: &Dedupe<u8>, key: EventKey, now: Instant) -> bool {
        matches!(dedupe.turn(key, now), Turn::Sent)
    }

    #[test]
    fn a_success_is_remembered_for_ten_minutes() {
        let start = Instant::now();
        let dedupe = Dedupe::new(9, start);
        let key = dedupe.key(["$e", "a", "k", "s"]);
        first(&dedupe, key, start).finish(&1, true, start);
        assert!(is_sent(&dedupe, key, start));
        assert!(is_sent(&dedupe, key, start + Duration::from_secs(599)));
        assert!(!is_sent(&dedupe, key, start + MEMORY));
        assert!(dedupe.lock().order.is_empty(), "nothing stays behind");
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let now = Instant::now();
        let dedupe = Dedupe::new(9, now);
        let key = dedupe.key(["$e", "a", "k", "s"]);
        first(&dedupe, key, now).finish(&1, false, now);
        drop(first(&dedupe, key, now));
        drop(first(&dedupe, key, now));
        assert!(dedupe.lock().under_way.is_empty());
    }

    #[tokio::test]
    async fn who_comes_meanwhile_shares_the_result() {
        let now = Instant::now();
        let dedupe = Dedupe::new(9, now);
        let key = dedupe.key(["$e", "a", "k", "s"]);
        let lead = first(&dedupe, key, now);
        let (Turn::Shared(one), Turn::Shared(gone), Turn::Shared(two)) = (
            dedupe.turn(key, now),
            dedupe.turn(key, now),
            dedupe.turn(key, now),
        ) else {
            panic!("pushed twice");
        };
        drop(gone);
        lead.finish(&7, false, now);
        assert_eq!((one.await, two.await), (Ok(7), Ok(7)));
    }

    #[tokio::test]
    async fn a_push_that_ends_without_result_frees_its_key() {
        let now = Instant::now();
        let dedupe = Dedupe::new(9, now);
        let key = dedupe.key(["$e", "a", "k", "s"]);
        let lead = first(&dedupe, key, now);
        let Turn::Shared(waiting) = dedupe.turn(key, now) else {
            panic!("pushed twice");
        };
        drop(lead);
        assert!(waiting.await.is_err());
        drop(first(&dedupe, key, now));
    }

    #[test]
    fn the_oldest_go_when_it_is_full() {
        let now = Instant::now();
        let dedupe = Dedupe::new(3, now);
        let keys = ["a", "b", "c", "d"].map(|event| dedupe.key([event, "a", "k", "s"]));
        for key in keys {
            first(&dedupe, key, now).finish(&1, true, now);
        }
        assert_eq!(
            keys.map(|key| is_sent(&dedupe, key, now)),
            [false, true, true, true]
        );
        assert_eq!(dedupe.lock().sent.len(), 3);
    }

    #[test]
    fn what_others_have_sent_is_known_for_ten_minutes() {
        let start = Instant::now();
        let dedupe = Dedupe::new(3, start);
        let keys = ["a", "b", "c", "d"].map(|event| dedupe.key([event, "a", "k", "s"]));
        let bits = keys.map(|key| key.0.to_bits());
        dedupe.learn(&bits[..2], start);
        assert!(is_sent(&dedupe, keys[0], start));
        // Once more, as if it were new.
        dedupe.learn(&bits[..2], start + Duration::from_mins(5));
        assert_eq!(dedupe.lock().order.len(), 2);
        assert!(is_sent(&dedupe, keys[1], start + Duration::from_secs(599)));
        assert!(!is_sent(&dedupe, keys[1], start + MEMORY));
        dedupe.learn(&bits, start + MEMORY);
        assert_eq!(dedupe.lock().sent.len(), 3, "no more than it may hold");
        assert!(is_sent(&dedupe, keys[3], start + MEMORY));
    }

    #[test]
    fn what_others_have_sent_meanwhile_counts_whatever_becomes_of_ours() {
        let now = Instant::now();
        let dedupe = Dedupe::new(9, now);
        for (event, success) in [("a", true), ("b", false)] {
            let key = dedupe.key([event, "a", "k", "s"]);
            let lead = first(&dedupe, key, now);
            dedupe.learn(&[key.0.to_bits()], now);
            lead.finish(&1, success, now);
            assert!(is_sent(&dedupe, key, now), "{event}");
        }
        let state = dedupe.lock();
        assert_eq!((state.sent.len(), state.order.len()), (2, 2));
    }
}
