//! Stopping: the first signal asks every part to finish, the second ends the process at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a process may take to finish what runs.
pub const GRACE: Duration = Duration::from_secs(15);
/// How long it may take at the end to put the database's file in order.
pub const WRAP_UP: Duration = Duration::from_secs(1);
/// When running work is abandoned, so that the rest of [`GRACE`] is enough to give it back.
const FINISH: Duration = Duration::from_secs(13);
/// How long a process may take to give back its work after a second signal.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Exit code when the grace period ran out or a second signal came.
const HARD_EXIT: i32 = 1;

/// The stages of a shutdown. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// Take nothing new, and finish what runs.
    pub stop: CancellationToken,
    /// Give back what still runs.
    pub abandon: CancellationToken,
    hurried: Arc<AtomicBool>,
}

impl Stopping {
    /// Whether a second signal came. Then the process must not report success.
    pub fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::SeqCst)
    }
}

/// A token that is cancelled by SIGTERM, SIGINT or SIGHUP. A second signal, or [`GRACE`] running out, exits.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (stop, mut signals) = (token.clone(), Signals::new()?);
    tokio::spawn(async move {
        signals.first(&stop).await;
        signals.second(GRACE).await;
        std::process::exit(HARD_EXIT);
    });
    Ok(token)
}

/// The same for a process that holds shared work. It can give the work back before it exits.
pub fn on_signals_with_work() -> std::io::Result<Stopping> {
    let stopping = Stopping::default();
    let (told, mut signals) = (stopping.clone(), Signals::new()?);
    tokio::spawn(async move {
        signals.first(&told.stop).await;
        if signals.second(FINISH).await {
            told.hurried.store(true, Ordering::SeqCst);
            told.abandon.cancel();
            tokio::time::sleep(LAST_WORDS).await;
        } else {
            told.abandon.cancel();
            signals.second(GRACE.saturating_sub(FINISH)).await;
        }
        std::process::exit(HARD_EXIT);
    });
    Ok(stopping)
}

struct Signals([Signal; 3]);

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [term, interrupt, hangup] = &mut self.0;
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {}, _ = hangup.recv() => {} }
    }

    async fn first(&mut self, stop: &CancellationToken) {
        self.next().await;
        stop.cancel();
        tracing::info!("stopping: finishing what runs");
    }

    /// Whether another signal comes in this time.
    async fn second(&mut self, time: Duration) -> bool {
        let came = tokio::time::timeout(time, self.next()).await.is_ok();
        if came {
            tracing::warn!("second signal: ending at once");
        } else {
            tracing::error!("could not finish in time");
        }
        came
    }
}
