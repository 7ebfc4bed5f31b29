//! Addresses of peers: the network that one customer has, and the proxies whose word on their clients counts.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
};

use axum::http::HeaderMap;
use ipnet::IpNet;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The proxies whose X-Forwarded-For is believed (TRUSTED_PROXIES).
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies(Vec<IpNet>);

impl Proxies {
    /// Reads addresses and networks with commas between them.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|e| !e.is_empty());
        entries
            .map(|entry| {
                let network = entry.parse::<IpNet>();
                let address = || entry.parse::<IpAddr>().map(|ip| IpNet::from(ip.to_canonical()));
                network.or_else(|_| address()).map_err(|_| {
                    format!("must be addresses or networks such as 10.0.0.1, 10.1.0.0/16, fd00::/8, not {entry:?}")
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether the operator named this address.
    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether a reverse proxy may stand at this address, with everybody's connections behind it.
    pub(crate) fn may_be(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let here: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        here.contains(&address) || self.trusts(address)
    }

    /// The client behind a connection from `peer`: each proxy appends the address that it saw, so the list
    /// is read from its end, for as long as the one who wrote an entry is trusted.
    pub(crate) fn client_of(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        let forwarded = headers.get_all(FORWARDED_FOR);
        if !self.trusts(peer) {
            if forwarded.iter().next().is_some() {
                hint_once(peer);
            }
            return peer;
        }
        let lines: Vec<_> = forwarded.iter().map(|line| line.to_str()).collect();
        let mut client = peer;
        for line in lines.into_iter().rev() {
            let Ok(line) = line else { return client };
            for entry in line.rsplit(',') {
                // What cannot be read was not written by a proxy that works: its sender is the client.
                let Some(address) = read(entry.trim()) else {
                    return client;
                };
                client = address;
                if !self.trusts(client) {
                    return client;
                }
            }
        }
        client
    }
}

/// An entry of X-Forwarded-For; some proxies add the port, or brackets.
fn read(entry: &str) -> Option<IpAddr> {
    let bare = entry
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(entry);
    let with_port = || entry.parse::<SocketAddr>().map(|address| address.ip());
    let address = bare.parse::<IpAddr>().or_else(|_| with_port());
    address.ok().map(|address| address.to_canonical())
}

/// Behind a proxy that is not trusted all phones share one address, and so one limit. Only said of near
/// peers: far ones who send the header are no proxies of ours.
fn hint_once(peer: IpAddr) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let near = match peer {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    };
    if near && !SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            %peer,
            "X-Forwarded-For of this peer is not believed; if it is your proxy, add it to TRUSTED_PROXIES"
        );
    }
}

/// The address, or for IPv6 the first half of it, which is what one customer has.
pub(crate) fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
    }
}

/// The network around [`network`]'s: an IPv4 /24 or an IPv6 /48, which is what can be had for little. Addresses of this
/// machine have none.
pub(crate) fn wider(address: IpAddr) -> Option<u128> {
    let bits = match address.to_canonical() {
        address if address.is_loopback() => return None,
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits() >> 8 << 8,
        IpAddr::V6(v6) => v6.to_bits() >> 80 << 80,
    };
    Some(bits)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn which_address_counts() {
        let proxies = "127.0.0.1, 10.0.0.0/8,fd00::/8, 2001:db8::5";
        let cases: &[(&str, &str, &[&str], &str)] = &[
            ("no header", "127.0.0.1", &[], "127.0.0.1"),
            ("one", "127.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("not trusted", "192.0.2.9", &["192.0.2.1"], "192.0.2.9"),
            (
                "forged in front",
                "127.0.0.1",
                &["198.51.100.7, 192.0.2.1"],
                "192.0.2.1",
            ),
            (
                "two proxies",
                "127.0.0.1",
                &["198.51.100.7, 192.0.2.1, 10.9.9.9"],
                "192.0.2.1",
            ),
            (
                "two lines",
                "10.1.1.1",
                &["198.51.100.7", "192.0.2.1,10.2.2.2"],
                "192.0.2.1",
            ),
            (
                "goes on in the line before",
                "10.1.1.1",
                &["192.0.2.1", "10.2.2.2"],
                "192.0.2.1",
            ),
            (
                "only proxies",
                "127.0.0.1",
                &["10.2.2.2, 10.3.3.3"],
                "10.2.2.2",
            ),
            ("garbage", "127.0.0.1", &["unknown"], "127.0.0.1"),
            (
                "garbage behind a proxy",
                "127.0.0.1",
                &["192.0.2.1, _x, 10.2.2.2"],
                "10.2.2.2",
            ),
            ("empty", "127.0.0.1", &[""], "127.0.0.1"),
            ("port", "127.0.0.1", &["192.0.2.1:4711"], "192.0.2.1"),
            (
                "IPv6 and port",
                "fd00::1",
                &["[2001:db8::7]:4711"],
                "2001:db8::7",
            ),
            ("brackets", "2001:db8::5", &["[2001:db8::7]"], "2001:db8::7"),
            (
                "IPv4 in IPv6",
                "::ffff:127.0.0.1",
                &["::ffff:192.0.2.1"],
                "192.0.2.1",
            ),
            ("other IPv6", "2001:db8::6", &["192.0.2.1"], "2001:db8::6"),
        ];
        let proxies = Proxies::parse(proxies).unwrap();
        for (name, peer, lines, expected) in cases {
            let mut headers = HeaderMap::new();
            for line in *lines {
                headers.append(FORWARDED_FOR, HeaderValue::from_static(line));
            }
            let client = proxies.client_of(peer.parse().unwrap(), &headers);
            assert_eq!(client.to_string(), *expected, "{name}");
        }
        let mut headers = HeaderMap::new();
        headers.append(
            FORWARDED_FOR,
            HeaderValue::from_bytes(b"192.0.2.1, \xff").unwrap(),
        );
        let peer = "127.0.0.1".parse().unwrap();
        assert_eq!(proxies.client_of(peer, &headers), peer);
        let nobody = Proxies::parse("").unwrap();
        assert_eq!(nobody.client_of(peer, &headers), peer);
    }

    #[test]
    fn networks() {
        let of = |address: &str| {
            let address = address.parse().unwrap();
            (network(address), wider(address))
        };
        for (one, other, same, same_wider) in [
            ("192.0.2.1", "::ffff:192.0.2.1", true, true),
            ("192.0.2.1", "192.0.2.255", false, true),
            ("192.0.2.1", "192.0.3.1", false, false),
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff::1", true, true),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", false, true),
            ("2001:db8:1:2::1", "2001:db8:2:2::1", false, false),
        ] {
            let (one, other) = (of(one), of(other));
            assert_eq!(
                (one.0 == other.0, one.1 == other.1),
                (same, same_wider),
                "{other:?}"
            );
        }
        for here in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert_eq!(of(here).1, None);
        }
    }

    #[test]
    fn settings() {
        for good in ["", " ", "10.0.0.1", "10.0.0.0/8 , ::1,", "::ffff:10.0.0.1"] {
            assert!(Proxies::parse(good).is_ok(), "{good}");
        }
        for bad in ["proxy", "10.0.0.0/33", "10.0.0.1;10.0.0.2", "10.0.0", "*"] {
            assert!(Proxies::parse(bad).is_err(), "{bad}");
        }
    }
}
