//! Repairs what should not happen: pushers without a job, and jobs that wait for a time far ahead. Deletes rows that
//! nobody needs.

use std::{sync::Arc, time::Duration};

use crate::run::Shared;

/// How often to look for pushers without a job.
const UPKEEP: Duration = Duration::from_mins(2);

/// Makes sure that every pusher that is not as wanted has a job, and deletes rows that nobody needs.
pub(crate) async fn upkeep(shared: Arc<Shared>) {
    loop {
        correct_waits(&shared).await;
        match shared.store.reconcile(shared.append).await {
            Ok(0) => {}
            Ok(reconciled) => {
                tracing::warn!(reconciled, "pushers that were not as wanted had no job");
            }
            Err(error) => tracing::debug!(%error, "pushers without a job were not looked for"),
        }
        if let Err(error) = shared.store.housekeep().await {
            tracing::debug!(%error, "old rows were not deleted");
        }
        tokio::time::sleep(UPKEEP).await;
    }
}

/// Makes jobs due that wait longer than any backoff, because a wrong clock has set their time.
pub(crate) async fn correct_waits(shared: &Shared) {
    match shared.store.correct_waits(shared.longest_wait).await {
        Ok(0) => {}
        Ok(corrected) => tracing::warn!(corrected, "jobs waited for a time far ahead: due now"),
        Err(error) => tracing::debug!(%error, "waiting times could not be checked"),
    }
}
