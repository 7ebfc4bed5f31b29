//! Logs: quiet when all is well, one line with ids and a reason where something is rejected or given up.

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{BOB, MALLORY, Phone, message};
use matrix2acrobits_tests::http::send;
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::process::Program;
use matrix2acrobits_tests::{SOON, eventually};
use serde_json::json;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test]
async fn a_rejection_is_one_line_with_ids_and_a_reason_and_a_delivery_is_none() {
    let app = App::builder().both("LOGLEVEL", "INFO").start().await;
    let (good, gone) = (Phone::seed(), Phone::new("gone"));
    app.enroll(&[&good, &gone]).await;
    app.pushers_are(BOB, &[&good, &gone]).await;
    app.pnm.answer_for(&gone.token, Answer::Gone);
    app.settled().await;
    let before = app.api().log().lines().count();
    for n in 0..5 {
        let event = format!("$good-{n}");
        app.notify(&message(&event, &[good.device()]))
            .await
            .expect_status(200);
    }
    let request = app
        .notification(&message("$gone", &[gone.device()]))
        .header("X-Request-Id", "proxy-17")
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    send(request).await.expect_status(200);
    eventually(SOON, "the line", async || {
        !app.api().log_lines("rejected").is_empty()
    })
    .await;
    let log = app.api().log();
    let lines: Vec<_> = log.lines().skip(before).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let trace = format!("trace={TRACE}");
    for part in [
        "request=proxy-17",
        &trace,
        "reason=\"pnm_token_gone\"",
        "event_id=\"$gone\"",
        "pushkey=",
    ] {
        assert!(lines[0].contains(part), "no {part} in {}", lines[0]);
    }
    assert!(
        !log.contains(&gone.token) && !log.contains(&gone.selector),
        "{log}"
    );
}

#[tokio::test]
async fn a_request_without_an_id_gets_one_and_a_strange_one_is_not_taken_over() {
    let app = App::builder().without_worker().start().await;
    for id in ["", "a b", "x=\"y\""] {
        let request = app
            .notification(&message("$1", &[]))
            .header("X-Request-Id", id);
        send(request).await.expect_status(400);
    }
    eventually(SOON, "three lines", async || {
        app.api().log_lines("a notification was refused").len() == 3
    })
    .await;
    for line in app.api().log_lines("a notification was refused") {
        let id = line.split("request=").nth(1).unwrap_or_default();
        let id = id.split(['}', ' ']).next().unwrap_or_default();
        let ours = id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(ours, "{line}");
    }
}

/// Anybody who reaches the public listener can send these.
#[tokio::test]
async fn what_strangers_can_repeat_is_logged_once_a_minute() {
    let app = App::builder()
        .without_worker()
        .api("LOGLEVEL", "INFO")
        .start()
        .await;
    app.enroll(&[&Phone::seed()]).await;
    for n in 0..12 {
        app.notify(&json!({})).await.expect_error(400);
        app.report(&json!({})).await.expect_error(400);
        let tokenless = json!({"selector": format!("s{n}")});
        app.report(&tokenless).await.expect_status(200);
        let unknown = Phone::new(&format!("unknown-{n}"));
        let reply = app
            .notify(&message(&format!("${n}"), &[unknown.device()]))
            .await;
        assert_eq!(reply.json()["rejected"], json!([unknown.token]));
    }
    for words in [
        "a notification was refused",
        "a report was refused",
        "a report holds no token",
        "rejected",
    ] {
        let lines = app.api().log_lines(words);
        assert_eq!(lines.len(), 1, "{words}: {lines:#?}");
        assert!(lines[0].contains("times=1"), "{lines:#?}");
    }
}

#[tokio::test]
async fn a_dead_letter_is_one_line_with_a_reason() {
    let app = App::builder().both("LOGLEVEL", "INFO").start().await;
    let phone = Phone::seed().of(MALLORY);
    app.enroll(&[&phone]).await;
    app.dead_letters(1).await;
    eventually(SOON, "the line", async || {
        !app.worker().log_lines("dead letter").is_empty()
    })
    .await;
    let lines = app.worker().log_lines("dead letter");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in [
        "reason=\"M_FORBIDDEN\"",
        "has not registered this user",
        "job=",
        "pushkey=",
    ] {
        assert!(lines[0].contains(part), "no {part} in {}", lines[0]);
    }
    assert!(!app.worker().log().contains(&phone.token));
}

#[tokio::test]
async fn a_check_of_a_pusher_is_not_logged_as_a_set() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    app.settled().await;
    let replay = Program::Worker
        .run(&["replay", "--all"], &app.worker_env)
        .await;
    assert!(replay.status.success(), "{replay:?}");
    eventually(SOON, "the line", async || {
        !app.worker().log_lines("pusher held as wanted").is_empty()
    })
    .await;
    let held = app.worker().log_lines("pusher held as wanted");
    assert!(held[0].contains("DEBUG"), "{held:#?}");
    let set = app.worker().log_lines("pusher set");
    assert_eq!(set.len(), 1, "{set:#?}");
}
