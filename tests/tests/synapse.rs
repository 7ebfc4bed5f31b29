//! The two binaries between a real Synapse and PNM's stand-in, from a phone's report to its push.
//!
//! Each test starts a Synapse of its own, which costs some seconds; so each tells a longer story.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests outside of #[test] functions; the figures are worth showing"
)]

use std::time::{Duration, Instant};

use matrix2acrobits_tests::app::{App, Builder};
use matrix2acrobits_tests::fixtures::{APP_ID, BOB, Phone};
use matrix2acrobits_tests::http;
use matrix2acrobits_tests::pnm::{Answer, Push};
use matrix2acrobits_tests::process::Program;
use matrix2acrobits_tests::synapse::{self, Synapse, User};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};

/// How long Synapse may need until it tries again: 1, 2, 4, 8 s after the failures of a short outage.
const RETRIED: Duration = Duration::from_mins(1);

struct Bridge {
    app: App,
    synapse: Synapse,
    bob: User,
    alice: User,
    room: String,
}

impl Bridge {
    /// The api's own registration in a Synapse, both processes, and Alice and Bob in a room.
    async fn start(settings: impl FnOnce(Builder) -> Builder) -> Self {
        let synapse = Synapse::start(&synapse::registration().await).await;
        let app = settings(synapse.bridge()).start().await;
        let bob = synapse.register("bob").await;
        let alice = synapse.register("alice").await;
        let room = alice.room_with(&[&bob]).await;
        Self {
            app,
            synapse,
            bob,
            alice,
            room,
        }
    }

    /// A phone reports, and Synapse has its pusher, alone.
    async fn enroll(&self, phone: &Phone) {
        self.app.enroll(&[phone]).await;
        self.synapse.holds(&phone.user, &[&phone.token]).await;
        self.app.settled().await;
    }

    /// Alice writes.
    async fn say(&self, words: &str) -> String {
        self.alice.say(&self.room, words).await
    }

    /// The push of an event to a phone, once it is there.
    async fn push_of(&self, event: &str, phone: &Phone) -> Push {
        let found = || {
            let pushes = self.app.pnm.pushes_for(&phone.token);
            pushes.into_iter().find(|push| push.body["Id"] == event)
        };
        let what = format!("the push of {event} to {}", phone.token);
        eventually(SOON, &what, async || found().is_some()).await;
        found().unwrap()
    }

    /// The ids that a phone was pushed, in order.
    fn ids(&self, phone: &Phone) -> Vec<Value> {
        let pushes = self.app.pnm.pushes_for(&phone.token);
        pushes.iter().map(|push| push.body["Id"].clone()).collect()
    }

    /// A metric of the worker or the api, summed over the lines that begin so.
    async fn metric(&self, of_worker: bool, name: &str) -> u64 {
        let request = if of_worker {
            self.app.worker_admin(Method::GET, "/metrics")
        } else {
            self.app.admin_bare(Method::GET, "/metrics")
        };
        let reply = http::send(request).await.expect_status(200);
        let lines = reply.text.lines().filter(|line| line.starts_with(name));
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum()
    }

    /// Calls of the worker that set or delete a pusher.
    async fn sets(&self) -> u64 {
        self.metric(
            true,
            "matrix2acrobits_homeserver_requests_total{request=\"set\"",
        )
        .await
    }
}

#[tokio::test]
async fn from_report_to_push() {
    // So every push shows that Synapse hands the mark back.
    let mut bridge = Bridge::start(|settings| settings.api("NOTIFY_AUTH", "require")).await;
    let phone = Phone::seed();
    the_pusher_is_listed(&bridge, &phone).await;
    a_message_arrives_within_a_second(&bridge, &phone).await;
    an_encrypted_event_is_pushed_without_text(&bridge, &phone).await;
    a_badge_update_does_not_ring(&bridge, &phone).await;
    full_format_carries_sender_and_text(&mut bridge, &phone).await;
}

async fn the_pusher_is_listed(bridge: &Bridge, phone: &Phone) {
    bridge.enroll(phone).await;
    let pushers = bridge.synapse.pushers(BOB).await;
    let url = format!("{}/_matrix/push/v1/notify", bridge.app.api().public_url());
    let mark = bridge.app.database.mark_key().await.mark(&phone.token);
    let mut listed = pushers[0].clone();
    // Synapse adds null for what we do not set.
    listed
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    assert_eq!(
        listed,
        json!({
            "kind": "http",
            "app_id": APP_ID,
            "app_display_name": APP_ID,
            "device_display_name": "Acrobits Softphone",
            "pushkey": phone.token,
            "lang": "en",
            "profile_tag": "",
            "data": {"format": "event_id_only", "url": url, "selector": phone.selector, "mark": mark},
        })
    );
}

