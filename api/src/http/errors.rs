//! The one vocabulary of HTTP errors: what may be the matter with a request, and the only place that turns it
//! into a response. Each conversation has an error type of its own, which becomes a [`Problem`].

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::rejection::BytesRejection,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{
    ToSchema,
    openapi::{self, Content, Ref, RefOr, ResponseBuilder},
};

/// What is the matter. Each stands for one status with one errcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matter {
    NotJson,
    BadJson,
    MissingParam,
    InvalidParam,
    /// A login that the login service refused.
    LoginRefused,
    MissingToken,
    UnknownToken,
    Forbidden,
    NotFound,
    NoSuchPath,
    NoSuchMethod,
    /// What is not HTTP, or not an HTTP that we speak.
    NotHttp,
    TooSlow,
    TooLarge,
    HeadTooLarge,
    TooMany,
    /// Somebody whom we depend on has trouble.
    Upstream,
    /// We have trouble.
    Unavailable,
    /// We have more to do than we can.
    Overloaded,
}

impl Matter {
    /// Its status, and its errcode of the Matrix specification.
    pub(crate) fn code(self) -> (StatusCode, &'static str) {
        match self {
            Self::NotJson => (StatusCode::BAD_REQUEST, "M_NOT_JSON"),
            Self::BadJson => (StatusCode::BAD_REQUEST, "M_BAD_JSON"),
            Self::MissingParam => (StatusCode::BAD_REQUEST, "M_MISSING_PARAM"),
            Self::InvalidParam => (StatusCode::BAD_REQUEST, "M_INVALID_PARAM"),
            Self::LoginRefused => (StatusCode::UNAUTHORIZED, "M_FORBIDDEN"),
            Self::MissingToken => (StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN"),
            Self::UnknownToken => (StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "M_FORBIDDEN"),
            Self::NotFound => (StatusCode::NOT_FOUND, "M_NOT_FOUND"),
            Self::NoSuchPath => (StatusCode::NOT_FOUND, "M_UNRECOGNIZED"),
            Self::NoSuchMethod => (StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED"),
            Self::NotHttp => (StatusCode::BAD_REQUEST, "M_UNRECOGNIZED"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE"),
            Self::HeadTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "M_TOO_LARGE"),
            Self::TooMany => (StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED"),
            Self::Upstream => (StatusCode::BAD_GATEWAY, "M_UNKNOWN"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "M_LIMIT_EXCEEDED"),
        }
    }
}

/// Why a request gets no better response; in our own words, never an inner error's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) matter: Matter,
    pub(crate) words: Cow<'static, str>,
    /// When the caller may try again, where that is known.
    pub(crate) retry_after: Option<Duration>,
}

impl Problem {
    pub(crate) fn new(matter: Matter, words: impl Into<Cow<'static, str>>) -> Self {
        Self {
            matter,
            words: words.into(),
            retry_after: None,
        }
    }

    /// The same, and not to be tried again before this time has passed.
    pub(crate) fn after(self, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..self
        }
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Self::new(Matter::TooLarge, "The body is too large.")
        } else {
            Self::new(Matter::NotJson, "The body could not be read.")
        }
    }
}

/// What the description of an endpoint says of these, each with the words for it; an empty text says no more than
/// the status.
pub(crate) fn described(
    problems: &[(Matter, &'static str)],
) -> BTreeMap<String, RefOr<openapi::Response>> {
    let described = |(matter, words): &(Matter, &'static str)| {
        let problem = Ref::from_schema_name(ProblemBody::name());
        let response = ResponseBuilder::new()
            .description(*words)
            .content("application/json", Content::new(Some(problem)))
            .build();
        (matter.code().0.as_str().to_owned(), response.into())
    };
    problems.iter().map(described).collect()
}

/// Every error has this form.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// A Matrix error code
    #[schema(pattern = "^M_[A-Z_]+$")]
    errcode: &'a str,
    /// For people
    error: &'a str,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, errcode) = self.matter.code();
        let error = &self.words;
        let mut response = (status, Json(ProblemBody { errcode, error })).into_response();
        if let Some(wait) = self.retry_after {
            // Whole seconds, and not before the time.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let value = HeaderValue::from(seconds.max(1));
            response.headers_mut().insert(RETRY_AFTER, value);
        }
        response
    }
}

/// For paths that are not there.
pub(crate) async fn not_found() -> Problem {
    Problem::new(Matter::NoSuchPath, "There is nothing at this path.")
}

/// For methods that a path does not take.
pub(crate) async fn method_not_allowed() -> Problem {
    Problem::new(Matter::NoSuchMethod, "This path does not take this method.")
}
