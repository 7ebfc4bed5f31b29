//! Whether pushes arrive: receipts, silent phones, the canary.

#![expect(clippy::unwrap_used, reason = "tests outside of #[test] functions")]

use std::process::Output;

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{ALICE, BOB, Phone, folder, message};
use matrix2acrobits_tests::http::{Reply, encoded, send};
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::process::{Env, Program};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const RECEIVED: &str = "/api/client/push_received";

async fn received(app: &App, body: &Value) -> Reply {
    send(app.public(Method::POST, RECEIVED).json(body)).await
}

/// The value of the one series of the api whose text begins so.
async fn metric(app: &App, series: &str) -> f64 {
    let text = send(app.admin_bare(Method::GET, "/metrics")).await.text;
    let line = text.lines().find(|line| line.starts_with(series));
    let value = line.and_then(|line| line.rsplit_once(' '));
    value.map_or(-1.0, |(_, value)| value.parse().unwrap())
}

async fn metric_is(app: &App, series: &str, value: f64) {
    eventually(SOON, &format!("{series} {value}"), async || {
        (metric(app, series).await - value).abs() < f64::EPSILON
    })
    .await;
}

/// Runs a command of the api beside the one that runs.
pub(super) async fn command(app: &App, args: &[&str]) -> Output {
    let mut env: Env = app.api_env.clone();
    let admin = app.api().admin_url().replace("http://", "");
    env.insert("ADMIN_LISTEN_ADDR".into(), admin);
    Program::Api.run(args, &env).await
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The phones that the command lists.
async fn phones(app: &App, args: &[&str]) -> Vec<Value> {
    let args: Vec<_> = ["phones", "--json"].iter().chain(args).copied().collect();
    let output = command(app, &args).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until the one phone that is listed is so.
async fn phone_is(app: &App, what: &str, is: impl Fn(&Value) -> bool) {
    eventually(SOON, what, async || {
        let listed = phones(app, &[]).await;
        listed.len() == 1 && is(&listed[0])
    })
    .await;
}

#[tokio::test]
async fn times_of_a_clock_that_was_ahead_count_as_none() {
    let app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let pushed = async |event| {
        let reply = app.notify(&message(event, &[phone.device()])).await;
        reply.expect_status(200);
    };
    pushed("$1").await;
    let reply = received(&app, &json!({"selector": phone.selector, "id": "$1"})).await;
    reply.expect_status(200);
    let there = async |rows: &str| app.database.count(&format!("arrivals WHERE {rows}")).await == 1;
    eventually(SOON, "the receipt", async || {
        there("received_at IS NOT NULL").await
    })
    .await;
    app.database
        .meddle(
            "UPDATE arrivals
             SET pushed_at = pushed_at + 31536000, received_at = received_at + 31536000",
        )
        .await;
    pushed("$2").await;
    let now = app.database.now();
    let waits = format!("waiting_since <= {now} AND received_at < {now} AND pushed_at <= {now}");
    eventually(SOON, "it waits for its receipt", async || {
        there(&waits).await
    })
    .await;
}

#[tokio::test]
async fn a_receipt_closes_the_loop() {
    let mut app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    app.settled().await;
    phone_is(&app, "an unused phone", |it| it["last_push"].is_null()).await;
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    let reply = received(&app, &json!({"selector": phone.selector, "id": "$1"})).await;
    assert_eq!(reply.expect_status(200).json(), json!({}));
    metric_is(
        &app,
        r#"matrix2acrobits_push_receipts_total{result="confirmed"}"#,
        1.0,
    )
    .await;
    metric_is(&app, "matrix2acrobits_push_arrival_seconds_count", 1.0).await;
    // The same again says nothing about the time.
    let again = json!({"pushTokenOther": phone.token, "id": "$1", "type": "x", "other": [1]});
    received(&app, &again).await.expect_status(200);
    // A stop writes down what is in memory.
    assert_eq!(app.api_mut().terminate().await, Some(0));
    assert_eq!(app.database.count("arrivals").await, 1);
    let listed = phones(&app, &[]).await;
    let of_phone = &listed[0];
    assert_eq!(listed.len(), 1);
    assert!(
        of_phone["last_push"].is_i64() && of_phone["last_receipt"].is_i64(),
        "{of_phone}"
    );
    assert_eq!(of_phone["verdict"], "confirms its pushes");
    assert_eq!(of_phone["pusher"], "registered");
    assert_eq!(of_phone["user_id"], BOB);
}

#[tokio::test]
async fn receipts_in_every_form_and_for_nobody() {
    let app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let fields = [
        ("selector", phone.selector.as_str()),
        ("id", "%id%"),
        ("installid", "%installid%"),
    ];
    let form = app
        .public(Method::POST, RECEIVED)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(encoded(&fields));
    let query = app.public(Method::GET, &format!("{RECEIVED}?{}", encoded(&fields)));
    for request in [form, query] {
        let reply = send(request).await.expect_status(200);
        assert_eq!(reply.json(), json!({}));
    }
    for unknown in [
        json!({"selector": "nobody"}),
        json!({"token_msgs": "nobody's", "id": 5}),
    ] {
        let reply = received(&app, &unknown).await.expect_status(200);
        assert_eq!(reply.json(), json!({}), "no word on who is known");
    }
    metric_is(
        &app,
        r#"matrix2acrobits_push_receipts_total{result="noted"}"#,
        2.0,
    )
    .await;
    metric_is(
        &app,
        r#"matrix2acrobits_push_receipts_total{result="unknown"}"#,
        2.0,
    )
    .await;
    phone_is(&app, "two receipts", |it| it["receipts"] == 2).await;
    assert_eq!(
        app.database.count("arrivals").await,
        1,
        "nothing of strangers is kept"
    );

    for bad in [
        json!({}),
        json!({"id": "$1"}),
        json!({"selector": "x".repeat(257)}),
        json!([]),
    ] {
        received(&app, &bad).await.expect_error(400);
    }
    let large = json!({"selector": "x".repeat(70_000)});
    received(&app, &large).await.expect_error(413);
    let refused = r#"matrix2acrobits_push_receipts_total{result="refused"}"#;
    metric_is(&app, refused, 5.0).await;
    let reports = r#"matrix2acrobits_token_reports_total{result="refused"}"#;
    metric_is(&app, reports, 0.0).await;
    let said = |words: &str| app.api().log_lines(words).len();
    assert_eq!(said("a receipt was refused"), 1, "at most one a minute");
    assert_eq!(said("a report was refused"), 0);
    let path = format!("{RECEIVED}?selector=nobody");
    let head = send(app.public(Method::HEAD, &path)).await;
    assert_eq!(head.status, 405);
    let put = send(app.public(Method::PUT, RECEIVED)).await;
    put.expect_error(405);
}

#[tokio::test]
async fn a_flood_of_made_up_receipts_is_bounded() {
    let app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let series = r#"matrix2acrobits_push_receipts_total{result="dropped"}"#;
    let mut sent = 0;
    while metric(&app, series).await < 1.0 {
        let many = (0..500).map(|n| {
            let path = format!("{RECEIVED}?selector=made-up-{}", sent + n);
            send(app.public(Method::GET, &path))
        });
        for reply in futures::future::join_all(many).await {
            reply.expect_status(200);
        }
        sent += 500;
        assert!(sent < 100_000, "nothing is dropped");
    }
    // What we sent vouches for its receipt, however full it is.
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    received(&app, &json!({"token": phone.token, "id": "$1"}))
        .await
        .expect_status(200);
    phone_is(&app, "a receipt", |it| it["receipts"] == 1).await;
    assert_eq!(app.database.count("arrivals").await, 1);
}

#[tokio::test]
async fn a_phone_falls_silent() {
    let mut app = App::start().await;
    let (silent, unknown) = (Phone::new("silent"), Phone::new("unknown").of(ALICE));
    app.enroll(&[&silent, &unknown]).await;
    app.pusher_set(&silent).await;
    app.pusher_set(&unknown).await;
    app.settled().await;
    received(&app, &json!({"selector": silent.selector}))
        .await
        .expect_status(200);
    eventually(SOON, "the receipt", async || {
        app.database.count("arrivals").await == 1
    })
    .await;
    for phone in [&silent, &unknown] {
        app.notify(&message("$1", &[phone.device()]))
            .await
            .expect_status(200);
    }
    assert_eq!(app.api_mut().terminate().await, Some(0));
    let listed = phones(&app, &["--silent"]).await;
    assert!(listed.is_empty(), "not before a day has passed: {listed:?}");
    app.database
        .meddle(&format!(
            "UPDATE arrivals SET waiting_since = {} - 86401, pushed_at = pushed_at - 86401,
                 received_at = received_at - 90000",
            app.database.now()
        ))
        .await;
    app.start_api().await;
    metric_is(&app, "matrix2acrobits_phones_silent", 1.0).await;
    let listed = phones(&app, &["--silent"]).await;
    assert_eq!(
        listed.len(),
        1,
        "an app that never sent a receipt is unknown, not silent: {listed:?}"
    );
    assert_eq!(listed[0]["user_id"], BOB);
    assert_eq!(
        phones(&app, &["--user", ALICE, "--silent"]).await,
        Vec::<Value>::new()
    );
    assert_eq!(phones(&app, &["--user", BOB]).await, listed);
    let path = "/api/internal/phones?silent=true";
    let reply = app
        .admin(Method::GET, path, None)
        .await
        .expect_status(200)
        .json();
    assert_eq!(reply["phones"], json!(listed));
    let table = text(&command(&app, &["phones", "--silent"]).await.stdout);
    assert!(
        table.contains(BOB) && table.contains("1 phone\n"),
        "{table}"
    );
    assert!(
        !table.contains(&silent.token) && !table.contains(&silent.selector),
        "{table}"
    );
    let page = app
        .admin(Method::GET, "/", None)
        .await
        .expect_status(200)
        .text;
    assert!(page.contains("Silent phones: 1"), "{page}");

    // It confirms a push again.
    received(&app, &json!({"token": silent.token}))
        .await
        .expect_status(200);
    eventually(SOON, "no silent phone", async || {
        phones(&app, &["--silent"]).await.is_empty()
    })
    .await;
    let receipt = |phone: &Value| phone["last_receipt"].as_i64().unwrap();
    let after = phones(&app, &["--user", BOB]).await;
    assert!(receipt(&after[0]) > receipt(&listed[0]), "{after:?}");
}

#[tokio::test]
async fn pages_of_phones() {
    let app = App::builder().without_worker().start().await;
    let many: Vec<_> = (0..7).map(|n| Phone::new(&format!("p{n}"))).collect();
    app.enroll(&many.iter().collect::<Vec<_>>()).await;
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/internal/phones?limit=3&user={BOB}{after}");
        let page = app
            .admin(Method::GET, &path, None)
            .await
            .expect_status(200)
            .json();
        seen.extend(page["phones"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let shown: std::collections::BTreeSet<_> =
        seen.iter().map(|it| it["phone"].to_string()).collect();
    assert_eq!((seen.len(), shown.len()), (7, 7));
    // The last page, full as it is, leads to no empty one.
    let path = format!("/api/internal/phones?limit=7&user={BOB}");
    let whole = app.admin(Method::GET, &path, None).await.expect_status(200);
    assert_eq!(whole.json()["next"], Value::Null);
    for bad in [
        "limit=0",
        "limit=1001",
        "after=x",
        "silent=true&after=x",
        "silent=x",
        "user=bob",
    ] {
        let path = format!("/api/internal/phones?{bad}");
        app.admin(Method::GET, &path, None).await.expect_error(400);
    }
}

#[tokio::test]
async fn listing_phones_makes_no_database() {
    let folder = folder();
    let file = folder.path().join("none.db");
    let url = format!("sqlite://{}", file.display());
    let env = Env::from([("DATABASE_URL".to_owned(), url)]);
    let output = Program::Api.run(&["phones"], &env).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("DATABASE_URL"));
    assert!(!file.exists());
}

#[tokio::test]
async fn the_canary_pushes_and_says_what_became_of_it() {
    let mut app = App::builder()
        .without_worker()
        .api("CANARY_USER", BOB)
        .api("CANARY_INTERVAL", "1s")
        .start()
        .await;
    let canary =
        |result: &str| format!("matrix2acrobits_canary_pushes_total{{result=\"{result}\"}}");
    let counted = async |app: &App, result: &str| {
        eventually(SOON, &format!("a canary {result}"), async || {
            metric(app, &canary(result)).await >= 1.0
        })
        .await;
    };
    counted(&app, "no_phone").await;
    metric_is(&app, "matrix2acrobits_canary_failing", 1.0).await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    counted(&app, "taken").await;
    metric_is(&app, "matrix2acrobits_canary_failing", 0.0).await;
    assert_eq!(app.pnm.pushes()[0].body["verb"], "NotifyGenericTextMessage");

    // A phone that has sent a receipt has to send one.
    received(&app, &json!({"selector": phone.selector}))
        .await
        .expect_status(200);
    assert_eq!(app.api_mut().terminate().await, Some(0));
    app.database
        .meddle("UPDATE arrivals SET received_at = 1000")
        .await;
    app.start_api().await;
    counted(&app, "not_received").await;
    app.pnm.answer(Answer::Http500).await;
    app.start_api().await;
    counted(&app, "not_taken").await;
}
