//! The load generator, with a closed loop (each connection sends when it has its answer) and an open one
//! (requests are due at fixed times, and late ones count from when they were due: no coordinated omission).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::connection::Connection;

/// Writes request number n; no number comes twice in a run of the program.
pub(crate) type Requests = Arc<dyn Fn(u64, &mut Vec<u8>) + Send + Sync>;

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    Closed,
    /// So many a second, whatever becomes of them.
    Open(f64),
}

#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) addr: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
    pub(crate) time: Duration,
    pub(crate) requests: Requests,
    /// The body of a good answer; another one counts as failed, since it may have cost less.
    pub(crate) expected: &'static [u8],
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) good: u64,
    pub(crate) failed: u64,
    /// Those of the failed that were answered 200, but not as expected.
    pub(crate) other: u64,
    pub(crate) took: Duration,
    /// In microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Outcome {
    fn new() -> Self {
        Self {
            good: 0,
            failed: 0,
            other: 0,
            took: Duration::ZERO,
            // 1 µs to 60 s with three digits: these bounds are always allowed.
            latency: Histogram::new_with_bounds(1, 60_000_000, 3)
                .unwrap_or_else(|_| unreachable!("valid bounds")),
        }
    }

    fn add(&mut self, other: &Self) {
        self.good += other.good;
        self.failed += other.failed;
        self.other += other.other;
        let _ = self.latency.add(&other.latency);
    }
}

/// The next request's number, over all runs.
static NEXT: AtomicU64 = AtomicU64::new(0);

pub(crate) async fn run(load: &Load) -> Outcome {
    let start = Instant::now();
    let slots = Arc::new(AtomicU64::new(0));
    let mut connections = JoinSet::new();
    for _ in 0..load.connections {
        connections.spawn(one(load.clone(), start, slots.clone()));
    }
    let mut all = Outcome::new();
    while let Some(one) = connections.join_next().await {
        match one {
            Ok(one) => all.add(&one),
            Err(_) => all.failed += 1,
        }
    }
    all.took = start.elapsed();
    all
}

async fn one(load: Load, start: Instant, slots: Arc<AtomicU64>) -> Outcome {
    let mut outcome = Outcome::new();
    let end = start + load.time;
    let Ok(mut connection) = Connection::open(load.addr).await else {
        outcome.failed += 1;
        return outcome;
    };
    let mut request = Vec::with_capacity(2048);
    loop {
        let due = match load.pace {
            Pace::Closed => Instant::now(),
            Pace::Open(rate) => {
                #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
                let slot = slots.fetch_add(1, Ordering::Relaxed) as f64;
                start + Duration::from_secs_f64(slot / rate)
            }
        };
        if due >= end {
            return outcome;
        }
        if matches!(load.pace, Pace::Open(_)) {
            tokio::time::sleep_until(due.into()).await;
        }
        (load.requests)(NEXT.fetch_add(1, Ordering::Relaxed), &mut request);
        let good = match connection.exchange(&request).await {
            Ok(answer) => {
                let good = answer.status == 200 && answer.body == load.expected;
                outcome.other += u64::from(answer.status == 200 && !good);
                good
            }
            Err(_broken) => {
                if connection.reopen().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                false
            }
        };
        if good {
            outcome.good += 1;
            let micros = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
            outcome.latency.saturating_record(micros);
        } else {
            outcome.failed += 1;
        }
    }
}
