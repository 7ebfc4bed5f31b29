//! The threat table of docs/security.md, played against the real programs while mapped phones get their ordinary pushes:
//! none of these is lost, rejected, sent twice or late. Each test names its row.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::fixtures::{ALICE, BOB, Phone, message, phones};
use matrix2acrobits_tests::http::{Reply, send, try_send};
use matrix2acrobits_tests::nethcti::NethCti;
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::raw::Raw;
use matrix2acrobits_tests::siege::{client_at, under_siege};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const REPORT: &str = "/api/client/push_token_report";
const REMOVAL: &str = "/api/client/account_removal_report";
const NOTIFY: &str = "/_matrix/push/v1/notify";
const STRANGER: &str = "127.0.0.66";

async fn post(app: &App, from: &reqwest::Client, path: &str, body: &Value) -> Reply {
    let url = format!("{}{path}", app.api().public_url());
    send(from.post(url).json(body)).await
}

/// The app without a worker: pushes need none.
async fn app() -> App {
    App::builder().without_worker().start().await
}

/// How many pushes went to tokens with this in their name.
fn pushes_to(app: &App, name: &str) -> usize {
    let pushes = app.pnm.pushes();
    pushes.iter().filter(|p| p.token().contains(name)).count()
}

#[tokio::test]
async fn a_stranger_with_a_thousand_made_up_tokens_reaches_pnm_little() {
    let app = App::builder()
        .without_worker()
        .api("NEW_SELECTORS_PER_HOUR", "0")
        .start()
        .await;
    let made_up = phones("made-up", 1000);
    let stranger = client_at(STRANGER);
    let started = std::time::Instant::now();
    under_siege(&app, async {
        for chunk in made_up.chunks(50) {
            let reports = chunk.iter().map(async |phone| {
                post(&app, &stranger, REPORT, &phone.report())
                    .await
                    .expect_status(200);
            });
            join_all(reports).await;
        }
        for round in 0..5 {
            for (n, chunk) in made_up.chunks(100).enumerate() {
                let devices: Vec<_> = chunk.iter().map(Phone::device).collect();
                let body = message(&format!("$forged-{round}-{n}"), &devices);
                let reply = post(&app, &stranger, NOTIFY, &body).await;
                assert!(matches!(reply.status, 429 | 503), "{reply:?}");
            }
        }
    })
    .await;
    // 30 at once, and one a second.
    let most = 30 + usize::try_from(started.elapsed().as_secs()).unwrap() + 1;
    let reached = pushes_to(&app, "made-up");
    assert!((1..=most).contains(&reached), "{reached} of {most}");
}

#[tokio::test]
async fn a_stranger_with_a_mass_of_unknown_pushkeys_has_no_known_one_rejected() {
    let app = app().await;
    let stranger = client_at(STRANGER);
    under_siege(&app, async {
        let mut put_off = 0;
        for round in 0..30 {
            let unknown = phones(&format!("unknown-{round}"), 100);
            let devices: Vec<_> = unknown.iter().map(Phone::device).collect();
            let reply = post(&app, &stranger, NOTIFY, &message("$1", &devices)).await;
            put_off += usize::from(reply.status == 503);
        }
        assert!(put_off >= 29, "{put_off}");
    })
    .await;
    assert_eq!(pushes_to(&app, "unknown"), 0);
}

