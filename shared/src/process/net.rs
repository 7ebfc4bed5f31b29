//! The HTTP client that outgoing calls share: rustls with the system's roots and the operator's, no redirects.

use std::{path::Path, time::Duration};

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
    /// host), no Nagle delay, a name in the other side's logs.
    pub fn client(&self, connect_timeout: Duration) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .user_agent(concat!("matrix2acrobits/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_merge(self.extra.iter().cloned())
            .tcp_nodelay(true)
            .connect_timeout(connect_timeout)
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
