//! The worker's admin listener: health and metrics.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use matrix2acrobits_shared::{queue::QueueState, store::Store};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::beat::Beat;

/// What the endpoints look at.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    store: Store,
    beat: Beat,
    metrics: PrometheusHandle,
    stop: CancellationToken,
}

impl Admin {
    pub(crate) fn new(
        store: Store,
        beat: Beat,
        metrics: PrometheusHandle,
        stop: CancellationToken,
    ) -> Self {
        Self {
            store,
            beat,
            metrics,
            stop,
        }
    }
}

/// Answers until the worker stops.
pub(crate) async fn serve(listener: TcpListener, admin: Admin) {
    let stop = admin.stop.clone();
    let router = Router::new()
        .route(
            "/health/live",
            get(|| async { Json(json!({ "status": "ok" })) }),
        )
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|| async { not_found() })
        .with_state(admin);
    if let Err(error) = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
    {
        tracing::error!(%error, "the admin listener ended");
    }
}

/// Beats until the worker stops, where there is nothing else to do.
pub(crate) async fn idle(beat: &Beat, stop: &CancellationToken) {
    loop {
        beat.now();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
            () = stop.cancelled() => return,
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

async fn metrics(State(admin): State<Admin>) -> Response {
    if let Ok(state) = admin.store.queue_state().await {
        publish(state);
    }
    if let Ok(pushers) = admin.store.count_pushers().await {
        for state in ["pending", "registered", "failed", "removed"] {
            let count = pushers
                .iter()
                .find(|(name, _)| name == state)
                .map_or(0, |(_, count)| *count);
            metrics::gauge!("matrix2acrobits_pushers", "state" => state).set(to_f64(count));
        }
    }
    (
        [("content-type", "text/plain; version=0.0.4")],
        admin.metrics.render(),
    )
        .into_response()
}

fn publish(state: QueueState) {
    let states = [
        ("pending", state.pending),
        ("queued", state.queued),
        ("failed", state.failed),
        ("killed", state.killed),
    ];
    for (name, count) in states {
        metrics::gauge!("matrix2acrobits_queue_jobs", "state" => name).set(to_f64(count));
    }
    metrics::gauge!("matrix2acrobits_queue_oldest_ready_seconds").set(to_f64(state.oldest_ready));
}

#[expect(clippy::cast_precision_loss, reason = "no count here reaches 2^52")]
fn to_f64(count: i64) -> f64 {
    count as f64
}

fn not_found() -> Response {
    let body =
        Json(json!({ "errcode": "M_UNRECOGNIZED", "error": "there is nothing at this path" }));
    (StatusCode::NOT_FOUND, body).into_response()
}
