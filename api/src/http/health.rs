//! Health: alive, and ready to take requests.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use matrix2acrobits_sqlite::store::Store;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// What readiness looks at.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    pub(crate) store: Store,
    pub(crate) stopping: CancellationToken,
}

/// The process answers.
pub(crate) async fn live() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// The database answers and nobody has asked us to stop. Migrations are done before we listen.
pub(crate) async fn ready(State(health): State<Health>) -> Response {
    let problem = if health.stopping.is_cancelled() {
        "stopping"
    } else if health.store.ping().await.is_err() {
        "the database does not answer"
    } else {
        return live().await;
    };
    let body = Json(json!({ "status": "unavailable", "problem": problem }));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}
