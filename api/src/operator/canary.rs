//! The canary: a test push from time to time, which PNM has to accept. A phone that has ever confirmed a push has to
//! confirm this one, too.

use std::{sync::Arc, time::Duration};

use matrix2acrobits_shared::{process::logs::Chain, rules::arrival::AHEAD};
use matrix2acrobits_store::{Store, StoreError};

use super::push_test::{TestError, TestPush, Tested, Tester, To};
use crate::{
    arrivals::Journal,
    metrics::{Canary as Metrics, CanaryResult},
};

/// How long a phone may take to confirm the push.
const TIME_TO_CONFIRM: Duration = Duration::from_mins(1);
/// The pause before a retry if the push could not be tried.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// Whom to push to, and how often.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) to: To,
    pub(crate) interval: Duration,
}

/// What the canary needs.
#[derive(Debug)]
pub(crate) struct Canary {
    pub(crate) plan: Plan,
    pub(crate) tester: Arc<Tester>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) store: Store,
}

impl Canary {
    /// Pushes at once and then at every interval. Runs forever.
    pub(crate) async fn run(self) {
        let metrics = Metrics::new();
        loop {
            let pause = match self.push().await {
                Some(result) => {
                    metrics.count(result);
                    if result.is_well() {
                        tracing::info!(result = result.as_str(), "canary: a test push went well");
                    } else {
                        tracing::error!(result = result.as_str(), "canary: a test push failed");
                    }
                    self.plan.interval
                }
                None => TRY_AGAIN.min(self.plan.interval),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Pushes once. None if the push could not be tried.
    async fn push(&self) -> Option<CanaryResult> {
        let push = TestPush {
            to: self.plan.to.clone(),
            text: String::new(),
            message: false,
        };
        let since = self.store.clock().unix();
        let tested = match self.tester.send(&push).await {
            Ok(tested) => tested,
            Err(TestError::Unknown) => return Some(CanaryResult::NoPhone),
            Err(TestError::TooSoon(_)) => return None,
            Err(TestError::Store(error)) => {
                tracing::warn!(error = %Chain(&error), "canary: the database does not answer");
                return None;
            }
        };
        if !tested.iter().any(Tested::sent) {
            return Some(CanaryResult::NotTaken);
        }
        let rows: Vec<_> = tested
            .iter()
            .filter(|tested| tested.sent())
            .map(|tested| tested.row)
            .collect();
        match self.confirmed(&rows, since).await {
            Ok(Some(true)) => Some(CanaryResult::Received),
            Ok(Some(false)) => Some(CanaryResult::NotReceived),
            // We only know that PNM accepted the push.
            Ok(None) | Err(_) => Some(CanaryResult::Taken),
        }
    }

    /// Whether one of these phones confirms a push since then. None if none of them has ever confirmed one.
    async fn confirmed(&self, rows: &[i64], since: i64) -> Result<Option<bool>, StoreError> {
        let mut left = TIME_TO_CONFIRM.min(self.plan.interval);
        loop {
            self.journal.flush(&self.store).await?;
            let phones = self.store.phones(rows).await?;
            let receipts: Vec<_> = phones
                .iter()
                .filter_map(|phone| phone.received_at)
                .collect();
            // A wrong clock may have written a time that is still to come.
            let latest = self.store.clock().unix() + AHEAD;
            if receipts.iter().any(|at| (since..=latest).contains(at)) {
                return Ok(Some(true));
            }
            if receipts.is_empty() {
                return Ok(None);
            }
            if left.is_zero() {
                return Ok(Some(false));
            }
            let pause = left.min(Duration::from_secs(1));
            tokio::time::sleep(pause).await;
            left -= pause;
        }
    }
}
