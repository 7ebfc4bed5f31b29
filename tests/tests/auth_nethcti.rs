//! REPORT_AUTH=nethcti: who gets in, who does not, and what happens when NethCTI is not well.

use std::time::Duration;

use futures::future::join_all;
use matrix2acrobits_tests::app::{App, Builder};
use matrix2acrobits_tests::fixtures::{ALICE, BOB, Phone, by, folder, refused};
use matrix2acrobits_tests::http::{Reply, send};
use matrix2acrobits_tests::nethcti::{Fault, NethCti, SIGNATURE, Step};
use matrix2acrobits_tests::process::{Env, Program};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const RIGHT: &str = "right-password-that-must-not-be-logged";
const WRONG: &str = "wrong-password-that-must-not-be-logged";
const REPORT: &str = "/api/client/push_token_report";

async fn nethcti() -> NethCti {
    let nethcti = NethCti::start().await;
    nethcti.account("bob", RIGHT, json!(true));
    nethcti.account("alice", RIGHT, json!("true"));
    nethcti.user("Bob", &json!("201"), &json!(["91201", "92201"]));
    nethcti.user("alice", &json!(202), &json!("91202, 92202"));
    nethcti
}

fn builder(nethcti: &NethCti) -> Builder {
    App::builder()
        .api("REPORT_AUTH", "nethcti")
        .api("EXT_AUTH_URL", &nethcti.url())
        .api("EXT_AUTH_TIMEOUT_S", "1")
}

async fn start(nethcti: &NethCti) -> App {
    builder(nethcti).without_worker().start().await
}

async fn log_in(app: &App, username: &str, password: &str) -> Reply {
    app.report(&by(&Phone::new(username), username, password))
        .await
}

/// The same through a trusted proxy that names this address.
async fn log_in_from(app: &App, address: &str, username: &str, password: &str) -> Reply {
    let body = by(&Phone::new(username), username, password);
    let request = app.public(Method::POST, REPORT).json(&body);
    send(request.header("x-forwarded-for", address)).await
}

#[tokio::test]
async fn a_good_login_sets_the_users_pusher() {
    let nethcti = nethcti().await;
    let app = builder(&nethcti).start().await;
    let phone = Phone::seed();
    let reply = app.report(&by(&phone, "bob@pbx.example.com", RIGHT)).await;
    assert_eq!(reply.expect_status(200).json(), json!({}));
    app.pusher_set(&phone).await;
    assert_eq!(nethcti.logins(), ["bob"]);
    assert_eq!(nethcti.chats(), 1);

    app.removal(&by(&phone, "bob", WRONG))
        .await
        .expect_error(401);
    app.removal(&json!({"selector": phone.selector}))
        .await
        .expect_error(401);
    app.settled().await;
    app.pushers_are(BOB, &[&phone]).await;
    app.removal(&by(&phone, "bob", RIGHT))
        .await
        .expect_status(200);
    app.pushers_are(BOB, &[]).await;
}

#[tokio::test]
async fn only_the_right_password_passes_before_and_after_a_good_login() {
    let nethcti = nethcti().await;
    let app = start(&nethcti).await;
    refused(log_in(&app, "bob", WRONG).await);
    assert_eq!(app.database.count("push_tokens").await, 0);
    for _ in 0..3 {
        log_in(&app, "bob", RIGHT).await.expect_status(200);
    }
    // The first two are the wrong and the right one; the others were remembered.
    assert_eq!(nethcti.logins().len(), 2);
    refused(log_in(&app, "bob", WRONG).await);
    refused(log_in(&app, "alice", WRONG).await);
    refused(log_in(&app, "nobody", RIGHT).await);
    assert_eq!(nethcti.logins().len(), 5);

    let asked = nethcti.logins().len();
    for (username, password) in [
        ("", ""),
        ("bob", ""),
        ("", RIGHT),
        ("%account[cloud_username]%", RIGHT),
    ] {
        refused(log_in(&app, username, password).await);
    }
    refused(app.report(&Phone::new("plain").report()).await);
    assert_eq!(nethcti.logins().len(), asked);
}