#[tokio::test]
async fn a_stranger_with_idle_and_slow_connections_holds_only_their_share() {
    let app = app().await;
    under_siege(&app, async {
        let mut held = Vec::new();
        for n in 0..300 {
            let mut raw = Raw::from(&app, STRANGER).await;
            let start = [
                "",
                "GET /hea",
                "POST /_matrix/push/v1/notify HTTP/1.1\r\ncontent-length: 9\r\n\r\n{",
            ];
            raw.send(start[n % 3]).await;
            held.push(raw);
        }
        let refused = Raw::from(&app, STRANGER).await.ask().await;
        assert!(matches!(refused, None | Some(503)), "{refused:?}");
        assert_eq!(Raw::from(&app, "127.0.0.67").await.ask().await, Some(200));
        // The silent ones are gone after ten seconds.
        eventually(Duration::from_secs(20), "room again", async || {
            Raw::from(&app, STRANGER).await.ask().await == Some(200)
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_stranger_with_large_bodies_holds_only_their_share_of_memory() {
    let app = app().await;
    under_siege(&app, async {
        let mut connections = Vec::with_capacity(64);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..64 {
            let mut raw = Raw::from(&app, STRANGER).await;
            let head = "POST /_matrix/push/v1/notify HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\
                        content-length: 262144\r\n\r\n";
            raw.send(head).await;
            match raw.status().await {
                Some(100) => taken += 1,
                Some(503) => refused += 1,
                other => panic!("{other:?}"),
            }
            connections.push(raw);
        }
        assert_eq!((taken, refused), (32, 32), "8 MiB");
        // They are held while the phones get their pushes.
        let before = pushes_to(&app, "besieged");
        eventually(SOON, "ten more pushes", async || pushes_to(&app, "besieged") >= before + 10).await;
    })
    .await;
}

#[tokio::test]
async fn a_stranger_adds_only_so_many_phones_and_known_ones_still_report() {
    let app = App::builder()
        .without_worker()
        .api("NEW_SELECTORS_PER_HOUR", "40")
        .api("TRUSTED_PROXIES", "127.0.0.1")
        .start()
        .await;
    let mapped = phones("mapped", 3);
    app.enroll(&mapped.iter().collect::<Vec<_>>()).await;
    let report = async |address: String, phone: &Phone| {
        let request = app.public(Method::POST, REPORT).json(&phone.report());
        send(request.header("x-forwarded-for", address))
            .await
            .status
    };
    let report = &report;
    under_siege(&app, async {
        let mut added = 0;
        for phone in phones("flood", 60) {
            added += usize::from(report("203.0.113.1".into(), &phone).await == 200);
        }
        assert!((40..43).contains(&added), "{added}");
        for phone in &mapped {
            assert_eq!(report("203.0.113.1".into(), phone).await, 200);
        }
        // The whole network has eight times as much.
        for (n, phone) in phones("wide", 400).iter().enumerate() {
            added += usize::from(report(format!("203.0.113.{}", 2 + n % 200), phone).await == 200);
        }
        assert!((320..340).contains(&added), "{added}");
        assert_eq!(
            report("203.0.114.1".into(), &Phone::new("elsewhere")).await,
            200
        );
    })
    .await;
}

#[tokio::test]
async fn a_stranger_who_guesses_passwords_is_slowed_and_users_log_in() {
    let nethcti = NethCti::start().await;
    for user in ["bob", "alice"] {
        nethcti.account(user, "right", json!(true));
        nethcti.user(user, &Value::Null, &Value::Null);
    }
    let app = App::builder()
        .without_worker()
        .api("REPORT_AUTH", "nethcti")
        .api("EXT_AUTH_URL", &nethcti.url())
        .api("CACHE_TTL_SECONDS", "0")
        .start()
        .await;
    let by = |name: &str, password: &str| {
        let mut report = Phone::new(name).report();
        report["username"] = json!(name);
        report["password"] = json!(password);
        report
    };
    let (stranger, home) = (client_at(STRANGER), client_at("127.0.0.77"));
    post(&app, &home, REPORT, &by("bob", "right"))
        .await
        .expect_status(200);
    let mut limited = 0;
    for n in 0..200 {
        let reply = post(&app, &stranger, REPORT, &by("bob", &format!("guess-{n}"))).await;
        assert!(matches!(reply.status, 401 | 429), "{reply:?}");
        limited += usize::from(reply.status == 429);
        let reply = post(&app, &stranger, REPORT, &by(&format!("user-{n}"), "guess")).await;
        limited += usize::from(reply.status == 429);
    }
    assert!(nethcti.logins().len() < 40, "{:?}", nethcti.logins().len());
    assert!(limited > 350, "{limited}");
    // Bob where he is known, and a user at another address.
    let mut again = by("bob", "right");
    again["token_msgs"] = json!("APA91b-renewed");
    post(&app, &home, REPORT, &again).await.expect_status(200);
    post(
        &app,
        &client_at("127.0.0.78"),
        REPORT,
        &by("alice", "right"),
    )
    .await
    .expect_status(200);
}

#[tokio::test]
async fn a_user_of_this_server_takes_no_selector_and_a_takeover_is_said() {
    let nethcti = NethCti::start().await;
    for user in ["bob", "alice"] {
        nethcti.account(user, "right", json!(true));
        nethcti.user(user, &Value::Null, &Value::Null);
    }
    let app = App::builder()
        .api("REPORT_AUTH", "nethcti")
        .api("EXT_AUTH_URL", &nethcti.url())
        .start()
        .await;
    let by = |phone: &Phone, user: &str| {
        let mut report = phone.report();
        report["username"] = json!(user);
        report["password"] = json!("right");
        report
    };
    let bobs = Phone::new("bobs");
    app.report(&by(&bobs, "bob")).await.expect_status(200);
    app.pusher_set(&bobs).await;
    let mine = bobs.clone().with_token("token-of-alice");
    app.report(&by(&mine, "alice")).await.expect_error(403);
    app.removal(&by(&bobs, "alice")).await.expect_error(403);
    app.settled().await;
    assert_eq!(
        app.homeserver.pushkeys_of(BOB),
        std::slice::from_ref(&bobs.token)
    );
    assert!(app.homeserver.pushkeys_of(ALICE).is_empty());

    // With the stolen pushkey the pusher changes hands: that cannot be told from a phone that was passed on.
    let stolen = Phone::new("alices").with_token(&bobs.token);
    app.report(&by(&stolen, "alice")).await.expect_status(200);
    app.pushers_are(ALICE, &[&stolen]).await;
    app.pushers_are(BOB, &[]).await;
    eventually(SOON, "the line", async || {
        !app.worker().log_lines("takes the pusher over").is_empty()
    })
    .await;
    let lines = app.worker().log_lines("takes the pusher over");
    assert!(
        lines.len() == 1
            && lines[0].contains("WARN")
            && lines[0].contains(BOB)
            && lines[0].contains(ALICE),
        "{lines:?}"
    );
    // Bob's phone has it back at its next start.
    app.report(&by(&bobs, "bob")).await.expect_status(200);
    app.pushers_are(BOB, &[&bobs]).await;
}

#[tokio::test]
async fn whoever_has_a_pushkey_rings_ten_times_and_delays_nobody() {
    let app = app().await;
    let victim = Phone::new("victim");
    app.enroll(&[&victim]).await;
    let stranger = client_at(STRANGER);
    let started = std::time::Instant::now();
    under_siege(&app, async {
        let mut limited = 0;
        for n in 0..100 {
            let body = message(&format!("$ring-{n}"), &[victim.device()]);
            limited += usize::from(post(&app, &stranger, NOTIFY, &body).await.status == 429);
        }
        assert!(limited >= 85, "{limited}");
        // The homeserver's own notification of that phone is not held back.
        let body = message("$real", &[app.marked(&victim).await]);
        app.notify(&body).await.expect_status(200);
    })
    .await;
    let most = 11 + usize::try_from(started.elapsed().as_secs() / 3).unwrap() + 1;
    let rings = app.pnm.pushes_for(&victim.token).len();
    assert!((11..=most).contains(&rings), "{rings}");
}

#[tokio::test]
async fn a_colleague_who_reads_the_logs_can_do_nothing_with_them() {
    let app = app().await;
    let phone = Phone::new("logged");
    app.enroll(&[&phone]).await;
    under_siege(&app, async {
        app.notify(&message("$1", &[Phone::new("unknown").device()]))
            .await
            .expect_status(200);
        let log = app.api().log();
        let words = log.split(|c: char| !c.is_ascii_alphanumeric());
        let words: BTreeSet<_> = words.filter(|word| (8..64).contains(&word.len())).collect();
        assert!(words.len() > 20, "{}", words.len());
        let hash = log
            .split("selector=")
            .nth(1)
            .and_then(|rest| rest.split([' ', '}']).next());
        assert!(
            hash.is_some_and(|hash| words.contains(hash.trim())),
            "{hash:?}"
        );
        for word in words.iter().take(300) {
            let request = app
                .admin_bare(Method::GET, "/api/internal/mappings")
                .bearer_auth(word);
            assert_eq!(send(request).await.status, 401, "{word}");
            // As a selector it names no account.
            app.removal(&json!({"selector": word}))
                .await
                .expect_status(200);
        }
        assert_eq!(
            app.database
                .count("push_tokens WHERE selector = 'SELECTOR-logged'")
                .await,
            1
        );
    })
    .await;
}

#[tokio::test]
async fn a_homeserver_admin_reads_nothing_and_reaches_no_admin_endpoint() {
    let app = App::builder()
        .without_worker()
        .api("MATRIX_HS_TOKEN", "hs-token-of-the-homeserver")
        .start()
        .await;
    let phone = Phone::new("known");
    app.enroll(&[&phone]).await;
    under_siege(&app, async {
        for token in ["hs-token-of-the-homeserver", &phone.token, &phone.selector] {
            for (method, path) in [
                (Method::GET, "/api/internal/push_tokens?reveal=true"),
                (Method::PUT, "/api/internal/mappings/s"),
                (Method::DELETE, "/api/internal/push_tokens?confirm=all"),
            ] {
                let request = app.admin_bare(method.clone(), path).bearer_auth(token);
                send(request.json(&json!({"user_id": BOB})))
                    .await
                    .expect_error(401);
                let request = app.public(method, path).bearer_auth(token);
                send(request).await.expect_error(404);
            }
        }
        // An answer says of a pushkey whether it is known, and nothing else.
        let reply = app
            .notify(&message("$1", &[app.marked(&phone).await]))
            .await;
        assert_eq!(reply.text, r#"{"rejected":[]}"#);
        assert!(!reply.text.contains(ADMIN_TOKEN));
    })
    .await;
}

#[tokio::test]
async fn a_recorded_notification_rings_once_however_often_it_is_sent() {
    let app = app().await;
    let phone = Phone::new("recorded");
    app.enroll(&[&phone]).await;
    let body = message("$recorded", &[app.marked(&phone).await]);
    let wire = client_at(STRANGER);
    under_siege(&app, async {
        let sent = (0..50).map(async |_| {
            post(&app, &wire, NOTIFY, &body).await.expect_status(200);
        });
        join_all(sent).await;
        for _ in 0..50 {
            post(&app, &wire, NOTIFY, &body).await.expect_status(200);
        }
    })
    .await;
    assert_eq!(app.pnm.pushes_for(&phone.token).len(), 1);
}

/// Sends a request and hangs up before its answer.
async fn hang_up(request: reqwest::RequestBuilder) {
    let answer = try_send(request.timeout(Duration::from_millis(500))).await;
    assert!(answer.is_err_and(|error| error.is_timeout()));
}

#[tokio::test]
async fn what_clients_ask_for_is_done_when_they_hang_up() {
    let app = app().await;
    let (leaving, deleted, renewed) = (
        phones("leaving", 10),
        phones("deleted", 4),
        phones("renewed", 5),
    );
    let all: Vec<_> = leaving.iter().chain(&deleted).chain(&renewed).collect();
    app.enroll(&all).await;
    let devices: Vec<_> = all.iter().map(|phone| phone.device()).collect();
    // All are remembered by now.
    app.notify(&message("$before", &devices))
        .await
        .expect_status(200);
    under_siege(&app, async {
        // Nobody waits until the writer gets its turn.
        let lock = app.database.lock().await;
        let removals = leaving.iter().map(|phone| {
            app.public(Method::POST, REMOVAL).json(&json!({"selector": phone.selector}))
        });
        let deletions = deleted.iter().map(|phone| {
            let path = format!("/api/internal/push_tokens/{}", phone.selector);
            app.admin_bare(Method::DELETE, &path).bearer_auth(ADMIN_TOKEN)
        });
        let reports = renewed.iter().map(|phone| {
            let phone = phone.clone().with_token(&format!("{}-anew", phone.token));
            app.public(Method::POST, REPORT).json(&phone.report())
        });
        join_all(removals.chain(deletions).chain(reports).map(hang_up)).await;
        drop(lock);
        eventually(SOON, "all is written", async || {
            let gone = "push_tokens WHERE selector LIKE 'SELECTOR-leaving%' OR selector LIKE 'SELECTOR-deleted%'";
            let anew = "push_tokens WHERE token_msgs LIKE '%-anew'";
            app.database.count(gone).await == 0 && app.database.count(anew).await == 5
        })
        .await;
        let reply = app.notify(&message("$after", &devices)).await.expect_status(200);
        let tokens: Vec<_> = all.iter().map(|phone| &phone.token).collect();
        assert_eq!(reply.json(), json!({"rejected": tokens}), "none goes on ringing");
        let anew = renewed.iter().map(|phone| {
            phone.clone().with_token(&format!("{}-anew", phone.token)).device()
        });
        let anew: Vec<_> = anew.collect();
        let reply = app.notify(&message("$after", &anew)).await.expect_status(200);
        assert_eq!(reply.json(), json!({"rejected": []}));
    })
    .await;
}

#[tokio::test]
async fn clients_that_hang_up_in_a_notification_cost_no_push() {
    let app = app().await;
    let mine = phones("hung-up", 20);
    app.enroll(&mine.iter().collect::<Vec<_>>()).await;
    for phone in &mine {
        app.pnm.answer_for(&phone.token, Answer::Slow(1500));
    }
    under_siege(&app, async {
        let sent = mine
            .iter()
            .map(|phone| app.notification(&message("$1", &[phone.device()])));
        join_all(sent.map(hang_up)).await;
        // The homeserver tries again, and each phone rings once.
        let again = mine.iter().map(async |phone| {
            let reply = app.notify(&message("$1", &[phone.device()])).await;
            assert_eq!(reply.expect_status(200).json(), json!({"rejected": []}));
        });
        join_all(again).await;
    })
    .await;
    for phone in &mine {
        assert_eq!(app.pnm.pushes_for(&phone.token).len(), 1);
    }
}

#[tokio::test]
async fn an_office_with_a_wrong_pnm_url_loses_no_phone() {
    let app = app().await;
    let office = phones("office", 15);
    app.enroll(&office.iter().collect::<Vec<_>>()).await;
    for wrong in [
        Answer::Json(
            404,
            json!({"timestamp": 1_795_331_638, "status": 404, "error": "Not Found", "path": "/pnm"}),
        ),
        Answer::Json(
            404,
            json!({"message": "no Route matched with those values"}),
        ),
        Answer::HtmlNotFound,
        Answer::Text(404, "404 page not found"),
    ] {
        app.pnm.answer(wrong).await;
        for phone in &office {
            let reply = app.notify(&message("$1", &[app.marked(phone).await])).await;
            reply.expect_error(502);
        }
    }
    app.pnm.answer(Answer::Ok).await;
    for phone in &office {
        let reply = app.notify(&message("$1", &[app.marked(phone).await])).await;
        assert_eq!(reply.expect_status(200).json(), json!({"rejected": []}));
    }
}
