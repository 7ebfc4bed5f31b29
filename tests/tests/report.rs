//! Token and removal reports: what a phone may send, what it is answered, and what comes of it.

use std::time::Duration;

use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::fixtures::{APP_ID, BOB, Phone, message};
use matrix2acrobits_tests::http::{encoded, send};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const REPORT: &str = "/api/client/push_token_report";
const REMOVAL: &str = "/api/client/account_removal_report";

#[tokio::test]
async fn a_report_sets_exactly_this_pusher() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.map(&phone.selector, BOB).await;
    let reply = app.report(&phone.report()).await.expect_status(200);
    assert_eq!(reply.json(), json!({}));
    app.pusher_set(&phone).await;

    let sets = app.homeserver.sets();
    assert_eq!(sets.len(), 1, "{sets:?}");
    assert_eq!(sets[0].user_id.as_deref(), Some(BOB));
    let expected = json!({
        "app_display_name": APP_ID,
        "app_id": APP_ID,
        "append": false,
        "device_display_name": "Acrobits Softphone",
        "kind": "http",
        "lang": "en",
        "pushkey": phone.token,
        "data": {
            "format": "event_id_only",
            "url": "https://matrix-proxy.example.com/_matrix/push/v1/notify",
            "selector": phone.selector,
            "mark": app.database.mark_key().await.mark(&phone.token),
        },
    });
    assert_eq!(sets[0].body, expected);
}

#[tokio::test]
async fn every_spelling_works_in_json_form_and_query() {
    let app = App::start().await;
    let tokens = ["token_msgs", "pushTokenOther", "pushToken"];
    let apps = [
        "app_id_msgs",
        "appid_msgs",
        "appId_msgs",
        "pushappid_other",
        "pushappid",
    ];
    let spellings = tokens
        .map(|token| (token, "app_id_msgs"))
        .into_iter()
        .chain(apps.map(|app| ("pushTokenOther", app)));
    let mut phones = Vec::new();
    for (number, (token, app_id)) in spellings.enumerate() {
        for way in ["json", "form", "query"] {
            let mut phone = Phone::new(&format!("{way}-{number}"));
            phone.app_id = format!("com.example.{app_id}");
            app.map(&phone.selector, BOB).await;
            // Values carry stray spaces in the field.
            let (selector, key) = (
                format!(" {} ", phone.selector),
                format!("{}\n", phone.token),
            );
            let fields = [
                ("selector", &*selector),
                (token, &*key),
                (app_id, &*phone.app_id),
            ];
            let reply = match way {
                "json" => app.report(&Value::from_iter(fields)).await,
                "form" => app.report_form(&fields).await,
                _ => app.report_query(&fields).await,
            };
            assert_eq!(reply.expect_status(200).json(), json!({}));
            phones.push(phone);
        }
    }
    let all: Vec<_> = phones.iter().collect();
    app.pushers_are(BOB, &all).await;
    let pushers = app.homeserver.pushers();
    for phone in phones {
        let own = pushers.iter().find(|p| p.pushkey == phone.token);
        let found = own.map(|p| (p.app_id.clone(), p.body["data"]["selector"].clone()));
        assert_eq!(found, Some((phone.app_id, json!(phone.selector))));
    }
}

#[tokio::test]
async fn calls_are_stored_and_shown_to_the_operator() {
    let app = App::builder().without_worker().start().await;
    for (number, (token, app_id)) in [
        ("token_calls", "app_id_calls"),
        ("pushTokenIncomingCall", "appid_calls"),
        ("pushTokenIncomingCall", "appId_calls"),
        ("token_calls", "pushappid_incoming_call"),
    ]
    .into_iter()
    .enumerate()
    {
        let (selector, key) = (format!("s{number}"), format!("ring-{number}"));
        let id = format!("voip-{number}");
        let fields = [("selector", &*selector), (token, &*key), (app_id, &*id)];
        app.report(&Value::from_iter(fields))
            .await
            .expect_status(200);
        let shown = app
            .admin(Method::GET, "/api/internal/push_tokens?reveal=true", None)
            .await
            .expect_status(200);
        assert!(shown.text.contains(&key), "{}", shown.text);
        assert!(shown.text.contains(&id), "{}", shown.text);
    }
}