#[tokio::test]
async fn a_good_login_is_remembered_as_long_as_the_setting_says() {
    let nethcti = nethcti().await;
    let app = builder(&nethcti)
        .api("CACHE_TTL_SECONDS", "0")
        .without_worker()
        .start()
        .await;
    for _ in 0..3 {
        log_in(&app, "bob", RIGHT).await.expect_status(200);
    }
    assert_eq!(nethcti.logins().len(), 3);

    let app = builder(&nethcti)
        .api("CACHE_TTL_SECONDS", "1")
        .without_worker()
        .start()
        .await;
    log_in(&app, "bob", RIGHT).await.expect_status(200);
    nethcti.account("bob", "another", json!(true));
    eventually(SOON, "the old password is refused", async || {
        log_in(&app, "bob", RIGHT).await.status == 401
    })
    .await;
}

#[tokio::test]
async fn who_may_chat_and_under_which_name() {
    let nethcti = NethCti::start().await;
    nethcti.user("Bob", &json!("201"), &json!(["91201", 92201]));
    nethcti.user("alice", &json!(202), &json!("91202, 92202"));
    // Each case is a login name of its own; an empty user is a refusal.
    let cases = [
        ("bob", json!(true), BOB),
        ("BOB", json!("true"), BOB),
        ("201", json!(true), BOB),
        ("91201", json!(true), BOB),
        ("92201", json!(true), BOB),
        ("202", json!(true), ALICE),
        ("92202", json!(true), ALICE),
        ("carol", json!(true), ""),
        ("9120", json!(true), ""),
        ("alice", json!(false), ""),
        ("Alice", json!("false"), ""),
        // Field case 16: without the claim the list decides.
        ("91202", Value::Null, ALICE),
        ("mallory", Value::Null, ""),
        ("91203", json!(true), "@dave:example.org"),
        // And so it does where the claim says neither yes nor no.
        ("dave", json!({"read": true}), "@dave:example.org"),
        ("203", json!("enabled"), "@dave:example.org"),
        ("nina", json!(1), ""),
    ];
    nethcti.newer_user("dave", "203", &["91203"]);
    let app = start(&nethcti).await;
    for (name, claim, expected) in &cases {
        nethcti.account(name, RIGHT, claim.clone());
        let reply = log_in(&app, name, RIGHT).await;
        if expected.is_empty() {
            refused(reply);
            continue;
        }
        reply.expect_status(200);
        let shown = app
            .admin(Method::GET, "/api/internal/push_tokens", None)
            .await;
        let shown = shown.expect_status(200).json();
        let selector = Phone::new(name).selector;
        let rows = shown["push_tokens"].as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|row| row["selector"] == selector);
        let user = row.map(|row| row["user_id"].clone());
        assert_eq!(user, Some(json!(expected)), "{name}: {shown}");
    }
}

/// Field cases: a JWT in place of the password, and the name that a QR code gives.
#[tokio::test]
async fn a_token_in_place_of_the_password_needs_no_login() {
    let nethcti = nethcti().await;
    let app = builder(&nethcti).start().await;
    let token = nethcti.token_for("bob");
    for (number, username) in ["bob@pbx.example.com@qrcode", "bob", "201@pbx.example.com"]
        .into_iter()
        .enumerate()
    {
        let phone = Phone::new(&format!("qr-{number}"));
        let report = by(&phone, username, &token);
        app.report(&report).await.expect_status(200);
        app.pusher_set(&phone).await;
    }
    assert_eq!(nethcti.logins().len(), 0);

    // Whose token it is counts, and not whose name stands beside it.
    let phone = Phone::new("alices").of(ALICE);
    let alices = nethcti.token_for("alice");
    app.report(&by(&phone, "bob@pbx.example.com@qrcode", &alices))
        .await
        .expect_status(200);
    app.pushers_are(ALICE, &[&phone]).await;

    let forged = format!("{token}x");
    for (username, password) in [
        ("bob@x@qrcode", RIGHT),
        ("bob", &*forged),
        ("bob@x@qrcode", &*forged),
    ] {
        refused(log_in(&app, username, password).await);
    }
    assert_eq!(nethcti.logins().len(), 0);
    nethcti.break_at(Step::Me, Fault::Status(502));
    let other = nethcti.token_for("carol");
    log_in(&app, "carol@x@qrcode", &other)
        .await
        .expect_error(503);
}

