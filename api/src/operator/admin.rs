//! The admin endpoints: what is stored, whose selectors are, replaying. Behind ADMIN_TOKEN, on a listener
//! of their own; every change leaves a line in the log.

use std::borrow::Cow;

use axum::{
    Json, Router,
    extract::{
        Path, Query, Request, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use bytes::Bytes;
use matrix2acrobits_shared::{
    ids::{Selector, UserId, log_id},
    process::{logs::Chain, settings},
    secret::Secret,
};
use matrix2acrobits_sqlite::store::{Store, StoreError, pushers::Replay};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    http::errors::{Matter, Problem, method_not_allowed},
    notify::cache::Tokens,
};

const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

/// What the endpoints work on.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) store: Store,
    pub(crate) tokens: Tokens,
}

/// The endpoints, behind `token`; without one they all answer 403.
pub(crate) fn router(admin: Admin, token: Option<Secret>) -> Router {
    Router::new()
        .route(
            "/api/internal/push_tokens",
            get(list_tokens).delete(delete_all_tokens),
        )
        .route(
            "/api/internal/push_tokens/{selector}",
            delete(delete_tokens),
        )
        .route("/api/internal/mappings", get(list_mappings))
        .route(
            "/api/internal/mappings/{selector}",
            get(get_mapping).put(put_mapping).delete(delete_mapping),
        )
        .route("/api/internal/pushers", get(list_pushers))
        .route("/api/internal/replay", post(replay))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(token, require_token))
        .with_state(admin)
}

