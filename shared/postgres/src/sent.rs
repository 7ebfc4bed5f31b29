//! A shared memory of pushed events for all apis: each tells the others what it has pushed, in batches and without
//! rows. If a message gets lost (a cut feed, a failed commit), a repeated notification may ring twice, and nothing
//! worse happens.

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

/// How long an event waits for other events, or for any commit that takes it along. A NOTIFY costs a commit, and
/// homeservers repeat a notification without a response after a second at the earliest.
const PAUSE: Duration = Duration::from_millis(100);
/// The most events that wait while the feed is interrupted. The oldest are dropped first.
const MOST: usize = 4096;

type Listener = Box<dyn Fn(&[SentKey]) + Send + Sync>;

/// The events that this process has pushed and not reported yet, and the listener for events of others.
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
    /// Adds an event, to be reported soon.
    pub(crate) fn add(&self, event: SentKey) {
        let mut waiting = self.lock();
        if waiting.len() >= MOST {
            waiting.pop_front();
        }
        waiting.push_back(event);
        drop(waiting);
        self.added.notify_one();
    }

    /// Takes the waiting events, for a commit that reports them.
    pub(crate) fn take(&self) -> Vec<SentKey> {
        std::mem::take(&mut *self.lock()).into()
    }

    /// Sets the listener for events that others have pushed. False if there is one already.
    pub(crate) fn listen(&self, listener: Listener) -> bool {
        self.listener.set(listener).is_ok()
    }

    /// Passes on events that others have pushed.
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

/// Makes sure that waiting events are reported soon. Runs forever.
pub(crate) async fn tell(process: Arc<Process>, hearing: Hearing, writer: Writer) {
    loop {
        process.sent.added.notified().await;
        while !process.sent.is_empty() {
            tokio::time::sleep(PAUSE).await;
            // If the database may not respond, this write would make reports wait.
            if hearing.freshness() != Freshness::Fresh || process.sent.is_empty() {
                continue;
            }
            // Every commit takes the waiting events along, even an empty one.
            if let Err(error) = writer.commit().await {
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