#[tokio::test]
async fn a_password_with_two_dots_is_a_password() {
    let nethcti = nethcti().await;
    nethcti.account("bob", "my.new.password", json!(true));
    let app = start(&nethcti).await;
    log_in(&app, "bob", "my.new.password")
        .await
        .expect_status(200);
    nethcti.break_at(Step::Me, Fault::Status(404));
    nethcti.account("alice", "one.two.three", json!(true));
    log_in(&app, "alice", "one.two.three")
        .await
        .expect_status(200);
}

/// Field case: a login whose chat right was taken away.
#[tokio::test]
async fn who_may_not_chat_any_more_loses_the_pusher_at_the_next_report() {
    let nethcti = nethcti().await;
    let app = builder(&nethcti)
        .api("CACHE_TTL_SECONDS", "0")
        .start()
        .await;
    let bobs = Phone::new("bobs");
    let by_extension = Phone::new("extension");
    let alices = Phone::new("alices").of(ALICE);
    nethcti.account("201", RIGHT, json!(true));
    for (phone, name) in [(&bobs, "bob"), (&by_extension, "201"), (&alices, "alice")] {
        app.report(&by(phone, name, RIGHT)).await.expect_status(200);
    }
    app.pushers_are(BOB, &[&bobs, &by_extension]).await;
    app.pushers_are(ALICE, &[&alices]).await;

    // The list is out of reach, since a firewall answers with its page: nobody's right is gone by that.
    nethcti.break_at(Step::Chat, Fault::Status(403));
    app.report(&by(&bobs, "bob", RIGHT)).await.expect_error(502);
    nethcti.repair().await;
    app.settled().await;
    app.pushers_are(BOB, &[&bobs, &by_extension]).await;

    nethcti.remove_user("Bob");
    refused(app.report(&by(&bobs, "bob", RIGHT)).await);
    app.pushers_are(BOB, &[&by_extension]).await;
    refused(app.report(&by(&by_extension, "201", RIGHT)).await);
    app.pushers_are(BOB, &[]).await;

    // Bob cannot take Alice's away, and hers goes when her token says so.
    refused(app.report(&by(&alices, "bob", RIGHT)).await);
    app.settled().await;
    app.pushers_are(ALICE, &[&alices]).await;
    nethcti.account("alice", RIGHT, json!(false));
    refused(app.report(&by(&alices, "alice", RIGHT)).await);
    app.pushers_are(ALICE, &[]).await;
}

/// Phones that were imported, or that reported before the phones logged in, have no login yet.
#[tokio::test]
async fn who_may_not_chat_removes_nothing_that_is_not_theirs() {
    let nethcti = nethcti().await;
    let mut app = builder(&nethcti)
        .api("REPORT_AUTH", "selector")
        .start()
        .await;
    let bobs = Phone::new("bobs");
    let unclaimed = Phone::new("unclaimed");
    app.enroll(&[&bobs]).await;
    app.report(&unclaimed.report()).await.expect_status(200);
    app.pushers_are(BOB, &[&bobs]).await;
    app.api_env.insert("REPORT_AUTH".into(), "nethcti".into());
    app.start_api().await;

    // Not in the list of chat users.
    nethcti.account("carol", RIGHT, json!(true));
    for phone in [&bobs, &unclaimed] {
        let login = json!({"selector": phone.selector, "username": "carol", "password": RIGHT});
        refused(app.report(&login).await);
        refused(app.removal(&login).await);
    }
    app.settled().await;
    app.pushers_are(BOB, &[&bobs]).await;
    assert_eq!(app.database.count("push_tokens").await, 2);

    // A mapping takes precedence over the login, so the row is Bob's until his own right to chat ends.
    nethcti.remove_user("Bob");
    refused(app.report(&by(&bobs, "bob", RIGHT)).await);
    app.pushers_are(BOB, &[]).await;
    assert_eq!(app.database.count("push_tokens").await, 1);
}

