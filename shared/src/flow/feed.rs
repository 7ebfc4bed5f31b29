//! The change feed, which tells caches what a commit of this process or another changed. The caller who asked for a
//! change may hang up, so caches learn of it from the commit. [`Vital`] notices when a task dies that the process needs.

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a commit made out of date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed<'a> {
    /// Cached data of these pushkeys.
    Pushkeys(&'a [String]),
    /// All cached data.
    Everything,
}

/// Whether cached data can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The feed has reported all changes older than a second.
    Fresh,
    /// The feed is interrupted, so the database must be asked.
    Unknown,
    /// The database does not respond at all, so there is only the cached data.
    NoDatabase,
}

/// Stands for one event at one phone: a keyed hash, whose key the processes of this database know.
pub type SentKey = u128;

type Listener = Box<dyn Fn(Changed<'_>) + Send + Sync>;

/// Tells listeners of changes. Cheap to clone.
#[derive(Clone, Default)]
pub struct Feed(Arc<Mutex<Vec<Listener>>>);

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Feed")
    }
}

impl Feed {
    /// Calls `listener` with every change from now on: after the commit, and before any caller gets its result.
    /// `listener` must be fast and must not wait.
    pub fn listen(&self, listener: impl Fn(Changed<'_>) + Send + Sync + 'static) {
        self.lock().push(Box::new(listener));
    }

    /// Tells all listeners.
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

/// The tasks that a process cannot work without. When one of them panics, the process has to end with an error, so that
/// its supervisor restarts it. Otherwise it would refuse everything forever while it calls itself ready.
#[derive(Debug, Clone, Default)]
pub struct Vital(CancellationToken);

impl Vital {
    /// Spawns a task. If the task panics, the process has to end.
    pub fn spawn(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let died = self.0.clone();
        tokio::spawn(async move {
            let work = std::panic::AssertUnwindSafe(work).catch_unwind();
            if work.await.is_err() {
                tracing::error!(task = name, "a task panicked: this process has to end");
                died.cancel();
            }
        })
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
