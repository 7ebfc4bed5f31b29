//! The application service endpoints (Matrix application service API), only served with MATRIX_HS_TOKEN. We need
//! nothing that the homeserver sends here, so transactions are acknowledged unread.

use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use matrix2acrobits_shared::secret::Secret;
use serde_json::json;

use crate::http::{
    bearer::bearer,
    errors::{Matter, Problem},
};

/// The endpoints, which require `token`.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(token: Secret) -> Router<S> {
    Router::new()
        .route("/_matrix/app/v1/transactions/{txn_id}", put(acknowledge))
        .route("/_matrix/app/v1/ping", post(acknowledge))
        .route("/_matrix/app/v1/users/{user_id}", get(unknown))
        .route("/_matrix/app/v1/rooms/{alias}", get(unknown))
        .route_layer(middleware::from_fn_with_state(token, require_token))
}

async fn require_token(State(token): State<Secret>, request: Request, next: Next) -> Response {
    if bearer(request.headers()).is_some_and(|given| token.matches(given)) {
        return next.run(request).await;
    }
    Problem::new(Matter::Forbidden, "This is not the homeserver's token.").into_response()
}

async fn acknowledge() -> Response {
    Json(json!({})).into_response()
}

async fn unknown() -> Problem {
    Problem::new(Matter::NotFound, "This gateway has no users or rooms.")
}