/// Field case 21.
#[tokio::test]
async fn passwords_are_taken_as_typed() {
    let nethcti = nethcti().await;
    let app = start(&nethcti).await;
    for password in ["winter 2026 ", "%winter2026%", " x"] {
        nethcti.account("bob", password, json!(true));
        log_in(&app, "bob", password).await.expect_status(200);
        let selector = Phone::new("form").selector;
        let fields = [
            ("selector", &*selector),
            ("username", "bob"),
            ("password", password),
        ];
        app.report_form(&fields).await.expect_status(200);
        app.report_query(&fields).await.expect_status(200);
        refused(log_in(&app, "bob", password.trim().trim_matches('%')).await);
    }
}

#[tokio::test]
async fn trouble_at_nethcti_is_never_a_refusal() {
    let nethcti = nethcti().await;
    let app = start(&nethcti).await;
    let well = json!({"token": "a.b.c"});
    let cases = [
        (Step::Login, Fault::Status(500), 503),
        (Step::Login, Fault::Status(502), 503),
        (Step::Login, Fault::Reset, 503),
        (Step::Login, Fault::Hang, 503),
        (Step::Login, Fault::Delay(3000), 503),
        (Step::Login, Fault::RateLimited(7), 503),
        (Step::Login, Fault::Garbage, 502),
        (Step::Login, Fault::Huge, 502),
        (Step::Login, Fault::Status(404), 502),
        (Step::Login, Fault::Status(302), 502),
        (Step::Login, Fault::Status(401), 502),
        (Step::Login, Fault::Status(403), 502),
        (Step::Login, Fault::Json(json!({"code": 200})), 502),
        (Step::Login, Fault::Json(json!([])), 502),
        (Step::Login, Fault::Json(well), 502),
        (Step::Chat, Fault::Status(500), 503),
        (Step::Chat, Fault::Reset, 503),
        (Step::Chat, Fault::Hang, 503),
        (Step::Chat, Fault::Garbage, 502),
        (Step::Chat, Fault::Huge, 502),
        (Step::Chat, Fault::Status(404), 502),
        (Step::Chat, Fault::Status(403), 502),
        // What NethCTI answers when it cannot read its list.
        (Step::Chat, Fault::Json(json!({"matrix": {}})), 502),
        (Step::Chat, Fault::Json(json!({"users": {}})), 502),
    ];
    for (step, fault, status) in cases {
        nethcti.repair().await;
        nethcti.break_at(step, fault.clone());
        let reply = log_in(&app, "bob", RIGHT).await;
        assert_eq!(reply.status, status, "{step:?} {fault:?}: {}", reply.text);
        let reply = reply.expect_error(status);
        assert!(reply.took < Duration::from_secs(3), "{fault:?}: {reply:?}");
        if let Fault::RateLimited(seconds) = fault {
            assert_eq!(reply.header("retry-after"), seconds.to_string());
        }
    }
    nethcti.repair().await;
    nethcti.close().await;
    log_in(&app, "bob", RIGHT).await.expect_error(503);
    assert_eq!(app.database.count("push_tokens").await, 0);

    // None of that counted as a failed login.
    nethcti.repair().await;
    log_in(&app, "bob", RIGHT).await.expect_status(200);
    // Whoever logged in a moment ago does not notice an outage.
    nethcti.close().await;
    log_in(&app, "bob", RIGHT).await.expect_status(200);
    log_in(&app, "bob", WRONG).await.expect_error(503);
}

#[tokio::test]
async fn nobody_touches_another_users_selector() {
    let nethcti = nethcti().await;
    let app = builder(&nethcti).start().await;
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
    app.pushers_are(ALICE, &[]).await;
}

