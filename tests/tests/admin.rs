//! The operator's side: admin endpoints, health, metrics and the commands of both binaries.

use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::fixtures::{ALICE, BOB, MALLORY, Phone, capture, message};
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::http::{segment, send};
use matrix2acrobits_tests::process::{Env, Program};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const MAPPINGS: &str = "/api/internal/mappings";
const TOKENS: &str = "/api/internal/push_tokens";
const PUSHERS: &str = "/api/internal/pushers";

/// Runs a command; its exit code and what it wrote to standard output.
async fn run(program: Program, args: &[&str], env: &Env) -> (Option<i32>, String) {
    let output = program.run(args, env).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

fn selectors(list: &Value) -> Vec<String> {
    let rows = list["push_tokens"].as_array().cloned().unwrap_or_default();
    let selector = |row: &Value| row["selector"].as_str().unwrap_or_default().to_owned();
    rows.iter().map(selector).collect()
}

#[tokio::test]
async fn without_an_admin_token_admin_calls_are_403_and_health_is_open() {
    let app = App::builder().unset("ADMIN_TOKEN").start().await;
    for (method, path) in [
        (Method::GET, MAPPINGS),
        (Method::PUT, "/api/internal/mappings/s"),
        (Method::GET, TOKENS),
        (Method::DELETE, "/api/internal/push_tokens?confirm=all"),
        (Method::GET, PUSHERS),
        (Method::POST, "/api/internal/replay"),
    ] {
        let request = app.admin_bare(method, path).json(&json!({"user_id": BOB}));
        send(request).await.expect_error(403);
    }
    for path in ["/health/live", "/health/ready", "/metrics"] {
        send(app.admin_bare(Method::GET, path))
            .await
            .expect_status(200);
        send(app.worker_admin(Method::GET, path))
            .await
            .expect_status(200);
    }
}

#[tokio::test]
async fn a_missing_or_wrong_admin_token_changes_nothing() {
    let app = App::builder().without_worker().start().await;
    let almost = &ADMIN_TOKEN[..ADMIN_TOKEN.len() - 1];
    let path = "/api/internal/mappings/s";
    let put = || {
        app.admin_bare(Method::PUT, path)
            .json(&json!({"user_id": BOB}))
    };
    for request in [
        put(),
        put().bearer_auth("wrong"),
        put().bearer_auth(almost),
        put().bearer_auth(""),
        put().header("X-Super-Admin-Token", "wrong"),
        put().header("X-Forwarded-For", "127.0.0.1"),
        put().header("Authorization", format!("Basic {ADMIN_TOKEN}")),
    ] {
        let reply = send(request).await;
        assert!(matches!(reply.status, 401 | 403), "{reply:?}");
        let status = reply.status;
        reply.expect_error(status);
    }
    let list = app
        .admin(Method::GET, MAPPINGS, None)
        .await
        .expect_status(200);
    assert_eq!(list.json()["mappings"], json!([]));
    let legacy = put().header("X-Super-Admin-Token", ADMIN_TOKEN);
    let status = send(legacy).await.status;
    assert!(matches!(status, 200 | 201 | 204), "{status}");
}

#[tokio::test]
async fn a_body_needs_no_content_type_and_bearer_has_no_case() {
    let app = App::builder().without_worker().start().await;
    let path = "/api/internal/mappings/s";
    let body = json!({"user_id": BOB}).to_string();
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let request = app
            .admin_bare(Method::PUT, path)
            .header("Authorization", format!("{scheme} {ADMIN_TOKEN}"));
        for content_type in [None, Some("application/json"), Some("text/plain")] {
            let request = request.try_clone().unwrap().body(body.clone());
            let request = match content_type {
                Some(content_type) => request.header("Content-Type", content_type),
                None => request,
            };
            send(request).await.expect_status(200);
        }
        for bad in ["", "{", "[]", r#"{"user_id": 1}"#] {
            let request = request.try_clone().unwrap().body(bad);
            send(request).await.expect_error(400);
        }
    }
}

