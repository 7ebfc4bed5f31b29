//! The JSON of the admin endpoints. Tokens are redacted unless the operator asks for them in full.

use matrix2acrobits_shared::{
    flow,
    ids::{Selector, UserId, log_id},
    rules::import,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A replacement for a token: the same hash as in the logs.
fn redact(token: &str) -> String {
    format!("[redacted {}]", log_id(token))
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tokens {
    pub(super) push_tokens: Vec<TokenRow>,
    /// The value of after for the next page, null at the end
    #[schema(required)]
    pub(super) next: Option<i64>,
}

/// What a phone reported. Tokens are redacted unless the request says reveal=true.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenRow {
    id: i64,
    selector: String,
    device: String,
    /// From the mapping or the login
    user_id: Option<String>,
    token_msgs: Option<String>,
    app_id_msgs: Option<String>,
    token_calls: Option<String>,
    app_id_calls: Option<String>,
    /// When PNM called the token gone. All times are seconds since 1970
    dead_at: Option<i64>,
    created_at: i64,
    updated_at: i64,
}

impl TokenRow {
    pub(super) fn new(row: flow::TokenListing, reveal: bool) -> Self {
        let shown =
            |token: Option<String>| token.map(|token| if reveal { token } else { redact(&token) });
        Self {
            id: row.id,
            selector: row.selector,
            device: row.device,
            user_id: row.user_id,
            token_msgs: shown(row.token_msgs),
            app_id_msgs: row.app_id_msgs,
            token_calls: shown(row.token_calls),
            app_id_calls: row.app_id_calls,
            dead_at: row.dead_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Mappings {
    pub(super) mappings: Vec<Mapping>,
    /// The value of after for the next page, null at the end
    #[schema(required)]
    pub(super) next: Option<String>,
}

/// The user that a selector belongs to.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Mapping {
    selector: String,
    user_id: String,
    /// Seconds since 1970
    updated_at: i64,
}

impl From<import::Mapping> for Mapping {
    fn from(mapping: import::Mapping) -> Self {
        Self {
            selector: mapping.selector,
            user_id: mapping.user_id,
            updated_at: mapping.updated_at,
        }
    }
}

/// The user that a selector belongs to from now on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MappingSet {
    #[schema(value_type = String)]
    pub(super) selector: Selector,
    #[schema(value_type = String)]
    pub(super) user_id: UserId,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct NewMapping {
    #[schema(
        pattern = "^@[a-z0-9._=/+-]+:[a-z0-9.-]+$",
        max_length = 255,
        example = "@bob:example.org"
    )]
    pub(super) user_id: String,
}

// The schema of rules::pushers::State.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PusherState {
    Pending,
    Registered,
    Failed,
    Removed,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Pushers {
    pub(super) pushers: Vec<Pusher>,
    /// The value of after for the next page, null at the end
    #[schema(required)]
    pub(super) next: Option<i64>,
}

/// A pusher: what the homeserver should hold, and what we know about it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Pusher {
    id: i64,
    user_id: String,
    app_id: String,
    pushkey: String,
    selector: String,
    /// present or absent
    wanted: String,
    #[schema(value_type = PusherState)]
    state: String,
    attempts: i64,
    last_error: Option<String>,
    updated_at: i64,
}

impl Pusher {
    pub(super) fn new(row: flow::PusherListing, reveal: bool) -> Self {
        Self {
            id: row.id,
            user_id: row.user_id,
            app_id: row.app_id,
            pushkey: if reveal {
                row.pushkey
            } else {
                redact(&row.pushkey)
            },
            selector: row.selector,
            wanted: row.wanted,
            state: row.state,
            attempts: row.attempts,
            last_error: row.last_error,
            updated_at: row.updated_at,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Removed<T> {
    pub(super) removed: T,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Replayed {
    pub(super) replayed: usize,
}