/// A mapped phone that has not logged in yet, such as one that was imported.
#[tokio::test]
async fn nobody_removes_what_is_mapped_to_another_user() {
    let nethcti = nethcti().await;
    let mut app = builder(&nethcti)
        .api("REPORT_AUTH", "selector")
        .start()
        .await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    app.api_env.insert("REPORT_AUTH".into(), "nethcti".into());
    app.start_api().await;

    let reply = app.removal(&by(&phone, "alice", RIGHT)).await;
    assert_eq!(reply.expect_error(403).errcode(), "M_FORBIDDEN");
    app.settled().await;
    app.pushers_are(BOB, &[&phone]).await;
    app.removal(&by(&phone, "bob", RIGHT))
        .await
        .expect_status(200);
    app.pushers_are(BOB, &[]).await;

    // A phone that has logged in belongs to that user for this purpose, whomever the operator has mapped it to.
    app.report(&by(&phone, "alice", RIGHT))
        .await
        .expect_status(200);
    app.removal(&by(&phone, "bob", RIGHT))
        .await
        .expect_error(403);
    app.removal(&by(&phone, "alice", RIGHT))
        .await
        .expect_status(200);
    assert_eq!(app.database.count("push_tokens").await, 0);
}

#[tokio::test]
async fn a_mapping_outranks_the_login() {
    let nethcti = nethcti().await;
    let app = builder(&nethcti).start().await;
    let phone = Phone::seed().of(ALICE);
    app.map(&phone.selector, ALICE).await;
    app.report(&by(&phone, "bob", RIGHT))
        .await
        .expect_status(200);
    app.pushers_are(ALICE, &[&phone]).await;
    app.pushers_are(BOB, &[]).await;
}

#[tokio::test]
async fn failed_logins_are_limited_and_good_ones_go_on() {
    let nethcti = nethcti().await;
    let app = builder(&nethcti)
        .api("TRUSTED_PROXIES", "127.0.0.0/8, ::1")
        .without_worker()
        .start()
        .await;
    let (home, other) = ("192.0.2.1", "198.51.100.1");
    log_in_from(&app, home, "bob", RIGHT)
        .await
        .expect_status(200);
    for number in 0..5 {
        refused(log_in_from(&app, home, "bob", &format!("guess {number}")).await);
    }
    let asked = nethcti.logins().len();
    let reply = log_in_from(&app, home, "bob", "guess")
        .await
        .expect_error(429);
    assert_eq!(reply.errcode(), "M_LIMIT_EXCEEDED");
    let seconds: u64 = reply.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{reply:?}");
    // Another spelling is no way around, nor a forged header in front of the proxy's.
    for (address, name) in [
        (home, "BOB"),
        (home, "bob@x"),
        ("203.0.113.9, 192.0.2.1", "bob"),
    ] {
        log_in_from(&app, address, name, "guess")
            .await
            .expect_error(429);
    }
    assert_eq!(nethcti.logins().len(), asked);
    // He who is remembered, others here, and he from elsewhere go on.
    log_in_from(&app, home, "bob", RIGHT)
        .await
        .expect_status(200);
    log_in_from(&app, home, "alice", RIGHT)
        .await
        .expect_status(200);
    refused(log_in_from(&app, other, "bob", WRONG).await);

    // Many names from one address.
    for number in 0..19 {
        refused(log_in_from(&app, other, &format!("user{number}"), WRONG).await);
    }
    log_in_from(&app, other, "user99", WRONG)
        .await
        .expect_error(429);
    log_in_from(&app, home, "user99", WRONG)
        .await
        .expect_error(401);
}

#[tokio::test]
async fn a_hundred_guesses_at_once_are_no_way_around() {
    let nethcti = nethcti().await;
    nethcti.break_at(Step::Login, Fault::Delay(50));
    let app = start(&nethcti).await;
    let app = &app;
    let guesses = (0..100).map(async |number: u32| {
        let reply = log_in(app, "bob", &format!("guess {number}")).await;
        assert!(matches!(reply.status, 401 | 429), "{reply:?}");
        usize::from(reply.status == 401)
    });
    let tried: usize = join_all(guesses).await.into_iter().sum();
    assert_eq!((tried, nethcti.logins().len()), (5, 5));
}

#[tokio::test]
async fn an_untrusted_peer_cannot_name_another_address() {
    let nethcti = nethcti().await;
    let app = start(&nethcti).await;
    for number in 0..5 {
        let address = format!("192.0.2.{number}");
        refused(log_in_from(&app, &address, "bob", &format!("guess {number}")).await);
    }
    log_in_from(&app, "192.0.2.99", "bob", "guess")
        .await
        .expect_error(429);
}