#[tokio::test]
async fn a_user_of_another_server_is_mapped_only_where_ours_is_not_stated() {
    let path = "/api/internal/mappings/s";
    let foreign = json!({"user_id": "@bob:evil.org"});
    let app = App::builder().without_worker().start().await;
    let reply = app.admin(Method::PUT, path, Some(foreign.clone())).await;
    let reply = reply.expect_error(400);
    assert!(reply.text.contains("MATRIX_SERVER_NAME"), "{}", reply.text);
    app.admin(Method::GET, path, None).await.expect_error(404);
    app.map("s", BOB).await;
    let file = app.file.with_file_name("mappings.csv");
    std::fs::write(&file, "a,@bob:evil.org\nb,@bob:example.org\n").unwrap();
    let import = ["mappings", "import", file.to_str().unwrap()];
    let (code, text) = run(Program::Api, &import, &app.api_env).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("@bob:evil.org is of another server"),
        "{text}"
    );
    app.admin(Method::GET, "/api/internal/mappings/a", None)
        .await
        .expect_error(404);
    app.admin(Method::GET, "/api/internal/mappings/b", None)
        .await
        .expect_status(200);

    // The host of the homeserver's URL says nothing for sure.
    let app = App::builder()
        .without_worker()
        .unset("MATRIX_SERVER_NAME")
        .api("MATRIX_HOMESERVER_URL", "http://127.0.0.1:9")
        .start()
        .await;
    app.admin(Method::PUT, path, Some(foreign))
        .await
        .expect_status(200);
}

#[tokio::test]
async fn the_public_listener_has_no_admin() {
    let app = App::builder().without_worker().start().await;
    send(app.public(Method::GET, "/health"))
        .await
        .expect_status(200);
    for path in [
        MAPPINGS,
        TOKENS,
        PUSHERS,
        "/metrics",
        "/health/ready",
        "/health/live",
    ] {
        let request = app.public(Method::GET, path).bearer_auth(ADMIN_TOKEN);
        send(request).await.expect_error(404);
    }
}

#[tokio::test]
async fn mappings_are_made_listed_changed_and_removed() {
    let app = App::builder().without_worker().start().await;
    let selector = "12869E0E/6E55 36?:ä";
    let path = format!("{MAPPINGS}/{}", segment(selector));
    app.admin(Method::GET, &path, None).await.expect_error(404);
    for user in [BOB, ALICE] {
        app.map(selector, user).await;
        let one = app
            .admin(Method::GET, &path, None)
            .await
            .expect_status(200)
            .json();
        assert_eq!(one["user_id"], json!(user));
        let list = app
            .admin(Method::GET, MAPPINGS, None)
            .await
            .expect_status(200)
            .json();
        let rows = list["mappings"].as_array().map_or(0, Vec::len);
        assert_eq!(rows, 1, "{list}");
        assert_eq!(list["mappings"][0]["selector"], json!(selector));
        assert_eq!(list["mappings"][0]["user_id"], json!(user));
    }
    for body in [
        json!({}),
        json!({"user_id": "bob"}),
        json!({"user_id": "@bob"}),
        json!({"user_id": ""}),
        json!({"user_id": 1}),
        json!([]),
    ] {
        app.admin(Method::PUT, &path, Some(body))
            .await
            .expect_error(400);
    }
    let gone = app.admin(Method::DELETE, &path, None).await;
    assert!(matches!(gone.status, 200 | 204), "{gone:?}");
    app.admin(Method::GET, &path, None).await.expect_error(404);
}

#[tokio::test]
async fn tokens_are_paged_and_shown_only_on_request() {
    let app = App::builder().without_worker().start().await;
    let phones: Vec<_> = (0..7).map(|n| Phone::new(&format!("page-{n}"))).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    let hidden = app
        .admin(Method::GET, TOKENS, None)
        .await
        .expect_status(200);
    assert_eq!(selectors(&hidden.json()).len(), 7);
    let shown = app
        .admin(Method::GET, &format!("{TOKENS}?reveal=true"), None)
        .await;
    for phone in &phones {
        assert!(!hidden.text.contains(&phone.token), "{}", hidden.text);
        assert!(shown.text.contains(&phone.token), "{}", shown.text);
    }

    let mut found = Vec::new();
    let mut path = format!("{TOKENS}?limit=3");
    loop {
        let page = app
            .admin(Method::GET, &path, None)
            .await
            .expect_status(200)
            .json();
        let on_page = selectors(&page);
        assert!((1..=3).contains(&on_page.len()), "{page}");
        found.extend(on_page);
        let next = match &page["next"] {
            Value::Null => break,
            Value::String(next) => next.clone(),
            next => next.to_string(),
        };
        path = format!("{TOKENS}?limit=3&after={}", segment(&next));
    }
    found.sort();
    let all: Vec<_> = phones.iter().map(|phone| phone.selector.clone()).collect();
    assert_eq!(found, all);
}

