//! A stand-in for Synapse's pusher API and password login, with Synapse's rules and faults that a test switches on and off.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::response::Response;
use serde_json::{Value, json};
use url::Url;

use crate::hook::Hook;
use crate::server::{self, Request, Server};

const SET: &str = "/_matrix/client/v3/pushers/set";
const LIST: &str = "/_matrix/client/v3/pushers";
const LOGIN: &str = "/_matrix/client/v3/login";
const LOGOUT: &str = "/_matrix/client/v3/logout";
const VERSIONS: &str = "/_matrix/client/versions";
const REQUIRED: [&str; 7] = [
    "kind",
    "app_id",
    "app_display_name",
    "device_display_name",
    "pushkey",
    "lang",
    "data",
];

/// Something that is wrong with the homeserver.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Nobody listens (for one user: as [`Fault::Reset`]).
    Refuse,
    /// A proxy's error page with this status.
    Status(u16),
    /// Takes the request and never answers.
    Hang,
    /// Closes the connection without an answer.
    Reset,
    /// 429 as Synapse words it, on pusher calls.
    RateLimited {
        /// Goes into the body, and rounded up to seconds into Retry-After.
        retry_after_ms: u64,
    },
    /// 500 on this share of the calls, in a fixed order that looks random.
    FlakyPercent(u8),
    /// An error in Matrix' shape, on pusher calls.
    Answer {
        /// HTTP status.
        status: u16,
        /// `M_…`.
        errcode: &'static str,
        /// The text.
        error: &'static str,
    },
    /// The application service token is unknown.
    WrongToken,
    /// Answers well, after this many milliseconds.
    Delay(u64),
    /// A proxy's page with this status, after the homeserver has done what it was asked.
    DoneBut(u16),
    /// A gateway's answer in JSON that is not Matrix'.
    Gateway(u16, &'static str),
    /// A proxy's 429 page with an HTTP date this many seconds ahead in Retry-After.
    LimitedUntil(u64),
}

/// A request that arrived, and what was answered.
#[derive(Debug, Clone)]
pub struct Call {
    /// When.
    pub at: Instant,
    /// GET or POST.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// The query's `user_id`.
    pub user_id: Option<String>,
    /// The body; null if there was none, or no JSON.
    pub body: Value,
    /// Status sent; `None` while unanswered or cut.
    pub status: Option<u16>,
}

impl Call {
    /// Whether this sets or deletes a pusher.
    pub fn is_set(&self) -> bool {
        self.method == "POST" && self.path == SET
    }

    /// Whether this lists a user's pushers.
    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.path == LIST
    }

    /// The pushkey that it is about.
    pub fn pushkey(&self) -> &str {
        self.body["pushkey"].as_str().unwrap_or_default()
    }
}

/// A pusher that the homeserver holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Pusher {
    /// Whose.
    pub user_id: String,
    /// As sent.
    pub app_id: String,
    /// As sent.
    pub pushkey: String,
    /// The whole body with which it was set.
    pub body: Value,
}

/// The stand-in; it stops when dropped.
#[derive(Debug)]
pub struct Homeserver {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    as_token: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    users: BTreeSet<String>,
    pushers: Vec<Pusher>,
    calls: Vec<Call>,
    fault: Option<Fault>,
    user_faults: HashMap<String, Fault>,
    path_faults: HashMap<String, Fault>,
    /// Of those who can log in.
    passwords: HashMap<String, String>,
    /// Access token and user of each device.
    devices: Vec<(String, String)>,
    logins: u64,
    flips: u64,
}

impl Homeserver {
    /// Starts it with this application service token, and nobody registered.
    pub async fn start(as_token: &str) -> Self {
        Self::start_at(server::ANY_PORT, as_token).await
    }

