//! Notifications: what is translated to what, what is ignored, and which answers the homeserver gets.

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{ALICE, Phone, capture_for, message, pushed};
use matrix2acrobits_tests::http::send;
use matrix2acrobits_tests::pnm::Answer;
use reqwest::Method;
use serde_json::{Value, json};

const NOTIFY: &str = "/_matrix/push/v1/notify";

/// The api alone, with these phones reported.
async fn with(phones: &[&Phone]) -> App {
    let app = App::builder().without_worker().start().await;
    app.enroll(phones).await;
    app
}

/// Sends a notification that must be accepted, and returns what PNM got last.
async fn push(app: &App, body: &Value) -> Value {
    let reply = app.notify(body).await.expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": []}), "{body}");
    let last = app.pnm.pushes().pop();
    last.map(|push| push.body).unwrap_or_default()
}

#[tokio::test]
async fn a_message_becomes_exactly_this_push() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    let body = push(&app, &message("$event_id", &[phone.device()])).await;
    assert_eq!(body, pushed("$event_id", &phone));
    assert_eq!(app.pnm.pushes().len(), 1);
}

#[tokio::test]
async fn what_synapse_really_sends_is_translated() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    for (name, text, badge) in [
        ("event_id_only_dm_text", None, 2),
        ("event_id_only_dm_text_unread2", None, 2),
        ("event_id_only_dm_encrypted", None, 3),
        ("full_dm_text_clean", Some("hello there"), 7),
        ("full_dm_text_unread2", Some("second in same room"), 3),
        ("full_dm_image", Some("Photo"), 3),
        ("full_dm_encrypted", None, 3),
        ("full_group_text", Some("hello team"), 3),
    ] {
        let notification = capture_for(name, &phone);
        let event = &notification["notification"];
        let mut expected = json!({
            "verb": "NotifyTextMessage",
            "AppId": phone.app_id,
            "DeviceToken": phone.token,
            "Selector": phone.selector,
            "Badge": badge,
            "Sound": "default",
            "Message": text.unwrap_or("New message"),
            "ContentType": "text/plain",
            "Id": event["event_id"],
            "ThreadId": event["room_id"],
        });
        if name.starts_with("full") {
            expected["UserName"] = json!("@alice:localhost");
            expected["UserDisplayName"] = json!("Alice A");
        }
        if name == "full_group_text" {
            // Synapse's rule for groups has no sound, and says so in this format.
            expected.as_object_mut().unwrap().remove("Sound");
            expected["UserDisplayName"] = json!("Alice A (Team Room)");
        }
        assert_eq!(push(&app, &notification).await, expected, "{name}");
    }
    assert_eq!(app.pnm.pushes().len(), 8);
}

#[tokio::test]
async fn a_badge_update_rings_nowhere() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    let mut no_event = message("$x", &[phone.device()]);
    no_event["notification"]["event_id"] = Value::Null;
    for body in [
        capture_for("event_id_only_badge_after_read_dm", &phone),
        capture_for("full_badge_after_read_dm", &phone),
        json!({"notification": {"counts": {"unread": 0}, "devices": [phone.device()]}}),
        no_event,
    ] {
        assert_eq!(push(&app, &body).await, Value::Null, "{body}");
    }
}

/// Field case 3: the curl body that operators copy.
#[tokio::test]
async fn an_id_without_event_id_names_the_event() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    let mut body = message("$x", &[phone.device()]);
    let event = body["notification"].as_object_mut().unwrap();
    let id = event.remove("event_id").unwrap();
    event.insert("id".to_owned(), id);
    assert_eq!(push(&app, &body).await, pushed("$x", &phone));
    push(&app, &message("$x", &[phone.device()])).await;
    assert_eq!(app.pnm.pushes().len(), 1, "the same event");
}

#[tokio::test]
async fn an_event_id_of_a_wrong_type_is_counted_and_logged() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    for id in [json!(5), json!({}), json!(["$x"])] {
        let mut body = message("", &[phone.device()]);
        body["notification"]["event_id"] = id;
        assert_eq!(push(&app, &body).await, Value::Null, "{body}");
    }
    let metrics = send(app.admin_bare(Method::GET, "/metrics")).await.text;
    let counted = r#"matrix2acrobits_notify_devices_total{outcome="odd_event_id"} 3"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(app.api().log_lines("its event id is no text").len(), 3);
}

