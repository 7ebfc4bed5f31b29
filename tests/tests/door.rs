//! Whose notifications are pushed: marks, budgets for what comes without, and guards against rejecting in the mass.

use futures::future::join_all;
use matrix2acrobits_tests::app::{App, Builder};
use matrix2acrobits_tests::fixtures::{ALICE, BOB, Phone, message, phones};
use matrix2acrobits_tests::http::{Reply, send};
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::process::Program;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const MAPPINGS: &str = "/api/internal/mappings";

/// The api alone, with these phones of Bob.
async fn with(builder: Builder, phones: &[Phone]) -> App {
    let app = builder.without_worker().start().await;
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    app
}

/// A notification of an event to one device.
async fn notify(app: &App, event: &str, device: &Value) -> Reply {
    app.notify(&message(event, std::slice::from_ref(device)))
        .await
}

fn rejected(reply: Reply) -> Value {
    reply.expect_status(200).json()["rejected"].clone()
}

/// What the homeserver's pusher of a phone carries.
fn data(app: &App, phone: &Phone) -> Value {
    let pushers = app.homeserver.pushers();
    let pusher = pushers
        .iter()
        .find(|it| it.pushkey == phone.token && it.user_id == phone.user);
    pusher.map(|it| it.body["data"].clone()).unwrap_or_default()
}

/// The device of a phone as the homeserver names it, with the data of its pusher.
fn handed_back(app: &App, phone: &Phone) -> Value {
    let mut device = phone.device();
    device["data"] = data(app, phone);
    device
}

#[tokio::test]
async fn our_pushers_are_pushed_without_limit_and_others_within_a_budget() {
    let app = App::start().await;
    let [phone, other] = ["marked", "other"].map(Phone::new);
    app.enroll(&[&phone, &other]).await;
    app.pusher_set(&phone).await;
    let ours = handed_back(&app, &phone);
    let mark = ours["data"]["mark"].as_str().unwrap();
    assert!(
        mark.len() == 22 && !mark.contains(['+', '/', '=']),
        "{mark}"
    );

    for n in 0..10 {
        let reply = notify(&app, &format!("$bare-{n}"), &phone.device()).await;
        assert_eq!(rejected(reply), json!([]));
    }
    let mut forged = phone.device();
    forged["data"]["mark"] = json!("AAAAAAAAAAAAAAAAAAAAAA");
    for device in [phone.device(), forged] {
        let reply = notify(&app, "$over", &device).await.expect_error(429);
        assert_eq!(reply.errcode(), "M_LIMIT_EXCEEDED");
        let seconds: u64 = reply.header("retry-after").parse().unwrap();
        assert!((1..=3).contains(&seconds), "{seconds}");
    }
    for n in 0..20 {
        let reply = notify(&app, &format!("$ours-{n}"), &ours).await;
        assert_eq!(rejected(reply), json!([]));
    }
    let reply = notify(&app, "$other", &other.device()).await;
    assert_eq!(rejected(reply), json!([]), "each token has its own budget");
    assert_eq!(app.pnm.pushes_for(&phone.token).len(), 30);
}

#[tokio::test]
async fn tokens_of_nobody_share_one_budget_until_a_mapping_says_whose_they_are() {
    let mine = phones("mine", 1);
    let app = with(App::builder(), &mine).await;
    let nobodys = phones("nobodys", 32);
    for phone in &nobodys {
        app.report(&phone.report()).await.expect_status(200);
    }
    let mut served = 0;
    for phone in &nobodys {
        let reply = notify(&app, "$1", &phone.device()).await;
        served += usize::from(reply.status == 200);
        if reply.status != 200 {
            reply.expect_error(429);
        }
    }
    // One more a second, should the machine be slow.
    assert!((30..32).contains(&served), "{served}");
    let last = &nobodys[31];
    assert!(app.pnm.pushes_for(&last.token).is_empty());
    let reply = notify(&app, "$1", &mine[0].device()).await;
    assert_eq!(rejected(reply), json!([]), "a mapped phone does not wait");

    app.map(&last.selector, BOB).await;
    for n in 0..9 {
        let reply = notify(&app, &format!("$mapped-{n}"), &last.device()).await;
        assert_eq!(rejected(reply), json!([]));
    }
    let path = format!("{MAPPINGS}/{}", last.selector);
    app.admin(Method::DELETE, &path, None)
        .await
        .expect_status(200);
    // A second brings nothing where nine at once are asked for.
    let again = phones("again", 9);
    let mut limited = notify(&app, "$unmapped", &last.device()).await.status == 429;
    for phone in &again {
        app.report(&phone.report()).await.expect_status(200);
        limited |= notify(&app, "$1", &phone.device()).await.status == 429;
    }
    assert!(limited, "they are nobody's again");
}

