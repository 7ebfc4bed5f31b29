//! The HTTP client that outgoing calls share: rustls with the system's roots and the operator's, no redirects.

use std::{path::Path, time::Duration};

use url::{Host, Url};

/// A connection attempt that takes longer will not succeed.
const MAX_CONNECT_TIME: Duration = Duration::from_secs(5);
/// Below the idle time after which usual load balancers (75 s and more) close, so that it is we who do.
const MAX_IDLE_TIME: Duration = Duration::from_mins(1);

/// Makes ring the TLS provider of this process; call it once, first thing.
pub fn install_tls() {
    // An error says that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Makes clients for outgoing calls; knows whom they trust besides the system's roots.
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
        // Certificates are looked at only now.
        match outgoing.client(Duration::from_secs(1)).build() {
            Ok(_) => Ok(outgoing),
            Err(_) => Err("holds a certificate that cannot be used".into()),
        }
    }

    /// A builder with what every client of ours needs: no redirects (a token must not follow one to another
    /// host), no repeats that we do not decide, no Nagle delay, a name in the other side's logs.
    pub fn client(&self, connect_timeout: Duration) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .user_agent(concat!("matrix2acrobits/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .tls_certs_merge(self.extra.iter().cloned())
            .tcp_nodelay(true)
            .connect_timeout(connect_timeout)
    }

    /// A client for the server at `url`, which keeps up to `idle` connections for the next requests.
    /// It waits for an answer at most `timeout`, body included.
    pub fn pooled(
        &self,
        url: &Url,
        timeout: Duration,
        idle: usize,
    ) -> Result<reqwest::Client, reqwest::Error> {
        let builder = self
            .client(timeout.min(MAX_CONNECT_TIME))
            .timeout(timeout)
            .pool_max_idle_per_host(idle)
            .pool_idle_timeout(MAX_IDLE_TIME);
        // No proxy can reach what runs beside us.
        let builder = if is_loopback(url) {
            builder.no_proxy()
        } else {
            builder
        };
        builder.build()
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
