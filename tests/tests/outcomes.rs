//! PNM's answers and failures: which reject a pushkey, which make the homeserver retry, which do neither.

use std::time::Duration;

use futures::future::join_all;
use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{Phone, message};
use matrix2acrobits_tests::http::send;
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::json;

async fn api() -> App {
    App::builder().without_worker().start().await
}

/// Enrols a phone for which PNM answers so, and notifies it once.
async fn status_and_rejected(app: &App, name: &str, answer: &Answer) -> (u16, bool) {
    let phone = Phone::new(name);
    app.enroll(&[&phone]).await;
    app.pnm.answer_for(&phone.token, answer.clone());
    let reply = app.notify(&message("$1", &[phone.device()])).await;
    let rejected = reply.json() == json!({"rejected": [phone.token]});
    let clean = reply.json() == json!({"rejected": []});
    assert!(
        rejected || clean || reply.status != 200,
        "{answer:?}: {reply:?}"
    );
    if reply.status != 200 {
        let status = reply.status;
        reply.clone().expect_error(status);
    }
    (reply.status, rejected)
}

#[tokio::test]
async fn only_pnms_own_words_reject_a_token() {
    let app = api().await;
    let gone = [
        Answer::Gone,
        Answer::HttpGone,
        Answer::Json(200, json!({"status": 404, "response": "no such token"})),
        Answer::Json(404, json!({"response": "no such token"})),
        Answer::Json(404, json!({"status": 404, "response": "no such token"})),
        Answer::Json(200, json!({"code": 404})),
        Answer::Json(200, json!({"code": 410, "response": "gone"})),
        Answer::Json(403, json!({"code": 404, "response": "no such token"})),
        Answer::Json(410, json!({"response": "gone"})),
    ];
    for (number, answer) in gone.iter().enumerate() {
        let got = status_and_rejected(&app, &format!("gone-{number}"), answer).await;
        assert_eq!(got, (200, true), "{answer:?}");
    }
}

#[tokio::test]
async fn a_bad_message_is_dropped_and_rejects_nothing() {
    let app = api().await;
    let taken = [
        Answer::Ok,
        Answer::Json(200, json!({"status": 200, "response": "OK"})),
        Answer::Empty,
        Answer::Bad,
        Answer::Http400,
        // Field case 22.
        Answer::Text(400, "Bad Request: Selector"),
        Answer::Json(400, json!({"error": "Bad Request"})),
        Answer::Text(413, "too large"),
        Answer::Empty,
    ];
    for (number, answer) in taken.iter().enumerate() {
        let got = status_and_rejected(&app, &format!("taken-{number}"), answer).await;
        assert_eq!(got, (200, false), "{answer:?}");
    }
    let metrics = send(app.admin_bare(Method::GET, "/metrics")).await.text;
    let counted = r#"matrix2acrobits_notify_devices_total{outcome="dropped"} 5"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(app.api().log_lines("dropped").len(), 5);
    assert_eq!(app.api().log_lines("without a body").len(), 1);
}

#[tokio::test]
async fn trouble_makes_the_homeserver_retry() {
    let app = api().await;
    let trouble = [
        Answer::HtmlNotFound,
        Answer::RateLimited,
        Answer::Http500,
        Answer::Code500,
        Answer::Garbage,
        Answer::Reset,
        Answer::Text(404, ""),
        Answer::Text(400, "<html>400 Bad Request</html>"),
        Answer::Json(404, json!({})),
        // A web framework's own page.
        Answer::Json(
            404,
            json!({"timestamp": 1, "status": 404, "error": "Not Found"}),
        ),
        Answer::Json(410, json!({"timestamp": 1, "status": 410, "error": "Gone"})),
        Answer::Json(404, json!({"error": "no such route"})),
        Answer::Json(404, json!("gone")),
        Answer::Json(404, json!([404])),
        Answer::Json(200, json!([404])),
        Answer::Json(200, json!("404")),
        Answer::Json(
            200,
            json!({"code": 500, "response": "error 404 from Apple"}),
        ),
        Answer::Json(200, json!({"code": 429, "response": "slow down"})),
        Answer::Json(500, json!({"code": 500, "response": "404"})),
        Answer::Json(503, json!({"response": "down for maintenance"})),
        Answer::Json(302, json!({"code": 302})),
    ];
    for (number, answer) in trouble.iter().enumerate() {
        let got = status_and_rejected(&app, &format!("trouble-{number}"), answer).await;
        assert_eq!(got, (502, false), "{answer:?}");
    }
    // Nothing of that is held against the tokens.
    for number in 0..trouble.len() {
        let phone = Phone::new(&format!("trouble-{number}"));
        app.pnm.answer_for(&phone.token, Answer::Ok);
        let reply = app
            .notify(&message("$1", &[phone.device()]))
            .await
            .expect_status(200);
        assert_eq!(reply.json(), json!({"rejected": []}));
    }
}

#[tokio::test]
async fn a_refused_connection_is_trouble_until_it_ends() {
    let app = api().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pnm.answer(Answer::Refuse).await;
    let body = message("$1", &[phone.device()]);
    let reply = app.notify(&body).await.expect_error(502);
    assert!(reply.took < Duration::from_secs(5), "{:?}", reply.took);
    app.pnm.answer(Answer::Ok).await;
    app.notify(&body).await.expect_status(200);
    assert_eq!(app.pnm.pushes().len(), 1);
}