#[tokio::test]
async fn what_the_operator_imported_is_somebodys() {
    let app = App::builder().without_worker().start().await;
    let phones = phones("imported", 35);
    for phone in &phones {
        app.report(&phone.report()).await.expect_status(200);
    }
    app.database
        .meddle("UPDATE push_tokens SET imported = (1 = 1)")
        .await;
    for phone in &phones {
        let reply = notify(&app, "$1", &phone.device()).await;
        assert_eq!(rejected(reply), json!([]));
    }
}

#[tokio::test]
async fn where_the_mark_is_required_nothing_else_passes_or_is_rejected() {
    let app = App::builder().api("NOTIFY_AUTH", "require").start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let mut badge = message("$x", &[phone.device()]);
    badge["notification"]["event_id"] = Value::Null;
    for body in [
        message("$1", &[phone.device()]),
        message("$1", &[Phone::new("unknown").device()]),
        message("$1", &[handed_back(&app, &phone), phone.device()]),
        badge,
    ] {
        let reply = app.notify(&body).await.expect_error(403);
        assert_eq!(reply.errcode(), "M_FORBIDDEN");
    }
    assert!(app.pnm.pushes().is_empty());
    let reply = notify(&app, "$1", &handed_back(&app, &phone)).await;
    assert_eq!(rejected(reply), json!([]));
    assert_eq!(app.pnm.pushes().len(), 1);
}

#[tokio::test]
async fn without_the_check_everything_passes() {
    let app = App::builder()
        .api("NOTIFY_AUTH", "off")
        .without_worker()
        .start()
        .await;
    let phone = Phone::seed();
    app.report(&phone.report()).await.expect_status(200);
    for n in 0..35 {
        let reply = notify(&app, &format!("${n}"), &phone.device()).await;
        assert_eq!(rejected(reply), json!([]));
    }
}

#[tokio::test]
async fn without_the_check_tokens_of_nobody_are_like_any_other() {
    let app = App::builder()
        .api("NOTIFY_AUTH", "off")
        .without_worker()
        .start()
        .await;
    let wrong = phones("wrong", 60);
    for phone in &wrong {
        app.report(&phone.report()).await.expect_status(200);
    }
    app.pnm.answer(Answer::Gone).await;
    let mut gone = 0;
    for phone in &wrong {
        match notify(&app, "$1", &phone.device()).await {
            reply if reply.status == 200 => gone += usize::from(rejected(reply) != json!([])),
            reply => drop(reply.expect_error(502)),
        }
    }
    assert_eq!(gone, 19, "the guard keeps the others");

    app.pnm.answer(Answer::Slow(2000)).await;
    let kept = &wrong[gone..];
    let more = phones("more", 40);
    for phone in &more {
        app.report(&phone.report()).await.expect_status(200);
    }
    let at_once = kept.iter().chain(&more).map(async |phone| {
        let reply = notify(&app, "$2", &phone.device()).await;
        assert_eq!(rejected(reply), json!([]));
    });
    assert_eq!(join_all(at_once).await.len(), 81);
}

