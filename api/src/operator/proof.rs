//! The admin endpoints that show whether pushes arrive: a test push, and the list of phones.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    middleware,
    routing::{get, post},
};
use matrix2acrobits_shared::{
    flow::SilentCursor,
    ids::{Selector, UserId},
    secret::Secret,
};
use matrix2acrobits_store::Store;
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoResponses, OpenApi, ToSchema,
    openapi::{self, RefOr},
};

use super::{
    access::require_token,
    errors::{ALWAYS, AdminError, BodyBytes, invalid, json, refused},
    paging::{self, cut},
    phones::PhoneRow,
    push_test::{TestError, TestPush, Tested, Tester, To},
};
use crate::http::errors::{self, Matter, Problem, method_not_allowed};

/// The OpenAPI description of these endpoints.
#[derive(OpenApi)]
#[openapi(paths(push_test, list_phones))]
pub(crate) struct Description;

#[derive(Debug, Clone)]
struct Proof {
    store: Store,
    tester: Arc<Tester>,
}

/// The endpoints, which require `token`. Without one they respond 403.
pub(crate) fn router(store: Store, tester: Arc<Tester>, token: Option<Secret>) -> Router {
    Router::new()
        .route("/api/internal/push_test", post(push_test))
        .route("/api/internal/phones", get(list_phones))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(token, require_token))
        .with_state(Proof { store, tester })
}

/// A test push to the phones of a user or of a selector. Needs exactly one of the two.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PushTest)]
pub(crate) struct PushTestRequest {
    /// A user ID
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// At most 256 bytes
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) selector: Option<String>,
    /// The text that the phone shows
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    /// true sends a message, which wakes the app. Otherwise the phone only shows the text
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<bool>,
}

impl PushTestRequest {
    fn push(self) -> Result<TestPush, AdminError> {
        let to = match (self.user.as_deref(), self.selector.as_deref()) {
            (Some(user), None) => UserId::parse(user.trim())
                .map(To::User)
                .map_err(|error| invalid(format!("user {error}.")))?,
            (None, Some(selector)) => Selector::parse(selector.trim())
                .map(To::Selector)
                .map_err(|error| invalid(format!("selector {error}.")))?,
            _ => return Err(invalid("Give user or selector, one of the two.")),
        };
        Ok(TestPush {
            to,
            text: self.text.unwrap_or_default(),
            message: self.message.unwrap_or_default(),
        })
    }
}

/// The results of a test push.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TestedPhones)]
pub(crate) struct TestedPhones {
    pub(crate) phones: Vec<Tested>,
}

impl From<TestError> for AdminError {
    fn from(error: TestError) -> Self {
        match error {
            TestError::Unknown => refused(
                Matter::NotFound,
                "No phone has reported for this user or selector.",
            ),
            TestError::TooSoon(wait) => {
                let words = "This token had a test push a moment ago; wait.";
                Self::Refused(Problem::new(Matter::TooMany, words).after(wait))
            }
            TestError::Store(error) => error.into(),
        }
    }
}

/// Describes [`AdminError`] of a test push.
struct TestErrors;

impl IntoResponses for TestErrors {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let own = [
            (
                Matter::NotFound,
                "No phone has reported for this user or selector",
            ),
            (Matter::TooLarge, ""),
            (
                Matter::TooMany,
                "This token had a test push less than 10 s ago. See Retry-After",
            ),
        ];
        errors::described(&[&ALWAYS[..], &own].concat())
    }
}

/// Sends a test push.
#[utoipa::path(
    post,
    path = "/api/internal/push_test",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Send a test push to the phones of a user or selector, and return what PNM says. Changes nothing",
    description = "",
    request_body = PushTestRequest,
    responses((status = 200, body = TestedPhones), TestErrors)
)]
async fn push_test(
    State(proof): State<Proof>,
    body: BodyBytes,
) -> Result<Json<TestedPhones>, AdminError> {
    let words = r#"The body must be JSON such as {"user": "@bob:example.org"}."#;
    let request: PushTestRequest = json(body, words)?;
    let phones = proof.tester.send(&request.push()?).await?;
    Ok(Json(TestedPhones { phones }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PhonesQuery {
    limit: Option<u32>,
    after: Option<String>,
    user: Option<String>,
    silent: bool,
}

/// Phones, and what we know about their pushes.
#[derive(Debug, Serialize, ToSchema)]
struct Phones {
    phones: Vec<PhoneRow>,
    /// The value of after for the next page, null at the end
    #[schema(required)]
    next: Option<String>,
}

/// Lists phones.
#[utoipa::path(
    get,
    path = "/api/internal/phones",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "List phones with their reports, pushes and receipts",
    description = "",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Rows per page, 100 if absent"),
        ("after" = Option<String>, Query, description = "The value of next in the previous page"),
        ("user" = Option<String>, Query, description = "Only phones of this user"),
        ("silent" = Option<bool>, Query, description = "true: only phones that have confirmed no push for a day, but \
            did before. Without user, the longest silent come first"),
    ),
    responses((status = 200, body = Phones), AdminError)
)]
async fn list_phones(
    State(proof): State<Proof>,
    query: Result<Query<PhonesQuery>, QueryRejection>,
) -> Result<Json<Phones>, AdminError> {
    let Query(query) = query.map_err(|_| paging::unreadable())?;
    let limit = paging::limit(query.limit)?;
    let user = query.user.as_deref().map(|user| UserId::parse(user.trim()));
    let user = user
        .transpose()
        .map_err(|error| invalid(format!("user {error}.")))?;
    let now = proof.store.clock().unix();
    if query.silent && user.is_none() {
        let after = query.after.as_deref().map(cursor);
        let after = after.map_or(Ok(SilentCursor::default()), |cursor| {
            cursor.ok_or_else(paging::wrong_after)
        })?;
        let (mut phones, last) = proof.store.silent_phones(after, limit + 1).await?;
        let next = cut(&mut phones, limit, |phone| {
            let since = phone.waiting_since.map(|since| SilentCursor {
                since,
                phone: phone.id,
            });
            // A receipt came while we read, so this phone is not in the list any more.
            since.or(last)
        });
        return Ok(Json(Phones {
            phones: phones
                .iter()
                .map(|phone| PhoneRow::new(phone, now))
                .collect(),
            next: next
                .flatten()
                .map(|cursor| format!("{}-{}", cursor.since, cursor.phone)),
        }));
    }
    let after = paging::after_id(query.after.as_deref())?;
    let mut phones = match &user {
        Some(user) => proof.store.phones_of_user(user, after, limit + 1).await?,
        None => proof.store.list_phones(after, limit + 1).await?,
    };
    let next = cut(&mut phones, limit, |phone| phone.id.to_string());
    let phones = phones.iter().map(|phone| PhoneRow::new(phone, now));
    Ok(Json(Phones {
        phones: phones
            .filter(|phone| !query.silent || phone.silent)
            .collect(),
        next,
    }))
}

fn cursor(text: &str) -> Option<SilentCursor> {
    let (since, phone) = text.split_once('-')?;
    Some(SilentCursor {
        since: since.parse().ok()?,
        phone: phone.parse().ok()?,
    })
}
