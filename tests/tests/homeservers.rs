//! The main scenarios, on every homeserver that we know of: a phone gets its pusher, changes its token and its app,
//! changes hands, is paused, removed, and survives an outage.

use std::time::Duration;

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{ALICE, BOB, Phone, message};
use matrix2acrobits_tests::homeserver::{Call, Fault, Profile};
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::process::Program;
use matrix2acrobits_tests::{SOON, eventually};
use serde_json::{Value, json};

/// Each homeserver that sets pushers, with a bridge of its own.
async fn each(scenario: impl AsyncFn(Profile, App)) {
    for profile in Profile::THAT_SET_PUSHERS {
        let app = App::builder().homeserver(profile).start().await;
        scenario(profile, app).await;
    }
}

/// Everything reported so far is done, and nothing was given up.
async fn done(profile: Profile, app: &App) {
    app.settled().await;
    assert_eq!(app.database.dead_jobs().await, 0, "{profile:?}");
}

#[tokio::test]
async fn a_phone_changes_its_token_and_its_app_and_is_removed() {
    each(async |profile, app| {
        let mut phone = Phone::seed();
        app.enroll(&[&phone]).await;
        app.pusher_set(&phone).await;
        app.settled().await;

        phone = phone.with_token("APA91b-renewed");
        app.report(&phone.report()).await.expect_status(200);
        app.pushers_are(BOB, &[&phone]).await;
        done(profile, &app).await;
        app.pushers_are(BOB, &[&phone]).await;

        // Where a pusher is known by its pushkey alone, the deletion of the old one would take the new one along.
        phone.app_id = "com.example.rebranded".into();
        app.report(&phone.report()).await.expect_status(200);
        eventually(SOON, "the new app alone", async || {
            let pushers = app.homeserver.pushers();
            pushers.len() == 1 && pushers[0].app_id == phone.app_id
        })
        .await;
        done(profile, &app).await;
        let left = app.homeserver.pushers();
        assert_eq!(left.len(), 1, "{profile:?}: {left:?}");

        let removal = json!({"selector": phone.selector});
        app.removal(&removal).await.expect_status(200);
        app.pushers_are(BOB, &[]).await;
        done(profile, &app).await;
        assert!(app.homeserver.pushers().is_empty(), "{profile:?}");
    })
    .await;
}

#[tokio::test]
async fn a_phone_that_changes_hands_leaves_no_pusher_of_its_former_user() {
    each(async |profile, app| {
        let bobs = Phone::new("shared");
        app.enroll(&[&bobs]).await;
        app.pusher_set(&bobs).await;
        app.settled().await;
        let hers = bobs.clone().with_selector("SELECTOR-hers").of(ALICE);
        app.enroll(&[&hers]).await;
        app.pushers_are(ALICE, &[&hers]).await;
        app.pushers_are(BOB, &[]).await;
        done(profile, &app).await;
        // The former user's deletion has not touched hers.
        assert_eq!(app.homeserver.pushers().len(), 1, "{profile:?}");
        app.pushers_are(ALICE, &[&hers]).await;
    })
    .await;
}

#[tokio::test]
async fn making_devices_counts_as_requests_while_the_homeserver_is_unwell() {
    let app = App::builder().homeserver(Profile::Tuwunel).start().await;
    let bobs = Phone::new("bobs");
    app.enroll(&[&bobs]).await;
    app.pusher_set(&bobs).await;
    // Alice has no device yet, so each attempt takes two requests.
    let device = "/_matrix/client/v3/devices/MATRIX2ACROBITS";
    app.homeserver.break_path(device, Fault::Status(503));
    app.homeserver.clear_calls();
    let phones: Vec<_> = (0..60)
        .map(|n| Phone::new(&format!("p{n}")).of(ALICE))
        .collect();
    let all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    app.homeserver
        .is_asked_little_for(Duration::from_secs(4))
        .await;
    app.homeserver.repair().await;
    app.pushers_are(ALICE, &all).await;
    done(Profile::Tuwunel, &app).await;
}

