//! What the admin listener answers to requests that it cannot read: always in our own words.

use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::http::send;
use reqwest::Method;

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
