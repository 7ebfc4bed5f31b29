//! Deletes rows that nobody stands for after some time, and the oldest beyond a maximum number. The api does this and
//! not the worker, because such rows arrive here whether a worker runs or not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use matrix2acrobits_shared::{
    process::logs::Chain,
    rules::report::{MOST_STRANGERS, STRANGERS_STAY},
};
use matrix2acrobits_store::Store;
use tokio::sync::Notify;

use crate::metrics;

/// How often to look for such rows.
const PAUSE: Duration = Duration::from_mins(1);
/// After this many new rows, the api looks sooner. So at most this many rows can exceed the maximum.
const MANY: u32 = 1000;

/// Counts new rows.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    added: AtomicU32,
    many: Notify,
}

impl Upkeep {
    /// Notes a new row that nobody stands for.
    pub(crate) fn added(&self) {
        if self.added.fetch_add(1, Ordering::Relaxed) + 1 == MANY {
            self.many.notify_one();
        }
    }

    /// Looks at once, and then from time to time. Runs forever.
    pub(crate) async fn run(self: Arc<Self>, store: Store) {
        let forgotten = metrics::Forgotten::new();
        loop {
            self.added.store(0, Ordering::Relaxed);
            match store.forget_strangers(STRANGERS_STAY, MOST_STRANGERS).await {
                Ok(gone) => {
                    forgotten.count(gone);
                    if gone.old > 0 {
                        tracing::info!(
                            rows = gone.old,
                            "forgot phones that belong to nobody: no report for 30 days"
                        );
                    }
                    if gone.surplus > 0 {
                        tracing::warn!(
                            rows = gone.surplus,
                            most = MOST_STRANGERS,
                            "forgot phones that belong to nobody: too many; see NEW_SELECTORS_PER_HOUR"
                        );
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "phones that nobody stands for were not looked for");
                }
            }
            let _ = tokio::time::timeout(PAUSE, self.many.notified()).await;
        }
    }
}
