//! The OpenAPI description of the HTTP endpoints: `matrix2acrobits-api openapi`, checked in as docs/openapi.json.
//! A test asks the running api whether it is true, with requests made from the description itself.
#![expect(
    dead_code,
    reason = "types and functions here carry descriptions; nobody makes or calls them"
)]

use std::io::Write;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, Modify, OpenApi, ToSchema, openapi};

use crate::cli::Failure;

/// Prints the description.
pub(crate) fn run() -> Result<(), Failure> {
    let text = Description::openapi()
        .to_pretty_json()
        .map_err(Failure::other)?;
    writeln!(std::io::stdout(), "{text}").map_err(Failure::other)
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "matrix2acrobits-api",
        description = "Matrix push gateway for Acrobits softphones. The endpoints tagged phones and homeserver are on \
                       LISTEN_ADDR, those tagged operator on ADMIN_LISTEN_ADDR, health on both in part.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    paths(
        report_by_post,
        report_by_get,
        removal_by_post,
        removal_by_get,
        notify,
        health,
        live,
        ready,
        list_tokens,
        delete_all_tokens,
        delete_tokens,
        list_mappings,
        get_mapping,
        put_mapping,
        delete_mapping,
        list_pushers,
        replay,
    ),
    modifiers(&AdminToken),
)]
struct Description;

/// `Authorization: Bearer ADMIN_TOKEN`.
struct AdminToken;

impl Modify for AdminToken {
    fn modify(&self, description: &mut openapi::OpenApi) {
        use openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = description.components.get_or_insert_default();
        components.add_security_scheme("admin_token", scheme);
    }
}

// The types below say what is sent, for the description alone; the fields' documentation is its text.

/// `{}`
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// Every error has this form.
#[derive(Serialize, ToSchema)]
struct Problem {
    /// A Matrix error code
    #[schema(pattern = "^M_[A-Z_]+$")]
    errcode: String,
    /// For people
    error: String,
}

/// What a phone reports. Absent, or a placeholder that the app did not fill: what is stored stays. Empty: it goes,
/// and with token_msgs the pusher. Other spellings that Acrobits uses are accepted as well.
#[derive(Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
struct Report {
    /// The account on the phone; at most 256 bytes
    #[schema(min_length = 1)]
    #[param(min_length = 1)]
    selector: String,
    /// Token for messages, the Matrix pushkey; at most 512 bytes; needs app_id_msgs. Also pushTokenOther, pushToken
    token_msgs: Option<String>,
    /// App id for messages; at most 64 characters. Also appid_msgs, appId_msgs, pushappid_other, pushappid
    app_id_msgs: Option<String>,
    /// Token for calls; stored only. Also pushTokenIncomingCall
    token_calls: Option<String>,
    /// App id for calls. Also appid_calls, appId_calls, pushappid_incoming_call
    app_id_calls: Option<String>,
    /// The phone, where an account is on several. Also installid, install_id
    device: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    username: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    password: Option<String>,
}

/// The account that was removed from the phone.
#[derive(Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
struct Removal {
    /// The account on the phone; at most 256 bytes
    #[schema(min_length = 1)]
    #[param(min_length = 1)]
    selector: String,
    /// The phone; absent: all phones with this account
    device: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    username: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    password: Option<String>,
}

/// A notification as the Matrix push gateway API has it; what is not listed, null or of another type is ignored.
#[derive(Deserialize, ToSchema)]
struct NotifyRequest {
    notification: Notification,
}

#[derive(Deserialize, ToSchema)]
struct Notification {
    /// Absent or empty: a badge update, which rings nobody
    event_id: Option<String>,
    room_id: Option<String>,
    sender: Option<String>,
    sender_display_name: Option<String>,
    /// Its body is the text
    #[schema(value_type = Option<Object>)]
    content: Option<serde_json::Value>,
    /// Its unread is the badge
    #[schema(value_type = Option<Object>)]
    counts: Option<serde_json::Value>,
    #[schema(min_items = 1)]
    devices: Vec<Device>,
}

#[derive(Deserialize, ToSchema)]
struct Device {
    #[schema(min_length = 1)]
    app_id: String,
    #[schema(min_length = 1)]
    pushkey: String,
    /// Its selector tells two accounts on one phone apart
    #[schema(value_type = Option<Object>)]
    data: Option<serde_json::Value>,
    /// Its sound is the push's
    #[schema(value_type = Option<Object>)]
    tweaks: Option<serde_json::Value>,
}

