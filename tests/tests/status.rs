//! The status page: who may see it, what it says, and its replay button.

use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::fixtures::{ALICE, BOB, MALLORY, Phone, message};
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::http::{Reply, encoded, send};
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::{Method, RequestBuilder};

async fn page(app: &App) -> Reply {
    let request = app.admin_bare(Method::GET, "/");
    send(request.basic_auth("operator", Some(ADMIN_TOKEN))).await
}

/// Waits until the page says this.
async fn says(app: &App, words: &str) {
    eventually(SOON, &format!("a page that says {words:?}"), async || {
        page(app).await.expect_status(200).text.contains(words)
    })
    .await;
}

/// The hidden field without which a form is refused.
fn form_token(page: &Reply) -> String {
    let field = page.text.split_once(r#"name="token" value=""#);
    let value = field.and_then(|(_, rest)| rest.split_once('"'));
    value.map(|(value, _)| value.to_owned()).unwrap_or_default()
}

/// The form, not yet sent.
fn replay(app: &App, fields: &[(&str, &str)]) -> RequestBuilder {
    app.admin_bare(Method::POST, "/replay")
        .basic_auth("", Some(ADMIN_TOKEN))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(encoded(fields))
}

/// The form of a test push, not yet sent.
fn push_test(app: &App, fields: &[(&str, &str)]) -> RequestBuilder {
    app.admin_bare(Method::POST, "/push-test")
        .basic_auth("", Some(ADMIN_TOKEN))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(encoded(fields))
}

/// A phone whose user the homeserver refuses with these words.
async fn dead_letter(app: &App, error: &'static str) -> Phone {
    let phone = Phone::new("refused-phone").of(ALICE);
    let refusal = Fault::Answer {
        status: 403,
        errcode: "M_FORBIDDEN",
        error,
    };
    app.homeserver.break_for(ALICE, refusal);
    app.enroll(&[&phone]).await;
    app.dead_letters(1).await;
    phone
}

#[tokio::test]
async fn it_needs_a_login() {
    let app = App::builder().without_worker().start().await;
    let get = || app.admin_bare(Method::GET, "/");
    for request in [
        get(),
        get().basic_auth("operator", Some("wrong")),
        get().basic_auth("operator", Some("")),
        get().basic_auth(ADMIN_TOKEN, None::<&str>),
        get().bearer_auth("wrong"),
        get().header("Authorization", format!("Basic {ADMIN_TOKEN}")),
        app.admin_bare(Method::POST, "/replay"),
    ] {
        let reply = send(request).await.expect_status(401);
        let asks = reply.header("www-authenticate");
        assert!(asks.starts_with("Basic realm="), "{asks}");
        assert!(!reply.text.contains("Worker"), "{}", reply.text);
    }
    send(get().bearer_auth(ADMIN_TOKEN))
        .await
        .expect_status(200);
    let reply = page(&app).await.expect_status(200);
    assert_eq!(reply.header("content-type"), "text/html; charset=utf-8");
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(reply.header(name), value, "{name}");
    }
    let policy = reply.header("content-security-policy");
    let (_, nonce) = policy.split_once("'nonce-").unwrap();
    let nonce = nonce.split('\'').next().unwrap();
    let style = format!(r#"<style nonce="{nonce}">"#);
    assert!(reply.text.contains(&style), "{policy}\n{}", reply.text);
    assert!(policy.starts_with("default-src 'none';"), "{policy}");

    // The JSON endpoints do not take part in this.
    let list = app.admin_bare(Method::GET, "/api/internal/mappings");
    let list = send(list.basic_auth("", Some(ADMIN_TOKEN))).await;
    assert_eq!(list.header("www-authenticate"), "");
    list.expect_error(401);
    // Nor does the public listener.
    let public = app.public(Method::GET, "/").bearer_auth(ADMIN_TOKEN);
    send(public).await.expect_error(404);
}

#[tokio::test]
async fn without_an_admin_token_it_says_so() {
    let app = App::builder()
        .without_worker()
        .unset("ADMIN_TOKEN")
        .start()
        .await;
    for request in [
        app.admin_bare(Method::GET, "/"),
        app.admin_bare(Method::GET, "/").bearer_auth(""),
        app.admin_bare(Method::POST, "/replay"),
    ] {
        let reply = send(request).await.expect_status(403);
        assert!(
            reply.text.contains("ADMIN_TOKEN is not set"),
            "{}",
            reply.text
        );
        assert_eq!(reply.header("www-authenticate"), "");
    }
}

#[tokio::test]
async fn it_shows_what_works_and_no_tokens() {
    let app = App::start().await;
    let (set, gone) = (Phone::new("set-phone"), Phone::new("gone-phone"));
    app.enroll(&[&set, &gone]).await;
    app.pushers_are(BOB, &[&gone, &set]).await;
    app.settled().await;
    says(&app, "worked when last asked").await;
    says(&app, "not asked since the api").await;
    says(&app, "<th>registered</th><td>2</td>").await;

    app.pnm.answer_for(&gone.token, Answer::Gone);
    let both = [set.device(), gone.device()];
    app.notify(&message("$1", &both)).await.expect_status(200);
    let reply = page(&app).await.expect_status(200);
    for words in [
        "1 running, last heartbeat ",
        "<th>sent</th><td>1</td>",
        "<th>token_gone</th><td>1</td>",
        "Dead letters: 0",
    ] {
        assert!(reply.text.contains(words), "no {words} in {}", reply.text);
    }
    for secret in [&set.token, &gone.token, &set.selector, ADMIN_TOKEN] {
        assert!(!reply.text.contains(secret), "{secret} in {}", reply.text);
    }
}

#[tokio::test]
async fn a_dead_letter_is_shown_escaped_and_without_its_token() {
    let app = App::start().await;
    let phone = dead_letter(&app, "<script>alert(1)</script>&").await;
    let reply = page(&app).await.expect_status(200);
    for words in [
        "Dead letters: 1",
        ALICE,
        "&lt;script&gt;alert(1)&lt;/script&gt;&amp;",
        "attempts: 1",
    ] {
        assert!(reply.text.contains(words), "no {words} in {}", reply.text);
    }
    for forbidden in ["<script", &phone.token, &phone.selector, ADMIN_TOKEN] {
        assert!(!reply.text.contains(forbidden), "{}", reply.text);
    }
}

#[tokio::test]
async fn replay_needs_the_form_of_this_page() {
    let app = App::start().await;
    let phone = dead_letter(&app, "not yet").await;
    app.homeserver.repair().await;
    let token = form_token(&page(&app).await);
    assert!(token.len() > 30, "{token}");
    let good = [("token", token.as_str()), ("what", "user"), ("user", ALICE)];
    let forged = || replay(&app, &good);
    for request in [
        replay(&app, &[("what", "dead")]),
        replay(&app, &[("token", ""), ("what", "dead")]),
        replay(&app, &[("token", &token[1..]), ("what", "dead")]),
        forged().header("Sec-Fetch-Site", "cross-site"),
        forged().header("Origin", "https://evil.example"),
    ] {
        send(request).await.expect_status(403);
    }
    for fields in [&good[..1], &good[..2]] {
        send(replay(&app, fields)).await.expect_status(400);
    }
    assert_eq!(app.database.dead_jobs().await, 1);
    assert!(!app.api().log().contains("admin: replay"));

    // As a browser sends it from a page with this Referrer-Policy.
    let request = forged()
        .header("Sec-Fetch-Site", "same-origin")
        .header("Origin", "null");
    let reply = send(request).await.expect_status(303);
    assert_eq!(reply.header("location"), "/");
    app.pushers_are(ALICE, &[&phone]).await;
    let log = app.api().log();
    let line = log.lines().find(|line| line.contains("admin: replay"));
    assert!(line.is_some_and(|line| line.contains(ALICE)), "{line:?}");
}

#[tokio::test]
async fn a_test_push_needs_the_form_of_this_page() {
    let app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let shown = page(&app).await.expect_status(200);
    let button = format!(r#"name="user" value="{BOB}""#);
    assert!(shown.text.contains(&button), "{}", shown.text);
    let token = form_token(&shown);
    let good = [("token", token.as_str()), ("user", BOB)];
    for request in [
        push_test(&app, &good[1..]),
        push_test(&app, &[("token", &token[1..]), ("user", BOB)]),
        push_test(&app, &good).header("Sec-Fetch-Site", "cross-site"),
        push_test(&app, &good).header("Origin", "https://evil.example"),
    ] {
        send(request).await.expect_status(403);
    }
    send(push_test(&app, &good[..1])).await.expect_status(400);
    let unknown = [good[0], ("user", ALICE)];
    send(push_test(&app, &unknown)).await.expect_status(404);
    assert!(app.pnm.pushes().is_empty());

    let reply = send(push_test(&app, &good)).await.expect_status(200);
    assert!(reply.text.contains("PNM took the push"), "{}", reply.text);
    assert!(!reply.text.contains(&phone.token), "{}", reply.text);
    assert_eq!(app.pnm.pushes().len(), 1);
    send(push_test(&app, &good)).await.expect_status(429);
}

#[tokio::test]
async fn screenshots_with_many_phones_and_none() {
    let found = ["chromium", "chromium-browser"].into_iter().find(|name| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|folder| folder.join(name).is_file())
    });
    let Some(chromium) = found else {
        eprintln!("NOT TESTED: the status page in a browser (there is no chromium)");
        return;
    };
    let app = App::builder().without_worker().start().await;
    let folder = std::env::temp_dir().join("matrix2acrobits-screenshots");
    std::fs::create_dir_all(&folder).unwrap();
    let url = app
        .api()
        .admin_url()
        .replace("http://", &format!("http://x:{ADMIN_TOKEN}@"));
    for (phones, more) in [(0, None), (20, Some(FILL_20)), (5_000, Some(FILL_5000))] {
        if let Some(sql) = more {
            app.database.meddle(sql).await;
        }
        let size = page(&app).await.expect_status(200).text.len();
        assert!(size < 60_000, "{phones} phones make {size} bytes");
        for width in [390, 1200] {
            let file = folder.join(format!("status-{phones}-{width}.png"));
            let _ = std::fs::remove_file(&file);
            let run = tokio::process::Command::new(chromium)
                .args([
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--hide-scrollbars",
                ])
                .arg(format!("--window-size={width},2400"))
                .arg(format!("--screenshot={}", file.display()))
                .arg(&url)
                .kill_on_drop(true)
                .output();
            let run = tokio::time::timeout(std::time::Duration::from_mins(1), run).await;
            let output = run.expect("it ends").unwrap();
            let image = std::fs::metadata(&file).map_or(0, |file| file.len());
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(image > 10_000, "{}: {image} bytes: {error}", file.display());
        }
    }
}

