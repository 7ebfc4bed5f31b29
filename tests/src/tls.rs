//! TLS in front of a stand-in, with a certificate that a private certificate authority signed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What a server proves itself with, and the private certificate authority that signed it. In PEM.
#[derive(Debug)]
pub struct Certificate {
    /// The authority's certificate.
    pub authority: String,
    /// The server's.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Certificate {
    /// For `localhost`.
    pub fn make() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        Self {
            authority: authority.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// Listens on `localhost` with TLS, and passes everything on to a server without.
#[derive(Debug)]
pub struct TlsFront {
    port: u16,
    authority: PathBuf,
    accepting: JoinHandle<()>,
    _folder: TempDir,
}

impl TlsFront {
    /// In front of the server at this address.
    pub async fn start(behind: SocketAddr) -> Self {
        let made = Certificate::make();
        let certificate = CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let folder = crate::fixtures::folder();
        let file = folder.path().join("authority.pem");
        std::fs::write(&file, made.authority).unwrap();
        Self {
            port,
            authority: file,
            accepting: tokio::spawn(accept(listener, acceptor, behind)),
            _folder: folder,
        }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The file with the certificate authority.
    pub fn authority(&self) -> String {
        self.authority.display().to_string()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, behind: SocketAddr) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that does not trust us goes away here.
            if let Ok(mut stream) = acceptor.accept(stream).await
                && let Ok(mut plain) = TcpStream::connect(behind).await
            {
                let _ = copy_bidirectional(&mut stream, &mut plain).await;
            }
        });
    }
}