/// Pushkeys whose pushers the homeserver should delete.
#[derive(Serialize, ToSchema)]
struct Rejected {
    rejected: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct Health {
    /// ok or unavailable
    status: String,
    /// Why it is unavailable
    #[schema(nullable = false)]
    problem: Option<String>,
}

/// Where a page begins and how long it is.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Paging {
    /// Rows in a page; 100 if absent
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// What next was in the page before
    after: Option<i64>,
}

#[derive(Serialize, ToSchema)]
struct Tokens {
    push_tokens: Vec<TokenRow>,
    /// For after, if there is more
    #[schema(required)]
    next: Option<i64>,
}

/// What a phone reported. Tokens are redacted unless asked for with reveal=true.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TokenRow {
    id: i64,
    selector: String,
    device: String,
    /// From the mapping or the login
    user_id: Option<String>,
    token_msgs: Option<String>,
    app_id_msgs: Option<String>,
    token_calls: Option<String>,
    app_id_calls: Option<String>,
    /// When PNM called the token gone; times are seconds since 1970
    dead_at: Option<i64>,
    created_at: i64,
    updated_at: i64,
}

/// Whose a selector is.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Mapping {
    selector: String,
    user_id: String,
    /// Seconds since 1970
    updated_at: i64,
}

/// Whose a selector is from now on.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MappingSet {
    selector: String,
    user_id: String,
}

#[derive(Serialize, ToSchema)]
struct Mappings {
    mappings: Vec<Mapping>,
    /// For after, if there is more
    #[schema(required)]
    next: Option<String>,
}

#[derive(Deserialize, ToSchema)]
struct NewMapping {
    #[schema(
        pattern = "^@[a-z0-9._=/+-]+:[a-z0-9.-]+$",
        max_length = 255,
        example = "@bob:example.org"
    )]
    user_id: String,
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PusherState {
    Pending,
    Registered,
    Failed,
    Removed,
}

/// What the homeserver should hold and what is known of it.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Pusher {
    id: i64,
    user_id: String,
    app_id: String,
    pushkey: String,
    selector: String,
    /// present or absent
    wanted: String,
    state: PusherState,
    attempts: i64,
    last_error: Option<String>,
    updated_at: i64,
}

#[derive(Serialize, ToSchema)]
struct Pushers {
    pushers: Vec<Pusher>,
    /// For after, if there is more
    #[schema(required)]
    next: Option<i64>,
}

#[derive(Serialize, ToSchema)]
struct Removed<T> {
    removed: T,
}

/// Which pushers to compare with the homeserver: one of the four.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Replay {
    /// true: dead letters
    dead: Option<bool>,
    /// true: all
    all: Option<bool>,
    /// One user's
    user: Option<String>,
    /// Those that changed since: 2h, 2026-01-31T12:00:00Z, or seconds since 1970
    since: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Replayed {
    replayed: u64,
}

/// One endpoint: a function that carries its description.
macro_rules! endpoint {
    ($name:ident, $($description:tt)*) => {
        #[utoipa::path($($description)*)]
        fn $name() {}
    };
}

endpoint!(
    report_by_post,
    post,
    path = "/api/client/push_token_report",
    tag = "phones",
    summary = "A phone reports its push tokens; 200 once they are on disk",
    request_body(content(
        (Report = "application/json"),
        (Report = "application/x-www-form-urlencoded")
    )),
    responses(
        (status = 200, body = Empty),
        (
            status = 400,
            body = Problem,
            description = "A field is missing or wrong"
        ),
        (
            status = 401,
            body = Problem,
            description = "The login was refused"
        ),
        (
            status = 403,
            body = Problem,
            description = "The selector belongs to another user"
        ),
        (
            status = 408,
            body = Problem,
            description = "The request took longer than 30 s"
        ),
        (
            status = 413,
            body = Problem,
            description = "The body is longer than 64 KiB"
        ),
        (
            status = 429,
            body = Problem,
            description = "Too many failed logins, or too many new selectors; see Retry-After"
        ),
        (
            status = 502,
            body = Problem,
            description = "The login service answers nonsense"
        ),
        (
            status = 503,
            body = Problem,
            description = "The database or the login service does not answer"
        ),
    )
);

