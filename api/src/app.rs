//! The two routers and what they share.

use axum::{Router, routing::get};
use matrix2acrobits_shared::secret::Secret;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    appservice,
    http::{
        errors::{self, method_not_allowed},
        health::{self, Readiness},
        observe::Observe,
    },
    metrics, notify,
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
    gateway: notify::Gateway,
    hs_token: Option<Secret>,
) -> Observe {
    let router = Router::new()
        .merge(reports::router(reports))
        .merge(receipts::router(receipts))
        .merge(notify::router(gateway))
        .route("/health", get(health::health));
    let router = match hs_token {
        Some(token) => router.merge(appservice::router(token)),
        None => router,
    };
    observed(router)
}

/// The endpoints for the operator.
pub(crate) fn admin(
    operator: Operator,
    token: Option<Secret>,
    handle: PrometheusHandle,
    stopping: CancellationToken,
) -> Observe {
    let store = operator.store.clone();
    let readiness = Readiness {
        store: store.clone(),
        stopping,
    };
    let router = Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready).with_state(readiness))
        .route("/metrics", get(metrics::render).with_state((store, handle)))
        .merge(operator::router(operator, token));
    observed(router)
}

/// The router, with its responses to what it does not know.
fn observed(router: Router) -> Observe {
    let router = router
        .fallback(errors::not_found)
        .method_not_allowed_fallback(method_not_allowed);
    Observe::new(router)
}
