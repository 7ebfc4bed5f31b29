//! The admin endpoints for tokens, mappings, pushers and replays. Every change leaves a line in the log.

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    middleware,
    routing::{delete, get, post},
};
use matrix2acrobits_shared::{
    ids::{Selector, UserId, log_id},
    rules::pushers,
    secret::Secret,
};
use matrix2acrobits_store::Store;
use serde::Deserialize;
use utoipa::OpenApi;

use super::{
    access::require_token,
    errors::{AdminError, BodyBytes, BodyError, SelectorError, invalid, json, refused},
    input::SelectorPath,
    lasting::Changes,
    paging::{self, cut},
    replay,
    servers::Servers,
    views::{
        Mapping, MappingSet, Mappings, NewMapping, Pusher, Pushers, Removed, TokenRow, Tokens,
    },
};
use crate::http::errors::{Matter, method_not_allowed};

/// The OpenAPI description of these endpoints.
#[derive(OpenApi)]
#[openapi(paths(
    list_tokens,
    delete_all_tokens,
    delete_tokens,
    list_mappings,
    get_mapping,
    put_mapping,
    delete_mapping,
    list_pushers,
    replay::replay,
))]
pub(crate) struct Description;

/// What the endpoints need.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) store: Store,
    pub(crate) servers: Servers,
    pub(crate) changes: Changes,
}

/// The endpoints, which require `token`. Without one they all respond 403.
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
        .route("/api/internal/replay", post(replay::replay))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(token, require_token))
        .with_state(admin)
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
    let Query(page) = query.map_err(|_| paging::unreadable())?;
    paging::limit(page.limit)?;
    Ok(page)
}

impl Page {
    fn limit(&self) -> Result<u32, AdminError> {
        paging::limit(self.limit)
    }

    fn after_id(&self) -> Result<i64, AdminError> {
        paging::after_id(self.after.as_deref())
    }

    /// The selector after which the page begins. Empty for the first page. Every other text that is no selector is
    /// refused, because PostgreSQL would not even read one with a NUL in it.
    fn after_selector(&self) -> Result<&str, AdminError> {
        let after = self.after.as_deref().unwrap_or_default();
        if after.is_empty() || Selector::parse(after).is_ok() {
            Ok(after)
        } else {
            Err(paging::wrong_after())
        }
    }

    /// The state to list. None for every state.
    fn state(&self) -> Result<Option<pushers::State>, AdminError> {
        match self.state.as_deref() {
            None | Some("" | "all") => Ok(None),
            Some(text) => pushers::State::parse(text).map(Some).ok_or_else(|| {
                invalid("state must be pending, registered, failed, removed or all.")
            }),
        }
    }
}

/// Lists what phones have reported.
#[utoipa::path(
    get,
    path = "/api/internal/push_tokens",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "List what phones have reported",
    description = "",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Rows per page, 100 if absent"),
        ("after" = Option<i64>, Query, description = "The value of next in the previous page"),
        ("reveal" = Option<bool>, Query, description = "true shows tokens in full"),
    ),
    responses((status = 200, body = Tokens), AdminError)
)]
async fn list_tokens(
    State(admin): State<Admin>,
    query: PageQuery,
) -> Result<Json<Tokens>, AdminError> {
    let page = page(query)?;
    let limit = page.limit()?;
    let mut rows = admin.store.list_tokens(page.after_id()?, limit + 1).await?;
    if page.reveal {
        tracing::info!("admin: push tokens listed in full");
    }
    let next = cut(&mut rows, limit, |row| row.id);
    let shown = |row| TokenRow::new(row, page.reveal);
    Ok(Json(Tokens {
        push_tokens: rows.into_iter().map(shown).collect(),
        next,
    }))
}

/// Forgets one account's tokens.
#[utoipa::path(
    delete,
    path = "/api/internal/push_tokens/{selector}",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Forget one account's tokens and remove its pushers",
    description = "",
    params(
        ("selector" = String, Path, description = "At most 256 bytes"),
    ),
    responses((status = 200, body = Removed<usize>), AdminError)
)]
async fn delete_tokens(
    State(admin): State<Admin>,
    SelectorPath(selector): SelectorPath,
) -> Result<Json<Removed<usize>>, AdminError> {
    let changes = admin.changes.clone();
    let removing = async move {
        let removed = admin.store.remove_tokens(Some(selector.clone())).await?;
        tracing::info!(selector = %log_id(selector.as_str()), removed, "admin: push tokens deleted");
        Ok(removed)
    };
    let removed = changes.to_the_end(removing).await?;
    Ok(Json(Removed { removed }))
}

/// Forgets all tokens.
#[utoipa::path(
    delete,
    path = "/api/internal/push_tokens",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Forget all tokens and remove all pushers",
    description = "",
    params(
        ("confirm" = String, Query, description = "Must be all", pattern = "^all$"),
    ),
    responses((status = 200, body = Removed<usize>), AdminError)
)]
async fn delete_all_tokens(
    State(admin): State<Admin>,
    query: PageQuery,
) -> Result<Json<Removed<usize>>, AdminError> {
    if page(query)?.confirm.as_deref() != Some("all") {
        return Err(refused(
            Matter::MissingParam,
            "Deleting all push tokens needs confirm=all.",
        ));
    }
    let changes = admin.changes.clone();
    let removing = async move {
        let removed = admin.store.remove_tokens(None).await?;
        tracing::warn!(removed, "admin: all push tokens deleted");
        Ok(removed)
    };
    let removed = changes.to_the_end(removing).await?;
    Ok(Json(Removed { removed }))
}