async fn a_message_arrives_within_a_second(bridge: &Bridge, phone: &Phone) {
    let mut took = Vec::new();
    for _ in 0..5 {
        let said = Instant::now();
        let event = bridge.say("Are you there?").await;
        let push = bridge.push_of(&event, phone).await;
        took.push(push.at.saturating_duration_since(said));
        assert_eq!(
            push.body,
            json!({
                "verb": "NotifyTextMessage",
                "AppId": APP_ID,
                "DeviceToken": phone.token,
                "Selector": phone.selector,
                // Synapse counts rooms with something unread, not messages.
                "Badge": 1,
                "Sound": "default",
                "Message": "New message",
                "ContentType": "text/plain",
                "Id": event,
                "ThreadId": bridge.room,
            })
        );
    }
    took.sort();
    println!("message to push, five times: {took:?}");
    assert!(
        took[2] < Duration::from_secs(1),
        "message to push: {took:?}"
    );
}

async fn an_encrypted_event_is_pushed_without_text(bridge: &Bridge, phone: &Phone) {
    let push = encrypted(bridge, phone).await;
    assert_eq!(push["Message"], "New message");
    assert_eq!(
        (&push["Badge"], &push["Selector"]),
        (&json!(1), &json!(phone.selector))
    );
}

async fn encrypted(bridge: &Bridge, phone: &Phone) -> Value {
    let content = json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgAEnACgAkL", "session_id": "s",
        "sender_key": "k", "device_id": "d"});
    let event = bridge
        .alice
        .send(&bridge.room, "m.room.encrypted", &content)
        .await;
    bridge.push_of(&event, phone).await.body
}

async fn a_badge_update_does_not_ring(bridge: &Bridge, phone: &Phone) {
    let badges = "matrix2acrobits_notify_devices_total{outcome=\"badge\"}";
    let (before, pushes) = (bridge.metric(false, badges).await, bridge.ids(phone));
    bridge
        .bob
        .read(&bridge.room, pushes.last().unwrap().as_str().unwrap())
        .await;
    eventually(SOON, "Synapse's badge update at the api", async || {
        bridge.metric(false, badges).await > before
    })
    .await;
    assert_eq!(bridge.ids(phone), pushes, "a badge update must not ring");
}

async fn full_format_carries_sender_and_text(bridge: &mut Bridge, phone: &Phone) {
    assert_eq!(bridge.app.worker_mut().terminate().await, Some(0));
    bridge
        .app
        .worker_env
        .insert("PUSH_FORMAT".into(), "full".into());
    bridge.app.start_worker().await;
    eventually(SOON, "the pusher set anew without a format", async || {
        bridge.synapse.pushers(BOB).await[0]["data"]
            .get("format")
            .is_none()
    })
    .await;
    let event = bridge.say("Grüße 👋").await;
    assert_eq!(
        bridge.push_of(&event, phone).await.body,
        json!({
            "verb": "NotifyTextMessage",
            "AppId": APP_ID,
            "DeviceToken": phone.token,
            "Selector": phone.selector,
            "Badge": 1,
            "Sound": "default",
            "UserName": "@alice:example.org",
            "UserDisplayName": "alice",
            "Message": "Grüße 👋",
            "ContentType": "text/plain",
            "Id": event,
            "ThreadId": bridge.room,
        })
    );
    let push = encrypted(bridge, phone).await;
    assert_eq!(
        (&push["Message"], &push["UserDisplayName"]),
        (&json!("New message"), &json!("alice"))
    );
}

#[tokio::test]
async fn tokens_and_accounts_come_and_go() {
    let bridge = Bridge::start(|settings| settings).await;
    let phone = Phone::seed();
    bridge.enroll(&phone).await;
    let phone = a_new_token_replaces_the_old(&bridge, &phone).await;
    a_dead_token_is_dropped_until_it_is_reported_again(&bridge, &phone).await;
    a_phone_that_changes_hands(&bridge, &phone).await;
    a_removed_account_has_no_pusher(&bridge, &phone).await;
    an_unregistered_user_can_come_later(&bridge).await;
}

