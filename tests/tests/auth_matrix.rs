//! REPORT_AUTH=matrix: a password login at the homeserver that leaves no device behind.

use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use matrix2acrobits_tests::app::{App, Builder};
use matrix2acrobits_tests::fixtures::{ALICE, BOB, Phone, by, refused};
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::http::{Reply, send};
use matrix2acrobits_tests::server::{self, Server};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::json;

const RIGHT: &str = "right-password-that-must-not-be-logged";
const WRONG: &str = "wrong-password-that-must-not-be-logged";
const LOGIN: &str = "/_matrix/client/v3/login";
const LOGOUT: &str = "/_matrix/client/v3/logout";

/// The bridge, with an api that asks the homeserver's stand-in, where Bob and Alice have passwords.
async fn start(builder: Builder) -> App {
    let mut app = builder.start().await;
    for (name, value) in [
        ("REPORT_AUTH", "matrix"),
        ("MATRIX_HOMESERVER_URL", &app.homeserver.url()),
        ("EXT_AUTH_TIMEOUT_S", "1"),
    ] {
        app.api_env.insert(name.to_owned(), value.to_owned());
    }
    app.start_api().await;
    app.homeserver.set_password(BOB, RIGHT);
    app.homeserver.set_password(ALICE, RIGHT);
    app
}

async fn alone() -> App {
    start(App::builder().without_worker()).await
}

async fn log_in(app: &App, username: &str, password: &str) -> Reply {
    app.report(&by(&Phone::seed(), username, password)).await
}

#[tokio::test]
async fn a_good_login_sets_the_users_pusher_and_logs_out() {
    let app = start(App::builder()).await;
    let phone = Phone::seed();
    let reply = app.report(&by(&phone, "bob", RIGHT)).await;
    assert_eq!(reply.expect_status(200).json(), json!({}));
    assert_eq!(app.homeserver.logouts().len(), 1);
    assert!(app.homeserver.devices().is_empty());
    app.pusher_set(&phone).await;
    let logins = app.homeserver.logins();
    assert_eq!(
        logins[0].body,
        json!({
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": "bob"},
            "password": RIGHT,
            "initial_device_display_name": "matrix2acrobits",
        })
    );

    // Remembered, and only the right password is.
    log_in(&app, "bob", RIGHT).await.expect_status(200);
    assert_eq!(app.homeserver.logins().len(), 1);
    refused(log_in(&app, "bob", WRONG).await);
    app.removal(&by(&phone, "bob", WRONG))
        .await
        .expect_error(401);
    app.removal(&by(&phone, "bob", RIGHT))
        .await
        .expect_status(200);
    app.pushers_are(BOB, &[]).await;
}

#[tokio::test]
async fn who_is_refused() {
    let app = alone().await;
    refused(log_in(&app, "bob", WRONG).await);
    refused(log_in(&app, "@bob:elsewhere.org", RIGHT).await);
    refused(log_in(&app, "@bob", RIGHT).await);
    refused(log_in(&app, "nobody", RIGHT).await);
    refused(app.report(&Phone::seed().report()).await);
    app.homeserver.break_path(
        LOGIN,
        Fault::Answer {
            status: 403,
            errcode: "M_USER_DEACTIVATED",
            error: "This account has been deactivated",
        },
    );
    refused(log_in(&app, "alice", RIGHT).await);
    app.homeserver.repair().await;
    // Field case 20: one user by any name.
    for name in ["@bob:example.org", "bob@example.org", "bob"] {
        log_in(&app, name, RIGHT).await.expect_status(200);
    }
    refused(log_in(&app, "bob@elsewhere.org", RIGHT).await);
    assert!(app.homeserver.devices().is_empty());
}

/// Synapse behind a Matrix Authentication Service, and one whose passwords are switched off.
#[tokio::test]
async fn a_homeserver_without_password_logins_is_named() {
    let app = alone().await;
    let unrecognized = Fault::Answer {
        status: 404,
        errcode: "M_UNRECOGNIZED",
        error: "Unrecognized request",
    };
    app.homeserver.break_path(LOGIN, unrecognized);
    let reply = log_in(&app, "bob", RIGHT).await.expect_error(502);
    assert!(reply.text.contains("no password logins"), "{}", reply.text);
    assert!(!app.api().log_lines("offers no m.login.password").is_empty());
    app.homeserver.repair().await;
    log_in(&app, "bob", RIGHT).await.expect_status(200);
}

