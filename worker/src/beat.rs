//! The last sign of life of the worker's loop, for `/health/ready` and `/metrics`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// After this long without a sign of life, the worker is not ready.
const STALE: Duration = Duration::from_secs(15);

/// The time of the last sign of life. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beat(Arc<Mutex<Option<Instant>>>);

impl Beat {
    /// Notes a sign of life.
    pub(crate) fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether the last sign of life is recent.
    pub(crate) fn is_fresh(&self) -> bool {
        self.age().is_some_and(|age| age < STALE)
    }

    /// How long ago the last sign of life was. None before the first.
    pub(crate) fn age(&self) -> Option<Duration> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|last| last.elapsed())
    }
}
