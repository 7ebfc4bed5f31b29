//! One memory of pushed events for all apis: each tells the others what it has pushed, in batches and without rows. What
//! is lost on the way (a cut feed, a failed commit) lets a repeat ring twice, and nothing worse.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use matrix2acrobits_shared::flow::{
    feed::{Freshness, SentKey},
    writer::Writer,
};
use tokio::sync::Notify;

use crate::{connection::Process, feed::Hearing};

/// How long an event waits for others, or for any commit that takes it along. Homeservers repeat a push whose answer they
/// missed after a second at the earliest, and a NOTIFY costs a commit.
const PAUSE: Duration = Duration::from_millis(100);
/// Most events that wait while the feed is cut off; the oldest go first.
const MOST: usize = 4096;

type Listener = Box<dyn Fn(&[SentKey]) + Send + Sync>;

/// The events that this process has pushed and not told yet, and who wants to know those of others.
#[derive(Default)]
pub(crate) struct SentEvents {
    waiting: Mutex<VecDeque<SentKey>>,
    added: Notify,
    listener: OnceLock<Listener>,
}

impl fmt::Debug for SentEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SentEvents")
    }
}

impl SentEvents {
    /// Has an event told soon.
    pub(crate) fn add(&self, event: SentKey) {
        let mut waiting = self.lock();
        if waiting.len() >= MOST {
            waiting.pop_front();
        }
        waiting.push_back(event);
        drop(waiting);
        self.added.notify_one();
    }

    /// Takes what waits, for the commit that tells it.
    pub(crate) fn take(&self) -> Vec<SentKey> {
        std::mem::take(&mut *self.lock()).into()
    }

    /// Has `listener` hear of what others have pushed. False if somebody does so already.
    pub(crate) fn listen(&self, listener: Listener) -> bool {
        self.listener.set(listener).is_ok()
    }

    /// Others have pushed these.
    pub(crate) fn heard(&self, events: &[SentKey]) {
        if let (false, Some(listener)) = (events.is_empty(), self.listener.get()) {
            listener(events);
        }
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<SentKey>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sees that what waits is told soon. Runs forever.
pub(crate) async fn tell(process: Arc<Process>, hearing: Hearing, writer: Writer) {
    loop {
        process.sent.added.notified().await;
        while !process.sent.is_empty() {
            tokio::time::sleep(PAUSE).await;
            // A database that may not answer would keep reports waiting behind this.
            if hearing.freshness() != Freshness::Fresh || process.sent.is_empty() {
                continue;
            }
            // Every commit takes along what waits, and so does one of nothing.
            let told = writer.write(|_| Box::pin(async { Ok(()) })).await;
            if let Err(error) = told {
                tracing::debug!(%error, "the others cannot be told what was pushed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_wait_and_are_taken_once() {
        let sent = SentEvents::default();
        let many = u128::try_from(MOST).unwrap() + 3;
        for event in 0..many {
            sent.add(event);
        }
        assert_eq!(sent.take(), (3..many).collect::<Vec<_>>());
        assert!(sent.is_empty());
        assert!(sent.take().is_empty());
    }

    #[test]
    fn nobody_hears_of_nothing() {
        let sent = SentEvents::default();
        sent.heard(&[1]);
        let heard = Arc::<Mutex<Vec<_>>>::default();
        let list = heard.clone();
        let listener = move |events: &[SentKey]| list.lock().unwrap().push(events.to_vec());
        assert!(sent.listen(Box::new(listener)));
        assert!(!sent.listen(Box::new(|_| {})));
        sent.heard(&[]);
        sent.heard(&[2, 3]);
        assert_eq!(*heard.lock().unwrap(), [[2, 3]]);
    }
}
