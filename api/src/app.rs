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
    appservice,
    http::{
        errors,
        health::{self, Health},
        observe::ObserveLayer,
    },
    identity::Auth,
    metrics,
    notify::{self, cache::Tokens, delivery::Deliverer, pnm::answers::Answers},
    operator::{
        admin::{self, Admin},
        status,
    },
    reports,
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
            get(reports::report).post(reports::report),
        )
        .route(
            "/api/client/account_removal_report",
            get(reports::removal).post(reports::removal),
        )
        .layer(DefaultBodyLimit::max(MAX_REPORT))
        .with_state(public);
    let notify = Router::new()
        .route("/_matrix/push/v1/notify", post(notify::notify))
        .layer(DefaultBodyLimit::max(MAX_NOTIFICATION))
        .with_state(deliverer);
    let router = Router::new()
        .merge(reports)
        .merge(notify)
        .route("/health", get(health::live));
    let router = match hs_token {
        Some(token) => router.merge(appservice::router(token)),
        None => router,
    };
    router
        .fallback(errors::not_found)
        .method_not_allowed_fallback(errors::method_not_allowed)
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
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready).with_state(health))
        .route(
            "/metrics",
            get(metrics::render).with_state((store.clone(), handle)),
        )
        .merge(status::router(store.clone(), answers, token.clone()))
        .merge(admin::router(Admin { store, tokens }, token))
        .fallback(errors::not_found)
        .method_not_allowed_fallback(errors::method_not_allowed)
        .layer(ObserveLayer::new())
}
