//! What the homeserver holds: after changes, repeats, take-overs and crashes it is what was reported last.

use std::time::Duration;

use futures::future::join_all;
use matrix2acrobits_tests::app::{App, PROXY_URL};
use matrix2acrobits_tests::fixtures::{ALICE, BOB, MALLORY, Phone, message};
use matrix2acrobits_tests::homeserver::{Call, Fault};
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::process::{Process, Program};
use matrix2acrobits_tests::{SOON, eventually};
use serde_json::{Value, json};

#[tokio::test]
async fn twenty_equal_reports_make_one_call() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.map(&phone.selector, BOB).await;
    let report = phone.report();
    let replies = join_all((0..20).map(|_| app.report(&report))).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    app.pusher_set(&phone).await;
    app.settled().await;
    assert_eq!(app.homeserver.sets().len(), 1);
    assert_eq!(app.database.count("push_tokens").await, 1);
    assert_eq!(app.database.count("pushers").await, 1);
}

#[tokio::test]
async fn an_unchanged_report_makes_no_call() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    app.settled().await;
    let before = app.homeserver.calls().len();
    for _ in 0..3 {
        app.report(&phone.report()).await.expect_status(200);
        app.settled().await;
    }
    // A phone that needs a call, to see that none is still on its way for the first.
    let other = Phone::new("other");
    app.enroll(&[&other]).await;
    app.pusher_set(&other).await;
    let calls = app.homeserver.calls().split_off(before);
    let about_phone = calls.iter().any(|call| call.pushkey() == phone.token);
    assert!(!about_phone, "{calls:?}");
    assert_eq!(calls.iter().filter(|call| call.is_set()).count(), 1);
}

#[tokio::test]
async fn an_old_pusher_is_looked_at_and_set_only_if_missing() {
    let app = App::builder()
        .worker("PUSHER_REFRESH_INTERVAL", "1s")
        .start()
        .await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    eventually(SOON, "the homeserver is asked", async || {
        app.report(&phone.report()).await.expect_status(200);
        app.homeserver.calls().iter().any(Call::is_list)
    })
    .await;
    app.settled().await;
    assert_eq!(app.homeserver.sets().len(), 1, "it was there");

    app.homeserver.forget(&phone.token);
    eventually(SOON, "the pusher is back", async || {
        app.report(&phone.report()).await.expect_status(200);
        app.homeserver.pushkeys_of(BOB) == [phone.token.clone()]
    })
    .await;
}

#[tokio::test]
async fn a_changed_token_replaces_the_pusher() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let renewed = phone.clone().with_token("APA91b-renewed");
    app.report(&renewed.report()).await.expect_status(200);
    app.pushers_are(BOB, &[&renewed]).await;
    let deleted = app
        .homeserver
        .sets()
        .into_iter()
        .find(|c| c.body["kind"].is_null());
    let body = deleted.map(|call| call.body).unwrap_or_default();
    assert_eq!(body["pushkey"], json!(phone.token));
    assert_eq!(body["app_id"], json!(phone.app_id));
    // And back, as after the restore of a backup.
    app.report(&phone.report()).await.expect_status(200);
    app.pushers_are(BOB, &[&phone]).await;
}

#[tokio::test]
async fn a_changed_app_id_replaces_the_pusher() {
    let app = App::start().await;
    let mut phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    phone.app_id = "com.example.rebranded".into();
    app.report(&phone.report()).await.expect_status(200);
    eventually(SOON, "the new app id alone", async || {
        let pushers = app.homeserver.pushers();
        pushers.len() == 1 && pushers[0].app_id == phone.app_id
    })
    .await;
}

#[tokio::test]
async fn a_changed_mapping_moves_the_pusher() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    app.map(&phone.selector, ALICE).await;
    app.pushers_are(ALICE, &[&phone]).await;
    app.pushers_are(BOB, &[]).await;
}

#[tokio::test]
async fn a_mapping_to_a_user_who_does_not_exist_leaves_nothing_behind_once_it_is_corrected() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.map(&phone.selector, MALLORY).await;
    app.report(&phone.report()).await.expect_status(200);
    app.dead_letters(1).await;
    app.map(&phone.selector, BOB).await;
    app.pushers_are(BOB, &[&phone]).await;
    app.settled().await;
    app.dead_letters(0).await;
}

#[tokio::test]
async fn the_last_user_of_a_phone_takes_its_pusher_over() {
    let app = App::start().await;
    let bobs = Phone::new("bobs").with_token("one-phone");
    let alices = Phone::new("alices").with_token("one-phone").of(ALICE);
    app.enroll(&[&bobs]).await;
    app.pusher_set(&bobs).await;
    app.enroll(&[&alices]).await;
    app.pushers_are(ALICE, &[&alices]).await;
    app.pushers_are(BOB, &[]).await;
    app.settled().await;
    // No fight: it stays so.
    let before = app.homeserver.sets().len();
    app.report(&alices.report()).await.expect_status(200);
    app.settled().await;
    assert_eq!(app.homeserver.sets().len(), before);
    // Bob logs in again, and has it back.
    app.report(&bobs.report()).await.expect_status(200);
    app.pushers_are(BOB, &[&bobs]).await;
    app.pushers_are(ALICE, &[]).await;
}

