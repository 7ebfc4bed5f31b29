//! Work that its caller cannot break off: dropped before its end, it goes on in a task of its own.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{FutureExt as _, future::CatchUnwind};
use tokio::runtime::Handle;
use tokio_util::task::{TaskTracker, task_tracker::TrackedFuture};
use tracing::Instrument as _;

type Work<F> = TrackedFuture<CatchUnwind<AssertUnwindSafe<F>>>;

/// The result of the work, or what it panicked with. Without a task as long as the caller stays, which is nearly always:
/// one for each push would cost a twentieth of it.
pub(super) struct Persistent<F>(Option<Pin<Box<Work<F>>>>)
where
    F: Future<Output: Send> + Send + 'static;

impl<F: Future<Output: Send> + Send + 'static> Persistent<F> {
    /// Counts in `tracker` until its end.
    pub(super) fn new(work: F, tracker: &TaskTracker) -> Self {
        let work = AssertUnwindSafe(work).catch_unwind();
        Self(Some(Box::pin(tracker.track_future(work))))
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for Persistent<F> {
    type Output = Result<F::Output, Box<dyn Any + Send>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.0 else {
            return Poll::Pending;
        };
        let result = ready!(work.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(result)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Persistent<F> {
    fn drop(&mut self) {
        // There is no runtime only when the process ends.
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(work.in_current_span());
        }
    }
}
