//! The change feed: caches learn of a change from the commit, in this process or another, and never from
//! whoever asked for it, who may hang up. And [`Vital`], which notices when a task of the store dies.

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

/// What a commit made untrue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed<'a> {
    /// What is remembered of these pushkeys.
    Pushkeys(&'a [String]),
    /// Whatever is remembered.
    Everything,
}

/// Whether what is remembered is known to be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Whatever was changed more than a second ago has been told.
    Fresh,
    /// The feed is cut off: the database knows better.
    Unknown,
    /// The database does not answer at all: there is nothing but what is remembered.
    NoDatabase,
}

/// Stands for one event at one phone, under a key that the database's own processes know.
pub type SentKey = u128;

type Listener = Box<dyn Fn(Changed<'_>) + Send + Sync>;

/// Where changes are told. Cheap to clone.
#[derive(Clone, Default)]
pub struct Feed(Arc<Mutex<Vec<Listener>>>);

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Feed")
    }
}

impl Feed {
    /// Has `listener` told of every change from now on: after the commit, and before anybody is answered. It must
    /// be quick and must not wait.
    pub fn listen(&self, listener: impl Fn(Changed<'_>) + Send + Sync + 'static) {
        self.lock().push(Box::new(listener));
    }

    /// Tells all.
    pub fn tell(&self, changed: Changed<'_>) {
        if changed != Changed::Pushkeys(&[]) {
            for listener in self.lock().iter() {
                listener(changed);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tasks without which a process is of no use. When one of them panics, the process has to end with an error,
/// so that its supervisor starts it anew, instead of refusing everything for ever while it calls itself ready.
#[derive(Debug, Clone, Default)]
pub struct Vital(CancellationToken);

impl Vital {
    /// Spawns a task that ends with what it works for, and never by a panic.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let died = self.0.clone();
        tokio::spawn(async move {
            let work = std::panic::AssertUnwindSafe(work).catch_unwind();
            if work.await.is_err() {
                tracing::error!(
                    task = name,
                    "a task of the store panicked: this process has to end"
                );
                died.cancel();
            }
        });
    }

    /// Returns when one of them has died.
    pub async fn died(&self) {
        self.0.cancelled().await;
    }

    /// Whether one of them has died.
    pub fn has_died(&self) -> bool {
        self.0.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_noticed_and_an_end_is_not() {
        let vital = Vital::default();
        vital.spawn("ends", async {});
        vital.spawn("waits", std::future::pending());
        tokio::task::yield_now().await;
        assert!(!vital.has_died());
        vital.spawn("panics", async { panic!("on purpose") });
        vital.died().await;
    }

    #[test]
    fn all_are_told_and_nothing_is_no_news() {
        let (feed, told) = (Feed::default(), Arc::<Mutex<Vec<String>>>::default());
        for name in ["a", "b"] {
            let told = told.clone();
            feed.listen(move |changed| told.lock().unwrap().push(format!("{name} {changed:?}")));
        }
        feed.tell(Changed::Pushkeys(&[]));
        feed.tell(Changed::Everything);
        assert_eq!(*told.lock().unwrap(), ["a Everything", "b Everything"]);
    }
}
