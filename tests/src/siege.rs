//! Mapped phones that get their ordinary pushes while something else goes on: each push is counted and timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join;
use reqwest::Client;
use serde_json::{Value, json};

use crate::app::App;
use crate::fixtures::{Phone, message};
use crate::pnm::Push;
use crate::{SOON, eventually, http};

/// How many phones.
const PHONES: usize = 10;
/// A push to one of them each time.
const PACE: Duration = Duration::from_millis(100);
/// At least so many pushes, however soon the rest is over.
const LEAST: usize = 20;
/// None may be later.
const LATE: Duration = Duration::from_secs(5);

/// Runs `attack` while the homeserver sends the phones' messages, with their marks, and tries again what is not taken.
/// Panics if a phone's pushkey is rejected, or if a push is late, lost or sent twice.
pub async fn under_siege<T>(app: &App, attack: impl Future<Output = T>) -> T {
    let names = (0..PHONES).map(|n| format!("besieged-{n}"));
    let phones: Vec<_> = names.map(|name| Phone::new(&name)).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    let mut devices = Vec::new();
    for phone in &phones {
        devices.push(app.marked(phone).await);
    }
    let over = Arc::new(AtomicBool::new(false));
    let attack = async {
        let result = attack.await;
        over.store(true, Ordering::SeqCst);
        result
    };
    // From an address that no attacker has.
    let homeserver = client_at("127.0.0.200");
    let pushes = async {
        let mut sent = Vec::new();
        let mut ticks = tokio::time::interval(PACE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !over.load(Ordering::SeqCst) || sent.len() < LEAST {
            ticks.tick().await;
            let event = format!("$siege-{}", sent.len());
            let device = &devices[sent.len() % PHONES];
            sent.push((event.clone(), Instant::now()));
            deliver(app, &homeserver, &event, device).await;
        }
        sent
    };
    let (result, sent) = join(attack, pushes).await;
    let arrived = |event: &str| -> Vec<Push> {
        let mut pushes = app.pnm.pushes();
        pushes.retain(|push| push.body["Id"] == json!(event));
        pushes
    };
    eventually(SOON, "the last push", async || {
        sent.last()
            .is_none_or(|(event, _)| !arrived(event).is_empty())
    })
    .await;
    for (event, at) in &sent {
        let pushes = arrived(event);
        assert_eq!(pushes.len(), 1, "{event} of {}", sent.len());
        let took = pushes[0].at.saturating_duration_since(*at);
        assert!(took <= LATE, "{event} took {took:?}");
    }
    result
}

/// Sends until it is taken, as a homeserver does.
async fn deliver(app: &App, client: &Client, event: &str, device: &Value) {
    let url = format!("{}/_matrix/push/v1/notify", app.api().public_url());
    let body = message(event, std::slice::from_ref(device));
    let started = Instant::now();
    loop {
        match http::try_send(client.post(&url).json(&body)).await {
            Ok(reply) if reply.status == 200 => {
                assert_eq!(reply.json(), json!({"rejected": []}), "{event}");
                return;
            }
            other => assert!(started.elapsed() < LATE, "{event}: {other:?}"),
        }
        tokio::time::sleep(PACE).await;
    }
}

/// A client at another address of this machine.
pub fn client_at(address: &str) -> Client {
    Client::builder()
        .no_proxy()
        .local_address(Some(address.parse().unwrap()))
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap()
}