/// Makes phones up to a number.
macro_rules! fill {
    ($number:literal) => {
        concat!(
            "WITH RECURSIVE g (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < ",
            $number,
            ") INSERT INTO push_tokens (selector, device, owner, token_msgs, app_id_msgs, report, created_at, updated_at)
             SELECT 's' || n, '', '@user.with.a.long.name.' || n || ':matrix.example.org', 'k' || n, 'app', 1, 1, 1
             FROM g WHERE true ON CONFLICT DO NOTHING"
        )
    };
}
const FILL_20: &str = fill!("20");
const FILL_5000: &str = fill!("5000");

#[tokio::test]
async fn all_dead_letters_are_replayed_at_once() {
    let app = App::start().await;
    let phones = ["a", "b"].map(|name| Phone::new(name).of(MALLORY));
    app.enroll(&phones.each_ref()).await;
    app.dead_letters(2).await;
    app.homeserver.register(&[MALLORY]);
    let token = form_token(&page(&app).await);
    let fields = [("token", token.as_str()), ("what", "dead"), ("user", "")];
    send(replay(&app, &fields)).await.expect_status(303);
    app.pushers_are(MALLORY, &phones.each_ref()).await;
    app.settled().await;
    says(&app, "Dead letters: 0").await;
}

#[tokio::test]
async fn a_worker_that_was_killed_is_gone() {
    let mut app = App::start().await;
    says(&app, "1 running").await;
    app.worker_mut().kill().await;
    let aged = "UPDATE Workers SET last_seen = last_seen - 60";
    app.database.meddle(aged).await;
    let reply = page(&app).await.expect_status(200);
    for words in ["gone: last heartbeat 6", "no worker runs to ask it"] {
        assert!(reply.text.contains(words), "no {words} in {}", reply.text);
    }
}

#[tokio::test]
async fn an_outage_of_the_homeserver_is_seen() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    says(&app, "worked when last asked").await;
    app.homeserver.break_with(Fault::Status(502)).await;
    let phones: Vec<_> = (0..8).map(|n| Phone::new(&format!("p{n}"))).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    says(&app, "does not work, jobs wait").await;
    let reply = page(&app).await;
    assert!(reply.text.contains("HTTP 502"), "{}", reply.text);
    app.homeserver.repair().await;
    says(&app, "worked when last asked").await;
}
