//! A stand-in for Acrobits' push service that answers each device token as the test says.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::response::Response;
use serde_json::{Value, json};

use crate::hook::Hook;
use crate::server::{self, Request, Server};

/// How PNM answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Sent.
    Ok,
    /// The token is gone: 200 with code 404.
    Gone,
    /// The token is gone: HTTP 404 with a JSON object.
    HttpGone,
    /// A web server's own 404 page.
    HtmlNotFound,
    /// 200 with code 400.
    Bad,
    /// HTTP 400 with a JSON object.
    Http400,
    /// 429 with Retry-After.
    RateLimited,
    /// A proxy's 500 page.
    Http500,
    /// 200 with code 500.
    Code500,
    /// 200 with a text in which "404" occurs.
    Garbage,
    /// 200 without a body.
    Empty,
    /// This status and JSON.
    Json(u16, Value),
    /// This status and words.
    Text(u16, &'static str),
    /// Sent, after this many milliseconds.
    Slow(u64),
    /// The token is gone, said after this many milliseconds.
    SlowGone(u64),
    /// No answer, ever.
    Hang,
    /// The connection is closed without an answer.
    Reset,
    /// The same once, then [`Answer::Ok`].
    ResetOnce,
    /// Nobody listens (for one token: as [`Answer::Reset`]).
    Refuse,
}

/// A push that arrived.
#[derive(Debug, Clone)]
pub struct Push {
    /// When.
    pub at: Instant,
    /// The JSON body.
    pub body: Value,
}

impl Push {
    /// The token that it goes to.
    pub fn token(&self) -> &str {
        self.body["DeviceToken"].as_str().unwrap_or_default()
    }
}

/// The stand-in; it stops when dropped.
#[derive(Debug)]
pub struct Pnm {
    server: Server,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    pushes: Vec<Push>,
    all: Option<Answer>,
    by_token: HashMap<String, Answer>,
    by_selector: HashMap<String, Answer>,
}

impl Pnm {
    /// Starts it; it takes every push until told otherwise.
    pub async fn start() -> Self {
        Self::start_at(server::ANY_PORT).await
    }

    /// The same at a certain address.
    pub async fn start_at(addr: SocketAddr) -> Self {
        let state = Arc::<Mutex<State>>::default();
        let handler = state.clone();
        let server = Server::start_at(addr, move |request| {
            let answer = record(&handler, &request);
            Box::pin(give(answer))
        })
        .await;
        Self { server, state }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The address for PNM_URL.
    pub fn url(&self) -> String {
        format!("{}/pnm2/send", self.server.url())
    }

    /// See [`Hook::set`].
    pub fn hook(&self) -> &Hook {
        self.server.hook()
    }

    /// How it answers every token for which nothing else is said.
    pub async fn answer(&self, answer: Answer) {
        let refuse = matches!(answer, Answer::Refuse);
        self.state.lock().unwrap().all = Some(answer);
        if refuse {
            self.server.close().await;
        } else {
            self.server.open().await;
        }
    }

    /// How it answers one token.
    pub fn answer_for(&self, token: &str, answer: Answer) {
        let mut state = self.state.lock().unwrap();
        state.by_token.insert(token.to_owned(), answer);
    }

    /// How it answers one account, whatever its token.
    pub fn answer_for_selector(&self, selector: &str, answer: Answer) {
        let mut state = self.state.lock().unwrap();
        state.by_selector.insert(selector.to_owned(), answer);
    }

    /// The pushes so far, whatever was answered.
    pub fn pushes(&self) -> Vec<Push> {
        self.state.lock().unwrap().pushes.clone()
    }

    /// The pushes so far to one token.
    pub fn pushes_for(&self, token: &str) -> Vec<Push> {
        let mut pushes = self.pushes();
        pushes.retain(|push| push.token() == token);
        pushes
    }

    /// TCP connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.server.connections()
    }
}

fn record(state: &Mutex<State>, request: &Request) -> Answer {
    let mut state = state.lock().unwrap();
    let push = Push {
        at: request.at,
        body: serde_json::from_slice(&request.body).unwrap_or_default(),
    };
    let State {
        pushes,
        all,
        by_token,
        by_selector,
    } = &mut *state;
    let selector = push.body["Selector"].as_str().unwrap_or_default();
    let by_selector = by_selector.get_mut(selector);
    let answer = by_selector.or(by_token.get_mut(push.token()));
    let answer = next(answer.or(all.as_mut()));
    pushes.push(push);
    answer
}

fn next(answer: Option<&mut Answer>) -> Answer {
    match answer {
        None => Answer::Ok,
        Some(once @ Answer::ResetOnce) => {
            *once = Answer::Ok;
            Answer::Reset
        }
        Some(answer) => answer.clone(),
    }
}

async fn give(answer: Answer) -> Option<Response> {
    let code = |http: u16, code: u16, response: &str| {
        server::json(http, &json!({"code": code, "response": response}))
    };
    Some(match answer {
        Answer::Ok => code(200, 200, "OK"),
        Answer::Gone => code(200, 404, "Not registered"),
        Answer::HttpGone => code(404, 404, "Not registered"),
        Answer::HtmlNotFound => server::html(404),
        Answer::Bad => code(200, 400, "Bad request"),
        Answer::Http400 => code(400, 400, "Bad request"),
        Answer::RateLimited => server::answer_of(429, "text/plain", "slow down"),
        Answer::Http500 => server::html(500),
        Answer::Code500 => code(200, 500, "Internal error"),
        Answer::Garbage => server::answer_of(200, "text/plain", "upstream said 404 at 12:40:04"),
        Answer::Empty => server::answer_of(200, "application/json", ""),
        Answer::Json(status, body) => server::json(status, &body),
        Answer::Text(status, words) => server::answer_of(status, "text/plain", words),
        Answer::Slow(ms) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            code(200, 200, "OK")
        }
        Answer::SlowGone(ms) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            code(200, 404, "Not registered")
        }
        Answer::Hang => std::future::pending().await,
        Answer::Reset | Answer::ResetOnce | Answer::Refuse => return None,
    })
}