#[tokio::test]
async fn tokens_are_deleted_with_their_pushers() {
    let app = App::start().await;
    let phones = ["a", "b", "c"].map(Phone::new);
    app.enroll(&phones.each_ref()).await;
    app.pushers_are(BOB, &phones.each_ref()).await;
    let one = format!("{TOKENS}/{}", segment(&phones[0].selector));
    let reply = app.admin(Method::DELETE, &one, None).await;
    assert!(matches!(reply.status, 200 | 204), "{reply:?}");
    app.pushers_are(BOB, &[&phones[1], &phones[2]]).await;

    // All of them only when asked so.
    for path in [TOKENS, "/api/internal/push_tokens?confirm=yes"] {
        app.admin(Method::DELETE, path, None)
            .await
            .expect_error(400);
    }
    app.settled().await;
    app.pushers_are(BOB, &[&phones[1], &phones[2]]).await;
    let all = app
        .admin(Method::DELETE, &format!("{TOKENS}?confirm=all"), None)
        .await;
    assert!(matches!(all.status, 200 | 204), "{all:?}");
    app.pushers_are(BOB, &[]).await;
    let reply = app
        .notify(&message("$1", &[phones[1].device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [phones[1].token]}));
}

#[tokio::test]
async fn pushers_are_listed_by_state_and_replayed() {
    let app = App::start().await;
    let (good, bad) = (Phone::new("good"), Phone::new("bad").of(MALLORY));
    app.enroll(&[&good, &bad]).await;
    app.pusher_set(&good).await;
    app.dead_letters(1).await;
    app.settled().await;
    for (state, users) in [
        ("registered", vec![BOB]),
        ("failed", vec![MALLORY]),
        ("pending", vec![]),
        ("removed", vec![]),
    ] {
        let path = format!("{PUSHERS}?state={state}");
        let list = app.admin(Method::GET, &path, None).await.expect_status(200);
        let rows = list.json()["pushers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let found: Vec<_> = rows.iter().map(|row| row["user_id"].clone()).collect();
        assert_eq!(json!(found), json!(users), "{state}: {}", list.text);
        assert!(!list.text.contains("APA91b-"), "{}", list.text);
    }
    for all in ["", "?state=", "?state=all"] {
        let path = format!("{PUSHERS}{all}");
        let list = app
            .admin(Method::GET, &path, None)
            .await
            .expect_status(200)
            .json();
        assert_eq!(list["pushers"].as_array().map(Vec::len), Some(2), "{all}");
    }
    app.admin(Method::GET, &format!("{PUSHERS}?state=nonsense"), None)
        .await
        .expect_error(400);

    app.homeserver.register(&[MALLORY]);
    let replay = app
        .admin(
            Method::POST,
            "/api/internal/replay",
            Some(json!({"dead": true})),
        )
        .await;
    assert!(matches!(replay.status, 200 | 202), "{replay:?}");
    app.pushers_are(MALLORY, &[&bad]).await;
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    let requests = [
        app.admin_bare(Method::GET, "/metrics"),
        app.worker_admin(Method::GET, "/metrics"),
    ];
    for request in requests {
        let reply = send(request).await.expect_status(200);
        assert!(reply.header("content-type").starts_with("text/plain"));
        assert!(reply.text.contains("# TYPE "), "{}", reply.text);
        assert!(!reply.text.contains(&phone.token));
        assert!(!reply.text.contains(&phone.selector));
    }
}

#[tokio::test]
async fn healthcheck_tells_a_running_process_from_none() {
    let mut app = App::start().await;
    let admin = |url: String| url.trim_start_matches("http://").to_owned();
    let addresses = [
        (Program::Api, admin(app.api().admin_url())),
        (Program::Worker, admin(app.worker().admin_url())),
    ];
    let env = |address: &str| Env::from([("ADMIN_LISTEN_ADDR".to_owned(), address.to_owned())]);
    for (program, address) in &addresses {
        let (code, text) = run(*program, &["healthcheck"], &env(address)).await;
        assert_eq!(code, Some(0), "{program:?}: {text}");
    }
    app.api_mut().kill().await;
    app.worker_mut().kill().await;
    for (program, address) in &addresses {
        let (code, _) = run(*program, &["healthcheck"], &env(address)).await;
        assert_eq!(code, Some(1), "{program:?}");
    }
}

#[tokio::test]
async fn the_api_prints_its_registration() {
    let env = Env::from([("MATRIX_SERVER_NAME".to_owned(), "example.org".to_owned())]);
    let (code, yaml) = run(Program::Api, &["registration"], &env).await;
    assert_eq!(code, Some(0), "{yaml}");
    for line in [
        "id:",
        "url: null",
        "as_token:",
        "hs_token:",
        "sender_localpart:",
        "rate_limited: false",
        "namespaces:",
        "exclusive: false",
        "example\\.org",
    ] {
        assert!(yaml.contains(line), "no {line} in:\n{yaml}");
    }
}

#[tokio::test]
async fn a_job_that_has_begun_is_listed_as_in_a_workers_hands() {
    let mut app = App::start().await;
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    app.enroll(&[&Phone::new("held"), &Phone::new("begun")])
        .await;
    let (table, state) = if app.database.is_postgres() {
        ("jobs", "state")
    } else {
        ("Jobs", "status")
    };
    for (pusher, name) in [(1, "Queued"), (2, "Running")] {
        let sql = format!("UPDATE {table} SET {state} = '{name}' WHERE pusher_id = {pusher}");
        app.database.meddle(&sql).await;
    }
    let arguments = ["jobs", "--state", "queued"];
    let (code, text) = run(Program::Worker, &arguments, &app.worker_env).await;
    assert_eq!(code, Some(0), "{text}");
    for part in ["Queued", "Running", "2 jobs"] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
}

#[tokio::test]
async fn jobs_are_shown_and_replayed_on_the_command_line() {
    let app = App::start().await;
    let (dead, waiting) = (
        Phone::new("dead").of(MALLORY),
        Phone::new("waiting").of(ALICE),
    );
    app.homeserver.break_for(ALICE, Fault::Status(500));
    app.enroll(&[&dead, &waiting]).await;
    app.dead_letters(1).await;
    eventually(SOON, "a failed attempt", async || {
        let row = app.database.pusher(&waiting.token).await;
        row.is_some_and(|row| row.attempts > 0)
    })
    .await;
    // Commands use only the settings that they need.
    let env = Env::from([(
        "DATABASE_URL".to_owned(),
        app.worker_env["DATABASE_URL"].clone(),
    )]);
    let (code, text) = run(Program::Worker, &["jobs"], &env).await;
    assert_eq!(code, Some(0));
    for part in [MALLORY, ALICE, "M_FORBIDDEN"] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    assert!(!text.contains(&dead.token), "{text}");
    let (code, text) = run(Program::Worker, &["jobs", "--json"], &env).await;
    let list: Value = serde_json::from_str(&text).unwrap_or_default();
    assert_eq!(
        (code, list.as_array().map(Vec::len)),
        (Some(0), Some(2)),
        "{text}"
    );
    let (_, text) = run(
        Program::Worker,
        &["jobs", "--json", "--state", "Killed"],
        &env,
    )
    .await;
    assert!(text.contains(MALLORY) && !text.contains(ALICE), "{text}");

    let (code, _) = run(Program::Worker, &["replay"], &env).await;
    assert_eq!(code, Some(2), "replay must be told what");
    app.homeserver.register(&[MALLORY]);
    let (code, text) = run(Program::Worker, &["replay", "--dead"], &env).await;
    assert_eq!(code, Some(0), "{text}");
    app.pushers_are(MALLORY, &[&dead]).await;

    app.homeserver.repair().await;
    app.pushers_are(ALICE, &[&waiting]).await;
    // A homeserver that lost its database gets everything again.
    for (arguments, user, phone) in [
        (vec!["replay", "--user", ALICE], ALICE, &waiting),
        (vec!["replay", "--all"], MALLORY, &dead),
        (vec!["replay", "--since", "1h"], MALLORY, &dead),
    ] {
        app.homeserver.forget(&phone.token);
        let (code, text) = run(Program::Worker, &arguments, &env).await;
        assert_eq!(code, Some(0), "{arguments:?}: {text}");
        app.pushers_are(user, &[phone]).await;
    }
}

#[tokio::test]
async fn the_application_service_endpoints_need_their_token() {
    let transaction = capture("as_transaction");
    let paths = [
        (Method::PUT, "/_matrix/app/v1/transactions/7", 200),
        (Method::POST, "/_matrix/app/v1/ping", 200),
        (Method::GET, "/_matrix/app/v1/users/@bob:example.org", 404),
        (
            Method::GET,
            "/_matrix/app/v1/rooms/%23room:example.org",
            404,
        ),
    ];
    let closed = App::builder().without_worker().start().await;
    let open = App::builder()
        .without_worker()
        .api("MATRIX_HS_TOKEN", "hs-secret")
        .start()
        .await;
    for (method, path, status) in paths {
        let request = closed.public(method.clone(), path).json(&transaction);
        send(request.bearer_auth("hs-secret"))
            .await
            .expect_error(404);
        let request = open.public(method.clone(), path).json(&transaction);
        send(request.bearer_auth("wrong")).await.expect_error(403);
        let request = open.public(method.clone(), path).json(&transaction);
        let any_case = request.header("Authorization", "bearer hs-secret");
        send(any_case).await.expect_status(status);
        let request = open.public(method, path).json(&transaction);
        let reply = send(request.bearer_auth("hs-secret"))
            .await
            .expect_status(status);
        if status == 200 {
            assert_eq!(reply.json(), json!({}));
        } else {
            assert_eq!(reply.errcode(), "M_NOT_FOUND");
        }
    }
    assert!(!open.api().log().contains("hello AS"));
}
