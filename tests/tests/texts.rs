//! What a push says: words for what has no text of its own, the operator's file of words, extensions for senders, counts
//! without a message.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests outside of #[test] functions"
)]

use std::fs;

use matrix2acrobits_tests::app::{App, Builder};
use matrix2acrobits_tests::fixtures::{ALICE, Phone, capture_for, folder, message};
use matrix2acrobits_tests::http::send;
use matrix2acrobits_tests::nethcti::NethCti;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};

async fn started(builder: Builder, phone: &Phone) -> App {
    let app = builder.without_worker().start().await;
    app.enroll(&[phone]).await;
    app
}

/// Sends an event that must be accepted, and returns what PNM got for it, if anything.
async fn push(app: &App, phone: &Phone, id: &str, event: &Value) -> Option<Value> {
    let mut body = message(id, &[phone.device()]);
    let fields = body["notification"].as_object_mut().unwrap();
    fields.remove("content");
    fields.extend(event.as_object().unwrap().clone());
    let reply = app.notify(&body).await.expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": []}), "{body}");
    let pushes = app.pnm.pushes().into_iter().map(|push| push.body);
    pushes.rev().find(|push| push["Id"] == id)
}

async fn metrics(app: &App) -> String {
    send(app.admin_bare(Method::GET, "/metrics")).await.text
}

async fn says(app: &App, phone: &Phone, id: &str, event: &Value) -> Value {
    let push = push(app, phone, id, event).await;
    push.unwrap_or_else(|| panic!("no push of {event}"))["Message"].clone()
}

