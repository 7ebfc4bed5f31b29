//! The two routers and what they share.

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use matrix2acrobits_shared::secret::Secret;
use matrix2acrobits_sqlite::store::Store;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::Auth,
    delivery::Deliverer,
    metrics,
    observe::ObserveLayer,
    pnm::answers::Answers,
    routes::{self, admin::Admin, health::Health},
    tokens::Tokens,
};

/// Largest body of a report or removal, in bytes.
const MAX_REPORT: usize = 64 * 1024;
/// Largest body of a notification, in bytes.
const MAX_NOTIFICATION: usize = 256 * 1024;

/// What the report endpoints work on.
#[derive(Debug, Clone)]
pub(crate) struct Public {
    pub(crate) tokens: Tokens,
    pub(crate) auth: Auth,
}

/// The endpoints for phones and the homeserver.
pub(crate) fn public(public: Public, deliverer: Deliverer, hs_token: Option<Secret>) -> Router {
    let reports = Router::new()
        .route(
            "/api/client/push_token_report",
            get(routes::report::report).post(routes::report::report),
        )
        .route(
            "/api/client/account_removal_report",
            get(routes::report::removal).post(routes::report::removal),
        )
        .layer(DefaultBodyLimit::max(MAX_REPORT))
        .with_state(public);
    let notify = Router::new()
        .route("/_matrix/push/v1/notify", post(routes::notify::notify))
        .layer(DefaultBodyLimit::max(MAX_NOTIFICATION))
        .with_state(deliverer);
    let router = Router::new()
        .merge(reports)
        .merge(notify)
        .route("/health", get(routes::health::live));
    let router = match hs_token {
        Some(token) => router.merge(routes::appservice::router(token)),
        None => router,
    };
    router
        .fallback(routes::not_found)
        .method_not_allowed_fallback(routes::method_not_allowed)
        .layer(ObserveLayer::new())
}

/// The endpoints for the operator.
pub(crate) fn admin(
    store: Store,
    tokens: Tokens,
    token: Option<Secret>,
    answers: Arc<Answers>,
    handle: PrometheusHandle,
    stopping: CancellationToken,
) -> Router {
    let health = Health {
        store: store.clone(),
        stopping,
    };
    Router::new()
        .route("/health/live", get(routes::health::live))
        .route(
            "/health/ready",
            get(routes::health::ready).with_state(health),
        )
        .route(
            "/metrics",
            get(metrics::render).with_state((store.clone(), handle)),
        )
        .merge(routes::status::router(
            store.clone(),
            answers,
            token.clone(),
        ))
        .merge(routes::admin::router(Admin { store, tokens }, token))
        .fallback(routes::not_found)
        .method_not_allowed_fallback(routes::method_not_allowed)
        .layer(ObserveLayer::new())
}
