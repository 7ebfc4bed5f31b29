//! The form that all HTTP errors have.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

/// An error in the form of the Matrix specification, in our own words.
pub(crate) fn problem(status: StatusCode, errcode: &str, error: &str) -> Response {
    (status, Json(json!({ "errcode": errcode, "error": error }))).into_response()
}

/// For paths that are not there.
pub(crate) async fn not_found() -> Response {
    problem(
        StatusCode::NOT_FOUND,
        "M_UNRECOGNIZED",
        "There is nothing at this path.",
    )
}

/// For methods that a path does not take.
pub(crate) async fn method_not_allowed() -> Response {
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "M_UNRECOGNIZED",
        "This path does not take this method.",
    )
}
