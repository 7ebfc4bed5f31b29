//! Why a call of an admin endpoint fails, as its caller and the OpenAPI description see it.

use std::{borrow::Cow, collections::BTreeMap};

use axum::{
    extract::rejection::BytesRejection,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use matrix2acrobits_shared::process::logs::Chain;
use matrix2acrobits_store::StoreError;
use serde::de::DeserializeOwned;
use utoipa::{
    IntoResponses,
    openapi::{self, RefOr},
};

use crate::http::errors::{self, Matter, Problem};

/// Why an admin call failed.
#[derive(Debug)]
pub(super) enum AdminError {
    Refused(Problem),
    Store(StoreError),
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let problem = match self {
            Self::Refused(problem) => problem,
            Self::Store(error) => {
                tracing::warn!(error = %Chain(&error), "an admin call failed");
                let words = "The database does not answer; try again.";
                Problem::new(Matter::Unavailable, words)
            }
        };
        problem.into_response()
    }
}

/// The errors that all these endpoints may return.
pub(super) const ALWAYS: [(Matter, &str); 4] = [
    (Matter::InvalidParam, ""),
    (Matter::UnknownToken, ""),
    (Matter::Forbidden, "ADMIN_TOKEN is not set"),
    (Matter::Unavailable, ""),
];

impl IntoResponses for AdminError {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        errors::described(&ALWAYS)
    }
}

/// Describes [`AdminError`] of endpoints whose selector may not exist.
pub(super) struct SelectorError;

impl IntoResponses for SelectorError {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        errors::described(&[&ALWAYS[..], &[(Matter::NotFound, "")]].concat())
    }
}

/// Describes [`AdminError`] of endpoints with a body.
pub(super) struct BodyError;

impl IntoResponses for BodyError {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        errors::described(&[&ALWAYS[..], &[(Matter::TooLarge, "")]].concat())
    }
}

pub(super) fn refused(matter: Matter, words: impl Into<Cow<'static, str>>) -> AdminError {
    AdminError::Refused(Problem::new(matter, words))
}

pub(super) fn invalid(words: impl Into<Cow<'static, str>>) -> AdminError {
    refused(Matter::InvalidParam, words)
}

/// A body with any Content-Type.
pub(super) type BodyBytes = Result<Bytes, BytesRejection>;

/// Reads a body as JSON. `words` say what the body should be.
pub(super) fn json<T: DeserializeOwned>(
    body: BodyBytes,
    words: &'static str,
) -> Result<T, AdminError> {
    let body = body.map_err(|rejection| AdminError::Refused(rejection.into()))?;
    serde_json::from_slice(&body).map_err(|_| refused(Matter::BadJson, words))
}
