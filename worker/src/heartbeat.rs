//! Reports that this worker is alive, recovers the jobs of workers that died, and notices jumps of the clock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use matrix2acrobits_shared::{
    flow::{Heartbeat, Others},
    rules::jobs,
};
use matrix2acrobits_store::StoreError;

use crate::{run::Shared, upkeep::correct_waits};

/// The difference between the machine's two clocks that counts as a jump, in seconds.
const JUMP: i64 = 30;
/// How long our own heartbeats must have succeeded before another worker's silence means that it died.
const UNBROKEN: Duration = Duration::from_secs(jobs::DEAD_AFTER.unsigned_abs());

/// How long our own heartbeats have succeeded in time. While the database is down, no worker's do, and the first worker
/// to reach it again would assume that all others are dead.
#[derive(Debug, Default)]
struct Unbroken {
    since: Option<Instant>,
    last: Option<Instant>,
}

impl Unbroken {
    /// A heartbeat has succeeded.
    fn beaten(&mut self, now: Instant) {
        // This machine may have been suspended, and the others with it.
        let late = self.last.is_none_or(|last| now - last > UNBROKEN / 2);
        if late {
            self.since = Some(now);
        }
        self.last = Some(now);
    }

    /// A heartbeat has failed.
    fn broken(&mut self) {
        *self = Self::default();
    }

    /// Whether a silent worker counts as dead.
    fn tells(&self, now: Instant) -> bool {
        let in_time = self.last.is_some_and(|last| now - last <= UNBROKEN / 2);
        in_time && self.since.is_some_and(|since| now - since >= UNBROKEN)
    }
}

/// Reports that this worker is alive, recovers the jobs of workers that died, and notices jumps of the clock.
pub(crate) async fn heartbeat(shared: Arc<Shared>) {
    let (mut wall, mut steady) = (shared.store.clock().unix(), Instant::now());
    let mut unbroken = Unbroken::default();
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
                recovers: unbroken.tells(Instant::now()),
            })
            .await
        {
            Ok(Others {
                recovered,
                killed,
                outdated,
            }) => {
                note_settings(&shared, outdated);
                shared.beat.now();
                unbroken.beaten(Instant::now());
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
            // The writer has ended and will not come back.
            Err(StoreError::Stopped) => return,
            Err(error) => {
                unbroken.broken();
                tracing::debug!(%error, "no heartbeat");
            }
        }
    }
}

fn note_settings(shared: &Shared, outdated: bool) {
    // Whoever watches this is not to be woken by every heartbeat.
    let changed = |known: &mut bool| std::mem::replace(known, outdated) != outdated;
    if !shared.outdated.send_if_modified(changed) {
        return;
    }
    if outdated {
        tracing::warn!(
            "a worker that started later has another PROXY_URL, PUSH_FORMAT, PUSHER_APPEND or PUSHER_DISABLE_BADGE_COUNT: this one takes no jobs while that one lives"
        );
    } else {
        tracing::info!("the worker with newer settings is gone: this one takes jobs again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_of_others_means_something_after_ten_seconds_of_own_beats() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut unbroken = Unbroken::default();
        assert!(!unbroken.tells(at(0)), "nothing has come through yet");
        for second in (0..10).step_by(2) {
            assert!(!unbroken.tells(at(second)), "{second}");
            unbroken.beaten(at(second));
        }
        assert!(unbroken.tells(at(10)));
        assert!(!unbroken.tells(at(60)), "this machine slept");

        unbroken.broken();
        assert!(!unbroken.tells(at(12)), "the database was away");
        for second in (12..22).step_by(2) {
            assert!(!unbroken.tells(at(second)), "{second}");
            unbroken.beaten(at(second));
        }
        assert!(unbroken.tells(at(22)));

        unbroken.beaten(at(60));
        assert!(!unbroken.tells(at(62)), "this machine slept before that");
    }
}
