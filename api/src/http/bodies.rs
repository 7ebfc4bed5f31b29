//! Reads a request's body within its endpoint's limit and a budget for all, so that bodies that come slowly, or many at
//! once, cannot fill the memory.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request},
    http::header::EXPECT,
};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::http::{
    errors::{Matter, Problem},
    peers::Proxies,
    seldom::Seldom,
    shares::{Amounts, Full, Share, Shares},
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

    /// Reads a request's body of at most `limit` bytes.
    pub(crate) async fn read(&self, request: Request, limit: usize) -> Result<Whole, Problem> {
        if request.body().is_end_stream() {
            return Ok(Whole::default());
        }
        // The declared length, because nothing has been read yet. Without one, assume the limit.
        let size = request.body().size_hint().exact();
        let size = size.map_or(Some(limit), |size| usize::try_from(size).ok());
        let Some(size) = size.filter(|size| *size <= limit) else {
            // A client that asks first has sent nothing yet.
            if !request.headers().contains_key(EXPECT) {
                discard(request.into_body()).await;
            }
            return Err(too_large(limit));
        };
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
        let share = match self.shares.take(peer, size) {
            Ok(share) => share,
            Err(full) => return Err(busy(&self.full, peer, full)),
        };
        match Limited::new(request.into_body(), limit).collect().await {
            Ok(body) => Ok(Whole {
                bytes: body.to_bytes(),
                _share: Some(share),
            }),
            Err(error) if error.is::<LengthLimitError>() => Err(too_large(limit)),
            Err(error) => {
                tracing::debug!(error, "a body broke off");
                Err(Problem::new(Matter::NotJson, "The body could not be read."))
            }
        }
    }
}

/// A body, and its part of the budget as long as it is in use.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) bytes: Bytes,
    _share: Option<Share>,
}

/// Reads a refused body without keeping it: closing a connection on bytes that are still on their way resets it,
/// and the client would never see why.
async fn discard(mut body: Body) {
    let mut left = DISCARDED;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            if bytes > left {
                return;
            }
            left -= bytes;
        }
    };
    // One that takes longer is cut off.
    let _ = tokio::time::timeout(DISCARDING, reading).await;
}

fn too_large(limit: usize) -> Problem {
    let words = format!("The body is longer than {} KiB.", limit >> 10);
    Problem::new(Matter::TooLarge, words)
}

fn busy(said: &Seldom, peer: IpAddr, full: Full) -> Problem {
    if let Some(times) = said.due(Instant::now()) {
        let why = match full {
            Full::All => "too many are under way in all",
            Full::Address => "too many are under way from this address",
        };
        tracing::warn!(%peer, times, why, "bodies are refused");
    }
    let words = "Too many requests are under way; try again.";
    Problem::new(Matter::Overloaded, words)
}
