//! The HTTP clients for outgoing calls: rustls with the system's roots and the operator's, no redirects.

use std::{path::Path, sync::Arc, time::Duration};

use http::{Uri, uri::InvalidUri};
use hyper_util::{
    client::{legacy::Client, proxy::matcher::Matcher},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use rustls_platform_verifier::Verifier;
use url::{Host, Url};

mod connector;

pub use self::connector::Connector;

/// Our name in the logs of the other side.
pub const USER_AGENT: &str = concat!("matrix2acrobits/", env!("CARGO_PKG_VERSION"));

/// A connection attempt that takes longer will not succeed.
const MAX_CONNECT_TIME: Duration = Duration::from_secs(5);
/// Shorter than the idle time of usual load balancers (75 s and more), so that we close the connection and not they.
const MAX_IDLE_TIME: Duration = Duration::from_mins(1);

/// Makes ring the TLS provider of this process. Call it once, before anything else.
pub fn install_tls() {
    // An error means that a provider is already installed, which is just as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Makes clients for outgoing calls. All of them trust the same certificate authorities.
#[derive(Debug, Clone)]
pub struct Outgoing {
    tls: ClientConfig,
}

impl Outgoing {
    /// Trusts the system's certificate authorities, and those in a PEM file as well if there is one. `Err` says what is
    /// wrong. The process must have a TLS provider.
    pub fn new(extra: Option<&Path>) -> Result<Self, String> {
        let extra = extra.map(authorities).transpose()?.unwrap_or_default();
        let given = !extra.is_empty();
        let provider = CryptoProvider::get_default().ok_or("no TLS provider is installed")?;
        let verifier =
            Verifier::new_with_extra_roots(extra, provider.clone()).map_err(|error| {
                if given {
                    "holds a certificate that cannot be used".into()
                } else {
                    format!("must name a file, because the system has no authorities ({error})")
                }
            })?;
        let mut tls = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls })
    }

    /// A builder of a client for the server at `url`, with what all our clients need: no redirects (a redirect must not
    /// carry a token to another host), no repeats but our own, no Nagle delay, a name in the other side's logs.
    pub fn client(&self, url: &Url, connect_timeout: Duration) -> reqwest::ClientBuilder {
        let builder = builder(connect_timeout).tls_backend_preconfigured(self.tls.clone());
        // A proxy cannot reach a server on this machine's loopback address.
        if is_loopback(url) {
            builder.no_proxy()
        } else {
            builder
        }
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

    /// A client that does no more than connect, keep up to `idle` connections, and exchange requests with the server at
    /// `url`, and the URL as it takes it. Headers and time limits are its user's. For pushes: reqwest's layers are a fifth
    /// of what a push costs.
    pub fn bare<B>(
        &self,
        url: &Url,
        connect_timeout: Duration,
        idle: usize,
    ) -> Result<(Client<Connector, B>, Uri), InvalidUri>
    where
        B: http_body::Body + Send,
        B::Data: Send,
    {
        let uri: Uri = url.as_str().parse()?;
        let proxy = if is_loopback(url) {
            None
        } else {
            Matcher::from_system().intercept(&uri)
        };
        let timeout = connect_timeout.min(MAX_CONNECT_TIME);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(idle)
            .pool_idle_timeout(MAX_IDLE_TIME)
            .pool_timer(TokioTimer::new())
            .build(connector::new(&self.tls, proxy.as_ref(), timeout));
        Ok((client, uri))
    }
}

/// A builder of a client for one of our own processes, which no proxy reaches and which speaks no TLS.
pub fn own_process(connect_timeout: Duration) -> reqwest::ClientBuilder {
    builder(connect_timeout).no_proxy().tls_certs_only([])
}

fn builder(connect_timeout: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never().max_retries_per_request(0))
        .tcp_nodelay(true)
        .connect_timeout(connect_timeout)
}

/// The certificate authorities in a PEM file.
fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|e| format!("cannot be read ({e})"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| "holds no certificate in PEM form".into())
}

/// Whether the server at `url` is on this machine. Names below localhost are as well (RFC 6761, 6.3).
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => {
            let name = name.to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
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
            ("http://pnm.localhost/", true),
            ("http://notlocalhost/", false),
            ("https://pnm.cloudsoftphone.com/pnm2/send", false),
            ("http://10.0.0.1/", false),
        ];
        for (url, expected) in cases {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