/// Lists the mappings.
#[utoipa::path(
    get,
    path = "/api/internal/mappings",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "List the mappings of selectors to users",
    description = "",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Rows per page, 100 if absent"),
        ("after" = Option<String>, Query, description = "The value of next in the previous page"),
    ),
    responses((status = 200, body = Mappings), AdminError)
)]
async fn list_mappings(
    State(admin): State<Admin>,
    query: PageQuery,
) -> Result<Json<Mappings>, AdminError> {
    let page = page(query)?;
    let limit = page.limit()?;
    let mut rows = admin
        .store
        .mappings(page.after_selector()?, limit + 1)
        .await?;
    let next = cut(&mut rows, limit, |row| row.selector.clone());
    Ok(Json(Mappings {
        mappings: rows.into_iter().map(Mapping::from).collect(),
        next,
    }))
}

/// Shows a mapping.
#[utoipa::path(
    get,
    path = "/api/internal/mappings/{selector}",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Show which user a selector belongs to",
    description = "",
    params(
        ("selector" = String, Path, description = "At most 256 bytes"),
    ),
    responses((status = 200, body = Mapping), SelectorError)
)]
async fn get_mapping(
    State(admin): State<Admin>,
    SelectorPath(selector): SelectorPath,
) -> Result<Json<Mapping>, AdminError> {
    let mapping = admin.store.mapping(&selector).await?;
    mapping
        .map(|mapping| Json(mapping.into()))
        .ok_or_else(|| refused(Matter::NotFound, "There is no such thing."))
}

/// Sets a mapping.
#[utoipa::path(
    put,
    path = "/api/internal/mappings/{selector}",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Map a selector to a user",
    description = "",
    params(
        ("selector" = String, Path, description = "At most 256 bytes"),
    ),
    request_body = NewMapping,
    responses((status = 200, body = MappingSet), BodyError)
)]
async fn put_mapping(
    State(admin): State<Admin>,
    SelectorPath(selector): SelectorPath,
    body: BodyBytes,
) -> Result<Json<MappingSet>, AdminError> {
    let mapping: NewMapping = json(body, r#"The body must be {"user_id": "@user:server"}."#)?;
    let user_id = UserId::parse(mapping.user_id.trim())
        .map_err(|error| invalid(format!("user_id {error}.")))?;
    if let Some(words) = admin.servers.refuse(&user_id) {
        return Err(invalid(words));
    }
    let changes = admin.changes.clone();
    let setting = async move {
        admin
            .store
            .put_mapping(selector.clone(), user_id.clone())
            .await?;
        tracing::info!(selector = %log_id(selector.as_str()), user = %user_id, "admin: mapping set");
        Ok(MappingSet { selector, user_id })
    };
    Ok(Json(changes.to_the_end(setting).await?))
}

/// Deletes a mapping.
#[utoipa::path(
    delete,
    path = "/api/internal/mappings/{selector}",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Delete a mapping",
    description = "",
    params(
        ("selector" = String, Path, description = "At most 256 bytes"),
    ),
    responses((status = 200, body = Removed<bool>), AdminError)
)]
async fn delete_mapping(
    State(admin): State<Admin>,
    SelectorPath(selector): SelectorPath,
) -> Result<Json<Removed<bool>>, AdminError> {
    let changes = admin.changes.clone();
    let removing = async move {
        let removed = admin.store.delete_mapping(selector.clone()).await?;
        tracing::info!(selector = %log_id(selector.as_str()), removed, "admin: mapping deleted");
        Ok(removed)
    };
    let removed = changes.to_the_end(removing).await?;
    Ok(Json(Removed { removed }))
}

/// Lists the pushers.
#[utoipa::path(
    get,
    path = "/api/internal/pushers",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "List pushers: what the homeserver should hold, and what we know about it",
    description = "",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Rows per page, 100 if absent"),
        ("after" = Option<i64>, Query, description = "The value of next in the previous page"),
        ("state" = Option<String>, Query, pattern = "^(pending|registered|failed|removed|all)?$",
            description = "Only pushers in this state, in any state if it is absent, empty or all"),
        ("reveal" = Option<bool>, Query, description = "true shows pushkeys in full"),
    ),
    responses((status = 200, body = Pushers), AdminError)
)]
async fn list_pushers(
    State(admin): State<Admin>,
    query: PageQuery,
) -> Result<Json<Pushers>, AdminError> {
    let page = page(query)?;
    let limit = page.limit()?;
    let state = page.state()?.map(pushers::State::as_str);
    let mut rows = admin
        .store
        .list_pushers(state, page.after_id()?, limit + 1)
        .await?;
    let next = cut(&mut rows, limit, |row| row.id);
    let shown = |row| Pusher::new(row, page.reveal);
    Ok(Json(Pushers {
        pushers: rows.into_iter().map(shown).collect(),
        next,
    }))
}
