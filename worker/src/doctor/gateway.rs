//! The doctor's checks of PROXY_URL: whether the api responds there, and whether Synapse may connect to the address.

use std::net::{IpAddr, Ipv6Addr};

use matrix2acrobits_shared::matrix::pushers::PusherSettings;
use url::{Host, Url};

use super::{Report, ask::Asker};

pub(super) async fn check(pusher: &PusherSettings, ask: &Asker, report: &mut Report) {
    let url = &pusher.notify_url;
    let addresses = match resolve(url).await {
        Ok(addresses) => addresses,
        Err(problem) => {
            let text = format!("{problem}: check PROXY_URL and the name server's entry");
            return report.wrong("PROXY_URL", &text);
        }
    };
    answers(url, ask, report).await;
    if let Some(address) = addresses.into_iter().find(|&address| blocked(address)) {
        let text = format!(
            "PROXY_URL leads to {address}, and Synapse by default pushes to no such address and says so only in \
             its log (\"IP address blocked\"): allow it with ip_range_whitelist in homeserver.yaml"
        );
        report.suspect("network", &text);
    }
}

/// Sends an empty notification, because the api responds to it with an unusual error.
async fn answers(url: &Url, ask: &Asker, report: &mut Report) {
    let advice = "the reverse proxy must pass this path to the api's LISTEN_ADDR as it is";
    match ask.post_nothing(url.clone()).await {
        Err(problem) => report.wrong(
            "PROXY_URL",
            &format!("{url}: {problem}: start the api, and check PROXY_URL"),
        ),
        Ok(reply) if reply.status == 400 && reply.text("errcode") == Some("M_NOT_JSON") => {
            let mut health = url.clone();
            health.set_path("/health");
            let healthy = ask.get(health).await;
            let text = if healthy.is_ok_and(|reply| reply.text("status") == Some("ok")) {
                "the api answers"
            } else {
                "the api answers (/health is not passed on, and need not be)"
            };
            report.ok("PROXY_URL", text);
        }
        // The reverse proxy may let only the homeserver in. The api refuses with an errcode.
        Ok(reply) if matches!(reply.status, 401 | 403) && reply.text("errcode").is_none() => {
            let text = format!(
                "{url}: {}; this may be so from here only. If the homeserver gets it as well, {advice}",
                reply.describe()
            );
            report.suspect("PROXY_URL", &text);
        }
        Ok(reply) => {
            let text = format!("{url}: this is not the api: {}: {advice}", reply.describe());
            report.wrong("PROXY_URL", &text);
        }
    }
}

async fn resolve(url: &Url) -> Result<Vec<IpAddr>, String> {
    match url.host() {
        Some(Host::Ipv4(ip)) => Ok(vec![ip.into()]),
        Some(Host::Ipv6(ip)) => Ok(vec![ip.into()]),
        Some(Host::Domain(name)) => {
            let port = url.port_or_known_default().unwrap_or(443);
            match tokio::net::lookup_host((name, port)).await {
                Ok(found) => Ok(found.map(|address| address.ip()).collect()),
                Err(_) => Err(format!("{name} has no address here")),
            }
        }
        None => Err(format!("{url} has no host")),
    }
}

/// Whether Synapse's default ip_range_blacklist contains this address.
fn blocked(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            ip.is_loopback()
                || ip.is_private()
                || ip.is_link_local()
                || ip.is_documentation()
                || ip.is_multicast()
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 192 && b == 88 && c == 99)
                || (a == 198 && (18..20).contains(&b))
        }
        IpAddr::V6(ip) => {
            let site_local = ip.segments()[0] & 0xffc0 == 0xfec0;
            let documentation = ip.segments()[..2] == [0x2001, 0xdb8];
            ip.to_ipv4_mapped().is_some_and(|ip| blocked(ip.into()))
                || ip == Ipv6Addr::LOCALHOST
                || ip.is_unicast_link_local()
                || ip.is_unique_local()
                || ip.is_multicast()
                || site_local
                || documentation
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_blocked_and_public_ones_are_not() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.18.0.4",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.1.1",
            "198.18.0.1",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "2001:db8::1",
        ] {
            assert!(blocked(private.parse().unwrap()), "{private}");
        }
        for public in ["9.9.9.9", "172.32.0.1", "100.128.0.1", "2620:fe::9"] {
            assert!(!blocked(public.parse().unwrap()), "{public}");
        }
    }
}