#[tokio::test]
async fn nobody_touches_another_users_selector() {
    let app = start(App::builder()).await;
    let phone = Phone::seed();
    app.report(&by(&phone, "bob", RIGHT))
        .await
        .expect_status(200);
    app.pusher_set(&phone).await;
    let stolen = by(&phone.clone().with_token("alices-token"), "alice", RIGHT);
    for reply in [app.report(&stolen).await, app.removal(&stolen).await] {
        assert_eq!(reply.expect_error(403).errcode(), "M_FORBIDDEN");
    }
    app.settled().await;
    app.pushers_are(BOB, &[&phone]).await;
    assert!(app.homeserver.devices().is_empty());
}

#[tokio::test]
async fn trouble_at_the_homeserver_is_never_a_refusal() {
    let app = alone().await;
    let answer = |status, errcode| Fault::Answer {
        status,
        errcode,
        error: "no",
    };
    let cases = [
        (Fault::Status(500), 503),
        (Fault::Status(504), 503),
        (Fault::Reset, 503),
        (Fault::Hang, 503),
        (answer(500, "M_UNKNOWN"), 503),
        // A proxy's page, not the homeserver's word.
        (Fault::Status(403), 502),
        (Fault::Status(401), 502),
        (Fault::Status(200), 502),
        (Fault::Status(404), 502),
        (answer(404, "M_UNRECOGNIZED"), 502),
        // Password logins are switched off.
        (answer(400, "M_UNKNOWN"), 502),
    ];
    for (fault, status) in cases {
        app.homeserver.break_path(LOGIN, fault);
        // Each with a password of its own: a login that hangs is shared.
        let reply = log_in(&app, "bob", &format!("{fault:?}")).await;
        assert_eq!(reply.status, status, "{fault:?}: {}", reply.text);
        let reply = reply.expect_error(status);
        assert!(reply.took < Duration::from_secs(3), "{fault:?}: {reply:?}");
    }
    app.homeserver.repair().await;
    app.homeserver.break_with(Fault::Refuse).await;
    log_in(&app, "bob", RIGHT).await.expect_error(503);
    app.homeserver.repair().await;
    log_in(&app, "bob", RIGHT).await.expect_status(200);
}

#[tokio::test]
async fn the_homeservers_limit_is_handed_on() {
    let app = alone().await;
    let fault = Fault::RateLimited {
        retry_after_ms: 332_500,
    };
    app.homeserver.break_path(LOGIN, fault);
    for _ in 0..8 {
        let reply = log_in(&app, "bob", RIGHT).await.expect_error(503);
        assert_eq!(reply.header("retry-after"), "333");
    }
    app.homeserver.repair().await;
    log_in(&app, "bob", RIGHT).await.expect_status(200);
}

#[tokio::test]
async fn the_longer_of_two_waits_counts_in_either_form_of_the_header() {
    let mut app = alone().await;
    let wait = Arc::new(Mutex::new((String::new(), json!({}))));
    let next = wait.clone();
    let limited = Server::start(move |_| {
        let (header, body) = next.lock().unwrap().clone();
        let mut answer = server::json(429, &body);
        if !header.is_empty() {
            let header = header.parse().unwrap();
            answer.headers_mut().insert("retry-after", header);
        }
        Box::pin(async { Some(answer) })
    })
    .await;
    app.api_env
        .insert("MATRIX_HOMESERVER_URL".into(), limited.url());
    app.start_api().await;
    let now = UNIX_EPOCH + UNIX_EPOCH.elapsed().unwrap();
    let date = httpdate::fmt_http_date(now + Duration::from_mins(10));
    for (header, body, least, most) in [
        ("30", json!({"retry_after_ms": 2000}), 30, 30),
        ("2", json!({"retry_after_ms": 30_000}), 30, 30),
        (&date, json!({}), 590, 600),
        (&date, json!({"retry_after_ms": 2000}), 590, 600),
        ("", json!({}), 5, 5),
        ("99999999999999999999", json!({}), 3600, 3600),
        ("1", json!({"retry_after_ms": 9e15}), 3600, 3600),
    ] {
        *wait.lock().unwrap() = (header.to_owned(), body);
        let reply = log_in(&app, "bob", RIGHT).await.expect_error(503);
        let seconds: u64 = reply.header("retry-after").parse().unwrap();
        assert!((least..=most).contains(&seconds), "{header:?}: {seconds}");
    }
}

#[tokio::test]
async fn our_own_limit_comes_first() {
    let app = alone().await;
    for number in 0..5 {
        refused(log_in(&app, "bob", &format!("guess {number}")).await);
    }
    let reply = log_in(&app, "@Bob:example.org", RIGHT)
        .await
        .expect_error(429);
    assert_eq!(reply.errcode(), "M_LIMIT_EXCEEDED");
    assert_ne!(reply.header("retry-after"), "");
    assert_eq!(app.homeserver.logins().len(), 5);
}

