//! Finds out when the homeserver works again, and then makes all waiting jobs due.

use std::sync::Arc;

use matrix2acrobits_shared::{matrix::client::Homeserver, rules::gate::Step};
use matrix2acrobits_store::StoreError;

use crate::{
    metrics,
    run::{PAUSE, Shared, WATCH},
};

/// Finds out when the homeserver works again, and then takes up the backlog.
pub(crate) async fn probe(shared: Arc<Shared>, homeserver: Homeserver) {
    let mut changes = shared.gate.watch();
    let mut open = false;
    loop {
        changes.mark_unchanged();
        metrics::gate(&shared.gate.report());
        let now_open = shared.gate.is_open();
        if now_open && !open {
            take_up(&shared).await;
        }
        open = now_open;
        let Some((wait, step)) = shared.gate.next_step() else {
            let _ = changes.changed().await;
            continue;
        };
        let sleep = tokio::time::sleep(wait);
        if tokio::select! { () = sleep => false, _ = changes.changed() => true } {
            continue;
        }
        if let Err(error) = take_step(&shared, &homeserver, step).await {
            tracing::debug!(%error, "the outage gate cannot be asked");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn take_step(shared: &Shared, homeserver: &Homeserver, step: Step) -> Result<(), StoreError> {
    let gate = &shared.gate;
    match step {
        Step::Claim if !gate.claim().await? => {
            // Another worker was first, or no slot is free.
            tokio::time::sleep(WATCH).await;
        }
        Step::Claim if gate.must_probe() => gate.probed(homeserver.probe().await).await?,
        Step::Claim => gate.try_one(true),
        Step::BringForward => {
            // All jobs may be in backoff, but one must be due to try with.
            shared.store.make_one_due().await?;
            gate.brought_forward();
            shared.wake.notify_one();
        }
        Step::Renew => gate.renew().await?,
        Step::PassOn => gate.pass_on().await?,
    }
    Ok(())
}

/// Makes all waiting jobs due as soon as the homeserver allows.
async fn take_up(shared: &Shared) {
    loop {
        match shared.store.make_all_due().await {
            Ok(0) => return,
            Ok(_) => shared.wake.notify_one(),
            Err(error) => {
                tracing::debug!(%error, "cannot bring waiting jobs forward");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
