//! Remembers the ids of recent pushes, to know which push a receipt confirms and when it was sent.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::keyed_hash::{Hashed, HashedMap};

/// The most keys that are remembered, two for each push. The oldest are dropped first. They take about 3.5 MiB, and last
/// for 70 s at 200 pushes a second. With a few more, a map that is always full doubles its room.
const MOST: usize = 28_000;
/// A receipt that comes later says nothing about how long the push took.
const MEMORY: Duration = Duration::from_hours(1);

/// A push that PNM accepted.
#[derive(Debug, Clone, Copy)]
struct Push {
    /// The row of its phone. None if the key fits several phones.
    phone: Option<i64>,
    sent: Instant,
}

/// The memory of recent pushes.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// By half of the key: that two of so few meet is as good as impossible, and nobody can bring it about.
    pushes: HashedMap<u64, Push>,
    order: VecDeque<(Instant, u64)>,
}

/// What we know about a push that a receipt confirms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Confirmed {
    /// The row of its phone, if that is certain.
    pub(super) phone: Option<i64>,
    pub(super) took: Duration,
}

impl Sent {
    /// Remembers a push under a key made of its id and its phone's token or selector.
    pub(super) fn note(&mut self, key: Hashed, phone: i64, now: Instant) {
        let key = key.half();
        while self.order.len() >= MOST || self.oldest_is_past(now) {
            let Some((sent, key)) = self.order.pop_front() else {
                break;
            };
            if self.pushes.get(&key).is_some_and(|push| push.sent == sent) {
                self.pushes.remove(&key);
            }
        }
        let same = self
            .pushes
            .get(&key)
            .is_none_or(|push| push.phone == Some(phone));
        let phone = same.then_some(phone);
        self.pushes.insert(key, Push { phone, sent: now });
        self.order.push_back((now, key));
    }

    /// Takes the push under this key, because a repeated receipt says nothing new. A push whose key fits several phones
    /// stays, because each of them confirms it.
    pub(super) fn confirm(&mut self, key: Hashed, now: Instant) -> Option<Confirmed> {
        let key = key.half();
        let push = *self.pushes.get(&key)?;
        let took = now.saturating_duration_since(push.sent);
        if took > MEMORY {
            return None;
        }
        if push.phone.is_some() {
            self.pushes.remove(&key);
        }
        Some(Confirmed {
            phone: push.phone,
            took,
        })
    }

    fn oldest_is_past(&self, now: Instant) -> bool {
        let oldest = self.order.front();
        oldest.is_some_and(|(sent, _)| now.saturating_duration_since(*sent) > MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyed_hash::KeyedHash;

    #[test]
    fn a_push_is_confirmed_once() {
        let hash = KeyedHash::random();
        let key = |name: &str| hash.of([name.as_bytes()]);
        let (mut sent, now) = (Sent::default(), Instant::now());
        let later = now + Duration::from_secs(3);
        sent.note(key("a"), 1, now);
        sent.note(key("both"), 1, now);
        sent.note(key("both"), 2, now);
        let took = Duration::from_secs(3);
        let confirmed = |phone| Some(Confirmed { phone, took });
        assert_eq!(sent.confirm(key("a"), later), confirmed(Some(1)));
        assert_eq!(sent.confirm(key("a"), later), None);
        assert_eq!(sent.confirm(key("b"), later), None);
        for _ in 0..2 {
            assert_eq!(sent.confirm(key("both"), later), confirmed(None));
        }
    }

    #[test]
    fn memory_is_bounded() {
        let hash = KeyedHash::random();
        let key = |n: usize| hash.of([&n.to_le_bytes()]);
        let (mut sent, now) = (Sent::default(), Instant::now());
        for n in 0..=MOST {
            sent.note(key(n), 1, now);
        }
        assert_eq!((sent.pushes.len(), sent.order.len()), (MOST, MOST));
        assert_eq!(sent.confirm(key(0), now), None, "the oldest has gone");
        let past = now + MEMORY + Duration::from_secs(1);
        sent.note(key(0), 1, past);
        assert_eq!((sent.pushes.len(), sent.order.len()), (1, 1));
    }
}