async fn a_new_token_replaces_the_old(bridge: &Bridge, old: &Phone) -> Phone {
    let new = old.clone().with_token("APA91bRenewed");
    bridge.enroll(&new).await;
    let event = bridge.say("to the new token").await;
    bridge.push_of(&event, &new).await;
    assert_eq!(bridge.ids(old).len(), 0);
    new
}

async fn a_dead_token_is_dropped_until_it_is_reported_again(bridge: &Bridge, phone: &Phone) {
    bridge.app.pnm.answer_for(&phone.token, Answer::Gone);
    let lost = bridge.say("to a phone that is gone").await;
    bridge.push_of(&lost, phone).await;
    bridge.synapse.holds(BOB, &[]).await;

    bridge.app.pnm.answer_for(&phone.token, Answer::Ok);
    bridge.enroll(phone).await;
    let event = bridge.say("to a phone that is back").await;
    bridge.push_of(&event, phone).await;
}

async fn a_phone_that_changes_hands(bridge: &Bridge, phone: &Phone) {
    let of_alice = phone
        .clone()
        .of(&bridge.alice.id)
        .with_selector("SELECTOR-alice");
    bridge.enroll(&of_alice).await;
    bridge.synapse.holds(BOB, &[]).await;
    let event = bridge.bob.say(&bridge.room, "to Alice").await;
    let push = bridge.push_of(&event, &of_alice).await;
    assert_eq!(push.body["Selector"], of_alice.selector);
    // And back.
    bridge.enroll(phone).await;
    bridge.synapse.holds(&bridge.alice.id, &[]).await;
    let event = bridge.say("to Bob").await;
    assert_eq!(
        bridge.push_of(&event, phone).await.body["Selector"],
        phone.selector
    );
}

async fn a_removed_account_has_no_pusher(bridge: &Bridge, phone: &Phone) {
    let removal = json!({"selector": phone.selector});
    bridge.app.removal(&removal).await.expect_status(200);
    bridge.synapse.holds(BOB, &[]).await;
    bridge.app.settled().await;
    // It may come back.
    bridge.enroll(phone).await;
}

async fn an_unregistered_user_can_come_later(bridge: &Bridge) {
    let phone = Phone::new("carol").of("@carol:example.org");
    bridge.app.enroll(&[&phone]).await;
    bridge.app.dead_letters(1).await;
    let error = bridge
        .app
        .database
        .pusher(&phone.token)
        .await
        .unwrap()
        .last_error;
    let error = error.unwrap_or_default();
    assert!(
        error.contains("403") && error.contains("not registered"),
        "{error}"
    );

    let carol = bridge.synapse.register("carol").await;
    bridge.enroll(&phone).await;
    assert_eq!(bridge.app.database.dead_jobs().await, 0);
    let room = bridge.alice.room_with(&[&carol]).await;
    let event = bridge.alice.say(&room, "welcome").await;
    let push = bridge.push_of(&event, &phone).await;
    assert_eq!(push.body["ThreadId"], room);
}

#[tokio::test]
async fn what_synapse_holds_during_an_outage_of_pnm_arrives() {
    let bridge = Bridge::start(|settings| settings).await;
    let phone = Phone::seed();
    bridge.enroll(&phone).await;
    let first = bridge.say("before").await;
    bridge.push_of(&first, &phone).await;

    bridge.app.pnm.answer(Answer::Refuse).await;
    let mut events = vec![first];
    for number in 1..=4 {
        events.push(bridge.say(&format!("held {number}")).await);
    }
    eventually(SOON, "a push that failed", async || {
        bridge
            .metric(
                false,
                "matrix2acrobits_notify_devices_total{outcome=\"retry\"}",
            )
            .await
            >= 1
    })
    .await;
    // Setting the pusher again would make Synapse forget what it holds.
    let sets = bridge.sets().await;
    for _ in 0..3 {
        bridge.app.report(&phone.report()).await.expect_status(200);
    }
    let replay = Program::Worker
        .run(&["replay", "--all"], &bridge.app.worker_env)
        .await;
    assert!(replay.status.success(), "{replay:?}");
    bridge.app.settled().await;
    assert_eq!(bridge.sets().await, sets, "the pusher was set again");
    events.push(bridge.say("held 5").await);

    bridge.app.pnm.answer(Answer::Ok).await;
    let back = Instant::now();
    eventually(
        RETRIED,
        "all held pushes, in order, once each",
        async || bridge.ids(&phone) == events,
    )
    .await;
    println!(
        "the last held push came {:?} after PNM's return",
        back.elapsed()
    );
    // Nothing comes twice, and all goes on.
    events.push(bridge.say("after").await);
    bridge.push_of(events.last().unwrap(), &phone).await;
    assert_eq!(bridge.ids(&phone), events);
}

