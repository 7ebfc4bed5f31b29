//! Limits how many selectors that nobody stands for one address may add (REPORT_AUTH=selector): without it
//! anybody could fill the disk. Phones that are known, mapped or logged in are never counted, nor is who comes
//! from this machine: that is the reverse proxy, whom nobody has named in TRUSTED_PROXIES, with all phones.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::http::peers::network;

const WINDOW: Duration = Duration::from_hours(1);
/// Most addresses remembered; of one that is forgotten the count begins anew.
const MAX_ADDRESSES: u64 = 50_000;

/// Per network, when what it has added is forgotten: each addition counts for its share of [`WINDOW`].
#[derive(Debug)]
pub(super) struct Strangers {
    /// None: no limit.
    share: Option<Duration>,
    clear_at: moka::sync::Cache<u128, Instant>,
    said: AtomicBool,
}

impl Strangers {
    /// `most` per hour; 0: no limit.
    pub(super) fn new(most: u32) -> Self {
        Self {
            share: (most > 0).then(|| WINDOW / most),
            clear_at: moka::sync::Cache::builder()
                .max_capacity(MAX_ADDRESSES)
                .time_to_live(WINDOW)
                .build(),
            said: AtomicBool::new(false),
        }
    }

    /// How long this address has to wait before it may add another.
    pub(super) fn wait(&self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        let share = self.share.filter(|_| !is_ourselves(address))?;
        let clear_at = self.clear_at.get(&key(address))?;
        let wait = (clear_at.saturating_duration_since(now) + share).saturating_sub(WINDOW);
        (!wait.is_zero()).then_some(wait)
    }

    /// A report was refused for that: said once, since it may be a proxy that all phones come through.
    pub(super) fn refused(&self, address: Option<IpAddr>) {
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                address = address.map(tracing::field::display),
                "too many selectors without a mapping come from one address: new ones get 429 for a while. If it \
                 is your proxy's, name it in TRUSTED_PROXIES; else see NEW_SELECTORS_PER_HOUR"
            );
        }
    }

    /// This address has added one.
    pub(super) fn added(&self, address: Option<IpAddr>, now: Instant) {
        let Some(share) = self.share else { return };
        let entry = self.clear_at.entry(key(address));
        entry.and_upsert_with(|old| old.map_or(now, |old| old.into_value().max(now)) + share);
    }
}

/// Callers without an address share one.
fn key(address: Option<IpAddr>) -> u128 {
    address.map_or(0, network)
}

fn is_ourselves(address: Option<IpAddr>) -> bool {
    address.is_some_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_not_limited() {
        let strangers = Strangers::new(1);
        let now = Instant::now();
        for here in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let here = here.parse().ok();
            strangers.added(here, now);
            strangers.added(here, now);
            assert_eq!(strangers.wait(here, now), None);
        }
    }

    #[test]
    fn each_address_has_its_own_and_gets_one_back_after_its_share_of_the_hour() {
        let strangers = Strangers::new(4);
        let [here, there] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().ok());
        let now = Instant::now();
        for _ in 0..4 {
            assert_eq!(strangers.wait(here, now), None);
            strangers.added(here, now);
        }
        let quarter = WINDOW / 4;
        assert_eq!(strangers.wait(here, now), Some(quarter));
        assert_eq!(strangers.wait(there, now), None);
        assert_eq!(strangers.wait(here, now + quarter), None);
        strangers.added(here, now + quarter);
        assert_eq!(strangers.wait(here, now + quarter), Some(quarter));
    }

    #[test]
    fn zero_is_no_limit() {
        let strangers = Strangers::new(0);
        let now = Instant::now();
        for _ in 0..10_000 {
            strangers.added(None, now);
        }
        assert_eq!(strangers.wait(None, now), None);
    }
}
