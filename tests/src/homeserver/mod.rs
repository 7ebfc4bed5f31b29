//! A stand-in for a homeserver's pusher API and password login, with the rules of Synapse or of another homeserver,
//! and faults that a test switches on and off.

mod fault;
mod logins;
mod profile;
mod pushers;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::response::Response;
use serde_json::{Value, json};

pub use self::fault::Fault;
use self::fault::{limited_until, matrix_error, rate_limited, unknown_token};
use self::logins::{login, logout};
pub use self::profile::Profile;
use self::profile::put_device;
use self::pushers::{listed, set};
use crate::hook::Hook;
use crate::server::{self, Request, Server};
use crate::{SOON, eventually};

const SET: &str = "/_matrix/client/v3/pushers/set";
const LIST: &str = "/_matrix/client/v3/pushers";
const LOGIN: &str = "/_matrix/client/v3/login";
const LOGOUT: &str = "/_matrix/client/v3/logout";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const VERSIONS: &str = "/_matrix/client/versions";
const SERVER_VERSION: &str = "/_matrix/federation/v1/version";

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
    profile: Profile,
    /// User and id of the devices that the application service made.
    made_devices: BTreeSet<(String, String)>,
    /// The application service may make no devices.
    refuses_devices: bool,
    /// The login flows that it names; `None`: it has no `/login`.
    flows: Option<Vec<Value>>,
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
            inner: Mutex::new(Inner {
                flows: Some(vec![json!({"type": "m.login.password"})]),
                ..Inner::default()
            }),
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

    /// From now on it behaves like this homeserver.
    pub fn behave_as(&self, profile: Profile) {
        self.state.inner.lock().unwrap().profile = profile;
    }

    /// The application service's registration does not let it make devices.
    pub fn refuse_devices(&self) {
        self.state.inner.lock().unwrap().refuses_devices = true;
    }

    /// User and id of the devices that the application service made.
    pub fn made_devices(&self) -> Vec<(String, String)> {
        let inner = self.state.inner.lock().unwrap();
        inner.made_devices.iter().cloned().collect()
    }

    /// What `GET /login` names from now on; `None`: there is no such path.
    pub fn offer_logins(&self, flows: Option<Vec<Value>>) {
        self.state.inner.lock().unwrap().flows = flows;
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

    /// Has a user pause a pusher from another client (MSC3881).
    pub fn pause(&self, pushkey: &str) {
        let mut inner = self.state.inner.lock().unwrap();
        for pusher in inner.pushers.iter_mut().filter(|it| it.pushkey == pushkey) {
            pusher.body["enabled"] = json!(false);
            pusher.body["org.matrix.msc3881.enabled"] = json!(false);
        }
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

    /// Watches for this long: requests come, but never more than ten within a second.
    pub async fn is_asked_little_for(&self, watched: Duration) {
        let since = Instant::now();
        eventually(SOON, "some seconds of it", async || {
            since.elapsed() > watched
        })
        .await;
        let busiest = self.busiest_second();
        assert!(
            (1..=10).contains(&busiest),
            "{busiest} requests in a second"
        );
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
            ("GET", WHOAMI) if request.query("user_id").is_none() => {
                server::json(200, &json!({"user_id": "@bridge:example.org"}))
            }
            ("GET", WHOAMI) => self.for_user(request, |_, user| {
                server::json(200, &json!({"user_id": user}))
            }),
            ("GET", SERVER_VERSION) => self.profile().version(),
            (_, SET | LIST) if self.profile() == Profile::SynapseWorker => unrecognized(),
            ("POST", SET) => self.for_user(request, |inner, user| set(inner, user, request)),
            ("PUT", _) => self.for_user(request, |inner, user| {
                put_device(inner, user, request).unwrap_or_else(unrecognized)
            }),
            ("GET", LOGIN) => match &self.inner.lock().unwrap().flows {
                Some(flows) => server::json(200, &json!({ "flows": flows })),
                None => unrecognized(),
            },
            ("GET", LIST) => self.for_user(request, |inner, user| {
                let own = inner.pushers.iter().filter(|p| p.user_id == user);
                let list: Vec<_> = own.map(listed).collect();
                server::json(200, &json!({"pushers": list}))
            }),
            ("POST", LOGIN) => login(&mut self.inner.lock().unwrap(), request),
            ("POST", LOGOUT) => logout(&mut self.inner.lock().unwrap(), request),
            _ => unrecognized(),
        }
    }

    fn profile(&self) -> Profile {
        self.inner.lock().unwrap().profile
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

fn unrecognized() -> Response {
    matrix_error(404, "M_UNRECOGNIZED", "Unrecognized request")
}