#[tokio::test]
async fn a_logout_that_fails_is_tried_once_more() {
    let app = alone().await;
    app.homeserver.break_path(LOGOUT, Fault::Status(500));
    log_in(&app, "bob", RIGHT).await.expect_status(200);
    eventually(SOON, "two tries", async || {
        app.homeserver.logouts().len() == 2
    })
    .await;
    eventually(SOON, "a word about it", async || {
        !app.api().log_lines("keeps a device").is_empty()
    })
    .await;
    app.homeserver.repair().await;

    app.homeserver.break_path(LOGOUT, Fault::Hang);
    let other = by(&Phone::new("other"), "alice", RIGHT);
    let reply = app.report(&other).await.expect_status(200);
    assert!(reply.took < Duration::from_secs(3), "{reply:?}");
}

#[tokio::test]
async fn a_login_that_succeeds_late_is_logged_out_too() {
    let app = alone().await;
    app.homeserver.break_path(LOGIN, Fault::Delay(2000));
    let reply = log_in(&app, "bob", RIGHT).await.expect_error(503);
    assert!(reply.took < Duration::from_millis(1900), "{reply:?}");
    eventually(SOON, "the logout", async || {
        app.homeserver.logouts().len() == 1
    })
    .await;
    assert!(app.homeserver.devices().is_empty());
    // And its result is there for the next try.
    log_in(&app, "bob", RIGHT).await.expect_status(200);
    assert_eq!(app.homeserver.logins().len(), 1);
}

#[tokio::test]
async fn a_stop_in_the_middle_leaves_no_device() {
    let mut app = alone().await;
    app.homeserver.break_path(LOGIN, Fault::Delay(2000));
    log_in(&app, "bob", RIGHT).await.expect_error(503);
    assert_eq!(app.api_mut().terminate().await, Some(0));
    assert_eq!(app.homeserver.logouts().len(), 1);
    assert!(app.homeserver.devices().is_empty());
}

#[tokio::test]
async fn no_secret_is_logged_at_the_finest_level() {
    let builder = App::builder().without_worker().unset("LOGLEVEL");
    let app = start(builder.api("RUST_LOG", "trace,hyper=trace")).await;
    log_in(&app, "bob", RIGHT).await.expect_status(200);
    refused(log_in(&app, "mallory-the-intruder", WRONG).await);
    let query = [
        ("selector", "s"),
        ("username", "mallory-the-intruder"),
        ("password", WRONG),
    ];
    refused(app.report_query(&query).await);
    app.homeserver.break_path(LOGOUT, Fault::Reset);
    log_in(&app, "alice", RIGHT).await;
    app.homeserver.break_path(LOGIN, Fault::Status(200));
    log_in(&app, "alice", "another-password")
        .await
        .expect_error(502);
    let metrics = send(app.admin_bare(Method::GET, "/metrics")).await;
    let log = format!("{}{}", app.api().log(), metrics.text);
    for secret in [
        RIGHT,
        WRONG,
        "another-password",
        "syt_must_not_be_logged",
        "mallory-the-intruder",
        "Bearer",
    ] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
    assert!(
        log.contains("TRACE"),
        "the log is not as fine as it should be"
    );
}

#[tokio::test]
async fn a_receipt_counts_for_the_phones_of_whoever_logs_in() {
    let mut app = alone().await;
    let phone = Phone::seed();
    app.report(&by(&phone, "bob", RIGHT))
        .await
        .expect_status(200);
    let receipt = |username: &str, password: &str| {
        let fields = json!({"token": phone.token, "username": username, "password": password});
        app.public(Method::POST, "/api/client/push_received")
            .json(&fields)
    };
    refused(send(receipt("bob", WRONG)).await);
    let nobody = json!({"token": phone.token});
    let bare = app.public(Method::POST, "/api/client/push_received");
    refused(send(bare.json(&nobody)).await);
    // No word on whose the phone is.
    send(receipt("alice", RIGHT)).await.expect_status(200);
    assert_eq!(app.api_mut().terminate().await, Some(0));
    assert_eq!(app.database.count("arrivals").await, 0);
    app.start_api().await;
    let receipt = json!({"token": phone.token, "username": "bob", "password": RIGHT});
    let request = app.public(Method::POST, "/api/client/push_received");
    send(request.json(&receipt)).await.expect_status(200);
    assert_eq!(app.api_mut().terminate().await, Some(0));
    assert_eq!(app.database.count("arrivals").await, 1);
}
