//! Reads a request's body before its handler runs, within its route's limit and a budget for all: who sends bodies
//! slowly, or many at once, cannot fill the memory.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::header::EXPECT,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::http::{
    errors::{Matter, Problem},
    peers::Proxies,
    seldom::Seldom,
    shares::{Amounts, Full, Shares},
};

/// Bytes of bodies in flight. A proxy may take all: it reads bodies to their end before it passes them on.
const IN_FLIGHT: Amounts = Amounts {
    all: 32 << 20,
    address: 8 << 20,
    network: 16 << 20,
    proxy: 32 << 20,
};

/// Most bytes of a refused body that are read all the same.
const DISCARDED: usize = 1 << 20;
/// How long that may take.
const DISCARDING: Duration = Duration::from_secs(2);

/// The budget that all routes share.
#[derive(Debug, Clone)]
pub(crate) struct Bodies {
    shares: Arc<Shares>,
    full: Arc<Seldom>,
}

impl Bodies {
    /// The whole budget; a larger part of it for `proxies`.
    pub(crate) fn new(proxies: Proxies) -> Self {
        Self {
            shares: Arc::new(Shares::new(IN_FLIGHT, proxies)),
            full: Arc::default(),
        }
    }

    /// The same budget for routes whose bodies may be this long.
    pub(crate) fn up_to(&self, limit: usize) -> Limit {
        Limit {
            bodies: self.clone(),
            limit,
        }
    }
}

/// What [`read`] keeps to.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    bodies: Bodies,
    limit: usize,
}

/// Hands the request on with its whole body, or answers in its handler's place.
pub(crate) async fn read(State(limit): State<Limit>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let Limit { bodies, limit } = limit;
    // What the client says beforehand: nothing has been read yet. Without it, it may send as much as it may.
    let size = request.body().size_hint().exact();
    let size = size.map_or(Some(limit), |size| usize::try_from(size).ok());
    let Some(size) = size.filter(|size| *size <= limit) else {
        // A client that asks first has sent nothing yet.
        if !request.headers().contains_key(EXPECT) {
            discard(request.into_body()).await;
        }
        return too_large(limit);
    };
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
    let _share = match bodies.shares.take(peer, size) {
        Ok(share) => share,
        Err(full) => return busy(&bodies.full, peer, full),
    };
    let (head, body) = request.into_parts();
    match Limited::new(body, limit).collect().await {
        Ok(body) => {
            let body = Body::from(body.to_bytes());
            next.run(Request::from_parts(head, body)).await
        }
        Err(error) if error.is::<LengthLimitError>() => too_large(limit),
        Err(error) => {
            tracing::debug!(error, "a body broke off");
            let words = "The body could not be read.";
            Problem::new(Matter::NotJson, words).into_response()
        }
    }
}

/// Reads a refused body without keeping it: closing a connection on bytes that are still on their way resets it,
/// and the client would never see why.
async fn discard(mut body: Body) {
    let mut left = DISCARDED;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, bytes::Bytes::len);
            if bytes > left {
                return;
            }
            left -= bytes;
        }
    };
    // One that takes longer is cut off.
    let _ = tokio::time::timeout(DISCARDING, reading).await;
}

fn too_large(limit: usize) -> Response {
    let words = format!("The body is longer than {} KiB.", limit >> 10);
    Problem::new(Matter::TooLarge, words).into_response()
}

fn busy(said: &Seldom, peer: IpAddr, full: Full) -> Response {
    if let Some(times) = said.due(Instant::now()) {
        let why = match full {
            Full::All => "too many are under way in all",
            Full::Address => "too many are under way from this address",
        };
        tracing::warn!(%peer, times, why, "bodies are refused");
    }
    let words = "Too many requests are under way; try again.";
    Problem::new(Matter::Overloaded, words).into_response()
}
