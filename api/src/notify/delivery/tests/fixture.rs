//! What the tests of the deliverer work with: tokens in memory, and a stand-in for PNM on loopback.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode};
use bytes::Bytes;
use matrix2acrobits_shared::{
    clock::Clock,
    flow::PushTarget,
    ids::{AppId, Pushkey, Selector},
    mark::{self, MarkKey, MarkKeys},
    process::net::{self, Outgoing},
};
use matrix2acrobits_store::StoreError;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use super::super::*;
use crate::notify::trust::NotifyAuth;

/// Tokens whose names say what is the matter with them.
#[derive(Clone, Default)]
pub(crate) struct Book(pub(super) Arc<Mutex<Vec<String>>>);

impl TokenBook for Book {
    async fn find(
        &self,
        app: &str,
        key: &str,
        selector: Option<&str>,
    ) -> Result<Lookup, StoreError> {
        Ok(match key.split('-').next() {
            Some("unknown") => Lookup::Unknown,
            Some("dead") => Lookup::Dead,
            Some("lost") => Lookup::NeverHeldAny,
            Some("broken") => return Err(StoreError::Stopped),
            Some("panic") => panic!("as the test wants"),
            _ => Lookup::Live(PushTarget {
                row_id: 1,
                report: 1,
                selector: Selector::parse(selector.unwrap_or("s")).unwrap(),
                app_id: AppId::parse(app).unwrap(),
                pushkey: Pushkey::parse(key).unwrap(),
                dead: false,
                owned: app != "nobodys",
            }),
        })
    }

    async fn mark_dead(
        &self,
        target: &PushTarget,
        _pushed_to: Option<&str>,
        _asked: std::time::Instant,
    ) -> Result<MarkedDead, StoreError> {
        let key = target.pushkey.as_str();
        self.0.lock().unwrap().push(key.to_owned());
        match key.split('-').nth(1) {
            Some("broken") => Err(StoreError::Stopped),
            Some("back") => Ok(MarkedDead::ReportedSince),
            _ => Ok(MarkedDead::Marked),
        }
    }
}

/// PNM's side: what came, what it answers, and a gate that "slow" tokens wait at.
#[derive(Clone, Default)]
pub(super) struct Pnm {
    pub(super) pushes: Arc<Mutex<HashMap<String, usize>>>,
    pub(super) all_fail: Arc<Mutex<bool>>,
    pub(super) gate: Arc<Notify>,
}

impl Pnm {
    pub(super) fn pushes(&self, token: &str) -> usize {
        self.pushes.lock().unwrap().get(token).copied().unwrap_or(0)
    }

    pub(super) async fn until_pushed(&self, token: &str) {
        while self.pushes(token) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn push(State(pnm): State<Pnm>, body: Bytes) -> (StatusCode, String) {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let token = body["DeviceToken"].as_str().unwrap().to_owned();
    *pnm.pushes.lock().unwrap().entry(token.clone()).or_default() += 1;
    let (status, code) = match token.split('-').next().unwrap() {
        _ if *pnm.all_fail.lock().unwrap() => (503, 503),
        "gone" => (200, 404),
        "bad" => (200, 400),
        "busy" => (429, 429),
        "slow" => {
            pnm.gate.notified().await;
            (200, 200)
        }
        _ => (200, 200),
    };
    let status = StatusCode::from_u16(status).unwrap();
    (status, json!({"code": code, "response": "x"}).to_string())
}

/// A deliverer and what it works with.
pub(crate) struct Fixture {
    pub(crate) deliverer: Deliverer<Book>,
    pub(super) book: Book,
    pub(super) pnm: Pnm,
    pub(super) tracker: TaskTracker,
    pub(super) stopping: CancellationToken,
}

pub(super) fn key() -> MarkKey {
    MarkKey::new(&[7; mark::KEY_BYTES])
}

pub(super) fn rules(auth: NotifyAuth) -> Rules {
    let keys = MarkKeys {
        current: key(),
        previous: None,
    };
    Rules {
        texts: Texts::english(),
        time: TIME_FOR_A_REQUEST,
        trust: Arc::new(Trust::new(auth, keys, Clock::system())),
        journal: Arc::new(Journal::new(Clock::system())),
        clock: Clock::system(),
        badge_updates: true,
        extensions: None,
    }
}

/// A deliverer whose PNM answers as the names of the tokens say.
pub(crate) async fn fixture() -> Fixture {
    fixture_with(NotifyAuth::Off).await
}

pub(super) async fn fixture_with(auth: NotifyAuth) -> Fixture {
    net::install_tls();
    let pnm = Pnm::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/send", listener.local_addr().unwrap());
    let router = Router::new().fallback(push).with_state(pnm.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let client = PnmClient::new(
        &Url::parse(&url).unwrap(),
        Duration::from_secs(5),
        &Outgoing::new(None).unwrap(),
    )
    .unwrap();
    let (book, tracker, stopping) = (
        Book::default(),
        TaskTracker::new(),
        CancellationToken::new(),
    );
    let rules = rules(auth);
    let deliverer = Deliverer::new(
        book.clone(),
        Arc::new(Dedupe::new(9999, Instant::now().into_std())),
        Arc::new(client),
        rules,
        tracker.clone(),
        stopping.clone(),
    );
    Fixture {
        deliverer,
        book,
        pnm,
        tracker,
        stopping,
    }
}

/// The body of a request about an event for these pushkeys.
pub(crate) fn request(event: &str, keys: &[&str]) -> Bytes {
    let device = |key: &&str| json!({"app_id": "app", "pushkey": key, "data": {"selector": "sel"}});
    let devices: Vec<_> = keys.iter().map(device).collect();
    let body = json!({"notification": {"event_id": event, "devices": devices}});
    body.to_string().into()
}
