//! Clients that take their time do not hold a connection, or memory, for ever. Each limit of the table in
//! docs/security.md has its test here or in `connections.rs`.

use std::time::{Duration, Instant};

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{Phone, message};
use matrix2acrobits_tests::raw::Raw;
use tokio::io::AsyncWriteExt;

/// Longer than any limit.
const END: Duration = Duration::from_secs(70);
/// Beyond a limit, for a machine that is busy.
const SLACK: u64 = 8;

async fn app() -> App {
    App::builder().without_worker().start().await
}

#[tokio::test]
async fn who_says_nothing_has_ten_seconds() {
    let app = app().await;
    let rest = Raw::connect(&app).await.rest(END).await;
    rest.expect_time(10, 10 + SLACK);
    assert_eq!(rest.text, "");
}

#[tokio::test]
async fn the_first_head_has_ten_seconds_however_it_trickles() {
    let app = app().await;
    let started = Instant::now();
    let mut raw = Raw::connect(&app).await;
    raw.send("GET /health HTTP/1.1\r\n").await;
    let (mut read, mut write) = raw.0.into_split();
    let trickle = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        while write.write_all(b"x: y\r\n").await.is_ok() {
            ticks.tick().await;
        }
    });
    let mut text = String::new();
    let end = tokio::io::AsyncReadExt::read_to_string(&mut read, &mut text);
    // A reset after the answer is an end as well.
    let _ = tokio::time::timeout(END, end).await.unwrap();
    trickle.abort();
    let took = started.elapsed();
    matrix2acrobits_tests::raw::Rest { text, took }.expect_error(408, "M_UNKNOWN");
    assert!(took < Duration::from_secs(10 + SLACK), "{took:?}");
}

#[tokio::test]
async fn a_connection_may_idle_longer_between_requests() {
    let app = app().await;
    let mut raw = Raw::connect(&app).await;
    assert_eq!(raw.ask().await, Some(200));
    // Longer than the first head may take.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(raw.ask().await, Some(200));
    raw.send("GET /hea").await;
    let rest = raw.rest(END).await;
    rest.expect_error(408, "M_UNKNOWN");
    rest.expect_time(10, 10 + SLACK);
}

#[tokio::test]
async fn a_body_that_stops_is_given_up_after_thirty_seconds() {
    let app = app().await;
    let mut raw = Raw::connect(&app).await;
    raw.send("POST /api/client/push_token_report HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nselector=")
        .await;
    let rest = raw.rest(END).await;
    rest.expect_error(408, "M_UNKNOWN");
    rest.expect_time(30, 30 + SLACK);
}

#[tokio::test]
async fn a_trickling_body_is_cut_off_and_others_are_served_meanwhile() {
    let app = app().await;
    let started = Instant::now();
    let mut raw = Raw::connect(&app).await;
    raw.send("POST /api/client/push_token_report HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nselector=")
        .await;
    let (mut read, mut write) = raw.0.into_split();
    let trickle = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        while write.write_all(b"x").await.is_ok() {
            ticks.tick().await;
        }
    });
    app.report_form(&[("selector", "s"), ("token_msgs", "t"), ("app_id_msgs", "a")])
        .await
        .expect_status(200);
    let mut text = String::new();
    let end = tokio::io::AsyncReadExt::read_to_string(&mut read, &mut text);
    let _ = tokio::time::timeout(Duration::from_mins(1), end)
        .await
        .unwrap();
    trickle.abort();
    let took = started.elapsed();
    matrix2acrobits_tests::raw::Rest { text, took }.expect_error(408, "M_UNKNOWN");
}

#[tokio::test]
async fn a_slow_body_that_gets_on_is_taken() {
    let app = app().await;
    let mut raw = Raw::connect(&app).await;
    let parts = ["selector=s&", "token_msgs=t&", "app_id_msgs", "=a"];
    let length: usize = parts.iter().map(|part| part.len()).sum();
    raw.send(&format!(
        "POST /api/client/push_token_report HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
    ))
    .await;
    // In all longer than the time that it may stand still.
    let mut ticks = tokio::time::interval(Duration::from_secs(11));
    for part in parts {
        ticks.tick().await;
        raw.send(part).await;
    }
    assert_eq!(raw.status().await, Some(200));
    assert_eq!(app.database.count("push_tokens").await, 1);
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    let app = app().await;
    let mut raw = Raw::connect(&app).await;
    let started = Instant::now();
    let ask = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let sending = async { while raw.0.write_all(ask.as_bytes()).await.is_ok() {} };
    let cut = tokio::time::timeout(END, sending).await;
    assert!(cut.is_ok(), "still open after {END:?}");
    let took = started.elapsed().as_secs();
    assert!((29..=32 + SLACK).contains(&took), "{took}");
}