#[tokio::test]
async fn optional_fields_come_through_or_stay_absent() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    let mut body = message("$1", &[phone.device()]);
    body["notification"]["counts"] = json!({"unread": 0, "missed_calls": 3});
    body["notification"]["devices"][0]["tweaks"] = json!({"sound": "bing", "highlight": true});
    body["notification"]["sender_display_name"] = Value::Null;
    let got = push(&app, &body).await;
    assert_eq!((&got["Badge"], &got["Sound"]), (&json!(0), &json!("bing")));
    assert_eq!(got["UserDisplayName"], json!("@alice:example.com"));

    let least = json!({"notification": {"event_id": "$2", "devices": [
        {"app_id": phone.app_id, "pushkey": phone.token}
    ]}});
    let got = push(&app, &least).await;
    let expected = json!({
        "verb": "NotifyTextMessage",
        "AppId": phone.app_id,
        "DeviceToken": phone.token,
        "Selector": phone.selector,
        "Sound": "default",
        "Message": "New message",
        "ContentType": "text/plain",
        "Id": "$2",
    });
    assert_eq!(got, expected);
}

#[tokio::test]
async fn the_fallback_text_is_a_setting() {
    let phone = Phone::seed();
    for (text, expected) in [("Nachricht", json!("Nachricht")), ("", Value::Null)] {
        let app = App::builder()
            .without_worker()
            .api("PUSH_FALLBACK_TEXT", text)
            .start()
            .await;
        app.enroll(&[&phone]).await;
        let got = push(&app, &capture_for("event_id_only_dm_text", &phone)).await;
        assert_eq!(got["Message"], expected, "{got}");
        assert_eq!(got["Selector"], json!(phone.selector));
    }
}

#[tokio::test]
async fn oddities_are_ignored() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    // More pushes than one without our mark may have.
    let marked = app.marked(&phone).await;
    let odd = [
        ("counts", json!(null)),
        ("counts", json!("many")),
        ("counts", json!({"unread": "7"})),
        ("counts", json!({"unread": -1})),
        ("counts", json!({"unread": 1e300})),
        ("counts", json!({"unread": 70_000})),
        ("counts", json!({"unread": null, "missed_calls": []})),
        ("prio", json!("urgent")),
        ("prio", json!(9)),
        ("content", json!(null)),
        ("content", json!([1, 2])),
        ("content", json!({"body": {"a": 1}})),
        ("sender", json!(null)),
        ("sender", json!(4)),
        ("sender_display_name", json!([])),
        ("room_id", json!(null)),
        ("room_id", json!({})),
        ("room_name", json!(1)),
        ("type", json!(null)),
        ("user_is_target", json!("yes")),
        ("never_heard_of", json!({"a": [{}]})),
    ];
    for (number, (field, value)) in odd.into_iter().enumerate() {
        let mut body = message(&format!("$odd{number}"), std::slice::from_ref(&marked));
        body["notification"][field] = value;
        let got = push(&app, &body).await;
        assert_eq!(got["Id"], json!(format!("$odd{number}")), "{body}");
        let null = got
            .as_object()
            .is_some_and(|o| o.values().any(Value::is_null));
        assert!(!null, "a null in {got}");
    }
    for (number, (field, value)) in [
        ("data", json!(null)),
        ("data", json!("x")),
        ("data", json!({"selector": 5})),
        ("tweaks", json!(null)),
        ("tweaks", json!({"sound": {"a": 1}})),
        ("pushkey_ts", json!("yesterday")),
        ("extra", json!([])),
    ]
    .into_iter()
    .enumerate()
    {
        let mut device = phone.device();
        device[field] = value;
        let got = push(&app, &message(&format!("$device{number}"), &[device])).await;
        assert_eq!(got["Id"], json!(format!("$device{number}")));
        assert_eq!(got["Sound"], json!("default"));
    }
}

#[tokio::test]
async fn what_is_no_notification_is_400() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    for body in [
        json!(null),
        json!([]),
        json!({}),
        json!({"notification": null}),
        json!({"notification": []}),
        json!({"notification": {"event_id": "$1"}}),
        json!({"notification": {"event_id": "$1", "devices": null}}),
        json!({"notification": {"event_id": "$1", "devices": []}}),
        json!({"notification": {"event_id": "$1", "devices": {}}}),
        json!({"notification": {"event_id": "$1", "devices": ["x"]}}),
        json!({"notification": {"event_id": "$1", "devices": [{"app_id": "a"}]}}),
        json!({"notification": {"event_id": "$1", "devices": [{"pushkey": "p"}]}}),
        json!({"notification": {"event_id": "$1", "devices": [{"app_id": 1, "pushkey": "p"}]}}),
    ] {
        app.notify(&body).await.expect_error(400);
    }
    let broken = app
        .public(Method::POST, NOTIFY)
        .header("content-type", "application/json");
    send(broken.body("{\"notification\":"))
        .await
        .expect_error(400);
    send(app.public(Method::GET, NOTIFY))
        .await
        .expect_error(405);
    assert!(app.pnm.pushes().is_empty());
}