#[tokio::test]
async fn a_new_key_gives_every_pusher_a_new_mark_and_old_marks_count_for_a_day() {
    let app = App::builder().api("NOTIFY_AUTH", "require").start().await;
    let phones = phones("phone", 60);
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    app.settled().await;
    let old: Vec<_> = phones
        .iter()
        .map(|phone| handed_back(&app, phone))
        .collect();
    let output = Program::Worker
        .run(&["marks", "renew"], &app.worker_env)
        .await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("the new mark is in 60 pushers"), "{said}");

    app.settled().await;
    for (phone, old) in phones.iter().zip(&old) {
        let new = handed_back(&app, phone);
        assert_ne!(new["data"]["mark"], old["data"]["mark"]);
        assert_eq!(rejected(notify(&app, "$new", &new).await), json!([]));
        assert_eq!(rejected(notify(&app, "$old", old).await), json!([]));
    }
    let sets = app.homeserver.sets().len();
    assert_eq!(sets, 120, "each was set twice");

    // A day later.
    let long_ago = if app.database.is_postgres() {
        r"'\x0000000000000000'"
    } else {
        "zeroblob(8)"
    };
    let over = format!("UPDATE meta SET value = {long_ago} WHERE name = 'mark_key_until'");
    app.database.meddle(&over).await;
    // A change of tokens by another process has the keys read again.
    let told = if app.database.is_postgres() {
        "UPDATE push_tokens SET report = report"
    } else {
        "UPDATE token_epoch SET value = value + 1"
    };
    app.database.meddle(told).await;
    eventually(SOON, "the old mark no longer counts", async || {
        notify(&app, "$late", &old[0]).await.status == 403
    })
    .await;
    let new = handed_back(&app, &phones[0]);
    assert_eq!(rejected(notify(&app, "$late", &new).await), json!([]));
}

#[tokio::test]
async fn an_app_id_gone_wrong_erases_few_pushers_and_touches_no_other_app() {
    let fine = phones("fine", 100);
    let mut wrong = phones("wrong", 60);
    for phone in &mut wrong {
        phone.app_id = "com.example.wrong".into();
    }
    let app = with(App::builder(), &fine).await;
    app.enroll(&wrong.iter().collect::<Vec<_>>()).await;
    for phone in &fine {
        assert_eq!(
            rejected(notify(&app, "$1", &phone.device()).await),
            json!([])
        );
    }
    let mut gone = 0;
    for phone in &wrong {
        app.pnm.answer_for(&phone.token, Answer::Gone);
        match notify(&app, "$1", &phone.device()).await {
            reply if reply.status == 200 => gone += usize::from(rejected(reply) != json!([])),
            reply => drop(reply.expect_error(502)),
        }
    }
    assert_eq!(gone, 19);
    for phone in &fine {
        assert_eq!(
            rejected(notify(&app, "$2", &phone.device()).await),
            json!([])
        );
    }
    // One phone of the other app may go as ever.
    app.pnm.answer_for(&fine[0].token, Answer::Gone);
    let reply = notify(&app, "$3", &fine[0].device()).await;
    assert_eq!(rejected(reply), json!([fine[0].token]));
    assert_eq!(app.api().log_lines("PNM calls most push tokens").len(), 1);
}

#[tokio::test]
async fn a_mass_of_unknown_pushkeys_is_put_off_until_most_are_known() {
    let known = phones("known", 20);
    let app = with(App::builder(), &known).await;
    let unknown = phones("unknown", 20);
    for phone in &unknown[..19] {
        let reply = notify(&app, "$1", &phone.device()).await;
        assert_eq!(rejected(reply), json!([phone.token]));
    }
    for phone in [&unknown[19], &unknown[0]] {
        notify(&app, "$2", &phone.device()).await.expect_error(503);
    }
    for phone in &known {
        assert_eq!(
            rejected(notify(&app, "$1", &phone.device()).await),
            json!([])
        );
    }
    let reply = notify(&app, "$2", &unknown[19].device()).await;
    assert_eq!(
        rejected(reply),
        json!([unknown[19].token]),
        "half is not most"
    );
    assert_eq!(app.api().log_lines("are unknown here").len(), 1);
}

