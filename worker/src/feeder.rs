//! Takes due jobs from the queue, and watches the database to notice new ones.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use matrix2acrobits_shared::{
    flow::{Claim, Claimed, Held},
    rules::jobs,
};
use matrix2acrobits_store::StoreError;
use tokio::sync::mpsc;

use crate::{
    metrics,
    run::{PAUSE, Shared, WATCH},
};

/// How often to look at the queue while a job waits for its time.
const POLL_WAITING: Duration = Duration::from_millis(500);
/// How often to look at the queue at least, whatever the watcher says.
const POLL_IDLE: Duration = Duration::from_secs(15);
/// How often to read the gate at least, because a worker may die without writing anything.
const FOLLOW: Duration = Duration::from_secs(1);

/// Takes due jobs from the queue while the gate lets jobs through and there is room.
pub(crate) async fn feed(shared: Arc<Shared>, jobs: mpsc::Sender<Held>) {
    let mut gate = shared.gate.watch();
    // Set when the result of a claim got lost. Then we may hold jobs that we do not know of.
    let mut doubtful = false;
    while !shared.stop.is_cancelled() {
        gate.mark_unchanged();
        let room = shared.most.saturating_sub(shared.held().len());
        let wanted = if shared.gate.is_open() {
            room
        } else {
            // Take one job to try with, if this worker holds none.
            usize::from(shared.gate.is_trying() && room == shared.most)
        };
        let pause = match take(&shared, wanted, doubtful).await {
            Ok(taken) => {
                doubtful = false;
                let enough = !taken.is_empty() && taken.len() >= wanted;
                for held in taken {
                    // The channel has room for all jobs that this worker may hold, and apalis listens until we stop.
                    if jobs.send(held).await.is_err() {
                        break;
                    }
                }
                if enough {
                    continue;
                }
                waiting_pause(&shared).await
            }
            Err(error) => {
                tracing::debug!(%error, "cannot take jobs");
                doubtful = true;
                PAUSE
            }
        };
        tokio::select! {
            () = shared.wake.notified() => {}
            _ = gate.changed() => {}
            () = tokio::time::sleep(pause) => {}
            () = shared.stop.cancelled() => {}
        }
    }
}

async fn take(shared: &Shared, wanted: usize, doubtful: bool) -> Result<Vec<Held>, StoreError> {
    if wanted == 0 && !doubtful {
        return Ok(Vec::new());
    }
    let limit = i64::try_from(wanted).unwrap_or(i64::MAX);
    let suspect = shared.suspects.load(Ordering::SeqCst) == 0;
    let claim = Claim {
        worker: shared.name.clone(),
        settings: shared.settings.clone(),
        limit,
        suspect: suspect && limit > 0,
        knows: doubtful.then(|| shared.held().clone()),
    };
    let Claimed { jobs, unreadable } = shared.store.claim(claim).await?;
    if unreadable > 0 {
        tracing::error!(
            unreadable,
            reason = "unreadable",
            "dead letters: these jobs cannot be read"
        );
        metrics::unreadable_jobs(u64::try_from(unreadable).unwrap_or(u64::MAX));
    }
    shared.held().extend(jobs.iter().map(|held| held.pusher_id));
    let suspects = jobs.iter().filter(|held| held.suspect).count();
    shared.suspects.fetch_add(suspects, Ordering::SeqCst);
    Ok(jobs)
}

async fn waiting_pause(shared: &Shared) -> Duration {
    match shared.store.next_due().await {
        // Check again soon whether the other worker is still alive.
        _ if shared.is_outdated() => jobs::HEARTBEAT,
        Ok(None) => POLL_IDLE,
        Ok(Some(_)) => POLL_WAITING,
        Err(_) => PAUSE,
    }
}

/// Wakes the feeder and makes the gate follow when a process has written to the database.
pub(crate) async fn watch(shared: Arc<Shared>) {
    loop {
        let result = async {
            let mut watcher = shared.store.watcher().await?;
            let mut ticks = tokio::time::interval(WATCH);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut followed = Instant::now();
            loop {
                ticks.tick().await;
                let changed = watcher.changed().await?;
                if changed {
                    shared.wake.notify_one();
                }
                if changed || followed.elapsed() >= FOLLOW {
                    shared.gate.follow().await?;
                    followed = Instant::now();
                }
            }
        };
        let result: Result<(), StoreError> = result.await;
        if let Err(error) = result {
            tracing::debug!(%error, "cannot watch the database");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
