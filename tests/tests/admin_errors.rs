//! What the admin listener answers to requests that it cannot read: always in our own words.

use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::fixtures::{Phone, message};
use matrix2acrobits_tests::http::send;
use reqwest::Method;
use serde_json::json;

const MAPPINGS: &str = "/api/internal/mappings";
const TOKENS: &str = "/api/internal/push_tokens";

#[tokio::test]
async fn a_selector_that_is_no_text_is_told_in_json() {
    let app = App::builder().without_worker().start().await;
    for (method, path) in [
        (Method::GET, MAPPINGS),
        (Method::PUT, MAPPINGS),
        (Method::DELETE, MAPPINGS),
        (Method::DELETE, TOKENS),
    ] {
        for selector in ["%ff", "a%c3", "%00", "%20", &"x".repeat(257)] {
            let path = format!("{path}/{selector}");
            let reply = app.admin(method.clone(), &path, None).await;
            assert_eq!(reply.header("content-type"), "application/json", "{path}");
            let reply = reply.expect_error(400);
            assert_eq!(reply.errcode(), "M_INVALID_PARAM", "{method} {path}");
            assert!(reply.text.contains("The selector "), "{}", reply.text);
        }
    }
}

#[tokio::test]
async fn the_status_page_has_its_own_words_for_what_it_cannot_read() {
    let app = App::builder().without_worker().start().await;
    for query in ["after=1&after=2", "after=x", "after=%ff", "after=", "x=1"] {
        let page = app.admin_bare(Method::GET, &format!("/?{query}"));
        let reply = send(page.bearer_auth(ADMIN_TOKEN)).await.expect_status(200);
        assert!(reply.text.contains("<h1>matrix2acrobits"), "{query}");
    }
    for path in ["/replay", "/push-test"] {
        let form = app
            .admin_bare(Method::POST, path)
            .bearer_auth(ADMIN_TOKEN)
            .body(format!("what={}", "x".repeat(5000)));
        let reply = send(form).await.expect_status(413);
        let kind = reply.header("content-type");
        assert_eq!(kind, "text/html; charset=utf-8", "{path}");
        assert!(reply.text.contains("The form is too large."), "{path}");
    }
}

#[tokio::test]
async fn a_wrong_place_to_go_on_is_a_wrong_parameter_in_every_list() {
    let app = App::builder().without_worker().start().await;
    let long = "x".repeat(257);
    for list in [
        MAPPINGS,
        TOKENS,
        "/api/internal/pushers",
        "/api/internal/phones",
        "/api/internal/phones?silent=true",
    ] {
        let more = if list.contains('?') { '&' } else { '?' };
        for after in ["%00", "a%00b", "a%0ab", &long] {
            let path = format!("{list}{more}after={after}");
            let reply = app.admin(Method::GET, &path, None).await.expect_error(400);
            assert_eq!(reply.errcode(), "M_INVALID_PARAM", "{path}");
        }
    }
    for after in ["", "a%20b", "%ff"] {
        let path = format!("{MAPPINGS}?after={after}");
        app.admin(Method::GET, &path, None).await.expect_status(200);
    }
}

/// PostgreSQL cannot store a NUL in a text. None of these reaches a statement.
#[tokio::test]
async fn a_nul_is_no_trouble_of_the_database() {
    let app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    for path in [
        "/api/internal/phones?user=@b%00:example.org",
        "/api/internal/pushers?state=%00",
    ] {
        app.admin(Method::GET, path, None).await.expect_error(400);
    }
    for (path, body) in [
        ("/api/internal/replay", json!({"user": "@b\0:example.org"})),
        ("/api/internal/push_test", json!({"user": "@b\0:x.org"})),
        ("/api/internal/push_test", json!({"selector": "s\0"})),
    ] {
        app.admin(Method::POST, path, Some(body))
            .await
            .expect_error(400);
    }
    let mut odd = Phone::new("odd").device();
    odd["pushkey"] = json!("a\0b");
    let mut marked = phone.device();
    marked["data"]["selector"] = json!("s\0");
    let reply = app.notify(&message("$1", &[odd, marked])).await;
    let rejected = reply.expect_status(200).json();
    assert_eq!(rejected, json!({"rejected": ["a\0b"]}));
    assert_eq!(app.api().log_lines("the database failed"), [""; 0]);
}