#[tokio::test]
async fn a_large_body_is_refused_and_a_fair_one_is_not() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    let mut body = message("$1", &[phone.device()]);
    body["notification"]["content"]["formatted_body"] = json!("x".repeat(200 << 10));
    push(&app, &body).await;
    body["notification"]["content"]["formatted_body"] = json!("x".repeat(256 << 10));
    let reply = app.notify(&body).await.expect_error(413);
    assert_eq!(reply.errcode(), "M_TOO_LARGE");
}

#[tokio::test]
async fn a_long_text_is_cut_at_a_character() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    // Three bytes each, so that a cut at a round number of bytes would split one.
    let text = "€".repeat(5000);
    let mut body = message("$1", &[phone.device()]);
    body["notification"]["content"]["body"] = json!(text);
    let got = push(&app, &body).await;
    let shown = got["Message"].as_str().unwrap_or_default();
    assert!(shown.starts_with(&"€".repeat(500)), "{shown}");
    assert!(shown.len() <= 4096, "{} bytes", shown.len());
    assert!(!shown.contains('\u{fffd}'), "{shown}");
}

#[tokio::test]
async fn an_unknown_pushkey_is_rejected_without_asking_pnm() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    let unknown = Phone::new("unknown");
    let mut calls = phone.device();
    calls["pushkey"] = json!(format!("calls-{}", phone.token));
    calls["app_id"] = json!(format!("{}.voip", phone.app_id));
    for device in [unknown.device(), calls] {
        let reply = app
            .notify(&message("$1", std::slice::from_ref(&device)))
            .await;
        let reply = reply.expect_status(200);
        assert_eq!(reply.json(), json!({"rejected": [device["pushkey"]]}));
    }
    let mut empty = phone.device();
    empty["pushkey"] = json!("");
    let reply = app.notify(&message("$1", &[empty])).await;
    reply.expect_error(400);
    assert!(app.pnm.pushes().is_empty());
}

/// A phone that no mapping names yet: a pusher from before, of the Go proxy's for instance, delivers to it.
#[tokio::test]
async fn a_phone_without_a_mapping_is_pushed_to_and_not_rejected() {
    let (mapped, unmapped) = (Phone::seed(), Phone::new("unmapped"));
    let app = with(&[&mapped]).await;
    app.report(&unmapped.report()).await.expect_status(200);
    let body = push(&app, &message("$1", &[unmapped.device()])).await;
    assert_eq!(body, pushed("$1", &unmapped));
    // PNM's word on it counts for it alone.
    app.pnm.answer_for(&unmapped.token, Answer::Gone);
    for event in ["$2", "$3"] {
        let reply = app
            .notify(&message(event, &[unmapped.device(), mapped.device()]))
            .await;
        assert_eq!(
            reply.expect_status(200).json(),
            json!({"rejected": [unmapped.token]})
        );
    }
    assert_eq!(
        app.pnm.pushes_for(&unmapped.token).len(),
        2,
        "PNM is not asked again"
    );
    assert_eq!(app.pnm.pushes_for(&mapped.token).len(), 2);
}

/// Synapse delivers with the old app id until the old pusher is deleted: the token lives nevertheless.
#[tokio::test]
async fn a_stale_app_id_finds_the_token_and_goes_out_under_the_new_one() {
    let phone = Phone::seed();
    let app = with(&[&phone]).await;
    let mut stale = phone.device();
    stale["app_id"] = json!("com.example.before");
    let pushed = push(&app, &message("$1", &[stale])).await;
    assert_eq!(pushed["AppId"], phone.app_id.as_str());
}

#[tokio::test]
async fn a_database_that_never_held_a_token_rejects_nothing() {
    let app = App::builder().without_worker().start().await;
    let lost = Phone::new("from-before-the-volume-was-lost");
    app.notify(&message("$1", &[lost.device()]))
        .await
        .expect_error(503);
    // From the first report on it knows what it knows.
    app.report(&Phone::seed().report()).await.expect_status(200);
    let reply = app
        .notify(&message("$2", &[lost.device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [lost.token]}));
}

#[tokio::test]
async fn an_emptied_database_still_rejects() {
    let app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.report(&phone.report()).await.expect_status(200);
    app.removal(&json!({"selector": phone.selector}))
        .await
        .expect_status(200);
    let reply = app
        .notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [phone.token]}));
}

