//! A small HTTP server whose listener and connections a test can cut at will.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Instant;

use axum::body::{Body, to_bytes};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use crate::hook::{Hook, Moment};

const BODY_LIMIT: usize = 8 << 20;
const BACKLOG: u32 = 1024;

/// A free port on loopback.
pub const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A request as it arrived, body read.
#[derive(Debug, Clone)]
pub struct Request {
    /// When its body was complete.
    pub at: Instant,
    /// GET, POST and so on.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Decoded query.
    pub query: Vec<(String, String)>,
    /// The token of `Authorization: Bearer …`.
    pub bearer: Option<String>,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// The first value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What a handler answers; `None` closes the connection without an answer.
pub type Answer = Pin<Box<dyn Future<Output = Option<Response>> + Send>>;
type Handler = Arc<dyn Fn(Request) -> Answer + Send + Sync>;

/// The server; it ends, with all its connections, when dropped.
pub struct Server {
    addr: SocketAddr,
    handler: Handler,
    hook: Hook,
    connections: Arc<AtomicU64>,
    door: Mutex<Door>,
}

#[derive(Default)]
struct Door {
    accepting: Option<JoinHandle<()>>,
    /// Bound but not listening: connections are refused, and nobody else gets the port meanwhile.
    held: Option<TcpSocket>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on a free loopback port and answers each request with `handler`.
    pub async fn start(handler: impl Fn(Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at(ANY_PORT, handler).await
    }

    /// The same at a certain address.
    pub async fn start_at(
        addr: SocketAddr,
        handler: impl Fn(Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let socket = bound(addr).await;
        let server = Self {
            addr: socket.local_addr().unwrap(),
            handler: Arc::new(handler),
            hook: Hook::default(),
            connections: Arc::default(),
            door: Mutex::new(Door {
                accepting: None,
                held: Some(socket),
            }),
        };
        server.open().await;
        server
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its base URL, without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What a test does with requests.
    pub fn hook(&self) -> &Hook {
        &self.hook
    }

    /// TCP connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Cuts all connections and refuses new ones.
    pub async fn close(&self) {
        let mut door = self.door.lock().await;
        if let Some(accepting) = door.accepting.take() {
            accepting.abort();
            // Waits until the listener is gone; the connections go with their JoinSet.
            let _ = accepting.await;
            door.held = Some(bound(self.addr).await);
        }
    }

    /// Listens again, on the same port.
    pub async fn open(&self) {
        let mut door = self.door.lock().await;
        if let Some(socket) = door.held.take() {
            let listener = socket.listen(BACKLOG).unwrap();
            door.accepting = Some(tokio::spawn(accept(
                listener,
                hooked(self.handler.clone(), self.hook.clone()),
                self.connections.clone(),
            )));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(accepting) = self.door.get_mut().accepting.take() {
            accepting.abort();
        }
    }
}

/// A loopback port that nobody listens on, for a server that has to be told its port. Below the range from
/// which the system picks, so that it stays free while such a server restarts.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const PORTS: std::ops::Range<u16> = 15_000..32_000;
    let count = u32::from(PORTS.end - PORTS.start);
    loop {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        // Tests are processes that run side by side: each begins elsewhere.
        let offset = (std::process::id() * 97 + step) % count;
        let port = PORTS.start + u16::try_from(offset).unwrap();
        if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// `handler` between the two moments of `hook`.
fn hooked(handler: Handler, hook: Hook) -> Handler {
    Arc::new(move |request: Request| {
        let (handler, hook) = (handler.clone(), hook.clone());
        Box::pin(async move {
            if !hook.goes_on(Moment::Arrived, &request) {
                return None;
            }
            let answer = handler(request.clone()).await?;
            hook.goes_on(Moment::Done, &request).then_some(answer)
        })
    })
}

async fn bound(addr: SocketAddr) -> TcpSocket {
    for _ in 0..100 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        if socket.bind(addr).is_ok() {
            return socket;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("cannot bind {addr}");
}

async fn accept(listener: TcpListener, handler: Handler, connections: Arc<AtomicU64>) {
    let mut open = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        connections.fetch_add(1, Ordering::Relaxed);
        while open.try_join_next().is_some() {}
        open.spawn(serve(stream, handler.clone()));
    }
}

async fn serve(stream: TcpStream, handler: Handler) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let handler = handler.clone();
        // hyper drops the connection without an answer when the service fails.
        async move {
            answer(request, handler)
                .await
                .ok_or_else(|| io::Error::other("cut by the test"))
        }
    });
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: hyper::Request<Incoming>, handler: Handler) -> Option<Response> {
    let (head, body) = request.into_parts();
    let body = to_bytes(Body::new(body), BODY_LIMIT).await.ok()?;
    let query = head.uri.query().unwrap_or_default();
    let bearer = head
        .headers
        .get("authorization")
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let request = Request {
        at: Instant::now(),
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect(),
        bearer: bearer.map(str::to_owned),
        body,
    };
    handler(request).await
}

/// A JSON answer.
pub fn json(status: u16, body: &serde_json::Value) -> Response {
    answer_of(status, "application/json", body.to_string())
}

/// A web server's or proxy's own error page.
pub fn html(status: u16) -> Response {
    let page = format!("<html><head><title>{status}</title></head><body>nginx</body></html>");
    answer_of(status, "text/html", page)
}

/// An answer of any type.
pub fn answer_of(status: u16, content_type: &str, body: impl Into<Body>) -> Response {
    Response::builder()
        .status(status)
        .header("content-type", content_type)
        .body(body.into())
        .unwrap()
}
