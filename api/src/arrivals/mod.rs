//! Remembers which pushes were sent and which the phones confirmed. Every few seconds, one transaction writes this to
//! the database, so that neither a push nor a receipt costs its own write. All memory is bounded.

mod sent;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use matrix2acrobits_shared::{
    clock::Clock,
    flow::{NamedPhone, PushTarget},
    ids::{Device, Pushkey, Selector, UserId},
    process::logs::Chain,
    rules::arrival::{Arrivals, Said, meant},
};
use matrix2acrobits_store::{Store, StoreError};

use self::sent::Sent;
use crate::{
    keyed_hash::KeyedHash,
    metrics::{self, ReceiptResult},
};

/// How often to write to the database. A crash loses no more than this.
const PAUSE: Duration = Duration::from_secs(5);
/// Silent phones are counted once in this many writes.
const COUNT_EVERY: u32 = 12;
/// The most phones whose pushes are remembered until the next write. Beyond that, some pushes are not noted.
const MOST_PUSHED: usize = 20_000;
/// The most phones without a receipt in one write. Their times need not be exact to the second, and a busy api would
/// spend too much time on them.
const PUSHED_AT_A_TIME: usize = 5_000;
/// The most receipts that wait for the lookup of their phone. Strangers can invent receipts, so those beyond this
/// number are dropped.
const MOST_NAMED: usize = 5_000;

/// A receipt with checked fields.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) phone: NamedPhone,
    /// The id of the push.
    pub(crate) id: Option<String>,
    /// The user that a login proved.
    pub(crate) owner: Option<UserId>,
}

/// What happened at phones, by the ids of their rows.
type Batch = HashMap<i64, Arrivals>;
/// Receipts that wait for the lookup of their phone.
type Receipts = HashMap<(NamedPhone, Option<UserId>), Named>;

/// The memory of pushes and receipts.
#[derive(Debug)]
pub(crate) struct Journal {
    clock: Clock,
    hash: KeyedHash,
    state: Mutex<State>,
    metrics: metrics::Receipts,
}

#[derive(Debug, Default)]
struct State {
    sent: Sent,
    phones: Batch,
    named: Receipts,
}

/// The receipts of one phone that has to be looked up.
#[derive(Debug, Clone, Copy)]
struct Named {
    arrivals: Arrivals,
    /// Whether all of them named one of our ids. Then they are already counted.
    confirmed: bool,
}