endpoint!(
    report_by_get,
    get,
    path = "/api/client/push_token_report",
    tag = "phones",
    summary = "The same by GET; use POST, since proxies log query strings",
    params(Report),
    responses(
        (status = 200, body = Empty),
        (
            status = 400,
            body = Problem,
            description = "A field is missing or wrong"
        ),
        (
            status = 401,
            body = Problem,
            description = "The login was refused"
        ),
        (
            status = 403,
            body = Problem,
            description = "The selector belongs to another user"
        ),
        (
            status = 429,
            body = Problem,
            description = "Too many failed logins, or too many new selectors; see Retry-After"
        ),
        (
            status = 502,
            body = Problem,
            description = "The login service answers nonsense"
        ),
        (
            status = 503,
            body = Problem,
            description = "The database or the login service does not answer"
        ),
    )
);

endpoint!(
    removal_by_post,
    post,
    path = "/api/client/account_removal_report",
    tag = "phones",
    summary = "The account was removed from the phone; 200 also if it is unknown",
    request_body(content(
        (Removal = "application/json"),
        (Removal = "application/x-www-form-urlencoded")
    )),
    responses(
        (status = 200, body = Empty),
        (
            status = 400,
            body = Problem,
            description = "A field is missing or wrong"
        ),
        (
            status = 401,
            body = Problem,
            description = "The login was refused"
        ),
        (
            status = 403,
            body = Problem,
            description = "The selector belongs to another user"
        ),
        (
            status = 408,
            body = Problem,
            description = "The request took longer than 30 s"
        ),
        (
            status = 413,
            body = Problem,
            description = "The body is longer than 64 KiB"
        ),
        (
            status = 429,
            body = Problem,
            description = "Too many failed logins; see Retry-After"
        ),
        (
            status = 502,
            body = Problem,
            description = "The login service answers nonsense"
        ),
        (
            status = 503,
            body = Problem,
            description = "The database or the login service does not answer"
        ),
    )
);

endpoint!(
    removal_by_get,
    get,
    path = "/api/client/account_removal_report",
    tag = "phones",
    summary = "The same by GET",
    params(Removal),
    responses(
        (status = 200, body = Empty),
        (
            status = 400,
            body = Problem,
            description = "A field is missing or wrong"
        ),
        (
            status = 401,
            body = Problem,
            description = "The login was refused"
        ),
        (
            status = 403,
            body = Problem,
            description = "The selector belongs to another user"
        ),
        (
            status = 429,
            body = Problem,
            description = "Too many failed logins; see Retry-After"
        ),
        (
            status = 502,
            body = Problem,
            description = "The login service answers nonsense"
        ),
        (
            status = 503,
            body = Problem,
            description = "The database or the login service does not answer"
        ),
    )
);

endpoint!(
    notify,
    post,
    path = "/_matrix/push/v1/notify",
    tag = "homeserver",
    summary = "The homeserver delivers a notification",
    request_body = NotifyRequest,
    responses(
        (status = 200, body = Rejected),
        (
            status = 400,
            body = Problem,
            description = "Not JSON, no notification, or no devices"
        ),
        (
            status = 408,
            body = Problem,
            description = "The request took longer than 30 s"
        ),
        (
            status = 413,
            body = Problem,
            description = "The body is longer than 256 KiB"
        ),
        (
            status = 502,
            body = Problem,
            description = "PNM did not take it: try again"
        ),
        (
            status = 503,
            body = Problem,
            description = "The database does not answer, has never held a token, or too much is under way: try again"
        ),
    )
);

endpoint!(
    health,
    get,
    path = "/health",
    tag = "health",
    summary = "On LISTEN_ADDR, for load balancers",
    responses((status = 200, body = Health))
);

endpoint!(
    live,
    get,
    path = "/health/live",
    tag = "health",
    summary = "On ADMIN_LISTEN_ADDR: the process answers",
    responses((status = 200, body = Health))
);

endpoint!(
    ready,
    get,
    path = "/health/ready",
    tag = "health",
    summary = "On ADMIN_LISTEN_ADDR: it can do its work",
    responses((status = 200, body = Health), (status = 503, body = Health))
);

endpoint!(list_tokens, get, path = "/api/internal/push_tokens", tag = "operator", security(("admin_token" = [])),
summary = "What phones have reported",
params(Paging, ("reveal" = Option<bool>, Query, description = "true: tokens in full")),
responses(
    (status = 200, body = Tokens),
    (status = 400, body = Problem),
    (status = 401, body = Problem),
    (status = 403, body = Problem, description = "ADMIN_TOKEN is not set"),
    (status = 503, body = Problem),
));

