//! Stand-ins for the homeserver and PNM, and a harness that runs the two real binaries against them.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on stops where it is; the message names what was missing"
)]
#![expect(
    clippy::return_self_not_must_use,
    reason = "a check on an answer is often all that a test wants of it"
)]

pub mod app;
pub mod compose;
pub mod database;
pub mod documents;
pub mod fixtures;
pub mod homeserver;
pub mod hook;
pub mod http;
pub mod machine;
pub mod marks;
pub mod nethcti;
pub mod pnm;
pub mod process;
pub mod proxy;
pub mod python;
pub mod raw;
pub mod server;
pub mod siege;
pub mod stand_in_postgres;
pub mod synapse;
pub mod tls;

use std::time::{Duration, Instant};

/// How long a test waits for something that normally takes milliseconds.
///
/// Generous because two cores run many tests at once; nothing waits this long when all is well.
pub const SOON: Duration = Duration::from_secs(20);

/// Polls `reached` until it holds, and panics naming `what` if it does not within `deadline`.
pub async fn eventually(deadline: Duration, what: &str, reached: impl AsyncFn() -> bool) {
    assert!(
        within(deadline, reached).await,
        "not within {deadline:?}: {what}"
    );
}

/// Polls `reached` until it holds; false if it does not within `deadline`.
pub async fn within(deadline: Duration, reached: impl AsyncFn() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if reached().await {
            return true;
        }
        if started.elapsed() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
