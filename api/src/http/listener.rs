//! Accepts connections, as many as there are places for, and waits for them when the process stops.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    http::{
        connection,
        errors::Matter,
        observe::Observe,
        peers::Proxies,
        refusal::refusal,
        seldom::Seldom,
        shares::{Amounts, Full, Shares},
    },
    metrics::Connections,
};

/// Connections of a listener.
const CONNECTIONS: Amounts = Amounts {
    all: 4096,
    address: 256,
    network: 1024,
    proxy: 3072,
};
/// Pause after a failed accept, most often for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then answers the requests that are complete. One of `proxies` may hold more connections
/// than others.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Observe,
    proxies: Proxies,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let places = Arc::new(Shares::new(CONNECTIONS, proxies));
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
        let place = match places.take(peer.ip(), 1) {
            Ok(place) => place,
            Err(full) => {
                door.refuse(&stream, peer, full);
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            connection::serve(stream, peer, router, stop).await;
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
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