#[tokio::test]
async fn synapse_stops_and_comes_back_under_load() {
    let mut bridge = Bridge::start(|settings| settings).await;
    let phones: Vec<_> = (0..30).map(|n| Phone::new(&format!("p{n:02}"))).collect();
    killed_while_it_holds_pushes(&mut bridge, &phones).await;
    killed_in_the_midst_of_deliveries(&mut bridge, &phones).await;
    stopped_in_the_midst_of_reports(&mut bridge, &phones).await;
}

fn tokens(phones: &[Phone]) -> Vec<&str> {
    phones.iter().map(|phone| phone.token.as_str()).collect()
}

/// PNM fails, Synapse holds 40 pushes, and is killed; ten more phones report meanwhile.
async fn killed_while_it_holds_pushes(bridge: &mut Bridge, phones: &[Phone]) {
    let (early, late) = phones.split_at(20);
    bridge.app.enroll(&early.iter().collect::<Vec<_>>()).await;
    bridge.synapse.holds(BOB, &tokens(early)).await;
    bridge.app.pnm.answer(Answer::Refuse).await;
    let held = [bridge.say("held 1").await, bridge.say("held 2").await];
    let failed = "matrix2acrobits_notify_devices_total{outcome=\"retry\"}";
    eventually(SOON, "20 failed pushes", async || {
        bridge.metric(false, failed).await >= 20
    })
    .await;

    bridge.synapse.kill().await;
    bridge.app.enroll(&late.iter().collect::<Vec<_>>()).await;
    bridge.app.pnm.answer(Answer::Ok).await;
    bridge.synapse.start_again().await;
    bridge.synapse.holds(BOB, &tokens(phones)).await;
    eventually(
        RETRIED,
        "what was held before Synapse died, once each",
        async || early.iter().all(|phone| bridge.ids(phone) == held),
    )
    .await;
}

/// Deliveries that PNM took and of which Synapse did not hear are not pushed again.
async fn killed_in_the_midst_of_deliveries(bridge: &mut Bridge, phones: &[Phone]) {
    let before: Vec<_> = phones.iter().map(|phone| bridge.ids(phone).len()).collect();
    bridge.app.pnm.answer(Answer::Slow(300)).await;
    let cut = bridge.say("while Synapse dies").await;
    eventually(SOON, "ten of 30 deliveries", async || {
        phones
            .iter()
            .filter(|phone| bridge.ids(phone).contains(&json!(cut)))
            .count()
            >= 10
    })
    .await;
    bridge.synapse.kill().await;
    bridge.synapse.start_again().await;
    bridge.app.pnm.answer(Answer::Ok).await;
    eventually(
        RETRIED,
        "the interrupted message, once for each phone",
        async || {
            phones
                .iter()
                .zip(&before)
                .all(|(phone, &from)| bridge.ids(phone)[from..] == *std::slice::from_ref(&cut))
        },
    )
    .await;
    let repeats = "matrix2acrobits_notify_devices_total{outcome=\"duplicate\"}";
    println!(
        "{} deliveries were repeated by Synapse",
        bridge.metric(false, repeats).await
    );
}

/// Every phone gets another token while Synapse stops in good order and starts again.
async fn stopped_in_the_midst_of_reports(bridge: &mut Bridge, phones: &[Phone]) {
    let with_another = |phone: &Phone| {
        phone
            .clone()
            .with_token(&format!("{}-renewed", phone.token))
    };
    let renewed: Vec<_> = phones.iter().map(with_another).collect();
    let reports = async {
        for phone in &renewed {
            bridge.app.report(&phone.report()).await.expect_status(200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(reports, bridge.synapse.stop());
    bridge.synapse.start_again().await;
    bridge.synapse.holds(BOB, &tokens(&renewed)).await;
    bridge.app.settled().await;
    assert_eq!(bridge.app.database.dead_jobs().await, 0);
    let event = bridge.say("to the new tokens").await;
    for phone in &renewed {
        bridge.push_of(&event, phone).await;
        assert_eq!(bridge.ids(phone), std::slice::from_ref(&event));
    }
}
