//! How commands ask a running process how it is: `healthcheck` and `doctor` ask for `/health/ready`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde::Deserialize;

/// The User-Agent of `doctor`'s request to the api's public listener.
pub const DOCTOR: &str = "matrix2acrobits-doctor";

/// Why a process is not known to be ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A process of ours responds, and says why it is not ready.
    #[error("not ready: {0}")]
    NotReady(String),
    /// No process of ours responds.
    #[error("{0}")]
    Absent(String),
}

/// The body of `/health/ready`.
#[derive(Deserialize)]
struct Health {
    status: String,
    problem: Option<String>,
}

/// Asks the process that listens on `admin` whether it is ready.
pub async fn check(admin: SocketAddr) -> Result<(), Problem> {
    let client = crate::process::net::own_process(Duration::from_secs(2))
        .timeout(Duration::from_secs(4))
        .build()
        .map_err(|e| Problem::Absent(e.to_string()))?;
    let url = format!("http://{}/health/ready", reachable(admin));
    let response = client
        .get(&url)
        .send()
        .await
        .map_err(|_| Problem::Absent(format!("no answer from {url}")))?;
    let status = response.status().as_u16();
    let body = crate::process::net::read_body(response, 4096)
        .await
        .unwrap_or_default();
    judge(status, &body).unwrap_or_else(|| {
        let words = format!("another program answers at {url}: HTTP {status}");
        Err(Problem::Absent(words))
    })
}

/// What a response says. None if it is not one of our processes'.
fn judge(status: u16, body: &[u8]) -> Option<Result<(), Problem>> {
    let health: Health = serde_json::from_slice(body).ok()?;
    match (status, health.status.as_str(), health.problem) {
        (200, "ok", _) => Some(Ok(())),
        (503, "unavailable", Some(problem)) => Some(Err(Problem::NotReady(problem))),
        _ => None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_words_count() {
        let stopping = Err(Problem::NotReady("stopping".to_owned()));
        for (status, body, said) in [
            (200, r#"{"status":"ok"}"#, Some(Ok(()))),
            (
                503,
                r#"{"status":"unavailable","problem":"stopping"}"#,
                Some(stopping),
            ),
            (200, "<html>", None),
            (200, "{}", None),
            (200, r#"{"status":"UP"}"#, None),
            (404, r#"{"status":"ok"}"#, None),
            (503, "", None),
        ] {
            assert_eq!(judge(status, body.as_bytes()), said, "{status} {body}");
        }
    }
}
