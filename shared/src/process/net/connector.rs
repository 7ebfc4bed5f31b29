//! Connects hyper's own client to a server: by TLS where the URL says so, and through a proxy where there is one.

use std::{sync::Arc, time::Duration};

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::Intercept,
    },
    rt::TokioIo,
};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::{BoxError, ServiceExt as _, timeout::Timeout, util::BoxCloneSyncService};

/// Makes connections. Its time limit includes the TLS handshake.
pub type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<Plain>, BoxError>;

/// A connection to the server without its TLS. Only a proxy's may have TLS of its own.
type Plain = MaybeHttpsStream<TokioIo<TcpStream>>;

/// A connector that gives up after `timeout`. A proxy is asked for a tunnel, also to a server without TLS.
pub(super) fn new(tls: &ClientConfig, proxy: Option<&Intercept>, timeout: Duration) -> Connector {
    let tls = Arc::new(tls.clone());
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // Shared among the server's addresses, so that one that does not respond leaves time for the next.
    tcp.set_connect_timeout(Some(timeout));
    let plain = match proxy {
        None => {
            BoxCloneSyncService::new(tcp.map_response(MaybeHttpsStream::Http).map_err(Into::into))
        }
        Some(proxy) => {
            let to_proxy = HttpsConnector::from((tcp, tls.clone()));
            let mut tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            BoxCloneSyncService::new(tunnel.map_request(with_port).map_err(Into::into))
        }
    };
    let server = HttpsConnector::<BoxCloneSyncService<Uri, Plain, BoxError>>::from((plain, tls));
    BoxCloneSyncService::new(Timeout::new(server, timeout))
}

/// A tunnel without a port would lead to that of HTTPS.
fn with_port(server: Uri) -> Uri {
    let host = match (server.scheme_str(), server.host(), server.port()) {
        (Some("http"), Some(host), None) => format!("{host}:80"),
        _ => return server,
    };
    let parts = Uri::builder().scheme("http").authority(host);
    parts.path_and_query("/").build().unwrap_or(server)
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Empty};
    use hyper::body::Bytes;
    use hyper_util::{
        client::{legacy::Client, proxy::matcher::Matcher},
        rt::TokioExecutor,
    };
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::TcpListener,
    };

    use super::*;
    use crate::process::net::{Outgoing, install_tls};

    /// Reads a request without a body, and returns its lines.
    async fn head(stream: &mut BufReader<TcpStream>) -> Vec<String> {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            if line.trim().is_empty() {
                return head;
            }
            head.push(line.trim().to_owned());
        }
    }

    #[tokio::test]
    async fn a_proxy_is_asked_for_a_tunnel_with_its_login() {
        install_tls();
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://bob:pw@{}", proxy.local_addr().unwrap());
        let matcher = Matcher::builder().all(url).build();
        let uri: Uri = "http://pnm.example/send".parse().unwrap();
        let connector = new(
            &Outgoing::new(None).unwrap().tls,
            matcher.intercept(&uri).as_ref(),
            Duration::from_secs(5),
        );
        let client: Client<_, Empty<Bytes>> =
            Client::builder(TokioExecutor::new()).build(connector);

        let asked = tokio::spawn(async move {
            let mut stream = BufReader::new(proxy.accept().await.unwrap().0);
            let tunnel = head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let request = head(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
            (tunnel, request)
        });
        let request = Request::get(uri).body(Empty::new()).unwrap();
        let response: Response<_> = client.request(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "ok");
        let (tunnel, request) = asked.await.unwrap();
        assert_eq!(tunnel[0], "CONNECT pnm.example:80 HTTP/1.1");
        let login = "Proxy-Authorization: Basic Ym9iOnB3";
        assert!(tunnel.iter().any(|line| line == login), "{tunnel:?}");
        assert_eq!(request[0], "GET /send HTTP/1.1");
        assert_eq!(request[1], "host: pnm.example");
    }
}
