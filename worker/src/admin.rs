//! The worker's admin listener: health and metrics.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use matrix2acrobits_store::Store;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{beat::Beat, commands::Failure, metrics, run::RunError};

/// What the endpoints need.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) store: Store,
    pub(crate) beat: Beat,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) stop: CancellationToken,
}

/// Serves requests until the worker stops.
pub(crate) async fn serve(listener: TcpListener, admin: Admin) {
    let stop = admin.stop.clone();
    let router = Router::new()
        .route(
            "/health/live",
            get(|| async { Json(json!({ "status": "ok" })) }),
        )
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics::render))
        .fallback(|| async { not_found() })
        .with_state(admin);
    if let Err(error) = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
    {
        tracing::error!(%error, "the admin listener ended");
    }
}

/// Gives signs of life until the worker stops, if there is nothing else to do.
pub(crate) async fn idle(
    store: &Store,
    beat: &Beat,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    loop {
        beat.now();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
            () = stop.cancelled() => return Ok(()),
            () = store.died() => return Err(Failure::other(RunError::Died)),
        }
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    let problem = if admin.stop.is_cancelled() {
        Some("stopping")
    } else if !admin.beat.is_fresh() {
        Some("the worker's loop has not shown a sign of life lately")
    } else if admin.store.ping().await.is_err() {
        Some("the database does not answer")
    } else {
        None
    };
    match problem {
        None => Json(json!({ "status": "ok" })).into_response(),
        Some(problem) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "status": "unavailable", "problem": problem })),
        )
            .into_response(),
    }
}

fn not_found() -> Response {
    let body =
        Json(json!({ "errcode": "M_UNRECOGNIZED", "error": "there is nothing at this path" }));
    (StatusCode::NOT_FOUND, body).into_response()
}
