//! PNM and the homeserver in one lean server that takes everything after a fixed delay, and counts.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

pub(crate) const PNM_PATH: &str = "/pnm2/send";

/// A port of this machine that the system picks.
pub(crate) const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What it has seen.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) connections: u64,
    pub(crate) pushes: u64,
    pub(crate) pushers_set: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    pushes: AtomicU64,
    pushers_set: watch::Sender<u64>,
}

/// The server; it ends with the process.
#[derive(Debug, Clone)]
pub(crate) struct StandIn {
    pub(crate) addr: SocketAddr,
    counters: Arc<Counters>,
}

impl StandIn {
    pub(crate) fn start(delay: Duration) -> std::io::Result<Self> {
        Self::start_at(ANY_PORT, delay)
    }

    /// On a fixed address, to which a stand-in can come back.
    pub(crate) fn start_at(addr: SocketAddr, delay: Duration) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        // The usual backlog of 128 is less than the connections that come at once.
        let listener = socket.listen(1024)?;
        let counters = Arc::<Counters>::default();
        let it = Self {
            addr: listener.local_addr()?,
            counters: counters.clone(),
        };
        tokio::spawn(accept(listener, counters, delay));
        Ok(it)
    }

    /// Waits until the homeserver has one more pusher than `before`.
    pub(crate) async fn another_pusher(&self, before: u64) {
        let mut set = self.counters.pushers_set.subscribe();
        let _ = set.wait_for(|now| *now > before).await;
    }

    pub(crate) fn pushers_set(&self) -> u64 {
        *self.counters.pushers_set.borrow()
    }
}

async fn accept(listener: TcpListener, counters: Arc<Counters>, delay: Duration) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        counters.connections.fetch_add(1, Ordering::Relaxed);
        let counters = counters.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &counters, delay));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A connection that breaks off is the client's business.
            let _ = connection.await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    counters: &Counters,
    delay: Duration,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    while let Some(Ok(_)) = body.frame().await {}
    let path = head.uri.path();
    if path == "/seen" {
        let (connections, pushes) = (&counters.connections, &counters.pushes);
        // Who asks comes by a connection of its own, which does not count.
        connections.fetch_sub(1, Ordering::Relaxed);
        let seen = format!(
            "{} {} {}",
            connections.load(Ordering::Relaxed),
            pushes.load(Ordering::Relaxed),
            *counters.pushers_set.borrow()
        );
        return Ok(json(seen.into()));
    }
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    Ok(json(Bytes::from_static(if path == PNM_PATH {
        counters.pushes.fetch_add(1, Ordering::Relaxed);
        br#"{"code":200,"response":"OK"}"#
    } else if path.ends_with("/pushers/set") {
        counters.pushers_set.send_modify(|count| *count += 1);
        b"{}"
    } else if path.ends_with("/versions") {
        br#"{"versions":["v1.11"]}"#
    } else {
        br#"{"pushers":[]}"#
    })))
}

fn json(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
