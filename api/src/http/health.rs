//! Health: alive, and ready to take requests.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use matrix2acrobits_store::Store;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::{OpenApi, ToSchema};

/// The description of these endpoints.
#[derive(OpenApi)]
#[openapi(paths(health, live, ready))]
pub(crate) struct Description;

/// What readiness looks at.
#[derive(Debug, Clone)]
pub(crate) struct Readiness {
    pub(crate) store: Store,
    pub(crate) stopping: CancellationToken,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// ok or unavailable
    status: &'static str,
    /// Why it is unavailable
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'static str>,
}

const OK: Health = Health {
    status: "ok",
    problem: None,
};

/// The process answers.
#[utoipa::path(
    get,
    path = "/health",
    tag = "health",
    summary = "On LISTEN_ADDR, for load balancers",
    description = "",
    responses((status = 200, body = Health))
)]
pub(crate) async fn health() -> Json<Health> {
    Json(OK)
}

/// The process answers.
#[utoipa::path(
    get,
    path = "/health/live",
    tag = "health",
    summary = "On ADMIN_LISTEN_ADDR: the process answers",
    description = "",
    responses((status = 200, body = Health))
)]
pub(crate) async fn live() -> Json<Health> {
    Json(OK)
}

/// The database answers and nobody has asked us to stop. Migrations are done before we listen.
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "health",
    summary = "On ADMIN_LISTEN_ADDR: it can do its work",
    description = "",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(crate) async fn ready(State(it): State<Readiness>) -> Response {
    let problem = if it.stopping.is_cancelled() {
        "stopping"
    } else if it.store.ping().await.is_err() {
        "the database does not answer"
    } else {
        return Json(OK).into_response();
    };
    let health = Health {
        status: "unavailable",
        problem: Some(problem),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(health)).into_response()
}
