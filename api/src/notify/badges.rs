//! Badge updates for phones (`PUSH_BADGE_UPDATES`): the newest count of each phone, sent when no message brings one.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long an update waits for a newer one, or for a message, which brings its own count.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);
/// Most phones with an update that waits; further ones are dropped, since the next message brings a count.
const MOST: usize = 4096;

/// The updates that wait, by what names a phone.
#[derive(Debug)]
pub(crate) struct Badges<K>(Mutex<HashMap<K, u64>>);

impl<K> Default for Badges<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Badges<K> {
    /// Notes the newest count. True when nothing waited for this phone yet: then the caller sends it after [`PAUSE`].
    pub(crate) fn note(&self, phone: K, unread: u64) -> bool {
        let mut waiting = self.lock();
        if let Some(count) = waiting.get_mut(&phone) {
            *count = unread;
            return false;
        }
        let room = waiting.len() < MOST;
        if room {
            waiting.insert(phone, unread);
        }
        room
    }

    /// Takes what waits for a phone: to send it, or because a message is about to bring a count.
    pub(crate) fn take(&self, phone: &K) -> Option<u64> {
        self.lock().remove(phone)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_count_of_each_phone_waits_once() {
        let badges = Badges::default();
        assert!(badges.note(1, 5));
        assert!(!badges.note(1, 4));
        assert!(badges.note(2, 1));
        assert_eq!(badges.take(&1), Some(4));
        assert_eq!(badges.take(&1), None);
        assert!(badges.note(1, 3));
    }

    #[test]
    fn only_so_many_wait() {
        let badges = Badges::default();
        assert!((0..4096).all(|phone| badges.note(phone, 1)));
        assert!(!badges.note(9999, 1));
        assert_eq!(badges.take(&9999), None);
        badges.take(&7);
        assert!(badges.note(9999, 1));
    }
}
