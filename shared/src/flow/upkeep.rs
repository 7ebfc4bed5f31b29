//! Makes sure that no pusher is forgotten: gives missing jobs to pushers, renews pushers with earlier settings, and
//! replays.

use super::{Result, Transaction, queue::is_outdated, settle::Pairs};
use crate::rules::pushers::{Change, Goal, Pusher, State, goal};

/// Gives a job to those of these pushers that are not as wanted and have no live job. A pusher that yields to another
/// user's needs none: the end of that one's job gives it one.
pub async fn enqueue_pushers(tx: &mut dyn Transaction, ids: &[i64], append: bool) -> Result<usize> {
    let now = tx.now();
    let mut pairs = Pairs::load_of(tx, ids).await?;
    let mut enqueued = 0;
    for id in ids {
        if let Some((state, at)) = pairs.find(*id)
            && state.pushers[at].state == State::Pending
            && state.pushers[at]
                .job
                .as_ref()
                .is_none_or(|job| !job.is_live())
            && goal(&state.pushers, *id, 0, append, now) != Some(Goal::Yield)
        {
            state.run(at, now);
            enqueued += 1;
        }
    }
    pairs.save(tx).await?;
    Ok(enqueued)
}

/// Makes the worker compare these pushers with the homeserver's, and set or delete them if needed.
pub async fn check_pushers(tx: &mut dyn Transaction, ids: &[i64]) -> Result<usize> {
    change_all(tx, ids, |pusher| {
        (pusher.state != State::Removed).then_some(Change::Check)
    })
    .await
}

/// Makes the worker set those of these pushers again that carry another fingerprint than the caller's, who has these
/// settings. Only a worker with the newest settings may do so: another's pushers are as they should be.
pub async fn renew_pushers(
    tx: &mut dyn Transaction,
    ids: &[i64],
    settings: &str,
    fingerprint: &str,
) -> Result<usize> {
    if is_outdated(tx, settings).await? {
        return Ok(0);
    }
    change_all(tx, ids, |pusher| {
        let outdated = pusher.state == State::Registered
            && pusher.is_present()
            && pusher.registered_as.as_deref() != Some(fingerprint);
        outdated.then_some(Change::Renew)
    })
    .await
}

/// What became of a renewal of the marks' key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkRenewal {
    /// The key is new.
    Done,
    /// Nothing changed. This many pushers still carry marks of the key before, which still counts.
    TooEarly(i64),
}

/// Makes `fresh` the key of the marks. Marks of the key before count for another `counts` seconds. Only one former key
/// counts, so its pushers must have their new marks before it is forgotten.
pub async fn renew_mark_key(
    tx: &mut dyn Transaction,
    fresh: &[u8],
    counts: i64,
) -> Result<MarkRenewal> {
    let now = tx.now();
    let keys = tx.lock_mark_keys().await?;
    if let Some((former, until)) = keys.previous
        && now < until
    {
        let carry = tx.count_with_mark(former.name()).await?;
        if carry > 0 {
            return Ok(MarkRenewal::TooEarly(carry));
        }
    }
    tx.renew_mark_key(fresh, now.saturating_add(counts)).await?;
    Ok(MarkRenewal::Done)
}

async fn change_all(
    tx: &mut dyn Transaction,
    ids: &[i64],
    change: impl Fn(&Pusher) -> Option<Change> + Send + Sync,
) -> Result<usize> {
    let now = tx.now();
    let mut pairs = Pairs::load_of(tx, ids).await?;
    let mut changed = 0;
    for id in ids {
        if let Some((state, at)) = pairs.find(*id)
            && let Some(change) = change(&state.pushers[at])
        {
            state.change(at, &change, now);
            changed += 1;
        }
    }
    pairs.save(tx).await?;
    Ok(changed)
}