#[tokio::test]
async fn every_kind_of_event_says_something_readable() {
    let phone = Phone::seed();
    let app = started(App::builder(), &phone).await;
    let file = |kind| json!({"type": "m.room.message", "content": {"msgtype": kind, "body": "IMG_0001.HEIC"}});
    let reply = json!({"type": "m.room.message", "content": {
        "msgtype": "m.text", "body": "> <@a:x> old\n\nnew", "format": "org.matrix.custom.html",
        "formatted_body": "<mx-reply>old</mx-reply><b>new</b>",
        "m.relates_to": {"m.in_reply_to": {"event_id": "$old"}}}});
    let invitation =
        json!({"type": "m.room.member", "content": {"membership": "invite"}, "room_name": "Team"});
    for (at, (event, expected)) in [
        (reply, "new"),
        (file("m.image"), "Photo"),
        (file("m.file"), "File"),
        (invitation, "Invitation to Team"),
        (
            json!({"type": "m.room.encrypted", "content": {}}),
            "New message",
        ),
        (
            json!({"type": "m.call.invite", "content": {"lifetime": 60_000}}),
            "Incoming call",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(
            says(&app, &phone, &format!("$e{at}"), &event).await,
            expected,
            "{event}"
        );
    }
}

#[tokio::test]
async fn a_call_that_rings_no_more_is_not_pushed() {
    let phone = Phone::seed();
    let app = started(App::builder(), &phone).await;
    let call = |sender_ts: u64| json!({"type": "m.rtc.notification", "content": {"sender_ts": sender_ts, "lifetime": 30_000}});
    assert_eq!(
        push(&app, &phone, "$over", &call(1_000_000_000_000)).await,
        None
    );
    let said = app.api().log_lines("a call that rings no more");
    assert!(said.len() == 1 && said[0].contains("age_s="), "{said:?}");
    // By a clock that is ahead of ours, and by one that is late.
    let later = call(9_000_000_000_000);
    assert!(push(&app, &phone, "$rings", &later).await.is_some());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let late = call(u64::try_from(now.as_millis()).unwrap() - 31_000);
    assert!(push(&app, &phone, "$late", &late).await.is_some());
    let counted = r#"matrix2acrobits_notify_devices_total{outcome="call_over"} 1"#;
    assert!(metrics(&app).await.contains(counted));
}

#[tokio::test]
async fn the_operators_words_take_the_place_of_ours() {
    let (phone, folder) = (Phone::seed(), folder());
    let file = folder.path().join("texts.json");
    fs::write(
        &file,
        r#"{"photo": "Bild", "message": "Neue Nachricht", "sender_in_room": "{room}: {sender}"}"#,
    )
    .unwrap();
    let builder = App::builder().api("PUSH_TEXTS_FILE", &file.display().to_string());
    let app = started(builder, &phone).await;
    let photo = json!({"type": "m.room.message", "room_name": "Haus", "sender_display_name": "Alice",
        "content": {"msgtype": "m.image", "body": "x.png"}});
    let pushed = push(&app, &phone, "$photo", &photo).await.unwrap();
    assert_eq!(pushed["Message"], "Bild");
    assert_eq!(pushed["UserDisplayName"], "Haus: Alice");
    assert_eq!(
        says(&app, &phone, "$none", &json!({})).await,
        "Neue Nachricht"
    );
    let video =
        json!({"type": "m.room.message", "content": {"msgtype": "m.video", "body": "x.mp4"}});
    assert_eq!(says(&app, &phone, "$video", &video).await, "Video");
}

#[tokio::test]
async fn the_shipped_italian_texts_work_and_the_fallback_takes_precedence() {
    let phone = Phone::seed();
    let italian = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/texts/it.toml");
    let builder = App::builder()
        .api("PUSH_TEXTS_FILE", italian)
        .api("PUSH_FALLBACK_TEXT", "Ciao");
    let app = started(builder, &phone).await;
    let call = json!({"type": "m.call.invite", "content": {}});
    assert_eq!(
        says(&app, &phone, "$call", &call).await,
        "Chiamata in arrivo"
    );
    assert_eq!(says(&app, &phone, "$none", &json!({})).await, "Ciao");
}

#[tokio::test]
async fn senders_are_named_by_their_extensions_where_the_list_has_them() {
    let nethcti = NethCti::start().await;
    nethcti.account("bob", "a-good-password", json!(true));
    nethcti.user("bob", &json!("201"), &json!([]));
    nethcti.user("alice", &json!("202"), &json!(["91202"]));
    let app = App::builder()
        .api("REPORT_AUTH", "nethcti")
        .api("EXT_AUTH_URL", &nethcti.url())
        .api("PUSH_IDENTITY", "extension")
        .without_worker()
        .start()
        .await;
    let phone = Phone::seed();
    let mut report = phone.report();
    report["username"] = json!("bob");
    report["password"] = json!("a-good-password");
    app.report(&report).await.expect_status(200);
    let from = |sender: &str| json!({"sender": sender, "sender_display_name": "Somebody", "room_id": "!r:example.com"});
    let pushed = push(&app, &phone, "$known", &from(ALICE)).await.unwrap();
    assert_eq!(pushed["UserName"], "202");
    assert_eq!(pushed["UserDisplayName"], "Somebody");
    assert_eq!(pushed["ThreadId"], "!r:example.com");
    let stranger = "@mallory:elsewhere.example";
    let pushed = push(&app, &phone, "$unknown", &from(stranger))
        .await
        .unwrap();
    assert_eq!(pushed["UserName"], stranger);
}

#[tokio::test]
async fn counts_are_pushed_where_they_are_wanted_the_newest_alone() {
    let (phone, other) = (Phone::seed(), Phone::new("other"));
    let builder = App::builder().api("PUSH_BADGE_UPDATES", "on");
    let app = builder.without_worker().start().await;
    app.enroll(&[&phone, &other]).await;
    let badge = |phone: &Phone, unread| {
        let mut body = capture_for("event_id_only_badge_after_read_dm", phone);
        body["notification"]["counts"] = json!({"unread": unread});
        body
    };
    for unread in [3, 2, 0] {
        let reply = app.notify(&badge(&phone, unread)).await;
        reply.expect_status(200);
    }
    eventually(SOON, "the count at PNM", async || {
        !app.pnm.pushes().is_empty()
    })
    .await;
    let body = app.pnm.pushes().remove(0).body;
    assert_eq!(body["Badge"], 0);
    for absent in ["Message", "Sound", "Id", "UserName"] {
        assert!(body.get(absent).is_none(), "{body}");
    }
    // A message brings its own count, and the update that waits is not sent after it.
    app.notify(&badge(&phone, 5)).await.expect_status(200);
    let message = message("$e", &[phone.device()]);
    app.notify(&message).await.expect_status(200);
    // It would be sent before this one.
    app.notify(&badge(&other, 6)).await.expect_status(200);
    eventually(SOON, "the other phone's count", async || {
        !app.pnm.pushes_for(&other.token).is_empty()
    })
    .await;
    let pushes = app.pnm.pushes_for(&phone.token);
    let badges: Vec<_> = pushes.iter().map(|push| &push.body["Badge"]).collect();
    assert_eq!(badges, [&json!(0), &json!(1)]);
}
