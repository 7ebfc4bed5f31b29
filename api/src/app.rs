//! The two routers and what they share.

use axum::{Router, routing::get};
use matrix2acrobits_shared::secret::Secret;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    appservice,
    http::{
        bodies::Bodies,
        errors::{self, method_not_allowed},
        health::{self, Readiness},
        observe::ObserveLayer,
    },
    metrics,
    notify::{self, delivery::Deliverer},
    operator::{self, Operator},
    reports::{
        self, Reports,
        receipts::{self, Receipts},
    },
};

/// The endpoints for phones and the homeserver.
pub(crate) fn public(
    reports: Reports,
    receipts: Receipts,
    deliverer: Deliverer,
    hs_token: Option<Secret>,
    bodies: &Bodies,
) -> Router {
    let router = Router::new()
        .merge(reports::router(reports, bodies))
        .merge(receipts::router(receipts, bodies))
        .merge(notify::router(deliverer, bodies))
        .route("/health", get(health::health));
    let router = match hs_token {
        Some(token) => router.merge(appservice::router(token)),
        None => router,
    };
    router
        .fallback(errors::not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(ObserveLayer::new())
}

/// The endpoints for the operator.
pub(crate) fn admin(
    operator: Operator,
    token: Option<Secret>,
    handle: PrometheusHandle,
    stopping: CancellationToken,
) -> Router {
    let store = operator.store.clone();
    let readiness = Readiness {
        store: store.clone(),
        stopping,
    };
    Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready).with_state(readiness))
        .route("/metrics", get(metrics::render).with_state((store, handle)))
        .merge(operator::router(operator, token))
        .fallback(errors::not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(ObserveLayer::new())
}
