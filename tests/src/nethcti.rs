//! A stand-in for NethCTI's login service, with accounts, a list of users, and faults at either step.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::server::{self, Request, Server};

/// Ends every JWT, so that one in a log is found.
pub const SIGNATURE: &str = "c2lnbmF0dXJlLXRoYXQtbXVzdC1ub3QtYmUtbG9nZ2Vk";

/// One of the three calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// `POST /api/login`
    Login,
    /// `GET /api/chat?users=1`
    Chat,
    /// `GET /user/me`
    Me,
}

/// What is wrong with a step.
#[derive(Debug, Clone)]
pub enum Fault {
    /// A web server's or proxy's error page with this status.
    Status(u16),
    /// 200 with this JSON.
    Json(Value),
    /// 200 with a page instead of JSON.
    Garbage,
    /// 200 and more JSON than anybody should read.
    Huge,
    /// 429 with Retry-After.
    RateLimited(u64),
    /// Answers well, after this many milliseconds.
    Delay(u64),
    /// Takes the request and never answers.
    Hang,
    /// Closes the connection without an answer.
    Reset,
}

/// The stand-in; it stops when dropped.
#[derive(Debug)]
pub struct NethCti {
    server: Server,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Password and chat claim, by login name.
    accounts: HashMap<String, (String, Value)>,
    users: Vec<Value>,
    faults: HashMap<Step, Fault>,
    logins: Vec<String>,
    chats: usize,
    /// The JWTs that it gave out, and to whom.
    tokens: Vec<(String, String)>,
}

impl NethCti {
    /// Starts it without anybody.
    pub async fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let handler = state.clone();
        let server = Server::start(move |request| {
            let state = handler.clone();
            Box::pin(async move { handle(&state, request).await })
        })
        .await;
        Self { server, state }
    }

    /// The address for EXT_AUTH_URL.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Lets somebody log in, with this value of the chat claim (null: without the claim).
    pub fn account(&self, name: &str, password: &str, chat: Value) {
        let mut state = self.state.lock().unwrap();
        let account = (password.to_owned(), chat);
        state.accounts.insert(name.to_owned(), account);
    }

    /// Adds an entry to the list of users.
    pub fn user(&self, user_name: &str, main_extension: &Value, sub_extensions: &Value) {
        let entry = json!({
            "user_name": user_name,
            "main_extension": main_extension,
            "sub_extensions": sub_extensions,
        });
        self.state.lock().unwrap().users.push(entry);
    }

    /// Adds an entry as newer NethVoice writes it, with `extensions`.
    pub fn newer_user(&self, user_name: &str, main_extension: &str, extensions: &[&str]) {
        let entry = json!({
            "user_name": user_name,
            "main_extension": main_extension,
            "extensions": extensions,
        });
        self.state.lock().unwrap().users.push(entry);
    }

    /// Takes somebody off the list of users.
    pub fn remove_user(&self, user_name: &str) {
        let mut state = self.state.lock().unwrap();
        state.users.retain(|user| user["user_name"] != user_name);
    }

    /// A token as an app gets it by QR code, without a login here.
    pub fn token_for(&self, name: &str) -> String {
        let claims = json!({
            "id": name, "2fa": true, "otp_verified": true, "profile_id": "1", "iat": 1_795_331_638,
        });
        give_token(&mut self.state.lock().unwrap(), name, &claims)
    }

    /// From now on this is wrong with a step.
    pub fn break_at(&self, step: Step, fault: Fault) {
        self.state.lock().unwrap().faults.insert(step, fault);
    }

    /// Cuts all connections and refuses new ones.
    pub async fn close(&self) {
        self.server.close().await;
    }

    /// Nothing is wrong any more.
    pub async fn repair(&self) {
        self.state.lock().unwrap().faults.clear();
        self.server.open().await;
    }

    /// The user names of all logins so far, good or not.
    pub fn logins(&self) -> Vec<String> {
        self.state.lock().unwrap().logins.clone()
    }

    /// How often the list of users was asked for.
    pub fn chats(&self) -> usize {
        self.state.lock().unwrap().chats
    }
}

async fn handle(state: &Mutex<State>, request: Request) -> Option<Response> {
    let step = match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/api/login") => Step::Login,
        ("GET", "/api/chat") => Step::Chat,
        ("GET", "/user/me") => Step::Me,
        _ => return Some(server::html(404)),
    };
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let fault = {
        let mut state = state.lock().unwrap();
        match step {
            Step::Login => {
                let name = body["username"].as_str().unwrap_or_default();
                state.logins.push(name.to_owned());
            }
            Step::Chat => state.chats += 1,
            Step::Me => {}
        }
        state.faults.get(&step).cloned()
    };
    match fault {
        Some(Fault::Status(status)) => return Some(server::html(status)),
        Some(Fault::Json(body)) => return Some(server::json(200, &body)),
        Some(Fault::Garbage) => return Some(server::html(200)),
        Some(Fault::Huge) => {
            let body = json!({"token": "x".repeat(2 << 20), "users": []});
            return Some(server::json(200, &body));
        }
        Some(Fault::RateLimited(seconds)) => {
            let mut answer = server::html(429);
            answer.headers_mut().insert("retry-after", seconds.into());
            return Some(answer);
        }
        Some(Fault::Delay(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Reset) => return None,
        None => {}
    }
    let mut state = state.lock().unwrap();
    Some(match step {
        Step::Login => login(&mut state, &body),
        Step::Chat => chat(&state, &request),
        Step::Me => me(&state, &request),
    })
}

fn login(state: &mut State, body: &Value) -> Response {
    let name = body["username"].as_str().unwrap_or_default();
    let Some((password, claim)) = state.accounts.get(name) else {
        return refused();
    };
    if body["password"] != **password {
        return refused();
    }
    let mut claims = json!({"id": name, "2fa": false});
    if !claim.is_null() {
        claims["nethvoice_cti.chat"] = claim.clone();
    }
    let token = give_token(state, name, &claims);
    server::json(
        200,
        &json!({"code": 200, "expire": "2099-01-01T00:00:00Z", "token": token}),
    )
}

fn give_token(state: &mut State, name: &str, claims: &Value) -> String {
    let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
    let token = format!("eyJhbGciOiJIUzI1NiJ9.{payload}.{SIGNATURE}");
    state.tokens.push((token.clone(), name.to_owned()));
    token
}

fn owner<'a>(state: &'a State, request: &Request) -> Option<&'a str> {
    let has_it = |(token, _): &&(String, String)| Some(token.as_str()) == request.bearer.as_deref();
    state.tokens.iter().find(has_it).map(|(_, name)| &**name)
}

fn me(state: &State, request: &Request) -> Response {
    let Some(name) = owner(state, request) else {
        return refused();
    };
    let endpoints = json!({"mainextension": [{"id": "201"}]});
    let body = json!({"name": "Somebody", "username": name, "endpoints": endpoints});
    server::json(200, &body)
}

fn chat(state: &State, request: &Request) -> Response {
    if owner(state, request).is_none() {
        return refused();
    }
    let mut body = json!({"matrix": {"base_url": "https://matrix.example.org"}});
    if request.query("users").is_some() {
        body["users"] = json!(state.users);
    }
    server::json(200, &body)
}

fn refused() -> Response {
    let body = json!({"code": 401, "message": "incorrect Username or Password", "data": null});
    server::json(401, &body)
}
