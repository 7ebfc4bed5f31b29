//! How many connections the public listener holds: nobody can take all of them.

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{Phone, message};
use matrix2acrobits_tests::http::send;
use matrix2acrobits_tests::raw::Raw;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;

/// Connections of both ends of these tests, and some for the rest of a process.
const FILES: u64 = 10_000;

fn raise_file_limit() {
    let files = rlimit::increase_nofile_limit(FILES);
    assert!(
        files.as_ref().is_ok_and(|files| *files >= FILES),
        "{files:?}"
    );
}

/// Connections that are served, from one address.
async fn hold(app: &App, from: &str, count: usize) -> Vec<Raw> {
    let mut held = Vec::with_capacity(count);
    for number in 0..count {
        let mut raw = Raw::from(app, from).await;
        assert_eq!(raw.ask().await, Some(200), "{from}, {number}");
        held.push(raw);
    }
    held
}

async fn refused(app: &App, from: &str) {
    for _ in 0..20 {
        let answer = Raw::from(app, from).await.ask().await;
        assert!(matches!(answer, None | Some(503)), "{answer:?}");
    }
}

#[tokio::test]
async fn one_address_holds_256_and_others_are_served() {
    let app = App::builder().without_worker().start().await;
    let held = hold(&app, "127.0.0.2", 256).await;
    refused(&app, "127.0.0.2").await;
    assert_eq!(Raw::from(&app, "127.0.0.3").await.ask().await, Some(200));
    send(app.public(Method::GET, "/health"))
        .await
        .expect_status(200);

    let said = app.api().log_lines("connections are refused");
    assert_eq!(said.len(), 1, "{said:?}");
    let metrics = send(app.admin_bare(Method::GET, "/metrics")).await.text;
    let count = r#"matrix2acrobits_connections_refused_total{limit="address"} 20"#;
    assert!(metrics.contains(count), "{metrics}");

    drop(held);
    eventually(SOON, "its places are free again", async || {
        Raw::from(&app, "127.0.0.2").await.ask().await == Some(200)
    })
    .await;
}

#[tokio::test]
async fn a_proxy_holds_3072_and_all_together_4096() {
    raise_file_limit();
    let app = App::builder()
        .without_worker()
        .api("TRUSTED_PROXIES", "127.0.1.0/24")
        .start()
        .await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let _proxy = hold(&app, "127.0.1.1", 3072).await;
    refused(&app, "127.0.1.1").await;
    // Pushes come through meanwhile.
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    let mut others = Vec::new();
    while others.len() < 1024 {
        let from = format!("127.0.2.{}", others.len() / 256 + 1);
        let mut raw = Raw::from(&app, &from).await;
        if raw.ask().await != Some(200) {
            break;
        }
        others.push(raw);
    }
    // The connections of this test's client are among the 4,096.
    assert!((1000..1024).contains(&others.len()), "{}", others.len());
    refused(&app, "127.0.0.9").await;
    others.truncate(500);
    eventually(SOON, "there are places again", async || {
        Raw::from(&app, "127.0.0.9").await.ask().await == Some(200)
    })
    .await;
}
