//! The operator's status page: shows what works, what waits and what was given up, as HTML. It needs ADMIN_TOKEN, and
//! has buttons for replays and test pushes.

mod page;

use std::{borrow::Cow, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Query, Request, State, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{AUTHORIZATION, HOST, LOCATION, ORIGIN, WWW_AUTHENTICATE},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use matrix2acrobits_shared::{
    flow::SilentCursor, ids::UserId, process::logs::Chain, rules::pushers::Replay, secret::Secret,
};
use matrix2acrobits_store::{Store, StoreError};

use self::page::{Facts, View, html, note};
use serde::Deserialize;

use super::{
    Operator,
    input::FormBody,
    lasting::Changes,
    paging::cut,
    push_test::{TestError, TestPush, Tester, To},
    replay::replay_all,
};
use crate::{
    http::{bearer::bearer, errors::method_not_allowed},
    notify::pnm::answers::Answers,
    reports::tokenless::Tokenless,
};

/// The most dead letters on the page.
const DEAD_LETTERS: u32 = 50;
/// The most phones in each table on the page.
const PHONES: u32 = 20;
/// The most workers on the page. Workers that are gone stay for an hour.
const WORKERS: u32 = 10;
/// Largest body of the form, in bytes.
const MAX_FORM: usize = 4 * 1024;

#[derive(Debug, Clone)]
struct Status {
    store: Store,
    answers: Arc<Answers>,
    tokenless: Arc<Tokenless>,
    tester: Arc<Tester>,
    changes: Changes,
    /// A secret in the page's forms, so that pages of other sites cannot send them.
    form_token: Secret,
}

/// The page and its forms, which require `token`. Without one all respond 403.
pub(super) fn router(operator: &Operator, token: Option<Secret>) -> Router {
    let random: [u8; 32] = rand::random();
    let status = Status {
        store: operator.store.clone(),
        answers: operator.answers.clone(),
        tokenless: operator.tokenless.clone(),
        tester: operator.tester.clone(),
        changes: operator.changes.clone(),
        form_token: Secret::new(STANDARD.encode(random)),
    };
    Router::new()
        .route("/", get(show))
        .route("/replay", post(replay))
        .route("/push-test", post(push_test))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .layer(middleware::from_fn_with_state(token, require_login))
        .with_state(status)
}

/// A page that says why there is no other.
pub(super) fn refusal(status: StatusCode, words: &str) -> Response {
    html(status, &note(words))
}

async fn require_login(
    State(token): State<Option<Secret>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(token) = token else {
        let words = "This page is off: ADMIN_TOKEN is not set.";
        return refusal(StatusCode::FORBIDDEN, words);
    };
    let given = given_token(request.headers());
    if given.is_some_and(|given| token.matches(&given)) {
        return next.run(request).await;
    }
    let words = "Log in with ADMIN_TOKEN as the password, and any user name.";
    let mut response = refusal(StatusCode::UNAUTHORIZED, words);
    response.headers_mut().insert(
        WWW_AUTHENTICATE,
        HeaderValue::from_static(r#"Basic realm="matrix2acrobits", charset="UTF-8""#),
    );
    response
}

/// The password of HTTP Basic, or a bearer token.
fn given_token(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let password = || basic(headers.get(AUTHORIZATION)?.to_str().ok()?).map(Cow::Owned);
    bearer(headers).map(Cow::Borrowed).or_else(password)
}

fn basic(header: &str) -> Option<String> {
    let (scheme, value) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
    let (_, password) = pair.split_once(':')?;
    Some(password.to_owned())
}

async fn show(State(status): State<Status>, page: Result<Query<Page>, QueryRejection>) -> Response {
    let after = page.map_or(0, |Query(page)| page.after());
    let facts = facts(&status.store, after).await.inspect_err(
        |error| tracing::warn!(error = %Chain(error), "the status page lacks the database"),
    );
    let code = match &facts {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let view = View {
        now: status.store.clock().unix(),
        facts: facts.ok(),
        pnm: status.answers.summary(),
        tokenless: status.tokenless.last(),
        form_token: status.form_token.expose(),
    };
    html(code, &view.render())
}

/// Which phones to show.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Page {
    after: String,
}

impl Page {
    /// The phones with ids above this. An invalid query shows the first phones.
    fn after(&self) -> i64 {
        self.after.parse().unwrap_or(0)
    }
}

async fn facts(store: &Store, after: i64) -> Result<Facts, StoreError> {
    let (silent, _) = store.silent_phones(SilentCursor::default(), PHONES).await?;
    let mut phones = store.list_phones(after, PHONES + 1).await?;
    let next = cut(&mut phones, PHONES, |phone| phone.id);
    Ok(Facts {
        workers: store.workers(WORKERS).await?,
        pushers: store.count_pushers().await?,
        queue: store.queue_state().await?,
        dead: store.dead_letters(DEAD_LETTERS).await?,
        silent_phones: store.count_silent().await?,
        silent,
        phones,
        next,
    })
}

/// A field of a form. Empty if it is missing.
fn field<'a>(body: &'a [u8], wanted: &str) -> Cow<'a, str> {
    form_urlencoded::parse(body)
        .find(|(name, _)| name == wanted)
        .map(|(_, value)| value)
        .unwrap_or_default()
}