endpoint!(delete_all_tokens, delete, path = "/api/internal/push_tokens", tag = "operator", security(("admin_token" = [])),
summary = "Forget all tokens and remove all pushers",
params(("confirm" = String, Query, description = "all", pattern = "^all$")),
responses(
    (status = 200, body = Removed<u64>),
    (status = 400, body = Problem),
    (status = 401, body = Problem),
    (status = 403, body = Problem, description = "ADMIN_TOKEN is not set"),
    (status = 503, body = Problem),
));

endpoint!(delete_tokens, delete, path = "/api/internal/push_tokens/{selector}", tag = "operator", security(("admin_token" = [])),
summary = "Forget one account's tokens and remove its pushers",
params(("selector" = String, Path, description = "At most 256 bytes")),
responses(
    (status = 200, body = Removed<u64>),
    (status = 400, body = Problem),
    (status = 401, body = Problem),
    (status = 403, body = Problem, description = "ADMIN_TOKEN is not set"),
    (status = 404, body = Problem),
    (status = 503, body = Problem),
));

endpoint!(list_mappings, get, path = "/api/internal/mappings", tag = "operator", security(("admin_token" = [])),
summary = "Whose the selectors are",
params(
    ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Rows in a page; 100 if absent"),
    ("after" = Option<String>, Query, description = "What next was in the page before"),
),
responses(
    (status = 200, body = Mappings),
    (status = 400, body = Problem),
    (status = 401, body = Problem),
    (status = 403, body = Problem, description = "ADMIN_TOKEN is not set"),
    (status = 503, body = Problem),
));

endpoint!(
    get_mapping,
    get,
    path = "/api/internal/mappings/{selector}",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Whose a selector is",
    params(("selector" = String, Path, description = "At most 256 bytes")),
    responses(
        (status = 200, body = Mapping),
        (status = 400, body = Problem),
        (status = 401, body = Problem),
        (
            status = 403,
            body = Problem,
            description = "ADMIN_TOKEN is not set"
        ),
        (status = 404, body = Problem),
        (status = 503, body = Problem),
    )
);

endpoint!(
    put_mapping,
    put,
    path = "/api/internal/mappings/{selector}",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Say whose a selector is",
    params(("selector" = String, Path, description = "At most 256 bytes")),
    request_body = NewMapping,
    responses(
        (status = 200, body = MappingSet),
        (status = 400, body = Problem),
        (status = 401, body = Problem),
        (
            status = 403,
            body = Problem,
            description = "ADMIN_TOKEN is not set"
        ),
        (status = 404, body = Problem),
        (status = 503, body = Problem),
    )
);

endpoint!(delete_mapping, delete, path = "/api/internal/mappings/{selector}", tag = "operator", security(("admin_token" = [])),
summary = "Nobody's any more",
params(("selector" = String, Path, description = "At most 256 bytes")),
responses(
    (status = 200, body = Removed<bool>),
    (status = 400, body = Problem),
    (status = 401, body = Problem),
    (status = 403, body = Problem, description = "ADMIN_TOKEN is not set"),
    (status = 404, body = Problem),
    (status = 503, body = Problem),
));

endpoint!(list_pushers, get, path = "/api/internal/pushers", tag = "operator", security(("admin_token" = [])),
summary = "What the homeserver should hold",
params(
    Paging,
    ("state" = Option<PusherState>, Query, description = "Only these"),
    ("reveal" = Option<bool>, Query, description = "true: pushkeys in full"),
),
responses(
    (status = 200, body = Pushers),
    (status = 400, body = Problem),
    (status = 401, body = Problem),
    (status = 403, body = Problem, description = "ADMIN_TOKEN is not set"),
    (status = 503, body = Problem),
));

endpoint!(
    replay,
    post,
    path = "/api/internal/replay",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Have pushers compared with the homeserver, and set where they are missing or differ",
    request_body = Replay,
    responses(
        (status = 200, body = Replayed),
        (status = 400, body = Problem),
        (status = 401, body = Problem),
        (
            status = 403,
            body = Problem,
            description = "ADMIN_TOKEN is not set"
        ),
        (status = 413, body = Problem),
        (status = 503, body = Problem),
    )
);
