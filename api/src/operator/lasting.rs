//! Changes that an operator asks for. They go on to their end, and leave their line in the log, even if the operator hangs
//! up or if they take longer than a request may.

use matrix2acrobits_shared::process::logs::Chain;
use matrix2acrobits_store::StoreError;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// The changes under way. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes(TaskTracker);

impl Changes {
    /// Carries out `work` to its end. The work itself logs what it has done. Its caller logs an error, unless the caller
    /// has gone.
    pub(super) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (tell, told) = oneshot::channel();
        let task = async move {
            if let Err(Err(error)) = tell.send(work.await) {
                tracing::warn!(error = %Chain(&error), "an admin call failed after its caller had gone");
            }
        };
        self.0.spawn(task.in_current_span());
        // Without a result the task has panicked.
        told.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// Waits until none is under way.
    pub(crate) async fn ended(&self) {
        self.0.close();
        self.0.wait().await;
    }
}