#[tokio::test]
async fn with_append_both_users_keep_their_pushers() {
    let app = App::builder().both("PUSHER_APPEND", "true").start().await;
    let bobs = Phone::new("bobs").with_token("one-phone");
    let alices = Phone::new("alices").with_token("one-phone").of(ALICE);
    app.enroll(&[&bobs]).await;
    app.pusher_set(&bobs).await;
    app.enroll(&[&alices]).await;
    app.pusher_set(&alices).await;
    app.settled().await;
    app.pushers_are(BOB, &[&bobs]).await;
    let appended = app
        .homeserver
        .sets()
        .iter()
        .all(|call| call.body["append"] == true);
    assert!(appended);
}

#[tokio::test]
async fn without_append_again_the_user_who_reported_last_has_the_phone() {
    let mut app = App::builder().both("PUSHER_APPEND", "true").start().await;
    let bobs = Phone::new("bobs").with_token("one-phone");
    let alices = Phone::new("alices").with_token("one-phone").of(ALICE);
    for phone in [&alices, &bobs] {
        app.enroll(&[phone]).await;
        app.pusher_set(phone).await;
    }
    app.settled().await;
    app.worker_mut().terminate().await;
    app.worker_env.remove("PUSHER_APPEND");
    let sets = app.homeserver.sets().len();
    app.start_worker().await;
    app.pushers_are(ALICE, &[]).await;
    app.settled().await;
    app.pushers_are(BOB, &[&bobs]).await;
    let after = &app.homeserver.sets()[sets..];
    let set = after.iter().any(|call| call.body["kind"] == "http");
    assert!(!set, "Bob's was set again: {after:?}");
}

#[tokio::test]
async fn the_full_format_is_a_setting() {
    let app = App::builder().worker("PUSH_FORMAT", "full").start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let data = &app.homeserver.pushers()[0].body["data"];
    assert_eq!(data.get("format"), None, "{data}");
    assert_eq!(data["selector"], json!(phone.selector));
}

#[tokio::test]
async fn a_change_during_a_call_is_not_lost() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.map(&phone.selector, BOB).await;
    app.homeserver.break_with(Fault::Delay(700)).await;
    let mut renewed = phone;
    for number in 0..4 {
        renewed = renewed.with_token(&format!("token-{number}"));
        app.report(&renewed.report()).await.expect_status(200);
        eventually(SOON, "its call is on the way", async || {
            let sets = app.homeserver.sets();
            sets.iter().any(|call| call.pushkey() == renewed.token)
        })
        .await;
    }
    // The last one is taken back while its call runs.
    app.removal(&json!({"selector": renewed.selector}))
        .await
        .expect_status(200);
    app.settled().await;
    app.pushers_are(BOB, &[]).await;
    app.homeserver.repair().await;
    app.report(&renewed.report()).await.expect_status(200);
    app.pushers_are(BOB, &[&renewed]).await;
}

#[tokio::test]
async fn a_dead_token_that_comes_back_gets_its_pusher_back() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    app.pnm.answer_for(&phone.token, Answer::Gone);
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    // Synapse deletes a rejected pusher by itself.
    app.homeserver.forget(&phone.token);
    app.settled().await;
    app.pushers_are(BOB, &[]).await;
    app.pnm.answer_for(&phone.token, Answer::Ok);
    app.report(&phone.report()).await.expect_status(200);
    app.pushers_are(BOB, &[&phone]).await;
}