    /// The same at a certain address.
    pub async fn start_at(addr: SocketAddr, as_token: &str) -> Self {
        let state = Arc::new(State {
            as_token: as_token.to_owned(),
            inner: Mutex::default(),
        });
        let handler = state.clone();
        let server = Server::start_at(addr, move |request| {
            let state = handler.clone();
            Box::pin(async move { state.handle(request).await })
        })
        .await;
        Self { server, state }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// See [`Hook::set`].
    pub fn hook(&self) -> &Hook {
        self.server.hook()
    }

    /// Makes users known.
    pub fn register(&self, user_ids: &[&str]) {
        let mut inner = self.state.inner.lock().unwrap();
        inner
            .users
            .extend(user_ids.iter().map(|&user| user.to_owned()));
    }

    /// From now on this is wrong with every request.
    pub async fn break_with(&self, fault: Fault) {
        self.state.inner.lock().unwrap().fault = Some(fault);
        if matches!(fault, Fault::Refuse) {
            self.server.close().await;
        } else {
            self.server.open().await;
        }
    }

    /// From now on this is wrong with the requests for one user.
    pub fn break_for(&self, user_id: &str, fault: Fault) {
        let mut inner = self.state.inner.lock().unwrap();
        inner.user_faults.insert(user_id.to_owned(), fault);
    }

    /// From now on this is wrong with the requests to one path.
    pub fn break_path(&self, path: &str, fault: Fault) {
        let mut inner = self.state.inner.lock().unwrap();
        inner.path_faults.insert(path.to_owned(), fault);
    }

    /// Lets a user log in with this password.
    pub fn set_password(&self, user_id: &str, password: &str) {
        let mut inner = self.state.inner.lock().unwrap();
        let password = password.to_owned();
        inner.passwords.insert(user_id.to_owned(), password);
    }

    /// The users of the devices that logins made and no logout ended.
    pub fn devices(&self) -> Vec<String> {
        let inner = self.state.inner.lock().unwrap();
        inner.devices.iter().map(|(_, user)| user.clone()).collect()
    }

    /// The logins so far, good or not.
    pub fn logins(&self) -> Vec<Call> {
        self.calls_that(|call| call.path == LOGIN)
    }

    /// The logouts so far.
    pub fn logouts(&self) -> Vec<Call> {
        self.calls_that(|call| call.path == LOGOUT)
    }

    /// Nothing is wrong any more.
    pub async fn repair(&self) {
        {
            let mut inner = self.state.inner.lock().unwrap();
            inner.fault = None;
            inner.user_faults.clear();
            inner.path_faults.clear();
        }
        self.server.open().await;
    }

    /// Drops a pusher, as Synapse does after a rejection.
    pub fn forget(&self, pushkey: &str) {
        let mut inner = self.state.inner.lock().unwrap();
        inner.pushers.retain(|pusher| pusher.pushkey != pushkey);
    }

    /// Holds a pusher that somebody else has set.
    pub fn hold(&self, user_id: &str, body: &Value) {
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let pusher = Pusher {
            user_id: user_id.to_owned(),
            app_id: text("app_id"),
            pushkey: text("pushkey"),
            body: body.clone(),
        };
        self.state.inner.lock().unwrap().pushers.push(pusher);
    }

    /// The pushers that it holds, in the order in which they were set.
    pub fn pushers(&self) -> Vec<Pusher> {
        self.state.inner.lock().unwrap().pushers.clone()
    }

    /// The pushkeys of one user's pushers, sorted.
    pub fn pushkeys_of(&self, user_id: &str) -> Vec<String> {
        let own = self.pushers().into_iter().filter(|p| p.user_id == user_id);
        let mut pushkeys: Vec<_> = own.map(|p| p.pushkey).collect();
        pushkeys.sort();
        pushkeys
    }

    /// Every request so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state.inner.lock().unwrap().calls.clone()
    }

    /// The requests so far that set or delete a pusher.
    pub fn sets(&self) -> Vec<Call> {
        self.calls_that(Call::is_set)
    }

    fn calls_that(&self, hold: impl Fn(&Call) -> bool) -> Vec<Call> {
        self.calls().into_iter().filter(hold).collect()
    }

    /// Forgets the requests so far.
    pub fn clear_calls(&self) {
        self.state.inner.lock().unwrap().calls.clear();
    }

    /// The most requests that arrived within any one second.
    pub fn busiest_second(&self) -> usize {
        let mut times: Vec<_> = self.calls().iter().map(|call| call.at).collect();
        times.sort();
        let second = Duration::from_secs(1);
        let count = |start: usize| {
            let end = times.partition_point(|&at| at < times[start] + second);
            end - start
        };
        (0..times.len()).map(count).max().unwrap_or_default()
    }
}

