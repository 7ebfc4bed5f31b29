//! Says that this worker lives, takes over the jobs of those that died, and notices jumps of the clock.

use std::{sync::Arc, time::Instant};

use matrix2acrobits_shared::{flow::Heartbeat, rules::jobs};
use matrix2acrobits_store::StoreError;

use crate::{run::Shared, upkeep::correct_waits};

/// A difference between the two clocks of this machine that counts as a jump, in seconds.
const JUMP: i64 = 30;

/// Says that this worker lives, recovers the jobs of those that don't, and notices jumps of the clock.
pub(crate) async fn heartbeat(shared: Arc<Shared>) {
    let (mut wall, mut steady) = (shared.store.clock().unix(), Instant::now());
    let mut ticks = tokio::time::interval(jobs::HEARTBEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = shared.store.clock().unix();
        let passed = i64::try_from(steady.elapsed().as_secs()).unwrap_or(i64::MAX);
        let jump = now - wall - passed;
        (wall, steady) = (now, Instant::now());
        if jump.abs() >= JUMP {
            tracing::warn!(seconds = jump, "the clock jumped");
            correct_waits(&shared).await;
        }
        match shared
            .store
            .heartbeat(Heartbeat {
                worker: shared.name.clone(),
                started: shared.started,
                settings: shared.settings.clone(),
                gate: shared.gate.report(),
            })
            .await
        {
            Ok((recovered, killed)) => {
                shared.beat.now();
                if recovered > 0 {
                    tracing::warn!(recovered, "took over jobs of a worker that died");
                }
                if killed > 0 {
                    tracing::warn!(
                        reason = "worker_died",
                        killed,
                        "dead letters: these jobs killed their worker again and again"
                    );
                }
            }
            // The writer is gone for good.
            Err(StoreError::Stopped) => return,
            Err(error) => tracing::debug!(%error, "no heartbeat"),
        }
    }
}