impl Journal {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            hash: KeyedHash::random(),
            state: Mutex::default(),
            metrics: metrics::Receipts::new(),
        }
    }

    /// Notes that PNM accepted a push with this id.
    pub(crate) fn pushed(&self, target: &PushTarget, id: Option<&str>) {
        let now = self.clock.unix();
        let mut state = self.lock();
        self.note_id(&mut state, target, id);
        if state.phones.len() < MOST_PUSHED || state.phones.contains_key(&target.row_id) {
            state.phones.entry(target.row_id).or_default().push(now);
        }
    }

    /// Notes that PNM accepted a test push with this id. It does not count as the phone's last push, but its receipt is
    /// recognised.
    pub(crate) fn tested(&self, target: &PushTarget, id: &str) {
        self.note_id(&mut self.lock(), target, Some(id));
    }

    fn note_id(&self, state: &mut State, target: &PushTarget, id: Option<&str>) {
        let Some(id) = id else { return };
        let now = Instant::now();
        for name in [target.pushkey.as_str(), target.selector.as_str()] {
            let key = self.hash.of([id.as_bytes(), name.as_bytes()]);
            state.sent.note(key, target.row_id, now);
        }
    }

    /// Notes a receipt of a phone.
    pub(crate) fn received(&self, receipt: Receipt) {
        let now = self.clock.unix();
        let Receipt { phone, id, owner } = receipt;
        let token = phone.token.as_ref().map(Pushkey::as_str);
        let name = token.or(phone.selector.as_ref().map(Selector::as_str));
        let key = id
            .zip(name)
            .map(|(id, name)| self.hash.of([id.as_bytes(), name.as_bytes()]));
        let mut state = self.lock();
        let confirmed = key.and_then(|key| state.sent.confirm(key, Instant::now()));
        if let Some(confirmed) = confirmed {
            self.metrics.confirmed(confirmed.took);
            let plain = phone.device.is_none() && owner.is_none();
            if let Some(row) = confirmed.phone
                && plain
            {
                // There cannot be more of these than pushes.
                state.phones.entry(row).or_default().receipt(now);
                return;
            }
        }
        let key = (phone, owner);
        if state.named.len() >= MOST_NAMED && !state.named.contains_key(&key) {
            drop(state);
            self.metrics.count(ReceiptResult::Dropped, 1);
            return;
        }
        let named = state.named.entry(key).or_insert(Named {
            arrivals: Arrivals::default(),
            confirmed: true,
        });
        named.arrivals.receipt(now);
        named.confirmed &= confirmed.is_some();
    }

    /// Writes to the database from time to time, and counts silent phones. Runs forever.
    pub(crate) async fn run(self: Arc<Self>, store: Store) {
        for round in 0_u32.. {
            if let Err(error) = self.flush(&store).await {
                tracing::debug!(error = %Chain(&error), "pushes and receipts could not be noted");
            }
            if round.is_multiple_of(COUNT_EVERY) {
                match store.count_silent().await {
                    Ok(count) => metrics::phones_silent(count),
                    Err(error) => {
                        tracing::debug!(error = %Chain(&error), "silent phones could not be counted");
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes to the database. If that fails, the memory is kept for the next time.
    pub(crate) async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let (named, mut batch) = self.take();
        if !named.is_empty() {
            match self.look_up(store, &named).await {
                Ok(found) => {
                    for (phone, arrivals) in found {
                        let before = batch.entry(phone).or_default();
                        *before = before.then(arrivals);
                    }
                }
                Err(error) => {
                    let mut state = self.lock();
                    put_back(&mut state, batch);
                    put_back_named(&mut state, named);
                    return Err(error);
                }
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let rows: Arc<[_]> = batch
            .iter()
            .map(|(phone, arrivals)| (*phone, *arrivals))
            .collect();
        let written = store.note_arrivals(rows).await;
        if written.is_err() {
            put_back(&mut self.lock(), batch);
        }
        written
    }

    /// Takes all receipts, and up to [`PUSHED_AT_A_TIME`] phones without one.
    fn take(&self) -> (Receipts, Batch) {
        let mut state = self.lock();
        let named = std::mem::take(&mut state.named);
        if state.phones.len() <= PUSHED_AT_A_TIME {
            return (named, std::mem::take(&mut state.phones));
        }
        let mut pushed = 0;
        let taken = state.phones.extract_if(|_, arrivals| {
            pushed += usize::from(arrivals.received.is_none());
            arrivals.received.is_some() || pushed <= PUSHED_AT_A_TIME
        });
        let batch = taken.collect();
        (named, batch)
    }

    /// Finds the phones of receipts.
    async fn look_up(
        &self,
        store: &Store,
        named: &Receipts,
    ) -> Result<Vec<(i64, Arrivals)>, StoreError> {
        let phones: Vec<_> = named.keys().map(|(phone, _)| phone.clone()).collect();
        let candidates = store.candidates(&phones).await?;
        let mut found = Vec::new();
        for (((phone, owner), named), candidates) in named.iter().zip(candidates) {
            let said = Said {
                selector: phone.selector.as_ref().map(Selector::as_str),
                device: phone.device.as_ref().map(Device::as_str),
                token: phone.token.is_some(),
                owner: owner.as_ref().map(UserId::as_str),
            };
            let rows = meant(said, &candidates);
            if !named.confirmed {
                let known = if rows.is_empty() {
                    ReceiptResult::Unknown
                } else {
                    ReceiptResult::Noted
                };
                self.metrics.count(known, named.arrivals.receipts.into());
            }
            found.extend(rows.into_iter().map(|row| (row, named.arrivals)));
        }
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts back a batch that could not be written, before the events that have happened meanwhile.
fn put_back(state: &mut State, batch: Batch) {
    for (phone, earlier) in batch {
        let later = state.phones.remove(&phone).unwrap_or_default();
        if state.phones.len() < 2 * MOST_PUSHED {
            state.phones.insert(phone, earlier.then(later));
        }
    }
}

/// Puts back receipts whose phones could not be looked up, before those that have come meanwhile.
fn put_back_named(state: &mut State, named: Receipts) {
    for (key, earlier) in named {
        let Some(later) = state.named.get_mut(&key) else {
            if state.named.len() < 2 * MOST_NAMED {
                state.named.insert(key, earlier);
            }
            continue;
        };
        *later = Named {
            arrivals: earlier.arrivals.then(later.arrivals),
            confirmed: earlier.confirmed && later.confirmed,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(at: i64, confirmed: bool) -> Named {
        let mut arrivals = Arrivals::default();
        arrivals.receipt(at);
        Named {
            arrivals,
            confirmed,
        }
    }

    #[test]
    fn receipts_of_before_and_after_a_failure_both_count() {
        let phone = |selector| {
            let phone = NamedPhone {
                selector: Selector::parse(selector).ok(),
                device: None,
                token: None,
            };
            (phone, None)
        };
        let mut state = State::default();
        state.named.insert(phone("both"), named(200, false));
        state.named.insert(phone("after"), named(200, true));
        let failed = [("both", true), ("before", true)];
        let failed = failed.map(|(selector, confirmed)| (phone(selector), named(100, confirmed)));
        put_back_named(&mut state, Receipts::from(failed));
        for (selector, at, receipts, confirmed) in [
            ("both", 200, 2, false),
            ("before", 100, 1, true),
            ("after", 200, 1, true),
        ] {
            let found = state.named[&phone(selector)];
            let Named { arrivals, .. } = found;
            assert_eq!(arrivals.received, Some(at), "{selector}");
            assert_eq!(arrivals.receipts, receipts, "{selector}");
            assert_eq!(found.confirmed, confirmed, "{selector}");
        }
    }
}
