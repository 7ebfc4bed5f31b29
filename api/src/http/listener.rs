//! Serves a router on a listener so that slow or silent clients cannot hold it up.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::util::ServiceExt as _;

use crate::{
    http::{
        errors::{Matter, Problem},
        peers::Proxies,
        places::{Full, Places},
        refusal::refusal,
        seldom::Seldom,
    },
    metrics::Connections,
};

/// How long a connection may take to send a request's headers, and may idle between requests: longer than
/// the 60 s of common reverse proxies, so that they close first.
const HEADERS: Duration = Duration::from_secs(75);
/// How long a request may take in all, its body included: twice what a notification may take.
const REQUEST: Duration = Duration::from_secs(30);
/// Most of a request's head, in bytes, give or take what one read brings; more is answered 431. Reports by GET
/// have their fields there.
const MAX_HEAD: usize = 32 * 1024;
/// Pause after a failed accept, most often for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then finishes the requests that have begun. One of `proxies` may hold more connections
/// than others.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    proxies: Proxies,
    stop: CancellationToken,
) {
    let router = router.layer(middleware::from_fn(bounded));
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Places::new(proxies));
    let door = Door::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                door.failed(&error);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let place = match places.take(peer.ip()) {
            Ok(place) => place,
            Err(full) => {
                door.refuse(&stream, peer, full);
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let router = router.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request
                .extensions_mut()
                .insert::<ConnectInfo<SocketAddr>>(ConnectInfo(peer));
            router.clone().oneshot(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Turns away what cannot be served, and tells the operator now and then.
struct Door {
    metrics: Connections,
    full: Seldom,
    failures: Seldom,
}

impl Door {
    fn new() -> Self {
        Self {
            metrics: Connections::new(),
            full: Seldom::default(),
            failures: Seldom::default(),
        }
    }

    fn refuse(&self, stream: &TcpStream, peer: SocketAddr, full: Full) {
        self.metrics.refused(full);
        if let Some(times) = self.full.due(Instant::now()) {
            let why = match full {
                Full::All => "there are too many in all",
                Full::Address => {
                    "there are too many from this address; if it is your proxy, add it to TRUSTED_PROXIES"
                }
            };
            tracing::warn!(peer = %peer.ip(), times, why, "connections are refused");
        }
        // As much as fits into an empty socket; a client that does not see it sees the end of the connection.
        let words = "There are too many connections.";
        let _ = stream.try_write(&refusal(Matter::Overloaded, words));
    }

    fn failed(&self, error: &std::io::Error) {
        if let Some(times) = self.failures.due(Instant::now()) {
            tracing::warn!(%error, times, "connections could not be accepted");
        }
    }
}

/// A trickling body does not hold a connection for ever.
async fn bounded(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(Matter::TooSlow, "The request took too long.").into_response(),
    }
}
