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
/// How often to look for the confirmation.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The pause before a retry if the push could not be tried.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// The longest pause after a push that failed: the cause may be gone soon, and an alert rings until the next good push.
const AFTER_A_FAILURE: Duration = Duration::from_mins(5);

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
            let result = self.push().await;
            if let Some(result) = result {
                metrics.count(result);
                if result.is_well() {
                    tracing::info!(result = result.as_str(), "canary: a test push went well");
                } else {
                    tracing::error!(result = result.as_str(), "canary: a test push failed");
                }
            }
            tokio::time::sleep(pause(result, self.plan.interval)).await;
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
        let time = TIME_TO_CONFIRM.min(self.plan.interval);
        match wait(time, LOOK_AGAIN, || self.look(&rows, since)).await {
            Ok(Some(true)) => Some(CanaryResult::Received),
            Ok(Some(false)) => Some(CanaryResult::NotReceived),
            // We only know that PNM accepted the push.
            Ok(None) => Some(CanaryResult::Taken),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "canary: the database does not answer");
                None
            }
        }
    }

    /// Whether one of these phones has confirmed a push since then. None if none of them has ever confirmed one.
    async fn look(&self, rows: &[i64], since: i64) -> Result<Option<bool>, StoreError> {
        self.journal.flush(&self.store).await?;
        let phones = self.store.phones(rows).await?;
        let receipts: Vec<_> = phones
            .iter()
            .filter_map(|phone| phone.received_at)
            .collect();
        if receipts.is_empty() {
            return Ok(None);
        }
        // A wrong clock may have written a time that is still to come.
        let latest = self.store.clock().unix() + AHEAD;
        Ok(Some(
            receipts.iter().any(|at| (since..=latest).contains(at)),
        ))
    }
}

/// The pause before the next push. None for one that could not be tried.
fn pause(result: Option<CanaryResult>, interval: Duration) -> Duration {
    match result {
        Some(result) if result.is_well() => interval,
        Some(_) => AFTER_A_FAILURE.min(interval),
        None => TRY_AGAIN.min(interval),
    }
}

/// Looks again and again until a push is confirmed, or the time is over. A look that fails says nothing, unless it is the
/// last.
async fn wait<E, F: Future<Output = Result<Option<bool>, E>>>(
    mut left: Duration,
    every: Duration,
    look: impl Fn() -> F,
) -> Result<Option<bool>, E> {
    loop {
        let seen = look().await;
        if left.is_zero() || matches!(seen, Ok(Some(true) | None)) {
            return seen;
        }
        let pause = left.min(every);
        tokio::time::sleep(pause).await;
        left -= pause;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_failure_is_followed_by_another_push_soon() {
        let seconds = |result, interval| pause(result, Duration::from_secs(interval)).as_secs();
        for (result, of_a_day, of_a_second) in [
            (Some(CanaryResult::Received), 86_400, 1),
            (Some(CanaryResult::Taken), 86_400, 1),
            (Some(CanaryResult::NotReceived), 300, 1),
            (Some(CanaryResult::NotTaken), 300, 1),
            (Some(CanaryResult::NoPhone), 300, 1),
            (None, 10, 1),
        ] {
            assert_eq!(seconds(result, 86_400), of_a_day, "{result:?}");
            assert_eq!(seconds(result, 1), of_a_second, "{result:?}");
        }
    }

    #[tokio::test]
    async fn a_database_that_fails_for_a_moment_is_no_result() {
        type Seen = Result<Option<bool>, &'static str>;
        let cases: [(&[Seen], Seen); 6] = [
            (&[Ok(None)], Ok(None)),
            (&[Err("down"), Err("down"), Ok(None)], Ok(None)),
            (
                &[Ok(Some(false)), Err("down"), Ok(Some(true))],
                Ok(Some(true)),
            ),
            (&[Ok(Some(false)); 4], Ok(Some(false))),
            (
                &[Err("down"), Err("down"), Err("down"), Ok(Some(false))],
                Ok(Some(false)),
            ),
            (&[Err("down"); 4], Err("down")),
        ];
        for (looks, expected) in cases {
            let left = RefCell::new(looks.iter().copied());
            let next = || std::future::ready(left.borrow_mut().next().unwrap());
            let [time, every] = [3, 1].map(Duration::from_millis);
            assert_eq!(wait(time, every, next).await, expected, "{looks:?}");
            assert_eq!(left.borrow().len(), 0, "{looks:?}");
        }
    }
}