#[tokio::test]
async fn what_is_no_http_gets_our_error() {
    let app = app().await;
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(200 * 1024));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
    let uri = format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(70_000));
    for (bytes, status, errcode) in [
        ("nonsense\r\n\r\n", 400, "M_UNRECOGNIZED"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "M_UNRECOGNIZED"),
        ("GET / HTTP/9.9\r\n\r\n", 400, "M_UNRECOGNIZED"),
        ("\x16\x03\x01\x02\r\n\r\n", 400, "M_UNRECOGNIZED"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "M_UNRECOGNIZED"),
        (&long, 431, "M_TOO_LARGE"),
        (&many, 431, "M_TOO_LARGE"),
        (&uri, 431, "M_TOO_LARGE"),
    ] {
        // As the first request, and as a later one.
        for requests in 0..2 {
            let mut raw = Raw::connect(&app).await;
            for _ in 0..requests {
                assert_eq!(raw.ask().await, Some(200));
            }
            raw.send(bytes).await;
            let rest = raw.rest(END).await;
            rest.expect_error(status, errcode);
        }
    }
}

/// Sends the head of a notification of 256 KiB, and waits until its body may come: then it is in the budget.
async fn body_from(app: &App, address: &str, framing: &str) -> (Raw, Option<u16>) {
    let mut raw = Raw::from(app, address).await;
    raw.send(&format!(
        "POST /_matrix/push/v1/notify HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n{framing}\r\n\r\n"
    ))
    .await;
    let status = raw.status().await;
    (raw, status)
}

#[tokio::test]
async fn bodies_in_flight_have_a_budget() {
    let app = app().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let (length, chunked) = ("content-length: 262144", "transfer-encoding: chunked");
    let mut held = Vec::new();
    // 8 MiB, which is what one address may have.
    for number in 0..32 {
        let framing = if number % 2 == 0 { length } else { chunked };
        let (raw, status) = body_from(&app, "127.0.0.2", framing).await;
        assert_eq!(status, Some(100), "{number}");
        held.push(raw);
    }
    for framing in [length, chunked] {
        assert_eq!(body_from(&app, "127.0.0.2", framing).await.1, Some(503));
    }
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    // The rest of 32 MiB.
    for number in 0..96 {
        let (raw, status) = body_from(&app, "127.0.0.1", length).await;
        assert_eq!(status, Some(100), "{number}");
        held.push(raw);
    }
    app.notify(&message("$2", &[phone.device()]))
        .await
        .expect_error(503);
    assert_eq!(app.pnm.pushes().len(), 1);
    drop(held);
    matrix2acrobits_tests::eventually(
        matrix2acrobits_tests::SOON,
        "there is room again",
        async || app.notify(&message("$3", &[phone.device()])).await.status == 200,
    )
    .await;
    assert_eq!(app.api().log_lines("bodies are refused").len(), 1);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_unread() {
    let app = app().await;
    let (_raw, status) = body_from(&app, "127.0.0.1", "content-length: 262145").await;
    assert_eq!(status, Some(413));
    let mut raw = Raw::connect(&app).await;
    let head =
        "POST /_matrix/push/v1/notify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    raw.send(head).await;
    raw.send(&format!("50000\r\n{}\r\n", " ".repeat(0x50000)))
        .await;
    assert_eq!(raw.status().await, Some(413));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_incomplete_requests() {
    let mut app = app().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let mut held = Vec::new();
    let (body, status) = body_from(&app, "127.0.0.1", "content-length: 262144").await;
    assert_eq!(status, Some(100));
    held.push(body);
    for start in [
        "",
        "GET /hea",
        "POST /_matrix/push/v1/notify HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
    ] {
        let mut raw = Raw::connect(&app).await;
        // Served once, so that it is known to be accepted.
        assert_eq!(raw.ask().await, Some(200));
        raw.send(start).await;
        held.push(raw);
    }
    let started = Instant::now();
    assert_eq!(app.api_mut().terminate().await, Some(0));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    for mut raw in held {
        assert_eq!(raw.rest(END).await.text, "");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_client_that_never_reads() {
    let mut app = app().await;
    let mut raw = Raw::connect(&app).await;
    let ask = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    // Until the listener takes no more.
    let second = Duration::from_secs(1);
    while let Ok(sent) = tokio::time::timeout(second, raw.0.write_all(ask.as_bytes())).await {
        sent.unwrap();
    }
    let started = Instant::now();
    assert_eq!(app.api_mut().terminate().await, Some(0));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}