/// Field cases 5, 9 and 10: bodies as phones send them, whatever their type says.
#[tokio::test]
async fn bodies_from_the_field_set_the_pusher() {
    let app = App::start().await;
    let cases = [
        (
            "pushTokenOther=uYk+a9Zx+Q/==&pushappid_other=com.x",
            "uYk+a9Zx+Q/==",
        ),
        ("token=tok1&appid=com.x", "tok1"),
        ("amp;token_msgs=tok2&amp;app_id_msgs=com.x", "tok2"),
        ("pushToken=+tok3+&pushappid=+com.x%20", "tok3"),
    ];
    for (number, (fields, token)) in cases.into_iter().enumerate() {
        for (kind, content_type) in [
            ("form", Some("application/x-www-form-urlencoded")),
            ("text", Some("text/plain; charset=utf-8")),
            ("none", None),
            ("query", None),
        ] {
            let phone = Phone::new(&format!("{kind}-{number}")).with_token(token);
            app.map(&phone.selector, BOB).await;
            let sent = format!("selector={}&{fields}", phone.selector);
            let request = match (kind, content_type) {
                ("query", _) => app.public(Method::GET, &format!("{REPORT}?{sent}")),
                (_, Some(kind)) => app
                    .public(Method::POST, REPORT)
                    .header("content-type", kind)
                    .body(sent),
                (_, None) => app.public(Method::POST, REPORT).body(sent),
            };
            send(request).await.expect_status(200);
            eventually(SOON, &format!("a pusher for {kind} {fields}"), async || {
                let pushers = app.homeserver.pushers();
                pushers.iter().any(|pusher| pusher.pushkey == token)
            })
            .await;
            app.removal(&json!({"selector": phone.selector}))
                .await
                .expect_status(200);
            app.pushers_are(BOB, &[]).await;
        }
    }
}

/// Field case 10: a template with mistyped names.
#[tokio::test]
async fn a_report_without_a_token_is_answered_and_said() {
    let app = App::builder().without_worker().start().await;
    let fields = [
        ("selector", "s"),
        ("pushtoken_messages", "secret-token"),
        ("password", "secret-password"),
    ];
    let reply = app.report_form(&fields).await.expect_status(200);
    assert_eq!(reply.json(), json!({}));
    let said = app.api().log_lines("holds no token");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("WARN") && said[0].contains("pushtoken_messages"));
    let page = app.admin_bare(Method::GET, "/").bearer_auth(ADMIN_TOKEN);
    let page = send(page).await.expect_status(200).text;
    assert!(
        page.contains("selector, pushtoken_messages, password"),
        "{page}"
    );
    for text in [page, app.api().log()] {
        assert!(!text.contains("secret-"), "a value in {text}");
    }
    app.report(&Phone::seed().report()).await.expect_status(200);
    assert_eq!(app.api().log_lines("holds no token").len(), 1);
}

/// Field case 15.
#[tokio::test]
async fn a_removal_with_a_device_finds_the_phone_that_reported_without_one() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let mut removal = json!({"selector": phone.selector, "device": "d", "token_msgs": "another"});
    app.removal(&removal).await.expect_status(200);
    assert_eq!(app.database.count("push_tokens").await, 1);
    removal["token_msgs"] = json!(phone.token);
    app.removal(&removal).await.expect_status(200);
    assert_eq!(app.database.count("push_tokens").await, 0);
    app.pushers_are(BOB, &[]).await;
}

#[tokio::test]
async fn a_removal_of_an_older_token_leaves_the_newer_phone_alone() {
    let app = App::start().await;
    let old = Phone::seed();
    let new = old.clone().with_token("newer-token");
    app.enroll(&[&old]).await;
    app.enroll(&[&new]).await;
    app.pushers_are(BOB, &[&new]).await;
    let mut removal = json!({"selector": old.selector, "token_msgs": old.token});
    app.removal(&removal).await.expect_status(200);
    app.settled().await;
    app.pushers_are(BOB, &[&new]).await;
    assert_eq!(app.database.count("push_tokens").await, 1);
    removal["token_msgs"] = json!("newer-token");
    app.removal(&removal).await.expect_status(200);
    app.pushers_are(BOB, &[]).await;
    assert_eq!(app.database.count("push_tokens").await, 0);
}

#[tokio::test]
async fn absent_and_unfilled_values_leave_what_is_stored() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    for body in [
        json!({"selector": phone.selector}),
        json!({"selector": phone.selector, "token_msgs": "%pushTokenOther%", "app_id_msgs": "%pushappid_other%"}),
        json!({"selector": phone.selector, "token_msgs": null, "app_id_msgs": null}),
        json!({"selector": phone.selector, "token_calls": "new-calls", "app_id_calls": "voip"}),
    ] {
        let reply = app.report(&body).await.expect_status(200);
        assert_eq!(reply.json(), json!({}), "{body}");
    }
    app.settled().await;
    app.pushers_are(BOB, &[&phone]).await;
    assert_eq!(app.homeserver.sets().len(), 1);
    assert_eq!(app.database.count("push_tokens").await, 1);
}

