//! REPORT_AUTH=matrix with a real Synapse: what a password login there proves, leaves behind, and costs.

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{ALICE, BOB, Phone, by, refused};
use matrix2acrobits_tests::synapse::{self, PASSWORD, Synapse};
use matrix2acrobits_tests::{SOON, eventually};
use serde_json::{Value, json};

async fn start(settings: &Value) -> (Synapse, App) {
    let synapse = Synapse::start_with(&synapse::registration().await, settings).await;
    let builder = synapse
        .bridge()
        .api("REPORT_AUTH", "matrix")
        .api("MATRIX_HOMESERVER_URL", &synapse.url());
    let app = builder.start().await;
    (synapse, app)
}

#[tokio::test]
async fn a_login_proves_whose_phone_it_is() {
    let (mut synapse, app) = start(&json!({})).await;
    let bob = synapse.register("bob").await;
    let alice = synapse.register("alice").await;
    let phone = Phone::seed();

    refused(app.report(&by(&phone, "bob", "wrong")).await);
    refused(app.report(&by(&phone, "nobody", PASSWORD)).await);
    refused(app.report(&phone.report()).await);
    assert_eq!(app.database.count("push_tokens").await, 0);

    app.report(&by(&phone, "bob", PASSWORD))
        .await
        .expect_status(200);
    synapse.holds(BOB, &[&phone.token]).await;
    assert_eq!(bob.device_names().await, [Value::Null], "only his own");

    let room = alice.room_with(&[&bob]).await;
    let event = alice.say(&room, "hello").await;
    eventually(SOON, "the push", async || {
        let pushes = app.pnm.pushes_for(&phone.token);
        pushes.iter().any(|push| push.body["Id"] == event)
    })
    .await;

    // The same phone in Alice's hands, under an account of its own; she writes her whole user ID.
    let hers = Phone::new("hers").of(ALICE).with_token(&phone.token);
    let reply = app.report(&by(&Phone::seed(), ALICE, PASSWORD)).await;
    assert_eq!(reply.expect_error(403).errcode(), "M_FORBIDDEN");
    app.report(&by(&hers, ALICE, PASSWORD))
        .await
        .expect_status(200);
    synapse.holds(ALICE, &[&hers.token]).await;
    synapse.holds(BOB, &[]).await;
    assert_eq!(alice.device_names().await, [Value::Null]);

    refused(app.removal(&by(&hers, ALICE, "wrong")).await);
    app.removal(&by(&hers, ALICE, PASSWORD))
        .await
        .expect_status(200);
    synapse.holds(ALICE, &[]).await;

    // A homeserver that is down says nothing of a password.
    synapse.stop().await;
    let reply = app.report(&by(&phone, "bob", "other")).await;
    assert!(matches!(reply.status, 502 | 503), "{}", reply.status);
    app.report(&by(&phone, "bob", PASSWORD))
        .await
        .expect_status(200);
    synapse.start_again().await;
    synapse.holds(BOB, &[&phone.token]).await;
    let log = app.api().log();
    assert!(!log.contains(PASSWORD));
}

#[tokio::test]
async fn synapses_own_limit_of_logins_asks_phones_to_wait() {
    // As Synapse comes: five logins, then one in 333 seconds.
    let (synapse, app) = start(&json!({"rc_login": null})).await;
    let names: Vec<_> = (0..8).map(|number| format!("user{number}")).collect();
    for name in &names {
        synapse.register(name).await;
    }
    let mut statuses = Vec::new();
    for name in &names {
        let phone = Phone::new(name);
        let reply = app.report(&by(&phone, name, PASSWORD)).await;
        if reply.status == 503 {
            let wait = reply.header("retry-after");
            assert!(wait.parse::<u64>().is_ok_and(|wait| wait > 0), "{wait}");
        }
        statuses.push(reply.status);
    }
    assert!(statuses.starts_with(&[200, 200, 200]), "{statuses:?}");
    assert_eq!(statuses.last(), Some(&503), "{statuses:?}");
    let good = statuses.iter().filter(|&&status| status == 200).count();
    let kept = app.database.count("push_tokens").await;
    assert_eq!(usize::try_from(kept).ok(), Some(good));
}
