//! Who may use the admin endpoints: whoever has ADMIN_TOKEN.

use axum::{
    extract::{Request, State},
    http::HeaderMap,
    middleware::Next,
    response::{IntoResponse, Response},
};
use matrix2acrobits_shared::secret::Secret;

use crate::http::{
    bearer::bearer,
    errors::{Matter, Problem},
};

/// Lets a request with ADMIN_TOKEN pass.
pub(super) async fn require_token(
    State(token): State<Option<Secret>>,
    request: Request,
    next: Next,
) -> Response {
    let (matter, words) = match (&token, given_token(request.headers())) {
        (None, _) => (
            Matter::Forbidden,
            "The admin endpoints are off: ADMIN_TOKEN is not set.",
        ),
        (Some(token), Some(given)) if token.matches(given) => return next.run(request).await,
        (Some(_), Some(_)) => (Matter::UnknownToken, "This is not ADMIN_TOKEN."),
        (Some(_), None) => (
            Matter::MissingToken,
            "Authorization: Bearer ADMIN_TOKEN is missing.",
        ),
    };
    Problem::new(matter, words).into_response()
}

fn given_token(headers: &HeaderMap) -> Option<&str> {
    let legacy = || Some(headers.get("x-super-admin-token")?.to_str().ok()?.trim());
    bearer(headers).or_else(legacy)
}
