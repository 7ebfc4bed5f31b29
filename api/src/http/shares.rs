//! Shares of a limited resource, such as connections. One address gets a part of it, so that nobody can take everything.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use foldhash::HashMap;

use crate::http::peers::{Proxies, network, wider};

/// The limits of a resource.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amounts {
    /// In all.
    pub(super) all: usize,
    /// For one address (IPv6: one /64).
    pub(super) address: usize,
    /// For the network around it (IPv4: a /24, IPv6: a /48).
    pub(super) network: usize,
    /// For an address where a reverse proxy may stand, with everybody behind it.
    pub(super) proxy: usize,
}

/// A resource, and how much of it each address holds.
#[derive(Debug)]
pub(super) struct Shares {
    amounts: Amounts,
    proxies: Proxies,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by: HashMap<Holder, usize>,
}

/// Those who hold a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    Proxy(IpAddr),
    Address(u128),
    Network(u128),
}

/// Why nothing is left for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// All of it is taken.
    All,
    /// This address, or the network around it, has its share.
    Address,
}

/// The share that somebody holds. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    holders: [Option<Holder>; 2],
    amount: usize,
}

impl Shares {
    pub(super) fn new(amounts: Amounts, proxies: Proxies) -> Self {
        Self {
            amounts,
            proxies,
            held: Mutex::default(),
        }
    }

    /// Takes a share of this amount for an address.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr, amount: usize) -> Result<Share, Full> {
        let peer = peer.to_canonical();
        let amounts = self.amounts;
        // A proxy counts by itself, not with its neighbours in the same network.
        let shares = if self.proxies.may_be(peer) {
            [Some((Holder::Proxy(peer), amounts.proxy)), None]
        } else {
            let around = wider(peer).map(|around| (Holder::Network(around), amounts.network));
            [
                Some((Holder::Address(network(peer)), amounts.address)),
                around,
            ]
        };
        let mut held = self.lock();
        if held.all + amount > amounts.all {
            return Err(Full::All);
        }
        let full = |(holder, most)| held.by.get(&holder).map_or(0, |here| *here) + amount > most;
        if shares.into_iter().flatten().any(full) {
            return Err(Full::Address);
        }
        held.all += amount;
        let holders = shares.map(|share| share.map(|(holder, _)| holder));
        for holder in holders.into_iter().flatten() {
            *held.by.entry(holder).or_default() += amount;
        }
        let shares = self.clone();
        Ok(Share {
            shares,
            holders,
            amount,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
        held.all = held.all.saturating_sub(self.amount);
        for holder in self.holders.into_iter().flatten() {
            if let Some(here) = held.by.get_mut(&holder) {
                *here = here.saturating_sub(self.amount);
                if *here == 0 {
                    held.by.remove(&holder);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Arc<Shares> {
        let proxies = Proxies::parse("10.0.0.0/8, 2001:db8::5").unwrap();
        let amounts = Amounts {
            all: 40,
            address: 3,
            network: 8,
            proxy: 30,
        };
        Arc::new(Shares::new(amounts, proxies))
    }

    /// Takes one after the other for as long as there are any for these addresses.
    fn fill(shares: &Arc<Shares>, peers: &[&str]) -> (Vec<Share>, Full) {
        let peers: Vec<IpAddr> = peers.iter().map(|peer| peer.parse().unwrap()).collect();
        let mut taken = Vec::new();
        loop {
            match shares.take(peers[taken.len() % peers.len()], 1) {
                Ok(place) => taken.push(place),
                Err(full) => return (taken, full),
            }
        }
    }

    #[test]
    fn what_one_address_may_hold() {
        for (peers, most) in [
            (&["192.0.2.1"][..], 3),
            (&["192.0.2.1", "::ffff:192.0.2.1"], 3),
            (&["2001:db8:0:1::1", "2001:db8:0:1:ffff::2"], 3),
            (&["2001:db8:0:1::1", "2001:db8:0:2::1"], 6),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.3"], 8),
            (
                &["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1"],
                8,
            ),
            (
                &["2001:db8:0:1::1", "2001:db8:1:2::1", "2001:db8:2:3::1"],
                9,
            ),
            (&["127.0.0.2"], 3),
            (&["127.0.0.1"], 30),
            (&["::1"], 30),
            (&["10.1.2.3"], 30),
            (&["2001:db8::5"], 30),
        ] {
            let (taken, full) = fill(&shares(), peers);
            assert_eq!((taken.len(), full), (most, Full::Address), "{peers:?}");
        }
    }

    #[test]
    fn neighbours_of_a_proxy_take_nothing_of_its_own() {
        let shares = shares();
        let (_taken, _) = fill(&shares, &["2001:db8::6"]);
        assert!(shares.take("2001:db8::5".parse().unwrap(), 1).is_ok());
    }

    #[test]
    fn there_is_an_end_for_all_together() {
        let shares = shares();
        let (proxy, _) = fill(&shares, &["10.0.0.1"]);
        let (other, full) = fill(&shares, &["10.0.0.2"]);
        assert_eq!(
            (proxy.len() + other.len(), full),
            (40, Full::All),
            "two proxies"
        );
        let stranger = "192.0.2.1".parse().unwrap();
        assert_eq!(shares.take(stranger, 1).unwrap_err(), Full::All);
        drop(other);
        assert!(shares.take(stranger, 1).is_ok());
    }

    #[test]
    fn what_is_given_back_leaves_nothing_behind() {
        let shares = shares();
        for number in 0..10_000_u32 {
            let peer = IpAddr::V4(number.into());
            drop(shares.take(peer, 1).unwrap());
        }
        let held = shares.lock();
        assert_eq!((held.all, held.by.len()), (0, 0));
    }

    #[test]
    fn large_amounts_count_as_what_they_are() {
        let shares = shares();
        let peer = "192.0.2.1".parse().unwrap();
        let two = shares.take(peer, 2).unwrap();
        assert_eq!(shares.take(peer, 2).unwrap_err(), Full::Address);
        let _one = shares.take(peer, 1).unwrap();
        drop(two);
        assert!(shares.take(peer, 2).is_ok());
        let proxy = "10.0.0.1".parse().unwrap();
        let _most = shares.take(proxy, 30).unwrap();
        assert_eq!(
            shares.take("10.0.0.2".parse().unwrap(), 10).unwrap_err(),
            Full::All
        );
    }
}