async fn require_token(
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
    let text = |name| headers.get(name)?.to_str().ok();
    let bearer = text(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
    bearer
        .or_else(|| text("x-super-admin-token"))
        .map(str::trim)
}

/// Why an admin call failed.
#[derive(Debug)]
enum AdminError {
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

fn refused(matter: Matter, words: impl Into<Cow<'static, str>>) -> AdminError {
    AdminError::Refused(Problem::new(matter, words))
}

fn invalid(words: impl Into<Cow<'static, str>>) -> AdminError {
    refused(Matter::InvalidParam, words)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Page {
    limit: Option<u32>,
    after: Option<String>,
    reveal: bool,
    confirm: Option<String>,
    state: Option<String>,
}

type PageQuery = Result<Query<Page>, QueryRejection>;

fn page(query: PageQuery) -> Result<Page, AdminError> {
    let Query(page) = query.map_err(|_| invalid("The query has a value that cannot be read."))?;
    if page
        .limit
        .is_some_and(|limit| limit == 0 || limit > MAX_PAGE)
    {
        return Err(invalid(format!("limit must be from 1 to {MAX_PAGE}.")));
    }
    Ok(page)
}

impl Page {
    fn limit(&self) -> u32 {
        self.limit.unwrap_or(DEFAULT_PAGE)
    }

    fn after_id(&self) -> Result<i64, AdminError> {
        match &self.after {
            None => Ok(0),
            Some(text) => text
                .parse()
                .map_err(|_| invalid("after must be what next was.")),
        }
    }
}

/// A page and the cursor of the next one; the store was asked for one row more than fits.
fn listing<T, C>(
    name: &str,
    mut rows: Vec<T>,
    limit: u32,
    cursor: impl Fn(&T) -> C,
    show: impl Fn(T) -> Value,
) -> Response
where
    Value: From<C>,
{
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows
        .last()
        .filter(|_| more)
        .map_or(Value::Null, |row| cursor(row).into());
    let rows: Vec<Value> = rows.into_iter().map(show).collect();
    Json(json!({ name: rows, "next": next })).into_response()
}

/// What stands for a token: the hash that the logs show too.
fn redact(token: Option<&str>) -> Option<String> {
    token.map(|token| format!("[redacted {}]", log_id(token)))
}

async fn list_tokens(State(admin): State<Admin>, query: PageQuery) -> Result<Response, AdminError> {
    let page = page(query)?;
    let rows = admin
        .store
        .list_tokens(page.after_id()?, page.limit() + 1)
        .await?;
    let show = |mut row: matrix2acrobits_sqlite::store::listing::TokenRow| {
        if !page.reveal {
            row.token_msgs = redact(row.token_msgs.as_deref());
            row.token_calls = redact(row.token_calls.as_deref());
        }
        json!(row)
    };
    if page.reveal {
        tracing::info!("admin: push tokens listed in full");
    }
    Ok(listing(
        "push_tokens",
        rows,
        page.limit(),
        |row| row.id,
        show,
    ))
}

async fn delete_tokens(
    State(admin): State<Admin>,
    Path(selector): Path<String>,
) -> Result<Response, AdminError> {
    let selector = selector_of(&selector)?;
    let removed = admin.tokens.remove_tokens(Some(selector.clone())).await?;
    tracing::info!(selector = %log_id(selector.as_str()), removed, "admin: push tokens deleted");
    Ok(Json(json!({ "removed": removed })).into_response())
}

async fn delete_all_tokens(
    State(admin): State<Admin>,
    query: PageQuery,
) -> Result<Response, AdminError> {
    if page(query)?.confirm.as_deref() != Some("all") {
        return Err(refused(
            Matter::MissingParam,
            "Deleting all push tokens needs confirm=all.",
        ));
    }
    let removed = admin.tokens.remove_tokens(None).await?;
    tracing::warn!(removed, "admin: all push tokens deleted");
    Ok(Json(json!({ "removed": removed })).into_response())
}

fn selector_of(text: &str) -> Result<Selector, AdminError> {
    Selector::parse(text.trim()).map_err(|error| invalid(format!("The selector {error}.")))
}

async fn list_mappings(
    State(admin): State<Admin>,
    query: PageQuery,
) -> Result<Response, AdminError> {
    let page = page(query)?;
    let rows = admin
        .store
        .mappings(page.after.as_deref().unwrap_or_default(), page.limit() + 1)
        .await?;
    Ok(listing(
        "mappings",
        rows,
        page.limit(),
        |row| row.selector.clone(),
        |row| json!(row),
    ))
}

async fn get_mapping(
    State(admin): State<Admin>,
    Path(selector): Path<String>,
) -> Result<Response, AdminError> {
    let mapping = admin.store.mapping(&selector_of(&selector)?).await?;
    mapping
        .map(|mapping| Json(mapping).into_response())
        .ok_or_else(|| refused(Matter::NotFound, "There is no such thing."))
}

#[derive(Debug, Deserialize)]
struct NewMapping {
    user_id: String,
}

async fn put_mapping(
    State(admin): State<Admin>,
    Path(selector): Path<String>,
    body: Result<Json<NewMapping>, JsonRejection>,
) -> Result<Response, AdminError> {
    let selector = selector_of(&selector)?;
    let Json(mapping) = body.map_err(|_| {
        refused(
            Matter::BadJson,
            r#"The body must be {"user_id": "@user:server"}."#,
        )
    })?;
    let user = UserId::parse(mapping.user_id.trim())
        .map_err(|error| invalid(format!("user_id {error}.")))?;
    admin
        .store
        .put_mapping(selector.clone(), user.clone())
        .await?;
    tracing::info!(selector = %log_id(selector.as_str()), %user, "admin: mapping set");
    Ok(Json(json!({ "selector": selector, "user_id": user })).into_response())
}

async fn delete_mapping(
    State(admin): State<Admin>,
    Path(selector): Path<String>,
) -> Result<Response, AdminError> {
    let selector = selector_of(&selector)?;
    let removed = admin.store.delete_mapping(selector.clone()).await?;
    tracing::info!(selector = %log_id(selector.as_str()), removed, "admin: mapping deleted");
    Ok(Json(json!({ "removed": removed })).into_response())
}

async fn list_pushers(
    State(admin): State<Admin>,
    query: PageQuery,
) -> Result<Response, AdminError> {
    let page = page(query)?;
    if let Some(state) = page.state.as_deref()
        && !["pending", "registered", "failed", "removed"].contains(&state)
    {
        return Err(invalid(
            "state must be pending, registered, failed or removed.",
        ));
    }
    let rows = admin
        .store
        .list_pushers(page.state.as_deref(), page.after_id()?, page.limit() + 1)
        .await?;
    let show = |mut row: matrix2acrobits_sqlite::store::listing::PusherListing| {
        if !page.reveal {
            row.pushkey = redact(Some(&row.pushkey)).unwrap_or_default();
        }
        json!(row)
    };
    Ok(listing("pushers", rows, page.limit(), |row| row.id, show))
}

/// What to replay, in the body or in the query; exactly one of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReplayRequest {
    dead: bool,
    all: bool,
    user: Option<String>,
    since: Option<Since>,
}

/// Seconds since 1970, a time such as `2026-01-31T12:00:00Z`, or a duration such as `2h` ago.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Since {
    Seconds(i64),
    Text(String),
}

impl ReplayRequest {
    fn selection(self, now: i64) -> Result<Replay, AdminError> {
        match (self.dead, self.all, self.user, self.since) {
            (true, false, None, None) => Ok(Replay::Dead),
            (false, true, None, None) => Ok(Replay::All),
            (false, false, Some(user), None) => {
                let user = UserId::parse(user.trim())
                    .map_err(|error| invalid(format!("user {error}.")))?;
                Ok(Replay::User(user))
            }
            (false, false, None, Some(Since::Seconds(since))) => Ok(Replay::Since(since)),
            (false, false, None, Some(Since::Text(text))) => {
                let text = text.trim();
                let seconds = text.parse().or_else(|_| settings::time_or_ago(text, now));
                let seconds = seconds.map_err(|problem| invalid(format!("since {problem}.")))?;
                Ok(Replay::Since(seconds))
            }
            _ => Err(invalid(
                "Say what to replay, one of dead: true, all: true, user: a user ID, since: a time.",
            )),
        }
    }
}

async fn replay(
    State(admin): State<Admin>,
    query: Result<Query<ReplayRequest>, QueryRejection>,
    body: Bytes,
) -> Result<Response, AdminError> {
    let request = if body.trim_ascii().is_empty() {
        query.map_err(|_| invalid("The query cannot be read."))?.0
    } else {
        serde_json::from_slice(&body).map_err(|_| {
            let words = r#"The body must be JSON such as {"dead": true}."#;
            refused(Matter::BadJson, words)
        })?
    };
    let replay = request.selection(admin.store.clock.unix())?;
    let count = replay_all(&admin.store, replay).await?;
    Ok(Json(json!({ "replayed": count })).into_response())
}

/// Replays chunk by chunk. Returns how many pushers it was about.
pub(crate) async fn replay_all(store: &Store, replay: Replay) -> Result<u64, StoreError> {
    let (mut after, mut count) = (0, 0);
    while let Some((last, chunk)) = store.replay_chunk(replay.clone(), after).await? {
        after = last;
        count += chunk;
    }
    tracing::info!(?replay, count, "admin: replay");
    Ok(count)
}
