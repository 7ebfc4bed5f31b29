//! `push_token_report` and `account_removal_report`: what phones tell us.

pub(crate) mod fields;

use std::time::Duration;

use axum::{
    Json,
    extract::{RawQuery, State, rejection::BytesRejection},
    http::{HeaderMap, header::CONTENT_TYPE},
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
    http::errors::{Matter, Problem},
    identity::{AuthError, Caller},
};

/// Why a report or removal was not taken; its response is the one place that logs and counts it.
#[derive(Debug)]
pub(crate) enum ReportError {
    Body(Problem),
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
    let body = body.map_err(|rejection| ReportError::Body(rejection.into()))?;
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

impl From<&ReportError> for Problem {
    fn from(error: &ReportError) -> Self {
        match error {
            ReportError::Body(problem) => problem.clone(),
            ReportError::Fields(error) => error.into(),
            ReportError::NeedsAppId => {
                Self::new(Matter::MissingParam, "token_msgs needs app_id_msgs.")
            }
            ReportError::NotYours => {
                Self::new(Matter::Forbidden, "This selector belongs to another user.")
            }
            ReportError::TooManyStrangers { retry_after } => Self::new(
                Matter::TooMany,
                "Too many new selectors from this address; wait.",
            )
            .after(*retry_after),
            ReportError::Auth(error) => error.into(),
            ReportError::Store(_) => Self::new(
                Matter::Unavailable,
                "The report could not be saved; try again.",
            ),
        }
    }
}

impl IntoResponse for ReportError {
    fn into_response(self) -> Response {
        let problem = Problem::from(&self);
        let (status, errcode) = problem.matter.code();
        if let Self::Store(error) = &self {
            tracing::warn!(error = %Chain(error), "a report could not be saved");
        }
        if status.is_server_error() {
            count("unavailable");
            tracing::debug!(?self, "a report could not be taken");
        } else {
            count("refused");
            tracing::info!(%status, errcode, reason = %problem.words, "a report was refused");
        }
        problem.into_response()
    }
}

impl From<&FieldError> for Problem {
    fn from(error: &FieldError) -> Self {
        match error {
            FieldError::NotJson => Self::new(Matter::NotJson, "The body is not JSON."),
            FieldError::NotAnObject => Self::new(Matter::BadJson, "The body is not a JSON object."),
            FieldError::NotText(name) => {
                Self::new(Matter::InvalidParam, format!("{name} must be text."))
            }
            FieldError::NoSelector => Self::new(Matter::MissingParam, "selector is missing."),
            FieldError::Invalid(name, error) => {
                Self::new(Matter::InvalidParam, format!("{name} {error}."))
            }
        }
    }
}