#[tokio::test]
async fn nothing_is_left_behind_of_jobs_that_succeeded() {
    let app = App::start().await;
    let phones: Vec<_> = (0..30).map(|n| Phone::new(&format!("p{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    app.pushers_are(BOB, &all).await;
    eventually(SOON, "no job of any kind", async || {
        app.database.jobs().await.is_empty()
    })
    .await;
    let pushers = app.database.pushers().await;
    assert!(pushers.iter().all(|pusher| pusher.state == "registered"));
}

#[tokio::test]
async fn two_workers_share_the_work() {
    let app = App::start().await;
    let mut second = Process::start(Program::Worker, &[], &app.worker_env);
    second.listening().await;
    app.homeserver.break_with(Fault::Delay(30)).await;
    let phones: Vec<_> = (0..60).map(|n| Phone::new(&format!("p{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    app.pushers_are(BOB, &all).await;
    app.settled().await;
    let mut keys: Vec<_> = app
        .homeserver
        .sets()
        .iter()
        .map(|c| c.pushkey().to_owned())
        .collect();
    keys.sort();
    let calls = keys.len();
    keys.dedup();
    assert_eq!((keys.len(), calls), (60, 60), "each pusher is set once");
}

#[tokio::test]
async fn a_worker_killed_in_the_middle_of_a_call_loses_nothing() {
    let mut app = App::start().await;
    let phones = ["caught", "waiting"].map(Phone::new);
    app.homeserver.break_with(Fault::Hang).await;
    app.enroll(&[&phones[0]]).await;
    eventually(SOON, "the call is on the way", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    app.worker_mut().kill().await;
    app.enroll(&[&phones[1]]).await;
    app.homeserver.repair().await;
    app.start_worker().await;
    // The dead worker's job is free after its heartbeats have been missed for some seconds.
    eventually(Duration::from_secs(30), "both pushers", async || {
        app.homeserver.pushkeys_of(BOB).len() == 2
    })
    .await;
    app.settled().await;
    assert_eq!(app.database.dead_jobs().await, 0);
    assert_eq!(app.database.integrity().await, "ok");
}

#[tokio::test]
async fn a_job_that_vanished_is_made_again() {
    let mut app = App::start().await;
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.database.meddle("DELETE FROM Jobs").await;
    app.start_worker().await;
    app.pusher_set(&phone).await;
}

#[tokio::test]
async fn every_field_that_synapse_requires_is_sent_and_none_is_null() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let pushers = app.homeserver.pushers();
    let fields = pushers[0].body.as_object().cloned().unwrap_or_default();
    assert!(!fields.values().any(Value::is_null), "{fields:?}");
    // A device would take the pusher with it when it logs out.
    assert!(!fields.contains_key("device_id"));
}

#[tokio::test]
async fn a_report_during_an_attempt_that_is_refused_counts_as_the_next_one() {
    let app = App::start().await;
    let phone = Phone::seed().of(MALLORY);
    app.homeserver.break_with(Fault::Delay(700)).await;
    app.enroll(&[&phone]).await;
    eventually(SOON, "its call is on the way", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    app.report(&phone.report()).await.expect_status(200);
    eventually(SOON, "it is tried once more", async || {
        app.homeserver.sets().len() == 2
    })
    .await;
    app.dead_letters(1).await;
    app.settled().await;
    assert_eq!(app.homeserver.sets().len(), 2);
}

#[tokio::test]
async fn while_an_old_and_a_new_worker_overlap_all_get_the_new_settings() {
    const NEW: &str = "https://push.example.org";
    let mut app = App::start().await;
    let phones: Vec<_> = (0..60)
        .map(|number| Phone::new(&format!("phone-{number}")))
        .collect();
    app.enroll(&phones[..40].iter().collect::<Vec<_>>()).await;
    app.homeserver.break_with(Fault::Delay(50)).await;
    let mut env = app.worker_env.clone();
    env.insert("PROXY_URL".into(), NEW.into());
    let mut second = Process::start(Program::Worker, &[], &env);
    second.listening().await;
    // What is reported while both run, too.
    app.enroll(&phones[40..].iter().collect::<Vec<_>>()).await;
    let new = |body: &Value| body["data"]["url"].to_string().contains(NEW);
    eventually(SOON, "all have the new URL", async || {
        let pushers = app.homeserver.pushers();
        pushers.len() == phones.len() && pushers.iter().all(|pusher| new(&pusher.body))
    })
    .await;
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    app.settled().await;
    let pushers = app.homeserver.pushers();
    assert!(pushers.iter().all(|pusher| new(&pusher.body)));
}

#[tokio::test]
async fn after_a_roll_back_all_get_the_old_settings_again() {
    const NEW: &str = "https://push.example.org";
    let app = App::start().await;
    let phones: Vec<_> = (0..5)
        .map(|number| Phone::new(&format!("phone-{number}")))
        .collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    let all_have = async |url: &str| {
        eventually(SOON, &format!("all have {url}"), async || {
            let pushers = app.homeserver.pushers();
            let has = |body: &Value| body["data"]["url"].to_string().contains(url);
            pushers.len() == phones.len() && pushers.iter().all(|pusher| has(&pusher.body))
        })
        .await;
    };
    all_have(PROXY_URL).await;
    let mut env = app.worker_env.clone();
    env.insert("PROXY_URL".into(), NEW.into());
    let mut second = Process::start(Program::Worker, &[], &env);
    second.listening().await;
    all_have(NEW).await;
    eventually(SOON, "the first one says so", async || {
        app.worker().log().contains("this one takes no jobs")
    })
    .await;
    assert_eq!(second.terminate().await, Some(0));
    // No phone reports.
    all_have(PROXY_URL).await;
}

/// The second of two accounts on a phone reports while the first one's pusher is being set, and then the first again.
#[tokio::test]
async fn a_pusher_that_may_have_been_set_is_asked_for_before_it_is_set_again() {
    let builder = App::builder().worker("PUSHER_APPEND", "true");
    let app = builder.start().await;
    let bobs = Phone::new("bobs");
    let alices = bobs.clone().with_selector("SELECTOR-alices").of(ALICE);
    app.map(&bobs.selector, BOB).await;
    app.map(&alices.selector, ALICE).await;
    app.homeserver.break_with(Fault::Delay(1500)).await;
    app.report(&bobs.report()).await.expect_status(200);
    eventually(SOON, "its call is on the way", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    app.report(&alices.report()).await.expect_status(200);
    app.report(&bobs.report()).await.expect_status(200);
    app.settled().await;
    app.pushers_are(BOB, &[&bobs]).await;
    app.pushers_are(ALICE, &[&alices]).await;
    let sets = app.homeserver.sets();
    let of_bob = sets
        .iter()
        .filter(|call| call.user_id.as_deref() == Some(BOB))
        .count();
    assert_eq!(of_bob, 1, "{sets:?}");
}

/// As a provisioning script does every night.
#[tokio::test]
async fn a_mapping_said_again_takes_no_phone_from_its_user() {
    let app = App::start().await;
    let bobs = Phone::new("phone");
    let alices = bobs.clone().with_selector("SELECTOR-before").of(ALICE);
    app.enroll(&[&alices]).await;
    app.pusher_set(&alices).await;
    app.enroll(&[&bobs]).await;
    app.settled().await;
    app.pushers_are(BOB, &[&bobs]).await;
    app.map(&alices.selector, ALICE).await;
    app.settled().await;
    app.pushers_are(BOB, &[&bobs]).await;
    app.pushers_are(ALICE, &[]).await;
}

#[tokio::test]
async fn a_mapping_of_an_old_row_takes_no_phone_from_who_reported_later() {
    let app = App::start().await;
    let bobs = Phone::new("phone");
    let alices = bobs.clone().with_selector("SELECTOR-before").of(ALICE);
    // Nobody knows yet whose they are, and the later row is the older one.
    for phone in [&bobs, &alices] {
        app.report(&phone.report()).await.expect_status(200);
    }
    app.database
        .meddle(
            "UPDATE push_tokens
             SET updated_at = updated_at - 1000
             WHERE selector = 'SELECTOR-before'",
        )
        .await;
    app.map(&bobs.selector, BOB).await;
    app.settled().await;
    app.map(&alices.selector, ALICE).await;
    app.settled().await;
    app.pushers_are(BOB, &[&bobs]).await;
    app.pushers_are(ALICE, &[]).await;
}

/// The row without a name had another app's pusher.
#[tokio::test]
async fn a_phone_that_takes_its_nameless_row_over_leaves_no_pusher_behind() {
    let app = App::start().await;
    let (now, before) = (
        Phone::new("named"),
        Phone::new("named").with_token("earlier"),
    );
    let nameless = Phone {
        app_id: "com.example.earlier".into(),
        ..now.clone()
    };
    let named = |phone: &Phone| {
        let mut report = phone.report();
        report["device"] = json!("d");
        report
    };
    app.map(&now.selector, BOB).await;
    for report in [nameless.report(), named(&before)] {
        app.report(&report).await.expect_status(200);
    }
    app.settled().await;
    app.report(&named(&now)).await.expect_status(200);
    app.settled().await;
    let pushers = app.homeserver.pushers();
    let held: Vec<_> = pushers.iter().map(|it| (&it.app_id, &it.pushkey)).collect();
    assert_eq!(held, [(&now.app_id, &now.token)]);
}

/// PostgreSQL holds no NUL in a text.
#[tokio::test]
async fn a_nul_in_the_homeservers_words_holds_up_nobody() {
    let app = App::start().await;
    for fault in [
        Fault::Answer {
            status: 400,
            errcode: "M_UNKNOWN",
            error: "a\0b",
        },
        Fault::Answer {
            status: 502,
            errcode: "M_UNKNOWN",
            error: "a\0b",
        },
    ] {
        app.homeserver.break_with(fault).await;
        let phone = Phone::new("told");
        app.enroll(&[&phone]).await;
        eventually(SOON, "its words are written down", async || {
            let pusher = app.database.pusher(&phone.token).await;
            let words = pusher.and_then(|pusher| pusher.last_error);
            words.is_some_and(|words| words.contains("a b"))
        })
        .await;
        app.homeserver.repair().await;
        app.report(&phone.report()).await.expect_status(200);
        app.pusher_set(&phone).await;
        app.removal(&json!({"selector": phone.selector}))
            .await
            .expect_status(200);
        app.settled().await;
    }
}
