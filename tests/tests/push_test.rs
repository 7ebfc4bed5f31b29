//! Test pushes: what the operator is told, and that nothing else changes.

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{ALICE, BOB, Phone, message};
use matrix2acrobits_tests::http::{Reply, send};
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::process::Program;
use reqwest::Method;
use serde_json::{Value, json};

use crate::arrival::{command, text};

async fn push_test(app: &App, body: &Value) -> Reply {
    let path = "/api/internal/push_test";
    app.admin(Method::POST, path, Some(body.clone())).await
}

/// What the database knows of phones, tokens and pushers.
async fn stored(app: &App) -> Value {
    let tokens = app.admin(Method::GET, "/api/internal/push_tokens?reveal=true", None);
    let pushers = app.admin(Method::GET, "/api/internal/pushers?reveal=true", None);
    let arrivals = app.database.count("arrivals").await;
    json!([tokens.await.json(), pushers.await.json(), arrivals])
}

#[tokio::test]
async fn a_test_push_goes_to_each_phone_and_changes_nothing() {
    let app = App::start().await;
    let (well, gone) = (Phone::new("well-phone"), Phone::new("gone-phone"));
    app.enroll(&[&well, &gone]).await;
    app.pushers_are(BOB, &[&gone, &well]).await;
    app.settled().await;
    app.pnm.answer_for(&gone.token, Answer::Gone);
    let before = stored(&app).await;

    let reply = push_test(&app, &json!({"user": BOB, "text": "Hi there"})).await;
    let reply = reply.expect_status(200).json();
    let phones = reply["phones"].as_array().unwrap();
    let outcomes: Vec<_> = phones
        .iter()
        .map(|it| it["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes.len(), 2, "{reply}");
    assert!(
        outcomes.contains(&"sent") && outcomes.contains(&"token_gone"),
        "{reply}"
    );
    for phone in [&well, &gone] {
        assert!(!reply.to_string().contains(&phone.token), "{reply}");
        let pushes = app.pnm.pushes_for(&phone.token);
        assert_eq!(pushes.len(), 1);
        let expected = json!({"verb": "NotifyGenericTextMessage", "AppId": phone.app_id,
            "DeviceToken": phone.token, "Sound": "default", "Message": "Hi there"});
        assert_eq!(pushes[0].body, expected);
    }
    assert_eq!(
        stored(&app).await,
        before,
        "a gone token is shown, not acted upon"
    );
    assert!(!app.homeserver.pushkeys_of(BOB).is_empty());
    // The next real push to that phone is tried all the same.
    app.pnm.answer_for(&gone.token, Answer::Ok);
    let notified = app
        .notify(&message("$1", &[gone.device()]))
        .await
        .expect_status(200);
    assert_eq!(notified.json()["rejected"], json!([]));
}

#[tokio::test]
async fn one_test_push_per_token_in_ten_seconds() {
    let app = App::builder().without_worker().start().await;
    let (first, second) = (Phone::new("first"), Phone::new("second"));
    app.enroll(&[&first]).await;
    let to_first = json!({"selector": first.selector, "message": true});
    push_test(&app, &to_first).await.expect_status(200);
    let push = app.pnm.pushes_for(&first.token).remove(0).body;
    assert_eq!(push["verb"], "NotifyTextMessage");
    assert_eq!(push["Selector"], first.selector);
    let reply = push_test(&app, &json!({"user": BOB}))
        .await
        .expect_error(429);
    let wait: u64 = reply.header("retry-after").parse().unwrap();
    assert!((1..=10).contains(&wait), "{wait}");
    // Another phone is not concerned.
    app.enroll(&[&second]).await;
    let reply = push_test(&app, &json!({"user": BOB}))
        .await
        .expect_status(200)
        .json();
    let outcome = |at: usize| reply["phones"][at]["outcome"].as_str().unwrap();
    assert_eq!([outcome(0), outcome(1)], ["limited", "sent"], "{reply}");
    assert_eq!(app.pnm.pushes().len(), 2);
}

#[tokio::test]
async fn a_test_push_needs_somebody() {
    let app = App::builder().without_worker().start().await;
    for body in [json!({"user": ALICE}), json!({"selector": "nobody's"})] {
        let reply = push_test(&app, &body).await.expect_error(404);
        assert_eq!(reply.errcode(), "M_NOT_FOUND");
    }
    for body in [
        json!({}),
        json!({"user": BOB, "selector": "s"}),
        json!({"user": "bob"}),
        json!({"user": 1}),
        json!([]),
    ] {
        push_test(&app, &body).await.expect_error(400);
    }
    let bare = app.admin_bare(Method::POST, "/api/internal/push_test");
    send(bare.json(&json!({"user": BOB})))
        .await
        .expect_error(401);
    let public = app.public(Method::POST, "/api/internal/push_test");
    send(public).await.expect_error(404);
}

#[tokio::test]
async fn the_command_asks_the_running_api() {
    let app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let output = command(&app, &["push-test", "--user", BOB, "--text", "Hello"]).await;
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(
        said.contains(BOB) && said.contains("PNM took the push"),
        "{said}"
    );
    assert!(!said.contains(&phone.token), "{said}");
    assert_eq!(app.pnm.pushes()[0].body["Message"], "Hello");
    for (args, code, words) in [
        (&["push-test", "--user", BOB][..], 1, "429"),
        (&["push-test", "--user", ALICE], 1, "404"),
        (&["push-test", "--user", "bob"], 1, "must look like"),
        (&["push-test"], 2, "--user"),
        (
            &["push-test", "--user", BOB, "--selector", "s"],
            2,
            "--selector",
        ),
    ] {
        let output = command(&app, args).await;
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(words), "{args:?}: {error}");
    }
    let mut env = app.api_env.clone();
    env.remove("ADMIN_TOKEN");
    let output = Program::Api.run(&["push-test", "--user", BOB], &env).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("ADMIN_TOKEN"));
}

#[tokio::test]
async fn a_pnm_that_hangs_is_said_of_each_phone_before_the_request_is_cut() {
    let app = App::builder()
        .without_worker()
        .api("PNM_TIMEOUT", "30s")
        .start()
        .await;
    let phones: Vec<_> = (0..17).map(|n| Phone::new(&format!("phone-{n}"))).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    app.pnm.answer(Answer::Hang).await;
    let reply = push_test(&app, &json!({ "user": BOB }))
        .await
        .expect_status(200)
        .json();
    let tested = reply["phones"].as_array().unwrap();
    let outcomes: Vec<_> = tested.iter().map(|it| &it["outcome"]).collect();
    // Eight at a time: the first two lots used up the time.
    assert_eq!(outcomes[..16], ["timeout"; 16], "{reply}");
    assert_eq!(outcomes[16..], ["not_tried"], "{reply}");
    assert_eq!(app.pnm.pushes().len(), 16);
}
