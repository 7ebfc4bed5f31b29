//! Limits how many selectors that nobody stands for one address may add (REPORT_AUTH=selector). Without the limit
//! anybody could fill the disk. Phones that are known, mapped or logged in do not count. Requests from localhost are
//! exempt, because they come from a reverse proxy that TRUSTED_PROXIES does not name, and so from all phones.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{
    http::peers::{network, wider},
    limiter::{Limit, Limiter, Rate},
};

const WINDOW: Duration = Duration::from_hours(1);
/// The network around an address may add this many times as many.
const WIDER: u32 = 8;

/// How many selectors each network has added.
#[derive(Debug)]
pub(super) struct Strangers {
    /// None means no limit.
    rate: Option<Rate>,
    limiter: Limiter,
    said: AtomicBool,
}

impl Strangers {
    /// `most` is per hour. 0 means no limit.
    pub(super) fn new(most: u32) -> Self {
        Self {
            rate: (most > 0).then(|| Rate::most(most, WINDOW)),
            limiter: Limiter::new(),
            said: AtomicBool::new(false),
        }
    }

    /// How long this address has to wait before it may add another selector.
    pub(super) fn wait(&self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        self.limiter.wait(&self.limits(address), now)
    }

    /// Notes that a report was refused because of the limit. The log says so once, because the address may be a proxy
    /// that all phones come through.
    pub(super) fn refused(&self, address: Option<IpAddr>) {
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                address = address.map(tracing::field::display),
                "too many selectors without a mapping come from one address, or from its network: new ones get 429 for a \
                 while. If it is your proxy's, name it in TRUSTED_PROXIES; else see NEW_SELECTORS_PER_HOUR"
            );
        }
    }

    /// Notes that this address has added a selector.
    pub(super) fn added(&self, address: Option<IpAddr>, now: Instant) {
        self.limiter.fill(&self.limits(address), now);
    }

    /// The limits of an address. Callers without an address share one.
    fn limits(&self, address: Option<IpAddr>) -> Vec<Limit> {
        let Some(rate) = self.rate.filter(|_| !is_ourselves(address)) else {
            return Vec::new();
        };
        let limit = |kind: &[u8], network: u128, rate| Limit {
            key: self.limiter.key([kind, &network.to_be_bytes()]),
            rate,
        };
        let here = limit(b"address", address.map_or(0, network), rate);
        let around = address.and_then(wider);
        let around = around.map(|around| limit(b"network", around, rate.times(WIDER)));
        [here].into_iter().chain(around).collect()
    }
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
    fn the_network_around_has_eight_times_as_much() {
        let strangers = Strangers::new(4);
        let now = Instant::now();
        let address = |n: u8| Some(IpAddr::from([198, 51, 100, n]));
        for n in 0..32 {
            assert_eq!(strangers.wait(address(n), now), None);
            strangers.added(address(n), now);
        }
        assert_eq!(strangers.wait(address(99), now), Some(WINDOW / 32));
        assert_eq!(strangers.wait("198.51.101.1".parse().ok(), now), None);
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