impl State {
    async fn handle(&self, request: Request) -> Option<Response> {
        let (index, fault) = self.record(&request);
        let answer = self.answer(&request, fault).await?;
        let mut inner = self.inner.lock().unwrap();
        // A test may have cleared the calls meanwhile.
        if let Some(call) = inner.calls.get_mut(index).filter(|c| c.at == request.at) {
            call.status = Some(answer.status().as_u16());
        }
        Some(answer)
    }

    fn record(&self, request: &Request) -> (usize, Option<Fault>) {
        let mut inner = self.inner.lock().unwrap();
        let user_id = request.query("user_id").map(str::to_owned);
        let own = user_id
            .as_ref()
            .and_then(|user| inner.user_faults.get(user))
            .or_else(|| inner.path_faults.get(&request.path));
        let fault = own.copied().or(inner.fault);
        inner.calls.push(Call {
            at: request.at,
            method: request.method.clone(),
            path: request.path.clone(),
            user_id,
            body: serde_json::from_slice(&request.body).unwrap_or_default(),
            status: None,
        });
        (inner.calls.len() - 1, fault)
    }

    async fn answer(&self, request: &Request, fault: Option<Fault>) -> Option<Response> {
        let pusher_call = request.path != VERSIONS;
        match fault {
            Some(Fault::Refuse | Fault::Reset) => return None,
            Some(Fault::Status(status)) => return Some(server::html(status)),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Delay(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Some(Fault::FlakyPercent(percent)) if self.flip(percent) => {
                return Some(server::html(500));
            }
            Some(Fault::RateLimited { retry_after_ms }) if pusher_call => {
                return Some(rate_limited(retry_after_ms));
            }
            Some(Fault::Answer {
                status,
                errcode,
                error,
            }) if pusher_call => {
                return Some(matrix_error(status, errcode, error));
            }
            Some(Fault::DoneBut(status)) if pusher_call => {
                self.well(request);
                return Some(server::html(status));
            }
            Some(Fault::Gateway(status, body)) if pusher_call => {
                return Some(server::answer_of(status, "application/json", body));
            }
            Some(Fault::LimitedUntil(seconds)) if pusher_call => {
                return Some(limited_until(seconds));
            }
            // Synapse looks at a token even where it needs none.
            Some(Fault::WrongToken) if request.bearer.is_some() => return Some(unknown_token()),
            _ => {}
        }
        Some(self.well(request))
    }

    /// A fixed sequence without a rhythm, so that no client can fall into step with it.
    fn flip(&self, percent: u8) -> bool {
        let mut inner = self.inner.lock().unwrap();
        inner.flips += 1;
        let mut x = inner.flips.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % 100 < u64::from(percent)
    }

    fn well(&self, request: &Request) -> Response {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", VERSIONS) => server::json(200, &json!({"versions": ["v1.11", "v1.12"]})),
            ("POST", SET) => self.for_user(request, |inner, user| set(inner, user, request)),
            ("GET", LIST) => self.for_user(request, |inner, user| {
                let own = inner.pushers.iter().filter(|p| p.user_id == user);
                let list: Vec<_> = own.map(listed).collect();
                server::json(200, &json!({"pushers": list}))
            }),
            ("POST", LOGIN) => login(&mut self.inner.lock().unwrap(), request),
            ("POST", LOGOUT) => logout(&mut self.inner.lock().unwrap(), request),
            _ => matrix_error(404, "M_UNRECOGNIZED", "Unrecognized request"),
        }
    }

    fn for_user(
        &self,
        request: &Request,
        then: impl FnOnce(&mut Inner, &str) -> Response,
    ) -> Response {
        if request.bearer.as_deref() != Some(&self.as_token) {
            return unknown_token();
        }
        let user = request.query("user_id").unwrap_or_default();
        let mut inner = self.inner.lock().unwrap();
        if !inner.users.contains(user) {
            let error = format!("Application service has not registered this user ({user})");
            return matrix_error(403, "M_FORBIDDEN", &error);
        }
        then(&mut inner, user)
    }
}

