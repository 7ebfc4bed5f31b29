//! When the worker's loop last showed that it lives, for `/health/ready` and `/metrics`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// After this long without a sign the worker is not ready.
const STALE: Duration = Duration::from_secs(15);

/// The time of the last sign. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beat(Arc<Mutex<Option<Instant>>>);

impl Beat {
    /// Notes a sign.
    pub(crate) fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether the last sign is recent.
    pub(crate) fn is_fresh(&self) -> bool {
        self.age().is_some_and(|age| age < STALE)
    }

    /// How long ago the last sign was; none before the first.
    pub(crate) fn age(&self) -> Option<Duration> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|last| last.elapsed())
    }
}
