//! The HTTP client that outgoing calls share: rustls with the system's roots and the operator's, no redirects.

use std::{path::Path, time::Duration};

use url::{Host, Url};

/// A connection attempt that takes longer will not succeed.
const MAX_CONNECT_TIME: Duration = Duration::from_secs(5);
/// Shorter than the idle time of usual load balancers (75 s and more), so that we close the connection and not they.
const MAX_IDLE_TIME: Duration = Duration::from_mins(1);

/// Makes ring the TLS provider of this process. Call it once, before anything else.
pub fn install_tls() {
    // An error means that a provider is already installed, which is just as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Makes clients for outgoing calls, with the certificate authorities that they trust besides the system's roots.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    extra: Vec<reqwest::Certificate>,
}

impl Outgoing {
    /// Trusts the certificate authorities in a PEM file as well. `Err` says what is wrong with it.
    pub fn with_file(path: &Path) -> Result<Self, String> {
        let pem = std::fs::read(path).map_err(|e| format!("cannot be read ({e})"))?;
        let extra = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if extra.is_empty() {
            return Err("holds no certificate in PEM form".into());
        }
        let outgoing = Self { extra };
        // reqwest checks the certificates only when it builds a client.
        match outgoing.builder(Duration::from_secs(1)).build() {
            Ok(_) => Ok(outgoing),
            Err(_) => Err("holds a certificate that cannot be used".into()),
        }
    }

    /// A builder of a client for the server at `url`, with what all our clients need: no redirects (a redirect must not
    /// carry a token to another host), no repeats but our own, no Nagle delay, a name in the other side's logs.
    pub fn client(&self, url: &Url, connect_timeout: Duration) -> reqwest::ClientBuilder {
        // A proxy cannot reach a server on this machine's loopback address.
        if is_loopback(url) {
            self.direct(connect_timeout)
        } else {
            self.builder(connect_timeout)
        }
    }

    /// The same for one of our own processes, which no proxy reaches.
    pub fn direct(&self, connect_timeout: Duration) -> reqwest::ClientBuilder {
        self.builder(connect_timeout).no_proxy()
    }

    fn builder(&self, connect_timeout: Duration) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .user_agent(concat!("matrix2acrobits/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .tls_certs_merge(self.extra.iter().cloned())
            .tcp_nodelay(true)
            .connect_timeout(connect_timeout)
    }

    /// A client for the server at `url`, which keeps up to `idle` connections open for later requests. It waits at most
    /// `timeout` for a response, including the body.
    pub fn pooled(
        &self,
        url: &Url,
        timeout: Duration,
        idle: usize,
    ) -> Result<reqwest::Client, reqwest::Error> {
        self.client(url, timeout.min(MAX_CONNECT_TIME))
            .timeout(timeout)
            .pool_max_idle_per_host(idle)
            .pool_idle_timeout(MAX_IDLE_TIME)
            .build()
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => false,
    }
}

/// Why reading a response body failed.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Longer than the limit.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// The connection failed.
    #[error(transparent)]
    Transport(#[from] reqwest::Error),
}

/// Reads a response body of at most `limit` bytes.
pub async fn read_body(
    mut response: reqwest::Response,
    limit: usize,
) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLong(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_the_rest() {
        let cases = [
            ("http://127.0.0.1:1/", true),
            ("http://[::1]/", true),
            ("http://LOCALHOST/", true),
            ("https://pnm.cloudsoftphone.com/pnm2/send", false),
            ("http://10.0.0.1/", false),
        ];
        for (url, expected) in cases {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
