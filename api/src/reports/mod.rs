//! `push_token_report` and `account_removal_report`: what phones tell us.

pub(crate) mod fields;

use std::time::Duration;

use axum::{
    Json,
    extract::{RawQuery, State, rejection::BytesRejection},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use matrix2acrobits_shared::{ids::log_id, process::logs::Chain};
use matrix2acrobits_sqlite::store::{
    StoreError,
    tokens::{Report, Reporter, Saved},
};
use serde_json::json;

use self::fields::{FieldError, Fields};
use crate::{
    app::Public,
    http::errors::problem,
    identity::{AuthError, Caller},
};

/// Why a report or removal was not taken; [`ReportError::into_response`] is its one way to HTTP.
#[derive(Debug)]
pub(crate) enum ReportError {
    Body(BytesRejection),
    Fields(FieldError),
    NeedsAppId,
    NotYours,
    TooManyStrangers { retry_after: Duration },
    Auth(AuthError),
    Store(StoreError),
}

/// Saves the tokens of a phone; answers only after they are on disk.
pub(crate) async fn report(
    State(app): State<Public>,
    caller: Caller,
    query: RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ReportError> {
    let (fields, mut from) = identify(&app, caller, &query, &headers, body).await?;
    let selector = log_id(fields.selector.as_str());
    let wait = app.auth.wait_of_strangers(caller);
    from.strangers = wait.is_none();
    let report = Report {
        from,
        token_msgs: fields.token_msgs,
        app_id_msgs: fields.app_id_msgs,
        token_calls: fields.token_calls,
        app_id_calls: fields.app_id_calls,
    };
    match app
        .tokens
        .save_report(report)
        .await
        .map_err(ReportError::Store)?
    {
        Saved::NeedsAppId => Err(ReportError::NeedsAppId),
        Saved::NotYours => Err(ReportError::NotYours),
        Saved::Strange => {
            app.auth.stranger_refused(caller);
            let retry_after = wait.unwrap_or_default();
            Err(ReportError::TooManyStrangers { retry_after })
        }
        Saved::Done {
            stale,
            user,
            stranger,
        } => {
            if stranger {
                app.auth.stranger_added(caller);
            }
            let user = user.as_ref().map_or("nobody yet", |user| user.as_str());
            if stale.is_empty() {
                count("unchanged");
                tracing::debug!(%selector, user, "report as before");
            } else {
                count("changed");
                tracing::info!(%selector, user, "report saved");
            }
            Ok(done())
        }
    }
}

/// Forgets the tokens of a phone.
pub(crate) async fn removal(
    State(app): State<Public>,
    caller: Caller,
    query: RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ReportError> {
    let (fields, from) = identify(&app, caller, &query, &headers, body).await?;
    match app
        .tokens
        .remove_account(from)
        .await
        .map_err(ReportError::Store)?
    {
        Saved::NotYours => Err(ReportError::NotYours),
        Saved::NeedsAppId | Saved::Strange | Saved::Done { .. } => {
            count("removed");
            tracing::info!(selector = %log_id(fields.selector.as_str()), "account removed");
            Ok(done())
        }
    }
}

async fn identify(
    app: &Public,
    caller: Caller,
    RawQuery(query): &RawQuery,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(Fields, Reporter), ReportError> {
    let body = body.map_err(ReportError::Body)?;
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let fields =
        Fields::read(query.as_deref(), content_type, &body).map_err(ReportError::Fields)?;
    let owner = app
        .auth
        .identify(fields.username.as_deref(), fields.password.as_ref(), caller)
        .await
        .map_err(ReportError::Auth)?;
    let from = Reporter {
        selector: fields.selector.clone(),
        device: fields.device.clone(),
        owner,
        strangers: true,
    };
    Ok((fields, from))
}

fn done() -> Response {
    Json(json!({})).into_response()
}

fn count(result: &'static str) {
    metrics::counter!("matrix2acrobits_token_reports_total", "result" => result).increment(1);
}

impl ReportError {
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyStrangers { retry_after } => Some(*retry_after),
            Self::Auth(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl IntoResponse for ReportError {
    fn into_response(self) -> Response {
        let (status, errcode, words) = match &self {
            Self::Body(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "M_TOO_LARGE",
                "The body is longer than 64 KiB.".to_owned(),
            ),
            Self::Body(_) => (
                StatusCode::BAD_REQUEST,
                "M_NOT_JSON",
                "The body could not be read.".to_owned(),
            ),
            Self::Fields(error) => {
                let (errcode, words) = field_words(error);
                (StatusCode::BAD_REQUEST, errcode, words)
            }
            Self::NeedsAppId => (
                StatusCode::BAD_REQUEST,
                "M_MISSING_PARAM",
                "token_msgs needs app_id_msgs.".to_owned(),
            ),
            Self::NotYours => (
                StatusCode::FORBIDDEN,
                "M_FORBIDDEN",
                "This selector belongs to another user.".to_owned(),
            ),
            Self::TooManyStrangers { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "M_LIMIT_EXCEEDED",
                "Too many new selectors from this address; wait.".to_owned(),
            ),
            Self::Auth(error) => error.words(),
            Self::Store(error) => {
                tracing::warn!(error = %Chain(error), "a report could not be saved");
                let words = "The report could not be saved; try again.".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", words)
            }
        };
        if status.is_server_error() {
            count("unavailable");
            tracing::debug!(?self, "a report could not be taken");
        } else {
            count("refused");
            tracing::info!(%status, errcode, reason = words, "a report was refused");
        }
        let mut response = problem(status, errcode, &words);
        if let Some(wait) = self.retry_after() {
            // Whole seconds, and not before the time.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let value = HeaderValue::from(seconds.max(1));
            response.headers_mut().insert(RETRY_AFTER, value);
        }
        response
    }
}

fn field_words(error: &FieldError) -> (&'static str, String) {
    match error {
        FieldError::NotJson => ("M_NOT_JSON", "The body is not JSON.".to_owned()),
        FieldError::NotAnObject => ("M_BAD_JSON", "The body is not a JSON object.".to_owned()),
        FieldError::NotText(name) => ("M_INVALID_PARAM", format!("{name} must be text.")),
        FieldError::NoSelector => ("M_MISSING_PARAM", "selector is missing.".to_owned()),
        FieldError::Invalid(name, error) => ("M_INVALID_PARAM", format!("{name} {error}.")),
    }
}