#[tokio::test]
async fn a_push_is_tried_again_only_if_the_connection_failed_before_an_answer() {
    let app = App::builder()
        .without_worker()
        .api("PNM_TIMEOUT", "1s")
        .start()
        .await;
    for (name, answer, status, most) in [
        ("once", Answer::ResetOnce, 200, 2),
        ("always", Answer::Reset, 502, 2),
        ("500", Answer::Http500, 502, 1),
        ("429", Answer::RateLimited, 502, 1),
        ("slow", Answer::Slow(4000), 502, 1),
    ] {
        let (got, _) = status_and_rejected(&app, name, &answer).await;
        assert_eq!(got, status, "{answer:?}");
        let tries = app.pnm.pushes_for(&Phone::new(name).token).len();
        assert!(tries <= most, "{tries} tries for {answer:?}");
    }
}

#[tokio::test]
async fn a_hanging_pnm_takes_at_most_15_seconds() {
    let app = api().await;
    let phones = ["a", "b", "c"].map(Phone::new);
    app.enroll(&phones.each_ref()).await;
    app.pnm.answer(Answer::Hang).await;
    let devices = phones.map(|phone| phone.device());
    let reply = app.notify(&message("$1", &devices)).await.expect_error(502);
    assert!(reply.took <= Duration::from_secs(15), "{:?}", reply.took);
}

#[tokio::test]
async fn a_dead_token_is_rejected_until_the_phone_reports_again() {
    let app = api().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pnm.answer_for(&phone.token, Answer::Gone);
    for event in ["$1", "$1", "$2"] {
        let reply = app
            .notify(&message(event, &[phone.device()]))
            .await
            .expect_status(200);
        assert_eq!(reply.json(), json!({"rejected": [phone.token]}), "{event}");
    }
    assert_eq!(app.pnm.pushes().len(), 1, "PNM is asked once");
    app.pnm.answer_for(&phone.token, Answer::Ok);
    app.report(&phone.report()).await.expect_status(200);
    let reply = app
        .notify(&message("$3", &[phone.device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": []}));
    assert_eq!(app.pnm.pushes().len(), 2);
}

/// The report changes nothing, so the row does not show that the phone is there.
#[tokio::test]
async fn a_phone_that_reports_while_pnm_calls_its_token_gone_stays() {
    let app = api().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pnm.answer_for(&phone.token, Answer::SlowGone(2000));
    let body = message("$1", &[phone.device()]);
    let reported = async {
        eventually(SOON, "PNM was asked", async || !app.pnm.pushes().is_empty()).await;
        app.report(&phone.report()).await.expect_status(200);
    };
    let (reply, ()) = tokio::join!(app.notify(&body), reported);
    reply.expect_error(502);
    app.pnm.answer_for(&phone.token, Answer::Ok);
    let reply = app.notify(&body).await.expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": []}));
    assert_eq!(app.pnm.pushes().len(), 2);
    // PNM, asked after the report, is believed.
    app.pnm.answer_for(&phone.token, Answer::Gone);
    let reply = app
        .notify(&message("$2", &[phone.device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [phone.token]}));
}

#[tokio::test]
async fn a_dead_token_stays_dead_over_a_restart() {
    let mut app = api().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pnm.answer(Answer::Gone).await;
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    assert_eq!(app.api_mut().terminate().await, Some(0));
    app.start_api().await;
    let reply = app
        .notify(&message("$2", &[phone.device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [phone.token]}));
    assert_eq!(app.pnm.pushes().len(), 1);
}

#[tokio::test]
async fn mass_rejection_is_taken_for_pnms_fault() {
    let app = api().await;
    let phones: Vec<_> = (0..25).map(|n| Phone::new(&format!("mass-{n}"))).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    let good: Vec<_> = (0..60).map(|n| Phone::new(&format!("good-{n}"))).collect();
    app.enroll(&good.iter().collect::<Vec<_>>()).await;

    app.pnm.answer(Answer::Gone).await;
    for (number, phone) in phones.iter().enumerate() {
        let reply = app.notify(&message("$1", &[phone.device()])).await;
        // Whether the 20th itself is still rejected is a matter of taste.
        if number != 19 {
            let expected = if number < 19 { 200 } else { 502 };
            assert_eq!(reply.status, expected, "token {number}: {}", reply.text);
        }
    }
    let errors = app.api().log_lines("ERROR");
    assert_eq!(errors.len(), 1, "one loud error: {errors:?}");
    // What PNM takes is delivered all the while.
    app.pnm.answer(Answer::Ok).await;
    let last = &phones[24];
    let reply = app
        .notify(&message("$1", &[last.device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": []}));
    // With most tokens well, a token can be gone again.
    for phone in &good {
        app.notify(&message("$1", &[phone.device()]))
            .await
            .expect_status(200);
    }
    app.pnm.answer_for(&phones[23].token, Answer::Gone);
    let reply = app
        .notify(&message("$1", &[phones[23].device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": [phones[23].token]}));
}

#[tokio::test]
async fn connections_to_pnm_are_reused() {
    let app = api().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let device = app.marked(&phone).await;
    for number in 0..60 {
        let body = message(&format!("${number}"), std::slice::from_ref(&device));
        app.notify(&body).await.expect_status(200);
    }
    assert!(
        app.pnm.connections() <= 2,
        "{} connections",
        app.pnm.connections()
    );

    app.pnm.answer(Answer::Slow(50)).await;
    for round in 0..5 {
        let bodies =
            (0..20).map(|n| message(&format!("${round}-{n}"), std::slice::from_ref(&device)));
        let replies = join_all(bodies.map(async |body| app.notify(&body).await)).await;
        assert!(replies.iter().all(|reply| reply.status == 200));
    }
    assert!(
        app.pnm.connections() <= 24,
        "{} connections",
        app.pnm.connections()
    );
}
