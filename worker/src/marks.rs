//! Renews pushers that carry other settings than the current ones: PROXY_URL, PUSH_FORMAT, PUSHER_APPEND,
//! PUSHER_DISABLE_BADGE_COUNT, or the key of the marks. It works slowly, so that new phones do not wait behind all the
//! others.

use std::{sync::Arc, time::Duration};

use matrix2acrobits_shared::{mark::MarkKey, matrix::pushers::PusherSettings};
use matrix2acrobits_store::StoreError;
use tokio::sync::watch;

use crate::run::Shared;

/// The pause for each pusher that was enqueued. Synapse sets 70 to 130 pushers a second.
const EACH: Duration = Duration::from_millis(20);
const SECOND: Duration = Duration::from_secs(1);
/// How often to look for a new key.
const WATCH: Duration = Duration::from_secs(5);

/// Watches the key, and renews outdated pushers while no worker with newer settings lives. Runs until the future is
/// dropped.
pub(crate) async fn renew(
    shared: Arc<Shared>,
    pusher: PusherSettings,
    key: watch::Sender<MarkKey>,
) {
    let mut newest = shared.outdated.subscribe();
    // The settings may have changed while no worker ran.
    let mut look = true;
    loop {
        let pause = match step(&shared, &pusher, &key, look).await {
            Ok(more) => {
                look = more;
                WATCH
            }
            Err(error) => {
                tracing::debug!(%error, "pushers cannot be renewed; trying again");
                SECOND
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // A worker with newer settings came, or went and left its pushers to this one.
            _ = newest.changed() => look = true,
        }
    }
}

/// True if the next step has to look for outdated pushers again.
async fn step(
    shared: &Shared,
    pusher: &PusherSettings,
    key: &watch::Sender<MarkKey>,
    look: bool,
) -> Result<bool, StoreError> {
    let current = shared.store.mark_keys().await?.current;
    let changed = key.borrow().name() != current.name();
    if changed {
        tracing::info!("the key of the marks has changed: all pushers get a new mark");
        key.send_replace(current.clone());
    }
    if shared.is_outdated() {
        return Ok(true);
    }
    if !changed && !look {
        return Ok(false);
    }
    let renewed = pass(shared, &pusher.fingerprint(&current)).await?;
    if renewed > 0 {
        tracing::info!(
            renewed,
            "pushers with other settings or an old mark are set anew"
        );
    }
    // A job that was under way may have recorded the old settings or the old key meanwhile.
    Ok(changed || renewed > 0)
}

/// Goes once through all pushers. Returns how many will be set again.
async fn pass(shared: &Shared, fingerprint: &str) -> Result<usize, StoreError> {
    let (mut after, mut renewed) = (0, 0);
    while let Some((last, chunk)) = shared
        .store
        .renew_outdated(&shared.settings, fingerprint, after)
        .await?
    {
        after = last;
        renewed += chunk;
        tokio::time::sleep(EACH * u32::try_from(chunk).unwrap_or(u32::MAX)).await;
    }
    Ok(renewed)
}
