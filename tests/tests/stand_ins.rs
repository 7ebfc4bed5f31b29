//! The stand-ins themselves: they keep Synapse's rules as measured, and break the way a test asks for.

use std::time::Duration;

use matrix2acrobits_tests::fixtures::{ALICE, APP_ID, BOB, MALLORY};
use matrix2acrobits_tests::homeserver::{Fault, Homeserver};
use matrix2acrobits_tests::http::{Reply, client, encoded, try_send};
use matrix2acrobits_tests::pnm::{Answer, Pnm};
use matrix2acrobits_tests::{SOON, eventually, within};
use reqwest::Client;
use serde_json::{Value, json};

fn pusher(pushkey: &str, append: bool) -> Value {
    json!({
        "kind": "http",
        "app_id": APP_ID,
        "app_display_name": "App",
        "device_display_name": "Phone",
        "pushkey": pushkey,
        "lang": "en",
        "append": append,
        "data": {"url": "https://push.example.org/_matrix/push/v1/notify"},
    })
}

struct Synapse {
    homeserver: Homeserver,
    client: Client,
}

impl Synapse {
    async fn start() -> Self {
        let homeserver = Homeserver::start("token").await;
        homeserver.register(&[BOB, ALICE]);
        Self {
            homeserver,
            client: client(),
        }
    }

    async fn set(&self, user: &str, body: &Value) -> Result<Reply, reqwest::Error> {
        let query = encoded(&[("user_id", user)]);
        let url = format!(
            "{}/_matrix/client/v3/pushers/set?{query}",
            self.homeserver.url()
        );
        let request = self.client.post(url).bearer_auth("token").json(body);
        try_send(request.timeout(Duration::from_millis(700))).await
    }

    /// Status of setting Bob's pusher; nothing if there is no answer.
    async fn status(&self) -> Option<u16> {
        let reply = self.set(BOB, &pusher("key", false)).await;
        reply.ok().map(|reply| reply.status)
    }
}

#[tokio::test]
async fn the_homeserver_keeps_synapses_rules() {
    let synapse = Synapse::start().await;
    let status = async |user: &str, body: Value| {
        let reply = synapse.set(user, &body).await;
        reply
            .map(|reply| (reply.status, reply.errcode()))
            .unwrap_or_default()
    };
    let fine = (200, String::new());
    assert_eq!(status(BOB, pusher("key", false)).await, fine);
    assert_eq!(status(BOB, pusher("older", false)).await, fine);
    // With append another user's pusher stays, without it goes; the user's own other keys stay anyway.
    assert_eq!(status(ALICE, pusher("key", true)).await, fine);
    assert_eq!(synapse.homeserver.pushkeys_of(BOB), ["key", "older"]);
    assert_eq!(status(ALICE, pusher("key", false)).await, fine);
    assert_eq!(synapse.homeserver.pushkeys_of(BOB), ["older"]);
    assert_eq!(synapse.homeserver.pushkeys_of(ALICE), ["key"]);
    let delete = json!({"kind": null, "app_id": APP_ID, "pushkey": "key"});
    assert_eq!(status(BOB, delete.clone()).await, fine);
    assert_eq!(synapse.homeserver.pushkeys_of(ALICE), ["key"]);
    assert_eq!(status(ALICE, delete).await, fine);
    assert!(synapse.homeserver.pushkeys_of(ALICE).is_empty());

    assert_eq!(
        status(MALLORY, pusher("key", false)).await,
        (403, "M_FORBIDDEN".into())
    );
    let missing = (400, "M_MISSING_PARAM".to_owned());
    let mut body = pusher("key", false);
    body["data"]["url"] = json!("https://push.example.org/elsewhere");
    assert_eq!(status(BOB, body).await, missing);
    assert_eq!(status(BOB, json!({"kind": "http"})).await, missing);
    assert_eq!(synapse.homeserver.sets().len(), 9);
}

#[tokio::test]
async fn the_homeserver_breaks_and_recovers_as_told() {
    let synapse = Synapse::start().await;
    let url = synapse.homeserver.url();
    for (fault, status) in [
        (Fault::Refuse, None),
        (Fault::Reset, None),
        (Fault::Hang, None),
        (Fault::Status(502), Some(502)),
        (
            Fault::RateLimited {
                retry_after_ms: 100,
            },
            Some(429),
        ),
        (Fault::WrongToken, Some(401)),
        (Fault::FlakyPercent(100), Some(500)),
        (Fault::FlakyPercent(0), Some(200)),
        (Fault::Delay(50), Some(200)),
    ] {
        synapse.homeserver.break_with(fault).await;
        assert_eq!(synapse.status().await, status, "{fault:?}");
        synapse.homeserver.repair().await;
        assert_eq!(synapse.status().await, Some(200), "after {fault:?}");
    }
    assert_eq!(synapse.homeserver.url(), url, "on the same port");
    synapse.homeserver.break_for(ALICE, Fault::Status(500));
    assert_eq!(synapse.status().await, Some(200));
    let hers = synapse.set(ALICE, &pusher("key", false)).await;
    assert_eq!(hers.ok().map(|reply| reply.status), Some(500));
    assert!(synapse.homeserver.busiest_second() > 1);
}

#[tokio::test]
async fn a_flaky_homeserver_fails_about_as_often_as_told() {
    let synapse = Synapse::start().await;
    synapse.homeserver.break_with(Fault::FlakyPercent(50)).await;
    let mut failed = 0;
    for _ in 0..100 {
        failed += usize::from(synapse.status().await != Some(200));
    }
    assert!((35..=65).contains(&failed), "{failed} of 100");
}

#[tokio::test]
async fn pnm_answers_each_token_as_told() {
    let pnm = Pnm::start().await;
    let client = client();
    let send = async |token: &str| {
        let request = client.post(pnm.url()).json(&json!({"DeviceToken": token}));
        let reply = try_send(request.timeout(Duration::from_millis(700))).await;
        reply
            .ok()
            .map(|reply| (reply.status, reply.json()["code"].as_u64()))
    };
    for (token, answer, expected) in [
        ("gone", Answer::Gone, Some((200, Some(404)))),
        ("http-gone", Answer::HttpGone, Some((404, Some(404)))),
        ("html", Answer::HtmlNotFound, Some((404, None))),
        ("bad", Answer::Http400, Some((400, Some(400)))),
        ("hang", Answer::Hang, None),
        ("reset", Answer::Reset, None),
        ("slow", Answer::Slow(50), Some((200, Some(200)))),
    ] {
        pnm.answer_for(token, answer);
        assert_eq!(send(token).await, expected, "{token}");
    }
    pnm.answer_for("once", Answer::ResetOnce);
    assert_eq!(send("once").await, None);
    assert_eq!(send("once").await, Some((200, Some(200))));
    assert_eq!(pnm.pushes_for("once").len(), 2);
    pnm.answer(Answer::Refuse).await;
    assert_eq!(send("other").await, None);
    pnm.answer(Answer::Ok).await;
    assert_eq!(send("other").await, Some((200, Some(200))));
    assert!(pnm.connections() >= 2);
}

#[tokio::test]
async fn polling_ends_with_what_it_waits_for_or_without() {
    eventually(SOON, "now", async || true).await;
    assert!(!within(Duration::from_millis(50), async || false).await);
}