#[tokio::test]
async fn with_append_two_accounts_of_one_phone_keep_their_pushers_and_one_is_removed_alone() {
    for profile in Profile::THAT_SET_PUSHERS {
        let builder = App::builder().homeserver(profile);
        let app = builder.worker("PUSHER_APPEND", "true").start().await;
        let bobs = Phone::new("shared");
        let hers = bobs.clone().with_selector("SELECTOR-hers").of(ALICE);
        app.enroll(&[&bobs]).await;
        app.pusher_set(&bobs).await;
        app.enroll(&[&hers]).await;
        app.pusher_set(&hers).await;
        done(profile, &app).await;
        app.pushers_are(BOB, &[&bobs]).await;
        let removal = json!({"selector": bobs.selector});
        app.removal(&removal).await.expect_status(200);
        app.pushers_are(BOB, &[]).await;
        done(profile, &app).await;
        app.pushers_are(ALICE, &[&hers]).await;
    }
}

#[tokio::test]
async fn a_dead_token_is_rejected_and_rings_again_after_the_next_report() {
    each(async |profile, app| {
        let phone = Phone::seed();
        app.enroll(&[&phone]).await;
        app.pusher_set(&phone).await;
        done(profile, &app).await;

        app.pnm.answer_for(&phone.token, Answer::Gone);
        let reply = app.notify(&message("$gone", &[phone.device()])).await;
        let rejected = reply.expect_status(200).json();
        assert_eq!(rejected, json!({"rejected": [phone.token]}), "{profile:?}");
        // What the homeserver does about it; Continuwuity does nothing, and goes on sending.
        if profile != Profile::Continuwuity {
            app.homeserver.forget(&phone.token);
        }
        let pushes = app.pnm.pushes().len();
        let reply = app.notify(&message("$later", &[phone.device()])).await;
        assert_eq!(reply.expect_status(200).json(), rejected, "{profile:?}");
        assert_eq!(app.pnm.pushes().len(), pushes, "PNM is not asked again");

        app.pnm.answer_for(&phone.token, Answer::Ok);
        app.report(&phone.report()).await.expect_status(200);
        app.pushers_are(BOB, &[&phone]).await;
        done(profile, &app).await;
        let reply = app.notify(&message("$alive", &[phone.device()])).await;
        assert_eq!(reply.expect_status(200).json(), json!({"rejected": []}));
        assert_eq!(app.pnm.pushes().len(), pushes + 1, "{profile:?}");
    })
    .await;
}

#[tokio::test]
async fn a_pause_outlives_what_the_bridge_changes() {
    each(async |profile, app| {
        let phone = Phone::seed();
        app.enroll(&[&phone]).await;
        app.pusher_set(&phone).await;
        app.settled().await;
        app.homeserver.pause(&phone.token);

        // Provisioned anew: the pusher has to carry the new selector.
        let renamed = phone.clone().with_selector("SELECTOR-renamed");
        app.enroll(&[&renamed]).await;
        let removal = json!({"selector": phone.selector});
        app.removal(&removal).await.expect_status(200);
        eventually(SOON, "the new selector", async || {
            let pushers = app.homeserver.pushers();
            pushers.len() == 1 && pushers[0].body["data"]["selector"] == renamed.selector
        })
        .await;
        done(profile, &app).await;
        let pushers = app.homeserver.pushers();
        assert_eq!(pushers.len(), 1, "{profile:?}");
        let paused = ["enabled", "org.matrix.msc3881.enabled"];
        let paused = paused.map(|name| &pushers[0].body[name]);
        assert_eq!(paused, [&json!(false); 2], "{profile:?}");
    })
    .await;
}

