//! The endpoints `push_token_report` and `account_removal_report`, by which phones report their tokens and removals.

mod description;
pub(crate) mod fields;
pub(crate) mod receipts;
pub(crate) mod tokenless;
pub(crate) mod upkeep;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{FromRef, FromRequest, FromRequestParts as _, Request, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};
use matrix2acrobits_shared::{
    ids::{Selector, UserId, log_id},
    process::logs::Chain,
    rules::report::{Field, Report, Reporter, Saved},
};
use matrix2acrobits_store::{Store, StoreError};
use serde::Serialize;
use utoipa::{
    IntoResponses, OpenApi, ToSchema,
    openapi::{self, RefOr},
};

use self::{
    fields::{FieldError, Fields},
    tokenless::Tokenless,
    upkeep::Upkeep,
};
use crate::{
    http::{
        bodies::Bodies,
        errors::{self, Matter, Problem, method_not_allowed},
        seldom::Seldom,
    },
    identity::{Auth, AuthError, Caller},
    metrics::{self, ReportResult},
    repeats::Repeats,
};

/// Largest body of a report or removal, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// Strangers can send any number of reports that are refused, or that hold no token.
static REFUSED: Seldom = Seldom::new();
static TOKENLESS: Seldom = Seldom::new();

/// The OpenAPI description of these endpoints.
#[derive(OpenApi)]
#[openapi(paths(report_by_post, report_by_get, removal_by_post, removal_by_get))]
pub(crate) struct Description;

/// What the endpoints need.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    pub(crate) store: Store,
    pub(crate) auth: Auth,
    /// Remembers reports without a token.
    pub(crate) tokenless: Arc<Tokenless>,
    /// Counts new rows that nobody stands for.
    pub(crate) upkeep: Arc<Upkeep>,
    /// Told of reports that change nothing.
    pub(crate) repeats: Arc<Repeats>,
    pub(crate) bodies: Bodies,
}

impl FromRef<Reports> for Auth {
    fn from_ref(reports: &Reports) -> Self {
        reports.auth.clone()
    }
}

impl FromRef<Reports> for Bodies {
    fn from_ref(reports: &Reports) -> Self {
        reports.bodies.clone()
    }
}

/// The endpoints.
pub(crate) fn router(reports: Reports) -> Router {
    // axum runs the handler of GET for HEAD, and this handler changes something.
    let report = get(report_by_get).head(method_not_allowed);
    let removal = get(removal_by_get).head(method_not_allowed);
    Router::new()
        .route("/api/client/push_token_report", report.post(report_by_post))
        .route(
            "/api/client/account_removal_report",
            removal.post(removal_by_post),
        )
        .with_state(reports)
}

/// Why a report or removal was not accepted. Only its response logs and counts it.
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

/// The parts of a request that reports and removals need.
#[derive(Debug)]
struct Incoming {
    caller: Caller,
    fields: Fields,
}

impl FromRequest<Reports> for Incoming {
    type Rejection = ReportError;

    async fn from_request(request: Request, state: &Reports) -> Result<Self, ReportError> {
        let (caller, fields) = read_request(request, state, Fields::read).await?;
        Ok(Self { caller, fields })
    }
}

/// The caller of a request, and the result of `read` for its query, Content-Type and body.
async fn read_request<S, T>(
    request: Request,
    state: &S,
    read: impl FnOnce(Option<&str>, Option<&str>, &[u8]) -> Result<T, FieldError>,
) -> Result<(Caller, T), ReportError>
where
    S: Send + Sync,
    Auth: FromRef<S>,
    Bodies: FromRef<S>,
{
    let (mut parts, body) = request.into_parts();
    let Ok(caller) = Caller::from_request_parts(&mut parts, state).await;
    let content_type = parts
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok().map(str::to_owned));
    let query = parts.uri.query().map(str::to_owned);
    let request = Request::from_parts(parts, body);
    let body = Bodies::from_ref(state)
        .read(request, MAX_BODY)
        .await
        .map_err(ReportError::Body)?;
    let fields = read(query.as_deref(), content_type.as_deref(), &body.bytes);
    Ok((caller, fields.map_err(ReportError::Fields)?))
}

/// `{}`
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// Saves the tokens of a phone.
#[utoipa::path(
    post,
    path = "/api/client/push_token_report",
    tag = "phones",
    summary = "A phone reports its push tokens. 200 means that they are on disk",
    description = "",
    request_body(content(
        (description::Report = "application/json"),
        (description::Report = "application/x-www-form-urlencoded")
    )),
    responses((status = 200, body = Empty), ReportError)
)]
async fn report_by_post(
    State(app): State<Reports>,
    incoming: Incoming,
) -> Result<Json<Empty>, ReportError> {
    report(&app, incoming).await
}

/// Saves the tokens of a phone.
#[utoipa::path(
    get,
    path = "/api/client/push_token_report",
    tag = "phones",
    summary = "The same by GET. Use POST, because proxies log query strings",
    description = "",
    params(description::Report),
    responses((status = 200, body = Empty), ReportError)
)]
async fn report_by_get(
    State(app): State<Reports>,
    incoming: Incoming,
) -> Result<Json<Empty>, ReportError> {
    report(&app, incoming).await
}

/// Forgets the tokens of a phone.
#[utoipa::path(
    post,
    path = "/api/client/account_removal_report",
    tag = "phones",
    summary = "A phone reports that an account was removed. 200 even if the account is unknown",
    description = "",
    request_body(content(
        (description::Removal = "application/json"),
        (description::Removal = "application/x-www-form-urlencoded")
    )),
    responses((status = 200, body = Empty), ReportError)
)]
async fn removal_by_post(
    State(app): State<Reports>,
    incoming: Incoming,
) -> Result<Json<Empty>, ReportError> {
    removal(&app, incoming).await
}