#[tokio::test]
async fn two_accounts_on_one_phone_are_told_apart_by_selector() {
    let bobs = Phone::new("bob").with_token("one-phone");
    let alices = Phone::new("alice").with_token("one-phone").of(ALICE);
    let app = App::builder().both("PUSHER_APPEND", "true").start().await;
    app.enroll(&[&bobs, &alices]).await;
    app.pusher_set(&bobs).await;
    app.pusher_set(&alices).await;
    for (event, phone) in [("$1", &alices), ("$2", &bobs), ("$3", &alices)] {
        let got = push(&app, &message(event, &[phone.device()])).await;
        assert_eq!(got["Selector"], json!(phone.selector), "{event}");
    }
    // Synapse can deliver with data from before the last change.
    let stale = bobs.clone().with_selector("from-long-ago");
    let got = push(&app, &message("$4", &[stale.device()])).await;
    assert_eq!(got["DeviceToken"], json!("one-phone"));
}

/// The phone has lost one of its two apps.
#[tokio::test]
async fn a_pushkey_that_rings_for_one_device_is_not_rejected_for_another() {
    let one = Phone::new("one").with_token("shared-token");
    let mut other = Phone::new("other").with_token("shared-token").of(ALICE);
    "com.example.other".clone_into(&mut other.app_id);
    let app = with(&[&one, &other]).await;
    app.pnm.answer_for_selector(&one.selector, Answer::Gone);
    let both = [one.device(), other.device()];
    for event in ["$1", "$2"] {
        push(&app, &message(event, &both)).await;
    }
    assert_eq!(app.pnm.pushes_for(&one.token).len(), 3);
    let metrics = send(app.admin_bare(Method::GET, "/metrics")).await.text;
    for reason in ["pnm_token_gone", "dead_token"] {
        let counted = format!("matrix2acrobits_rejections_total{{reason=\"{reason}\"}} 0");
        assert!(metrics.contains(&counted), "{metrics}");
    }
    // The homeserver's own request for the pusher that is gone.
    let reply = app
        .notify(&message("$3", &[one.device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [one.token]}));
}

#[tokio::test]
async fn an_event_reaches_a_pushkey_once() {
    let phones = ["a", "b"].map(Phone::new);
    let app = with(&[&phones[0], &phones[1]]).await;
    for _ in 0..3 {
        push(&app, &message("$1", &[phones[0].device()])).await;
    }
    assert_eq!(app.pnm.pushes_for(&phones[0].token).len(), 1);
    push(&app, &message("$1", &[phones[1].device()])).await;
    push(&app, &message("$2", &[phones[0].device()])).await;
    assert_eq!(app.pnm.pushes_for(&phones[1].token).len(), 1);
    assert_eq!(app.pnm.pushes_for(&phones[0].token).len(), 2);
}

#[tokio::test]
async fn a_retry_skips_the_devices_that_were_served() {
    let phones = ["served", "failing", "gone"].map(Phone::new);
    let [served, failing, gone] = &phones;
    let app = with(&[served, failing, gone]).await;
    app.pnm.answer_for(&failing.token, Answer::Http500);
    app.pnm.answer_for(&gone.token, Answer::Gone);
    let body = message("$1", &[served.device(), failing.device(), gone.device()]);
    app.notify(&body).await.expect_error(502);
    app.pnm.answer_for(&failing.token, Answer::Ok);
    let reply = app.notify(&body).await.expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [gone.token]}));
    assert_eq!(app.pnm.pushes_for(&served.token).len(), 1);
    assert_eq!(app.pnm.pushes_for(&failing.token).len(), 2);
    assert_eq!(app.pnm.pushes_for(&gone.token).len(), 1);
}

#[tokio::test]
async fn the_devices_of_a_request_are_served_side_by_side() {
    let phones: Vec<_> = (0..8).map(|n| Phone::new(&format!("slow-{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    let app = with(&all).await;
    app.pnm.answer(Answer::Slow(1000)).await;
    let devices: Vec<_> = phones.iter().map(Phone::device).collect();
    let reply = app
        .notify(&message("$1", &devices))
        .await
        .expect_status(200);
    assert!(reply.took.as_secs() < 4, "{:?}", reply.took);
    assert_eq!(app.pnm.pushes().len(), 8);
}

/// Two accounts of one user on a phone share its token; the homeserver's pusher keeps the name of the first.
#[tokio::test]
async fn a_phone_that_goes_back_to_its_former_account_is_pushed_as_that() {
    let first = Phone::new("shared");
    let second = first.clone().with_selector("SELECTOR-second");
    let app = with(&[&first]).await;
    app.enroll(&[&second]).await;
    let body = push(&app, &message("$1", &[first.device()])).await;
    assert_eq!(body["Selector"], json!(second.selector));
    app.report(&first.report()).await.expect_status(200);
    let body = push(&app, &message("$2", &[first.device()])).await;
    assert_eq!(body["Selector"], json!(first.selector));
}
