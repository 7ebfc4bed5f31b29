//! Parts of a request, with our own words for what cannot be read. axum's own rejections are plain text with an inner
//! error in it.

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{StatusCode, request::Parts},
    response::Response,
};
use bytes::Bytes;
use matrix2acrobits_shared::ids::Selector;

use super::{
    errors::{AdminError, invalid},
    status::refusal,
};

/// The selector in the path.
#[derive(Debug)]
pub(super) struct SelectorPath(pub(super) Selector);

impl<S: Send + Sync> FromRequestParts<S> for SelectorPath {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, AdminError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| invalid("The selector is not UTF-8."))?;
        let selector = Selector::parse(text.trim());
        let selector = selector.map_err(|error| invalid(format!("The selector {error}.")))?;
        Ok(Self(selector))
    }
}

/// The body of a form of the status page.
#[derive(Debug)]
pub(super) struct FormBody(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for FormBody {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let body = Bytes::from_request(request, state).await;
        body.map(Self).map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                refusal(StatusCode::PAYLOAD_TOO_LARGE, "The form is too large.")
            } else {
                refusal(StatusCode::BAD_REQUEST, "The form could not be read.")
            }
        })
    }
}
