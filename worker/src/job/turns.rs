//! Makes jobs run one after the other if some homeservers would see their pushers as the same one.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use matrix2acrobits_shared::ids::{Pushkey, UserId};
use tokio::sync::{Mutex, MutexGuard};

/// Many locks, so that jobs seldom share one by chance.
const LOCKS: usize = 256;

/// A lock for each user and pushkey. Some pairs share a lock.
#[derive(Debug)]
pub(crate) struct Turns(Box<[Mutex<()>]>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..LOCKS).map(|_| Mutex::default()).collect())
    }
}

impl Turns {
    /// Waits until no other job of this user and pushkey runs. The turn ends when the guard is dropped.
    pub(super) async fn take(&self, user: &UserId, pushkey: &Pushkey) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (user.as_str(), pushkey.as_str()).hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or(0);
        self.0[place].lock().await
    }
}
