//! Clients that hang up before they are answered: what they asked for is done or not, and pushes go by what is
//! stored, without a restart.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use futures::future::join_all;
use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::fixtures::{BOB, Phone, message, phones};
use matrix2acrobits_tests::http::{Reply, encoded, segment, send};
use matrix2acrobits_tests::raw::Raw;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const COUNT: usize = 24;

/// How long after the last byte each client hangs up: as the request is read, as it is handled, while its write waits
/// for the lock. Every moment has to be right, so that none has to be met.
fn patience(number: usize) -> Duration {
    Duration::from_millis([0, 0, 1, 3, 10, 30, 100, 300][number % 8])
}

fn removal(phone: &Phone) -> String {
    let body = encoded(&[("selector", &phone.selector)]);
    request("POST", "/api/client/account_removal_report", &body)
}

fn report(phone: &Phone) -> String {
    let body = encoded(&[
        ("selector", &phone.selector),
        ("token_msgs", &phone.token),
        ("app_id_msgs", &phone.app_id),
    ]);
    request("POST", "/api/client/push_token_report", &body)
}

fn deletion(phone: &Phone) -> String {
    let path = format!("/api/internal/push_tokens/{}", segment(&phone.selector));
    request("DELETE", &path, "")
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends these requests while somebody else has the database's write lock, hangs up, and lets the lock go.
async fn hang_up(app: &App, url: &str, requests: &[String]) {
    let addr = url.trim_start_matches("http://");
    let lock = app.database.lock().await;
    let clients = requests.iter().enumerate().map(async |(number, request)| {
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(patience(number)).await;
    });
    join_all(clients).await;
    drop(lock);
    // The writer takes what waits in its order: most of what those clients asked for is done when this is.
    let last = Phone::new("last");
    app.report(&last.report()).await.expect_status(200);
}

/// Who of them is in the database.
async fn stored(app: &App, phones: &[Phone]) -> Vec<bool> {
    let selectors = app.database.selectors().await;
    let stored = phones
        .iter()
        .map(|phone| selectors.contains(&phone.selector));
    stored.collect()
}

/// Pushes go to those who are stored, and to nobody else. What those clients asked for may be done meanwhile: then once
/// more.
async fn rings_as_stored(app: &App, phones: &[Phone], event: &str) {
    let mut now_stored = stored(app, phones).await;
    for turn in 0.. {
        let before = app.pnm.pushes().len();
        let devices: Vec<_> = phones.iter().map(Phone::device).collect();
        let reply = app
            .notify(&message(&format!("{event}-{turn}"), &devices))
            .await
            .expect_status(200);
        let then_stored = std::mem::replace(&mut now_stored, stored(app, phones).await);
        if then_stored == now_stored {
            return ring_alone(app, phones, &now_stored, before, &reply);
        }
    }
}

/// Since `before`, those rang who are stored, and the reply rejects the others.
fn ring_alone(app: &App, phones: &[Phone], stored: &[bool], before: usize, reply: &Reply) {
    let rejected = reply.json()["rejected"].as_array().unwrap().clone();
    let pushes = app.pnm.pushes();
    for (phone, &stored) in phones.iter().zip(stored) {
        let rang = pushes[before..]
            .iter()
            .any(|push| push.token() == phone.token);
        assert_eq!(rang, stored, "{phone:?}: rang");
        assert_eq!(
            rejected.contains(&json!(phone.token)),
            !stored,
            "{phone:?}: rejected"
        );
    }
}

/// Phones whose tokens the api has in memory, beside as many that stay: the api rejects nobody when most are unknown.
async fn known(app: &App) -> Vec<Phone> {
    let (phones, others) = (phones("leaves", COUNT), phones("stays", COUNT));
    let all: Vec<_> = phones.iter().chain(&others).collect();
    app.enroll(&all).await;
    let devices: Vec<_> = all.iter().map(|phone| phone.device()).collect();
    app.notify(&message("$first", &devices))
        .await
        .expect_status(200);
    assert_eq!(app.pnm.pushes().len(), 2 * COUNT);
    phones
}

async fn leaves(app: &App, url: &str, ask: fn(&Phone) -> String) {
    let phones = known(app).await;
    let requests: Vec<_> = phones.iter().map(ask).collect();
    hang_up(app, url, &requests).await;
    rings_as_stored(app, &phones, "$after").await;
    let stored = stored(app, &phones).await;
    let gone = stored.iter().filter(|stored| !**stored).count();
    assert!(
        gone >= COUNT / 4,
        "{gone} were carried out: too few to tell"
    );
}

#[tokio::test]
async fn a_phone_whose_client_hangs_up_during_its_removal_never_rings() {
    let app = App::builder().without_worker().start().await;
    leaves(&app, &app.api().public_url(), removal).await;
}

#[tokio::test]
async fn an_operator_who_hangs_up_during_a_delete_leaves_nobody_ringing() {
    let app = App::builder().without_worker().start().await;
    leaves(&app, &app.api().admin_url(), deletion).await;
}

#[tokio::test]
async fn an_operator_who_hangs_up_during_a_delete_of_all_leaves_nobody_ringing() {
    let app = App::builder().without_worker().start().await;
    let phones = known(&app).await;
    let all = request("DELETE", "/api/internal/push_tokens?confirm=all", "");
    hang_up(&app, &app.api().admin_url(), &[String::new(), all.clone()]).await;
    rings_as_stored(&app, &phones, "$after").await;
    // The same with patience, so that it is carried out for certain.
    let mut client = Raw(
        TcpStream::connect(app.api().admin_url().trim_start_matches("http://"))
            .await
            .unwrap(),
    );
    client.send(&all).await;
    assert_eq!(client.status().await, Some(200));
    eventually(SOON, "no token left", async || {
        app.database.count("push_tokens").await == 0
    })
    .await;
    rings_as_stored(&app, &phones[..10], "$last").await;
}

/// More pushers than three transactions check, all Bob's.
const PUSHERS: usize = 1600;
const FILL: &str = "WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 1600)
    INSERT INTO pushers (user_id, app_id, pushkey, selector, wanted, state, generation, claim, created_at, updated_at)
    SELECT '@bob:example.org', 'app', 'k' || n, 's' || n, 'present', 'registered', 1, 1, 1, 1 FROM g";

/// More tokens than some transactions delete.
const TOKENS: i64 = 30_000;
const FILL_TOKENS: &str = "WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < 30000)
    INSERT INTO push_tokens (selector, device, token_msgs, app_id_msgs, report, created_at, updated_at)
    SELECT 's' || n, '', 'k' || n, 'app', 1, 1, 1 FROM g";

/// Sends a request to the admin listener, and does not wait for the answer.
async fn asked(app: &App, request: &str) -> TcpStream {
    let addr = app.api().admin_url();
    let addr = addr.trim_start_matches("http://");
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

/// A request that asks the worker to check all these pushers, and whose client hangs up at once, is carried out.
async fn is_replayed(app: &App, request: String) {
    let client = asked(app, &request).await;
    eventually(SOON, "it begins", async || {
        app.database.live_jobs().await > 0
    })
    .await;
    drop(client);
    eventually(SOON, "the line in the log", async || {
        app.api().log_lines("admin: replay").len() == 1
    })
    .await;
    let said = app.api().log_lines("admin: replay").remove(0);
    assert!(said.contains(&format!("count={PUSHERS}")), "{said}");
    assert_eq!(app.database.live_jobs().await, PUSHERS);
}

#[tokio::test]
async fn a_replay_goes_on_when_the_operator_hangs_up() {
    let app = App::builder().without_worker().start().await;
    app.database.meddle(FILL).await;
    let replay = request("POST", "/api/internal/replay?all=true", "");
    is_replayed(&app, replay).await;
}

#[tokio::test]
async fn a_replay_of_the_status_page_goes_on_when_the_operator_hangs_up() {
    let app = App::builder().without_worker().start().await;
    app.database.meddle(FILL).await;
    let page = app.admin_bare(Method::GET, "/").bearer_auth(ADMIN_TOKEN);
    let page = send(page).await.expect_status(200).text;
    let (_, token) = page.split_once(r#"name="token" value=""#).unwrap();
    let token = token.split('"').next().unwrap();
    let form = encoded(&[("token", token), ("what", "user"), ("user", BOB)]);
    is_replayed(&app, request("POST", "/replay", &form)).await;
}

#[tokio::test]
async fn a_mapping_whose_operator_hangs_up_leaves_its_line() {
    let app = App::builder().without_worker().start().await;
    let mapping = json!({ "user_id": BOB }).to_string();
    for round in 0.. {
        let put = |number| {
            let path = format!("/api/internal/mappings/s{round}-{number}");
            request("PUT", &path, &mapping)
        };
        let requests: Vec<_> = (0..8).map(put).collect();
        hang_up(&app, &app.api().admin_url(), &requests).await;
        // A busy machine may have read none of them before its client went.
        if app.database.count("mappings").await > 0 {
            break;
        }
    }
    eventually(SOON, "a line for each", async || {
        let lines = app.api().log_lines("admin: mapping set").len();
        app.database.count("mappings").await == i64::try_from(lines).unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_report_whose_client_hangs_up_is_served_if_it_was_stored() {
    let app = App::builder().without_worker().start().await;
    let old = known(&app).await;
    // Each phone has a new token; the old one is in memory.
    let new: Vec<_> = old
        .iter()
        .map(|phone| phone.clone().with_token(&format!("new-{}", phone.token)))
        .collect();
    let requests: Vec<_> = new.iter().map(report).collect();
    hang_up(&app, &app.api().public_url(), &requests).await;
    let devices: Vec<_> = old.iter().chain(&new).map(Phone::device).collect();
    let mut tokens = app.database.tokens().await;
    let mut before = 0;
    for turn in 0.. {
        before = app.pnm.pushes().len();
        app.notify(&message(&format!("$after-{turn}"), &devices))
            .await;
        let then = std::mem::replace(&mut tokens, app.database.tokens().await);
        if then == tokens {
            break;
        }
    }
    let pushes = app.pnm.pushes();
    let mut changed = 0;
    for phone in old.iter().chain(&new) {
        let rang = pushes[before..]
            .iter()
            .any(|push| push.token() == phone.token);
        assert_eq!(rang, tokens.contains(&phone.token), "{phone:?}");
        changed += usize::from(rang && phone.token.starts_with("new-"));
    }
    assert!(
        changed >= COUNT / 4,
        "{changed} were carried out: too few to tell"
    );
}

/// The operator has hung up, and the api is told to stop.
#[tokio::test]
async fn a_stop_waits_for_what_the_operator_has_asked_for() {
    let mut app = App::builder().without_worker().start().await;
    app.database.meddle(FILL_TOKENS).await;
    let all = request("DELETE", "/api/internal/push_tokens?confirm=all", "");
    let client = asked(&app, &all).await;
    eventually(SOON, "it begins", async || {
        app.database.count("push_tokens").await < TOKENS
    })
    .await;
    drop(client);
    app.api().signal("TERM").await;
    assert_eq!(app.api_mut().ended(SOON).await, Some(0));
    assert_eq!(app.database.count("push_tokens").await, 0);
    let log = app.api().log();
    assert!(log.contains("admin: all push tokens deleted"), "{log}");
}