#[tokio::test]
async fn equal_logins_at_once_are_one() {
    let nethcti = nethcti().await;
    nethcti.break_at(Step::Login, Fault::Delay(300));
    let app = start(&nethcti).await;
    let phones: Vec<_> = (0..30).map(|n| Phone::new(&format!("p{n}"))).collect();
    let reports = phones.iter().map(async |phone| {
        let report = by(phone, "bob", RIGHT);
        app.report(&report).await.expect_status(200);
    });
    join_all(reports).await;
    assert_eq!(nethcti.logins(), ["bob"]);
}

#[tokio::test]
async fn an_office_may_start_all_its_phones_at_once() {
    let nethcti = nethcti().await;
    nethcti.break_at(Step::Login, Fault::Delay(20));
    let names: Vec<_> = (0..60).map(|number| format!("user{number}")).collect();
    for name in &names {
        nethcti.account(name, RIGHT, json!(true));
        nethcti.user(name, &Value::Null, &Value::Null);
    }
    // Sixty at a time on a busy machine may take longer than the second that other tests give a login.
    let office = builder(&nethcti).api("EXT_AUTH_TIMEOUT_S", "5");
    let app = office.without_worker().start().await;
    let app = &app;
    join_all(names.iter().map(async |name| {
        log_in(app, name, RIGHT).await.expect_status(200);
    }))
    .await;
}

#[tokio::test]
async fn no_secret_is_logged_at_the_finest_level() {
    let nethcti = nethcti().await;
    let app = builder(&nethcti)
        .unset("LOGLEVEL")
        .both("RUST_LOG", "trace,hyper=trace")
        .start()
        .await;
    let phone = Phone::seed();
    app.report(&by(&phone, "bob", RIGHT))
        .await
        .expect_status(200);
    app.pusher_set(&phone).await;
    let in_form = [
        ("selector", "s"),
        ("username", "mallory-the-intruder"),
        ("password", WRONG),
    ];
    refused(app.report_form(&in_form).await);
    refused(app.report_query(&in_form).await);
    refused(app.removal_query(&in_form).await);
    refused(log_in(&app, "mallory-the-intruder", WRONG).await);
    for (step, fault) in [
        (Step::Login, Fault::Garbage),
        (Step::Login, Fault::Reset),
        (Step::Chat, Fault::Garbage),
        (Step::Chat, Fault::Hang),
    ] {
        nethcti.repair().await;
        nethcti.break_at(step, fault);
        let reply = log_in(&app, "alice", RIGHT).await;
        assert!(reply.status >= 500, "{reply:?}");
        assert!(!reply.text.contains(RIGHT) && !reply.text.contains(SIGNATURE));
    }
    let query = [("selector", "s"), ("username", "bob"), ("password", RIGHT)];
    app.report_query(&query).await.expect_status(200);
    let metrics = send(app.admin_bare(Method::GET, "/metrics")).await;
    let log = format!("{}{}{}", app.api().log(), app.worker().log(), metrics.text);
    for secret in [RIGHT, WRONG, SIGNATURE, "mallory-the-intruder", "Bearer"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
    assert!(
        log.contains("TRACE"),
        "the log is not as fine as it should be"
    );
}

#[tokio::test]
async fn credentials_in_a_query_work() {
    let nethcti = nethcti().await;
    let app = start(&nethcti).await;
    let query = [
        ("selector", "s"),
        ("username", " bob "),
        ("password", RIGHT),
    ];
    app.report_query(&query).await.expect_status(200);
    app.removal_query(&query).await.expect_status(200);
}

#[tokio::test]
async fn wrong_proxies_stop_the_api() {
    let folder = folder();
    for list in ["proxy.example.org", "10.0.0.0/33", "*"] {
        let file = folder.path().join("x.db");
        let mut env = Env::new();
        env.insert(
            "DATABASE_URL".into(),
            format!("sqlite://{}", file.display()),
        );
        env.insert("TRUSTED_PROXIES".into(), list.into());
        let output = Program::Api.run(&[], &env).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("TRUSTED_PROXIES: "), "{said}");
    }
}