/// The template of the URL is right, and the one of the body has holes.
#[tokio::test]
async fn an_unfilled_placeholder_in_the_body_hides_no_value_of_the_query() {
    let app = App::start().await;
    let phone = Phone::seed();
    let mut others = phone.report();
    app.map(&phone.selector, BOB).await;
    others["token_msgs"] = json!("another-phone");
    others["device"] = json!("d2");
    app.report(&others).await.expect_status(200);
    let report = app.public(
        Method::POST,
        &format!("{REPORT}?token_msgs={}", phone.token),
    );
    let body = json!({"selector": phone.selector, "device": "d1",
        "token_msgs": "%pushTokenOther%", "app_id_msgs": phone.app_id});
    send(report.json(&body)).await.expect_status(200);
    let both = [&phone, &phone.clone().with_token("another-phone")];
    app.pushers_are(BOB, &both).await;

    let removal = app.public(Method::POST, &format!("{REMOVAL}?device=d1"));
    let body = json!({"selector": phone.selector, "device": "%installid%"});
    send(removal.json(&body)).await.expect_status(200);
    app.pushers_are(BOB, &both[1..]).await;
    assert_eq!(app.database.count("push_tokens").await, 1);
}

#[tokio::test]
async fn an_empty_token_clears_it_and_removes_the_pusher() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let cleared = json!({"selector": phone.selector, "token_msgs": "", "app_id_msgs": ""});
    app.report(&cleared).await.expect_status(200);
    app.pushers_are(BOB, &[]).await;
    // Another token keeps the database from being one that never held any.
    app.report(&Phone::new("other").report())
        .await
        .expect_status(200);
    let reply = app
        .notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [phone.token]}));
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused_with_our_error() {
    let app = App::builder().without_worker().start().await;
    let long = |count: usize| "x".repeat(count);
    for body in [
        json!({}),
        json!({"token_msgs": "t", "app_id_msgs": "a"}),
        json!({"selector": "", "token_msgs": "t", "app_id_msgs": "a"}),
        json!({"selector": "   ", "token_msgs": "t", "app_id_msgs": "a"}),
        json!({"selector": "%selector%", "token_msgs": "t", "app_id_msgs": "a"}),
        json!({"selector": long(257), "token_msgs": "t", "app_id_msgs": "a"}),
        json!({"selector": "s", "token_msgs": long(513), "app_id_msgs": "a"}),
        json!({"selector": "s", "token_msgs": "ä".repeat(257), "app_id_msgs": "a"}),
        json!({"selector": "s", "token_msgs": "t", "app_id_msgs": long(65)}),
        json!({"selector": "s", "token_msgs": "t"}),
        json!({"selector": "s", "token_msgs": "t", "app_id_msgs": ""}),
        json!([]),
        json!("text"),
    ] {
        app.report(&body).await.expect_error(400);
    }
    assert_eq!(app.database.count("push_tokens").await, 0);
    let longest = json!({
        "selector": long(256),
        "token_msgs": long(512),
        "app_id_msgs": "ä".repeat(64),
    });
    app.report(&longest).await.expect_status(200);
    assert_eq!(app.database.count("push_tokens").await, 1);
}