impl Status {
    /// The refusal of a form that does not come from this page. None if it does.
    fn refuse(&self, headers: &HeaderMap, body: &[u8]) -> Option<Response> {
        if may_be_ours(headers) && self.form_token.matches(&field(body, "token")) {
            return None;
        }
        let words = "This form does not come from this page, or is from before a restart: load the page again.";
        Some(refusal(StatusCode::FORBIDDEN, words))
    }
}

/// Sends a test push to a user's phones, and shows what PNM said.
async fn push_test(
    State(status): State<Status>,
    headers: HeaderMap,
    FormBody(body): FormBody,
) -> Response {
    if let Some(refusal) = status.refuse(&headers, &body) {
        return refusal;
    }
    let Ok(user) = UserId::parse(field(&body, "user").trim()) else {
        let words = "Give a user ID such as @bob:example.org.";
        return refusal(StatusCode::BAD_REQUEST, words);
    };
    let push = TestPush {
        to: To::User(user),
        text: String::new(),
        message: false,
    };
    let (code, words) = match status.tester.send(&push).await {
        Ok(tested) => return html(StatusCode::OK, &page::tested(&tested)),
        Err(TestError::Unknown) => (
            StatusCode::NOT_FOUND,
            "No phone has reported for this user.",
        ),
        Err(TestError::TooSoon(_)) => (
            StatusCode::TOO_MANY_REQUESTS,
            "This user had a test push a moment ago: wait for 10 s.",
        ),
        Err(TestError::Store(error)) => {
            tracing::warn!(error = %Chain(&error), "an admin call failed");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "The database does not answer; try again.",
            )
        }
    };
    refusal(code, words)
}

async fn replay(
    State(status): State<Status>,
    headers: HeaderMap,
    FormBody(body): FormBody,
) -> Response {
    if let Some(refusal) = status.refuse(&headers, &body) {
        return refusal;
    }
    let replay = match (
        field(&body, "what").as_ref(),
        UserId::parse(&field(&body, "user")),
    ) {
        ("dead", _) => Replay::Dead,
        ("user", Ok(user)) => Replay::User(user),
        _ => {
            return refusal(StatusCode::BAD_REQUEST, "This says not what to replay.");
        }
    };
    match replay_all(&status.changes, &status.store, replay).await {
        Ok(_) => (StatusCode::SEE_OTHER, [(LOCATION, "/")]).into_response(),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "an admin call failed");
            let words = "The database does not answer; try again.";
            refusal(StatusCode::SERVICE_UNAVAILABLE, words)
        }
    }
}

/// Whether a form may come from our page, by what the browser says about its origin. Our own forms come with `Origin:
/// null`, because the page has `Referrer-Policy: no-referrer`. Forms of some other sites do, too, so the form's token
/// decides.
fn may_be_ours(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text(HeaderName::from_static("sec-fetch-site"))
        && site != "same-origin"
    {
        return false;
    }
    match (text(ORIGIN), text(HOST)) {
        (None | Some("null"), _) => true,
        (Some(origin), Some(host)) => origin
            .split_once("://")
            .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host)),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read() {
        // "any:se:cret" and ":s"
        let cases = [
            ("Basic YW55OnNlOmNyZXQ=", Some("se:cret")),
            ("basic OnM=", Some("s")),
            ("Bearer s", Some("s")),
            ("Basic s", None),
            ("Basic YW55", None),
            ("Digest OnM=", None),
            ("Bearer", None),
        ];
        for (header, expected) in cases {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, header.parse().unwrap())]);
            assert_eq!(given_token(&headers).as_deref(), expected, "{header}");
        }
    }

    #[test]
    fn forms_of_other_sites_are_told() {
        let cases: &[(&[(&'static str, &'static str)], bool)] = &[
            (&[], true),
            (&[("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("origin", "null")], true),
            (&[("origin", "http://localhost:9090")], true),
            (&[("origin", "https://evil.example")], false),
            (&[("origin", "localhost:9090")], false),
            (
                &[
                    ("sec-fetch-site", "same-origin"),
                    ("origin", "https://evil.example"),
                ],
                false,
            ),
        ];
        for (extra, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("localhost:9090"));
            for (name, value) in *extra {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            assert_eq!(may_be_ours(&headers), *expected, "{extra:?}");
        }
    }
}
