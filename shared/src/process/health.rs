//! The `healthcheck` command, which asks `/health/ready` of a running process.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// Asks the process that listens on `admin` whether it is ready. `Err` says why not.
pub async fn check(admin: SocketAddr) -> Result<(), String> {
    let client = crate::process::net::own_process(Duration::from_secs(2))
        .timeout(Duration::from_secs(4))
        .build()
        .map_err(|e| e.to_string())?;
    let url = format!("http://{}/health/ready", reachable(admin));
    let response = client
        .get(&url)
        .send()
        .await
        .map_err(|_| format!("no answer from {url}"))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = crate::process::net::read_body(response, 4096)
        .await
        .unwrap_or_default();
    Err(format!("{status}: {}", String::from_utf8_lossy(&body)))
}

/// The address to connect to for a listening address. A wildcard is reached over loopback.
pub fn reachable(mut admin: SocketAddr) -> SocketAddr {
    match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => admin.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => admin.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    admin
}
