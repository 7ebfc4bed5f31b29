//! Stopping: the first signal asks every part to finish, the second ends the process at once.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a process may take to finish what runs.
pub const GRACE: Duration = Duration::from_secs(15);

/// Exit code when the grace period ran out or a second signal came.
pub const HARD_EXIT: i32 = 1;

/// A token that is cancelled by SIGTERM or SIGINT. A second signal, or [`GRACE`] running out, exits.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping: finishing what runs");
        stop.cancel();
        tokio::select! {
            _ = term.recv() => tracing::warn!("second signal: ending at once"),
            _ = interrupt.recv() => tracing::warn!("second signal: ending at once"),
            () = tokio::time::sleep(GRACE) => tracing::error!("could not finish in time: ending at once"),
        }
        std::process::exit(HARD_EXIT);
    });
    Ok(token)
}