/// An alert counts rejections, and must not ring for pushkeys that anybody can make up.
#[tokio::test]
async fn made_up_pushkeys_are_counted_apart_from_those_of_our_pushers() {
    let counts = async |app: &App| {
        let metrics = send(app.admin_bare(Method::GET, "/metrics")).await.text;
        ["unknown_pushkey", "unknown_unmarked"].map(|reason| {
            let series = format!("matrix2acrobits_rejections_total{{reason=\"{reason}\"}} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
            line.map(ToOwned::to_owned)
        })
    };
    let counted = |ours: u32, others: u32| [ours, others].map(|count| Some(count.to_string()));
    for (auth, before, after) in [
        ("prefer", counted(0, 2), counted(1, 2)),
        ("off", counted(2, 0), counted(3, 0)),
    ] {
        let app = with(App::builder().api("NOTIFY_AUTH", auth), &phones("known", 1)).await;
        let unknown = Phone::new("unknown");
        let mut forged = unknown.device();
        forged["data"]["mark"] = json!("AAAAAAAAAAAAAAAAAAAAAA");
        for device in [unknown.device(), forged] {
            let reply = notify(&app, "$1", &device).await;
            assert_eq!(rejected(reply), json!([unknown.token]));
        }
        assert_eq!(counts(&app).await, before, "{auth}");
        let reply = notify(&app, "$1", &app.marked(&unknown).await).await;
        assert_eq!(rejected(reply), json!([unknown.token]));
        assert_eq!(counts(&app).await, after, "{auth}");
    }
}

#[tokio::test]
async fn a_gone_token_is_dead_for_the_account_that_was_pushed_to() {
    let bobs = Phone::new("bob").with_token("one-phone");
    let alices = Phone::new("alice").with_token("one-phone").of(ALICE);
    let app = App::builder().both("PUSHER_APPEND", "true").start().await;
    app.enroll(&[&bobs, &alices]).await;
    app.pusher_set(&bobs).await;
    app.pusher_set(&alices).await;
    app.pnm.answer_for("one-phone", Answer::Gone);
    let reply = notify(&app, "$1", &handed_back(&app, &bobs)).await;
    assert_eq!(rejected(reply), json!(["one-phone"]));
    app.pnm.answer_for("one-phone", Answer::Ok);
    let reply = notify(&app, "$2", &bobs.device()).await;
    assert_eq!(
        rejected(reply),
        json!(["one-phone"]),
        "dead, PNM is not asked"
    );
    let reply = notify(&app, "$2", &alices.device()).await;
    assert_eq!(rejected(reply), json!([]), "PNM has not said so for Alice");
    app.settled().await;
    assert_eq!(app.homeserver.pushkeys_of(ALICE), ["one-phone"]);
    let selectors: Vec<_> = app
        .pnm
        .pushes()
        .iter()
        .map(|push| push.body["Selector"].clone())
        .collect();
    assert_eq!(selectors, [json!(bobs.selector), json!(alices.selector)]);
}

#[tokio::test]
async fn a_request_names_at_most_a_hundred_devices_and_leaves_one_line() {
    let known = phones("known", 2);
    let app = with(App::builder().api("LOGLEVEL", "INFO"), &known).await;
    let before = app.api().log().lines().count();
    let devices: Vec<_> = phones("unknown", 101).iter().map(Phone::device).collect();
    app.notify(&message("$1", &devices)).await.expect_error(400);
    app.notify(&message("$1", &devices[..15]))
        .await
        .expect_status(200);
    eventually(SOON, "the lines", async || {
        app.api().log_lines("rejected").len() == 1
    })
    .await;
    let log = app.api().log();
    let lines: Vec<_> = log.lines().skip(before).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("a notification was refused"), "{lines:?}");
    assert_eq!(
        lines[1].matches(":unknown_unmarked").count(),
        14,
        "{lines:?}"
    );
}