/// Forgets the tokens of a phone.
#[utoipa::path(
    get,
    path = "/api/client/account_removal_report",
    tag = "phones",
    summary = "The same by GET",
    description = "",
    params(description::Removal),
    responses((status = 200, body = Empty), ReportError)
)]
async fn removal_by_get(
    State(app): State<Reports>,
    incoming: Incoming,
) -> Result<Json<Empty>, ReportError> {
    removal(&app, incoming).await
}

/// Saves the tokens of a phone. Responds only after they are on disk.
async fn report(app: &Reports, incoming: Incoming) -> Result<Json<Empty>, ReportError> {
    let Incoming { caller, fields } = incoming;
    let mut from = identify(app, caller, &fields).await?;
    let selector = log_id(fields.selector.as_str());
    if fields.lack_tokens() {
        let names = &fields.names;
        if let Some(times) = TOKENLESS.due(Instant::now()) {
            tracing::warn!(%selector, fields = ?names, times, "a report holds no token: see the template");
        } else {
            tracing::debug!(%selector, fields = ?names, "a report holds no token");
        }
        app.tokenless.note(fields.names);
    }
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
        .store
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
            changed,
            user,
            stranger,
            same_row,
        } => {
            if let Some(row) = same_row {
                app.repeats.note(row, Instant::now());
            }
            if stranger {
                app.auth.stranger_added(caller);
                app.upkeep.added();
            }
            let user = user.as_ref().map_or("nobody yet", |user| user.as_str());
            if changed {
                metrics::report(ReportResult::Changed);
                tracing::info!(%selector, user, "report saved");
            } else {
                metrics::report(ReportResult::Unchanged);
                tracing::debug!(%selector, user, "report as before");
            }
            Ok(Json(Empty {}))
        }
    }
}

/// Forgets the tokens of a phone.
async fn removal(app: &Reports, incoming: Incoming) -> Result<Json<Empty>, ReportError> {
    let Incoming { caller, fields } = incoming;
    let from = identify(app, caller, &fields).await?;
    let pushkey = match fields.token_msgs {
        Field::Set(pushkey) => Some(pushkey),
        Field::Absent | Field::Clear => None,
    };
    match app
        .store
        .remove_account(from, pushkey.clone())
        .await
        .map_err(ReportError::Store)?
    {
        Saved::NotYours => return Err(ReportError::NotYours),
        Saved::Done { .. } | Saved::NeedsAppId | Saved::Strange => {}
    }
    metrics::report(ReportResult::Removed);
    tracing::info!(
        selector = %log_id(fields.selector.as_str()),
        pushkey = pushkey.map(|pushkey| tracing::field::display(pushkey.log_id())),
        "account removed, unless it has another token by now"
    );
    Ok(Json(Empty {}))
}

async fn identify(app: &Reports, caller: Caller, fields: &Fields) -> Result<Reporter, ReportError> {
    let owner = app
        .auth
        .identify(fields.username.as_deref(), fields.password.as_ref(), caller)
        .await;
    if let Err(AuthError::NoChat { users }) = &owner {
        forget(app, &fields.selector, users).await?;
    }
    let owner = owner.map_err(ReportError::Auth)?;
    let from = Reporter {
        selector: fields.selector.clone(),
        device: fields.device.clone(),
        owner,
        strangers: true,
    };
    Ok(from)
}

/// Forgets the tokens of these users, who may no longer chat, for this selector. Tokens of others stay, since the login
/// proved no right to them.
async fn forget(app: &Reports, selector: &Selector, users: &[UserId]) -> Result<(), ReportError> {
    for user in users {
        let removing = app.store.remove_of_user(selector.clone(), user.clone());
        if removing.await.map_err(ReportError::Store)? > 0 {
            let selector = log_id(selector.as_str());
            tracing::info!(%selector, %user, "the user no longer has chat: tokens removed");
        }
    }
    Ok(())
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
            metrics::report(ReportResult::Unavailable);
            tracing::debug!(?self, "a report could not be taken");
        } else {
            metrics::report(ReportResult::Refused);
            let reason = &problem.words;
            if let Some(times) = REFUSED.due(Instant::now()) {
                tracing::info!(%status, errcode, %reason, times, "a report was refused");
            } else {
                tracing::debug!(%status, errcode, %reason, "a report was refused");
            }
        }
        problem.into_response()
    }
}

impl IntoResponses for ReportError {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        errors::described(&[
            (Matter::InvalidParam, "A field is missing or wrong"),
            (Matter::LoginRefused, "The login was refused"),
            (Matter::Forbidden, "The selector belongs to another user"),
            (Matter::TooSlow, "The request took too long to arrive"),
            (Matter::TooLarge, "The body is longer than 64 KiB"),
            (
                Matter::TooMany,
                "Too many failed logins or new selectors. See Retry-After",
            ),
            (
                Matter::Upstream,
                "The response of the login service cannot be understood",
            ),
            (
                Matter::Unavailable,
                "The database or the login service does not respond",
            ),
        ])
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
            FieldError::NotUtf8(name) => {
                Self::new(Matter::InvalidParam, format!("{name} must be UTF-8."))
            }
            FieldError::NoPhone => {
                Self::new(Matter::MissingParam, "selector and token are missing.")
            }
            FieldError::NoSelector => Self::new(Matter::MissingParam, "selector is missing."),
            FieldError::Invalid(name, error) => {
                Self::new(Matter::InvalidParam, format!("{name} {error}."))
            }
        }
    }
}