#[tokio::test]
async fn an_outage_ends_with_every_pusher_set() {
    each(async |profile, app| {
        let phones = [Phone::new("one"), Phone::new("two").of(ALICE)];
        app.homeserver.break_with(Fault::Status(503)).await;
        app.enroll(&[&phones[0], &phones[1]]).await;
        eventually(SOON, "an attempt", async || {
            !app.homeserver.calls().is_empty()
        })
        .await;
        app.homeserver.repair().await;
        app.pushers_are(BOB, &[&phones[0]]).await;
        app.pushers_are(ALICE, &[&phones[1]]).await;
        done(profile, &app).await;
    })
    .await;
}

#[tokio::test]
async fn a_device_is_made_once_where_it_is_asked_for_and_nowhere_else() {
    each(async |profile, app| {
        let first = Phone::new("first");
        app.enroll(&[&first]).await;
        app.pusher_set(&first).await;
        app.settled().await;
        let devices = app.homeserver.made_devices();
        if !profile.wants_device() {
            assert_eq!(devices, [], "{profile:?}");
            assert_eq!(app.homeserver.calls().len(), 1, "{profile:?}");
            return;
        }
        assert_eq!(devices, [(BOB.into(), "MATRIX2ACROBITS".into())]);
        // What was learned stays: the second pusher of the user takes one request.
        app.homeserver.clear_calls();
        let second = Phone::new("second");
        app.enroll(&[&second]).await;
        app.pushers_are(BOB, &[&first, &second]).await;
        app.settled().await;
        let calls = app.homeserver.calls();
        assert_eq!(calls.len(), 1, "{profile:?}: {calls:?}");
    })
    .await;
}

#[tokio::test]
async fn a_registration_that_may_make_no_devices_is_named() {
    let builder = App::builder().homeserver(Profile::Tuwunel);
    let app = builder.start().await;
    app.homeserver.refuse_devices();
    app.enroll(&[&Phone::seed()]).await;
    app.dead_letters(1).await;
    eventually(SOON, "the advice", async || {
        let log = app.worker().log();
        log.contains("device_management: true")
    })
    .await;
}

#[tokio::test]
async fn the_url_of_a_generic_worker_makes_everything_wait_and_loses_nothing() {
    let builder = App::builder().homeserver(Profile::SynapseWorker);
    let app = builder.start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    eventually(SOON, "one loud error", async || {
        let log = app.worker().log();
        log.contains("MATRIX_HOMESERVER_URL does not lead to the client-server API")
    })
    .await;
    app.homeserver.behave_as(Profile::Synapse);
    app.pusher_set(&phone).await;
    done(Profile::SynapseWorker, &app).await;
}

#[tokio::test]
async fn a_url_that_dendrite_does_not_take_is_a_dead_letter_with_its_words() {
    let app = App::builder()
        .homeserver(Profile::Dendrite)
        .worker("PROXY_URL", "http://push.example.org")
        .worker("ALLOW_INSECURE_PROXY_URL", "true")
        .start()
        .await;
    app.enroll(&[&Phone::seed()]).await;
    app.dead_letters(1).await;
}

#[tokio::test]
async fn deletions_spare_other_users() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let removal = json!({"selector": phone.selector});
    app.removal(&removal).await.expect_status(200);
    app.pushers_are(BOB, &[]).await;
    let is_deletion = |call: &Call| call.body["kind"].is_null();
    let deleted = app.homeserver.sets().into_iter().find(is_deletion);
    let append = deleted.map_or(Value::Null, |call| call.body["append"].clone());
    assert_eq!(append, json!(true));
}

/// A proxy cannot reach a server on this machine's loopback address.
#[tokio::test]
async fn a_homeserver_on_loopback_is_asked_without_the_proxy() {
    let builder = App::builder().both("http_proxy", "http://127.0.0.1:9");
    let app = builder.start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let output = Program::Worker.run(&["doctor"], &app.worker_env).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("ok       homeserver    answers"), "{text}");
}