/// `POST /pushers/set`, as measured on Synapse 1.163.
fn set(inner: &mut Inner, user: &str, request: &Request) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return matrix_error(400, "M_NOT_JSON", "Content not JSON.");
    };
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let (app_id, pushkey) = (text("app_id"), text("pushkey"));
    let missing = |keys: &[&str]| {
        let mut absent = keys.to_vec();
        absent.retain(|key| body.get(key).is_none());
        (!absent.is_empty()).then(|| format!("Missing params: {absent:?}"))
    };
    if body.get("kind").is_some_and(Value::is_null) {
        if let Some(error) = missing(&["app_id", "pushkey"]) {
            return matrix_error(400, "M_MISSING_PARAM", &error);
        }
        inner
            .pushers
            .retain(|p| (&*p.user_id, &*p.app_id, &*p.pushkey) != (user, &*app_id, &*pushkey));
        return server::json(200, &json!({}));
    }
    if let Some(error) = missing(&REQUIRED) {
        return matrix_error(400, "M_MISSING_PARAM", &error);
    }
    if body["app_display_name"].is_null() || body["device_display_name"].is_null() {
        return matrix_error(500, "M_UNKNOWN", "Internal server error");
    }
    let path = Url::parse(body["data"]["url"].as_str().unwrap_or_default());
    if !path.is_ok_and(|url| url.path() == "/_matrix/push/v1/notify") {
        let error = "Config Error: 'url' must have a path of '/_matrix/push/v1/notify'";
        return matrix_error(400, "M_MISSING_PARAM", error);
    }
    let append = body["append"].as_bool().unwrap_or(false);
    inner.pushers.retain(|p| {
        let same = p.app_id == app_id && p.pushkey == pushkey;
        !same || (append && p.user_id != user)
    });
    inner.pushers.push(Pusher {
        user_id: user.to_owned(),
        app_id,
        pushkey,
        body,
    });
    server::json(200, &json!({}))
}

/// `POST /login` with a password; users are those of example.org.
fn login(inner: &mut Inner, request: &Request) -> Response {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    if body["type"] != "m.login.password" || body["identifier"]["type"] != "m.id.user" {
        return matrix_error(400, "M_UNKNOWN", "Unknown login type");
    }
    let user = body["identifier"]["user"].as_str().unwrap_or_default();
    let user_id = match user.strip_prefix('@') {
        Some(rest) if rest.contains(':') => user.to_owned(),
        Some(_) => return matrix_error(400, "M_INVALID_PARAM", "Expected UserID string"),
        None => format!("@{}:example.org", user.to_lowercase()),
    };
    let password = inner.passwords.get(&user_id);
    if password.is_none_or(|password| body["password"] != **password) {
        return matrix_error(403, "M_FORBIDDEN", "Invalid username or password");
    }
    inner.logins += 1;
    let token = format!("syt_must_not_be_logged_{}", inner.logins);
    inner.devices.push((token.clone(), user_id.clone()));
    let device = format!("DEVICE{}", inner.logins);
    let body = json!({"user_id": user_id, "access_token": token, "device_id": device});
    server::json(200, &body)
}

fn logout(inner: &mut Inner, request: &Request) -> Response {
    let before = inner.devices.len();
    let own = |(token, _): &(String, String)| Some(token.as_str()) == request.bearer.as_deref();
    inner.devices.retain(|device| !own(device));
    if inner.devices.len() == before {
        return unknown_token();
    }
    server::json(200, &json!({}))
}

fn listed(pusher: &Pusher) -> Value {
    let mut entry = pusher.body.clone();
    if let Some(entry) = entry.as_object_mut() {
        entry.remove("append");
    }
    entry
}

fn rate_limited(retry_after_ms: u64) -> Response {
    let body = json!({
        "errcode": "M_LIMIT_EXCEEDED",
        "error": "Too Many Requests",
        "retry_after_ms": retry_after_ms,
    });
    let mut answer = server::json(429, &body);
    let seconds = retry_after_ms.div_ceil(1000);
    answer
        .headers_mut()
        .insert("retry-after", seconds.to_string().parse().unwrap());
    answer
}

fn limited_until(seconds: u64) -> Response {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let date = std::time::UNIX_EPOCH + now + Duration::from_secs(seconds);
    let date = httpdate::fmt_http_date(date);
    let mut answer = server::html(429);
    let headers = answer.headers_mut();
    headers.insert("retry-after", date.parse().unwrap());
    answer
}

fn unknown_token() -> Response {
    matrix_error(401, "M_UNKNOWN_TOKEN", "Invalid access token passed.")
}

fn matrix_error(status: u16, errcode: &str, error: &str) -> Response {
    server::json(status, &json!({"errcode": errcode, "error": error}))
}
