//! How many connections a listener holds, in all and for one address, so that nobody can take all of them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::http::peers::{Proxies, network};

/// Most connections at once.
const MOST: usize = 4096;
/// Most of them from one address (IPv6: one /64).
const PER_ADDRESS: usize = 256;
/// Most of them from an address where a reverse proxy may stand, with everybody's connections behind it.
const PER_PROXY: usize = 3072;

/// The connections of one listener.
#[derive(Debug)]
pub(super) struct Places {
    proxies: Proxies,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_address: HashMap<u128, usize>,
}

/// Why a connection gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// There are too many connections.
    All,
    /// There are too many from its address.
    Address,
}

/// The right to hold one connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    key: u128,
}

impl Places {
    pub(super) fn new(proxies: Proxies) -> Self {
        Self {
            proxies,
            held: Mutex::default(),
        }
    }

    /// A place for a connection from this address.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let peer = peer.to_canonical();
        // A proxy counts by itself, not with its neighbours in the same IPv6 network.
        let (key, most) = if self.proxies.may_be(peer) {
            let bits = match peer {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
                IpAddr::V6(v6) => v6.to_bits(),
            };
            (bits, PER_PROXY)
        } else {
            (network(peer), PER_ADDRESS)
        };
        let mut held = self.lock();
        if held.all >= MOST {
            return Err(Full::All);
        }
        let here = held.by_address.entry(key).or_default();
        // An entry without connections would stay for ever, but a new one is below any limit.
        if *here >= most {
            return Err(Full::Address);
        }
        *here += 1;
        held.all += 1;
        let places = self.clone();
        Ok(Place { places, key })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.lock();
        held.all = held.all.saturating_sub(1);
        if let Some(here) = held.by_address.get_mut(&self.key) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                held.by_address.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Arc<Places> {
        let proxies = Proxies::parse("10.0.0.0/8, 2001:db8::5").unwrap();
        Arc::new(Places::new(proxies))
    }

    /// Takes as many places as there are for these addresses, one after the other.
    fn fill(places: &Arc<Places>, peers: &[&str]) -> (Vec<Place>, Full) {
        let peers: Vec<IpAddr> = peers.iter().map(|peer| peer.parse().unwrap()).collect();
        let mut taken = Vec::new();
        loop {
            match places.take(peers[taken.len() % peers.len()]) {
                Ok(place) => taken.push(place),
                Err(full) => return (taken, full),
            }
        }
    }

    #[test]
    fn what_one_address_may_hold() {
        for (peers, most) in [
            (&["192.0.2.1"][..], 256),
            (&["192.0.2.1", "::ffff:192.0.2.1"], 256),
            (&["2001:db8:0:1::1", "2001:db8:0:1:ffff::2"], 256),
            (&["2001:db8:0:1::1", "2001:db8:0:2::1"], 512),
            (&["127.0.0.2"], 256),
            (&["127.0.0.1"], 3072),
            (&["::1"], 3072),
            (&["10.1.2.3"], 3072),
            (&["2001:db8::5"], 3072),
        ] {
            let (taken, full) = fill(&places(), peers);
            assert_eq!((taken.len(), full), (most, Full::Address), "{peers:?}");
        }
    }

    #[test]
    fn neighbours_of_a_proxy_take_nothing_of_its_own() {
        let places = places();
        let (_taken, _) = fill(&places, &["2001:db8::6"]);
        assert!(places.take("2001:db8::5".parse().unwrap()).is_ok());
    }

    #[test]
    fn there_is_an_end_for_all_together() {
        let places = places();
        let (proxy, _) = fill(&places, &["10.0.0.1"]);
        let (other, full) = fill(&places, &["10.0.0.2"]);
        assert_eq!(
            (proxy.len() + other.len(), full),
            (MOST, Full::All),
            "two proxies"
        );
        let stranger = "192.0.2.1".parse().unwrap();
        assert_eq!(places.take(stranger).unwrap_err(), Full::All);
        drop(other);
        assert!(places.take(stranger).is_ok());
    }

    #[test]
    fn places_come_back_and_leave_nothing_behind() {
        let places = places();
        for number in 0..10_000_u32 {
            let peer = IpAddr::V4(number.into());
            drop(places.take(peer).unwrap());
        }
        let held = places.lock();
        assert_eq!((held.all, held.by_address.len()), (0, 0));
    }
}
