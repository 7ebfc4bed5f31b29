//! The address that a request comes from, behind the proxies that the operator trusts.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
};

use axum::{
    extract::{ConnectInfo, FromRef, FromRequestParts},
    http::request::Parts,
};

use super::Auth;

/// The address that a request comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller(pub(crate) Option<IpAddr>);

impl<S: Sync> FromRequestParts<S> for Caller
where
    Auth: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let proxies = Auth::from_ref(state).proxies;
        let client = |ConnectInfo(peer): &ConnectInfo<SocketAddr>| {
            proxies.client_of(peer.ip(), &parts.headers)
        };
        Ok(Self(peer.map(client)))
    }
}
