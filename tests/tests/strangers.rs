//! What strangers leave behind: rows that nobody stands for go after 30 days, and there is an end to their number.

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{Phone, message};
use matrix2acrobits_tests::http::send;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::json;

#[tokio::test]
async fn a_start_forgets_what_nobody_reported_for_a_month_and_what_is_too_much() {
    let mut app = App::builder().without_worker().start().await;
    let [mapped, idle] = ["mapped", "idle"].map(Phone::new);
    app.enroll(&[&mapped]).await;
    app.report(&idle.report()).await.expect_status(200);
    app.api_mut().kill().await;
    // They are older than any stranger's.
    app.database
        .meddle("UPDATE push_tokens SET updated_at = unixepoch() - 31 * 86400")
        .await;
    app.database
        .meddle(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100005)
             INSERT INTO push_tokens (selector, device, token_msgs, app_id_msgs, report, created_at, updated_at,
                 of_nobody)
             SELECT 's' || i, '', 't' || i, 'a', 1, 0, unixepoch() - 100010 + i, 1 FROM n",
        )
        .await;
    app.start_api().await;
    let strangers = "push_tokens WHERE selector GLOB 's[0-9]*'";
    eventually(SOON, "100,000 are left", async || {
        app.database.count(strangers).await == 100_000
    })
    .await;
    assert_eq!(
        app.database.count("push_tokens").await,
        100_001,
        "and the mapped one"
    );
    for oldest in ["s1", "s5"] {
        let row = format!("push_tokens WHERE selector = '{oldest}'");
        assert_eq!(app.database.count(&row).await, 0);
    }
    for (phone, rejected) in [(&mapped, json!([])), (&idle, json!([idle.token]))] {
        let reply = app.notify(&message("$1", &[phone.device()])).await;
        assert_eq!(reply.expect_status(200).json()["rejected"], rejected);
    }
    let said = app.api().log_lines("forgot phones that belong to nobody");
    assert!(
        said.len() == 2 && said[0].contains("rows=1") && said[1].contains("rows=5"),
        "{said:?}"
    );
    let metrics = send(app.admin_bare(Method::GET, "/metrics")).await.text;
    for count in [r#"{reason="old"} 1"#, r#"{reason="surplus"} 5"#] {
        let line = format!("matrix2acrobits_unclaimed_rows_forgotten_total{count}");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[tokio::test]
async fn many_at_once_are_cut_back_before_the_next_look() {
    let app = App::builder()
        .without_worker()
        .api("NEW_SELECTORS_PER_HOUR", "0")
        .api("LOGLEVEL", "INFO")
        .start()
        .await;
    let mapped = Phone::new("mapped");
    app.enroll(&[&mapped]).await;
    app.database
        .meddle(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
             INSERT INTO push_tokens (selector, device, token_msgs, app_id_msgs, report, created_at, updated_at,
                 of_nobody)
             SELECT 's' || i, '', 't' || i, 'a', 1, 0, unixepoch() - 100010 + i, 1 FROM n",
        )
        .await;
    let reports = (0..1000).map(|n| Phone::new(&format!("stranger-{n}")));
    for chunk in reports.collect::<Vec<_>>().chunks(50) {
        let sent = chunk.iter().map(async |phone| {
            app.report(&phone.report()).await.expect_status(200);
        });
        futures::future::join_all(sent).await;
    }
    // The next look would be a minute away.
    eventually(SOON, "100,000 are left", async || {
        app.database.count("push_tokens WHERE of_nobody = 1").await == 100_000
    })
    .await;
    let newest = "push_tokens WHERE selector GLOB 'SELECTOR-stranger-*'";
    assert_eq!(app.database.count(newest).await, 1000);
    let reply = app.notify(&message("$1", &[mapped.device()])).await;
    assert_eq!(reply.expect_status(200).json()["rejected"], json!([]));
}