#[tokio::test]
async fn no_input_makes_a_server_error() {
    let app = App::builder().without_worker().start().await;
    let json = "application/json";
    let form = "application/x-www-form-urlencoded";
    let nested = "[".repeat(5000);
    let bodies: [(&str, &[u8]); 14] = [
        (json, b""),
        (json, b"{"),
        (json, b"null"),
        (json, b"\xff\xfe"),
        (json, nested.as_bytes()),
        (json, br#"{"selector":1}"#),
        (json, br#"{"selector":{"a":[]},"token_msgs":true}"#),
        (json, br#"{"selector":"s","token_msgs":5,"app_id_msgs":[]}"#),
        (json, br#"{"selector":"s\u0000","token_msgs":"\ud800"}"#),
        (json, br#"{"selector":"s","selector":"t"}"#),
        (form, b"%"),
        (form, b"&&==&selector=%ff%fe&selector=2"),
        ("text/plain", b"hello"),
        ("multipart/form-data", b"--x"),
    ];
    for path in [REPORT, REMOVAL, "/_matrix/push/v1/notify"] {
        for (kind, body) in bodies {
            let request = app.public(Method::POST, path).header("content-type", kind);
            let reply = send(request.body(body.to_vec())).await;
            assert!(reply.status < 500, "{path} {body:?}: {reply:?}");
            if reply.status != 200 {
                let status = reply.status;
                reply.expect_error(status);
            }
        }
    }
    send(app.public(Method::GET, "/no/such/path"))
        .await
        .expect_error(404);
    send(app.public(Method::DELETE, REPORT))
        .await
        .expect_error(405);
}

#[tokio::test]
async fn asking_for_the_head_alone_changes_nothing() {
    let app = App::builder().without_worker().start().await;
    let [phone, other] = ["there", "not-there"].map(Phone::new);
    app.report(&phone.report()).await.expect_status(200);
    for (path, phone) in [(REPORT, &other), (REMOVAL, &phone)] {
        let query = encoded(&[
            ("selector", &phone.selector),
            ("token_msgs", &phone.token),
            ("app_id_msgs", &phone.app_id),
        ]);
        let path = format!("{path}?{query}");
        let reply = send(app.public(Method::HEAD, &path)).await;
        assert_eq!(reply.status, 405, "{reply:?}");
    }
    assert_eq!(app.database.count("push_tokens").await, 1);
    let reply = app.notify(&message("$1", &[phone.device()])).await;
    assert_eq!(reply.expect_status(200).json(), json!({"rejected": []}));
}

#[tokio::test]
async fn a_large_body_is_refused() {
    let app = App::builder().without_worker().start().await;
    for path in [REPORT, REMOVAL] {
        let body = json!({"selector": "s", "padding": "x".repeat(64 << 10)});
        let reply = send(app.public(Method::POST, path).json(&body))
            .await
            .expect_error(413);
        assert_eq!(reply.errcode(), "M_TOO_LARGE");
    }
    let body = json!({"selector": "s", "padding": "x".repeat(60 << 10)});
    app.report(&body).await.expect_status(200);
}

#[tokio::test]
async fn a_report_without_a_mapping_waits_for_it() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.report(&phone.report()).await.expect_status(200);
    app.settled().await;
    assert!(app.homeserver.sets().is_empty());
    app.map(&phone.selector, BOB).await;
    app.pusher_set(&phone).await;
}

#[tokio::test]
async fn without_a_public_address_tokens_are_kept_and_pushers_wait() {
    let mut app = App::builder().unset("PROXY_URL").start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let push = message("$1", &[phone.device()]);
    app.notify(&push).await.expect_status(200);
    assert_eq!(app.pnm.pushes().len(), 1);
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    assert!(app.homeserver.sets().is_empty());

    app.worker_env
        .insert("PROXY_URL".into(), "https://push.example.org".into());
    app.start_worker().await;
    app.pusher_set(&phone).await;
    let url = &app.homeserver.pushers()[0].body["data"]["url"];
    assert_eq!(url, "https://push.example.org/_matrix/push/v1/notify");
}

#[tokio::test]
async fn two_devices_of_one_account_keep_their_own_rows() {
    let app = App::start().await;
    let phones = ["desk", "pocket"].map(|name| Phone::new(name).with_selector("shared"));
    app.map("shared", BOB).await;
    for (phone, name) in phones.iter().zip(["device", "installid"]) {
        let mut report = phone.report();
        report[name] = json!(phone.token);
        app.report(&report).await.expect_status(200);
    }
    app.pushers_are(BOB, &[&phones[0], &phones[1]]).await;
    assert_eq!(app.database.count("push_tokens").await, 2);
}

#[tokio::test]
async fn a_removed_account_loses_its_tokens_and_its_pusher() {
    let app = App::start().await;
    let phones = ["a", "b"].map(Phone::new);
    app.enroll(&[&phones[0], &phones[1]]).await;
    app.pushers_are(BOB, &[&phones[0], &phones[1]]).await;
    let reply = app
        .removal(&json!({"selector": phones[0].selector}))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({}));
    app.pushers_are(BOB, &[&phones[1]]).await;
    let reply = app
        .notify(&message("$1", &[phones[0].device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [phones[0].token]}));
    assert!(app.pnm.pushes().is_empty());

    app.removal_query(&[("selector", &phones[1].selector)])
        .await
        .expect_status(200);
    app.pushers_are(BOB, &[]).await;
    // It may come back.
    app.report(&phones[0].report()).await.expect_status(200);
    app.pushers_are(BOB, &[&phones[0]]).await;
}

#[tokio::test]
async fn removing_what_is_unknown_is_fine() {
    let app = App::builder().without_worker().start().await;
    let reply = app
        .removal(&json!({"selector": "nobody"}))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({}));
    let form = send(
        app.public(Method::POST, REMOVAL)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(encoded(&[("selector", "nobody")])),
    );
    form.await.expect_status(200);
    app.removal(&json!({})).await.expect_error(400);
}

#[tokio::test]
async fn a_locked_database_is_503_and_the_next_report_works() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.map(&phone.selector, BOB).await;
    let lock = app.database.lock().await;
    let reply = app.report(&phone.report()).await.expect_error(503);
    assert!(reply.took < Duration::from_secs(12), "{:?}", reply.took);
    drop(lock);
    eventually(SOON, "a report is taken again", async || {
        app.report(&phone.report()).await.status == 200
    })
    .await;
    app.pusher_set(&phone).await;
}

#[tokio::test]
async fn a_broken_database_is_503_and_says_nothing_of_it() {
    let app = App::builder().without_worker().start().await;
    app.report(&Phone::new("first").report())
        .await
        .expect_status(200);
    app.database
        .meddle("ALTER TABLE push_tokens RENAME TO hidden")
        .await;
    let phone = Phone::seed();
    for reply in [
        app.report(&phone.report()).await,
        app.removal(&phone.report()).await,
        app.notify(&message("$1", &[phone.device()])).await,
    ] {
        let reply = reply.expect_error(503);
        assert!(!reply.text.contains("table"), "{}", reply.text);
    }
    app.database
        .meddle("ALTER TABLE hidden RENAME TO push_tokens")
        .await;
    app.report(&phone.report()).await.expect_status(200);
}

#[tokio::test]
async fn an_address_adds_only_so_many_selectors_that_are_mapped_to_nobody() {
    let app = App::builder()
        .api("NEW_SELECTORS_PER_HOUR", "3")
        .api("TRUSTED_PROXIES", "127.0.0.1")
        .without_worker()
        .start()
        .await;
    let from = async |address: &str, phone: &Phone| {
        let request = app.public(Method::POST, "/api/client/push_token_report");
        let request = request.header("X-Forwarded-For", address);
        send(request.json(&phone.report())).await
    };
    let phones: Vec<_> = (0..6).map(|n| Phone::new(&format!("p{n}"))).collect();
    for phone in &phones[..3] {
        from("192.0.2.1", phone).await.expect_status(200);
    }
    let reply = from("192.0.2.1", &phones[3]).await.expect_error(429);
    assert_eq!(reply.errcode(), "M_LIMIT_EXCEEDED");
    let wait = reply.header("retry-after").parse::<u64>();
    assert!(wait.is_ok_and(|wait| (1..=1200).contains(&wait)));
    assert_eq!(app.database.count("push_tokens").await, 3);

    // Those that are known, those that are mapped, and those from elsewhere are let in.
    let renewed = phones[0].clone().with_token("renewed");
    from("192.0.2.1", &renewed).await.expect_status(200);
    app.map(&phones[4].selector, BOB).await;
    from("192.0.2.1", &phones[4]).await.expect_status(200);
    from("192.0.2.2", &phones[5]).await.expect_status(200);
    assert_eq!(app.database.count("push_tokens").await, 5);
    let said = app.api().log_lines("TRUSTED_PROXIES");
    assert_eq!(said.len(), 1, "{said:?}");
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let app = App::builder().without_worker().start().await;
    let long = "x".repeat(200 * 1024);
    let request = app.public(Method::POST, "/api/client/push_token_report");
    let reply = send(request.header("x-long", &long)).await;
    assert_eq!(reply.status, 431);
}

#[tokio::test]
async fn head_changes_nothing() {
    let app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    for path in [
        "/api/client/push_token_report?selector=s&token_msgs=t&app_id_msgs=a".to_owned(),
        format!(
            "/api/client/account_removal_report?{}",
            encoded(&[("selector", &phone.selector)])
        ),
    ] {
        let reply = send(app.public(Method::HEAD, &path)).await;
        assert_eq!((reply.status, reply.text.as_str()), (405, ""));
    }
    assert_eq!(app.database.count("push_tokens").await, 1);
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    assert_eq!(app.pnm.pushes().len(), 1);
}
