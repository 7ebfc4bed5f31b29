//! Counts of whole tables. The cost of a count grows with the table, so a slow count is kept for a while. However often
//! somebody asks, counting takes at most a fiftieth of the time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::Result;

/// A count that is at least this fast (some 50,000 rows) is not kept.
const QUICK: Duration = Duration::from_millis(20);
/// A count is kept for this many times as long as it took.
const KEPT: u32 = 50;

/// A count, and until when it is used again. Callers that ask during a count wait for it and share the result.
#[derive(Debug, Clone)]
pub struct Counts<T>(Arc<Mutex<Option<(Instant, T)>>>);

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Counts<T> {
    /// The kept count, or a new one from `count`.
    pub async fn get(&self, count: impl Future<Output = Result<T>>) -> Result<T> {
        let mut kept = self.0.lock().await;
        let started = Instant::now();
        if let Some((until, counts)) = kept.as_ref()
            && *until > started
        {
            return Ok(counts.clone());
        }
        let counts = count.await?;
        let took = started.elapsed();
        *kept = keep(took).map(|keep| (Instant::now() + keep, counts.clone()));
        Ok(counts)
    }
}

/// How long to keep a count that took this long. None for a fast one.
fn keep(took: Duration) -> Option<Duration> {
    (took > QUICK).then(|| took * KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn count(counts: &Counts<u32>, number: u32, took: u64) -> u32 {
        let counting = async {
            tokio::time::sleep(Duration::from_millis(took)).await;
            Ok(number)
        };
        counts.get(counting).await.unwrap()
    }

    #[test]
    fn a_slow_count_is_kept_for_fifty_times_as_long() {
        for (took, kept) in [(0, None), (20, None), (21, Some(1050)), (100, Some(5000))] {
            let kept = kept.map(Duration::from_millis);
            assert_eq!(keep(Duration::from_millis(took)), kept, "{took}");
        }
    }

    #[tokio::test]
    async fn a_slow_count_is_told_again() {
        let counts = Counts::default();
        assert_eq!(count(&counts, 1, 400).await, 1);
        assert_eq!(count(&counts, 2, 400).await, 1);
    }

    #[tokio::test]
    async fn those_who_ask_at_once_share_a_count() {
        let counts = Counts::default();
        let both = tokio::join!(count(&counts, 1, 100), count(&counts, 2, 100));
        assert_eq!(both, (1, 1));
    }
}
