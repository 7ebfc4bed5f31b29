//! Requests through the deliverer.

pub(crate) mod fixture;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use matrix2acrobits_shared::process::net::{self, Outgoing};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use self::fixture::{Book, fixture, fixture_with, key, request, rules};
use super::*;
use crate::notify::trust::NotifyAuth;

#[tokio::test]
async fn answers() {
    type Expected = Result<&'static [&'static str], DeliveryError>;
    let cases: &[(&[&str], Expected)] = &[
        (&["k1"], Ok(&[])),
        (&["unknown-1"], Ok(&["unknown-1"])),
        (&["dead-1"], Ok(&["dead-1"])),
        (&["gone-1"], Ok(&["gone-1"])),
        (&["bad-1"], Ok(&[])),
        (
            &["k2", "dead-2", "k3", "unknown-2", "bad-2"],
            Ok(&["dead-2", "unknown-2"]),
        ),
        (&["dead-3", "dead-3"], Ok(&["dead-3"])),
        (&["busy-1"], Err(DeliveryError::Retry("rate_limited"))),
        (
            &["dead-4", "busy-2", "k4"],
            Err(DeliveryError::Retry("rate_limited")),
        ),
        (&["gone-back"], Err(DeliveryError::Retry("reported_since"))),
        (
            &["gone-broken"],
            Err(DeliveryError::Unavailable("database")),
        ),
        (&["broken-1"], Err(DeliveryError::Unavailable("database"))),
        (
            &["lost-1"],
            Err(DeliveryError::Unavailable("no_tokens_yet")),
        ),
        (
            &["busy-3", "lost-2", "busy-4"],
            Err(DeliveryError::Unavailable("no_tokens_yet")),
        ),
        (&["panic-1"], Err(DeliveryError::Retry("panic"))),
    ];
    let it = fixture().await;
    for (at, (keys, expected)) in cases.iter().enumerate() {
        let answer = it
            .deliverer
            .deliver(request(&format!("$e{at}"), keys))
            .await;
        let expected = expected.map(|keys| keys.iter().map(ToString::to_string).collect());
        assert_eq!(answer, expected, "{keys:?}");
    }
    for key in ["unknown-1", "dead-1", "broken-1", "lost-1"] {
        assert_eq!(it.pnm.pushes(key), 0, "PNM is not asked about {key}");
    }
    assert_eq!(
        *it.book.0.lock().unwrap(),
        ["gone-1", "gone-back", "gone-broken"]
    );
}

#[tokio::test]
async fn what_cannot_be_read_is_refused() {
    let it = fixture().await;
    let answer = it.deliverer.deliver(Bytes::from_static(b"{}")).await;
    assert_eq!(
        answer,
        Err(DeliveryError::Malformed(ParseError::NoNotification))
    );
}

#[tokio::test]
async fn a_badge_update_rings_nobody_and_rejects_nobody() {
    let it = fixture().await;
    for key in ["k1", "unknown-1", "broken-1"] {
        assert_eq!(it.deliverer.deliver(request("", &[key])).await, Ok(vec![]));
    }
    assert!(it.pnm.pushes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_repeat_is_pushed_only_where_it_failed() {
    let it = fixture().await;
    let body = request("$e", &["k1", "busy-1"]);
    for _ in 0..3 {
        assert!(it.deliverer.deliver(body.clone()).await.is_err());
    }
    assert_eq!((it.pnm.pushes("k1"), it.pnm.pushes("busy-1")), (1, 3));
    assert_eq!(
        it.deliverer.deliver(request("$other", &["k1"])).await,
        Ok(vec![])
    );
    assert_eq!(it.pnm.pushes("k1"), 2, "another event is another push");
}

#[tokio::test]
async fn the_same_device_twice_is_pushed_once() {
    let it = fixture().await;
    let answer = it
        .deliverer
        .deliver(request("$e", &["k1", "k1", "gone-1", "gone-1"]))
        .await;
    assert_eq!(answer, Ok(vec!["gone-1".to_owned()]));
    assert_eq!((it.pnm.pushes("k1"), it.pnm.pushes("gone-1")), (1, 1));
}

#[tokio::test]
async fn two_accounts_on_one_phone_both_get_the_event() {
    let it = fixture().await;
    let body = |selector: &str| {
        json!({"notification": {"event_id": "$e", "devices":
            [{"app_id": "a", "pushkey": "k", "data": {"selector": selector}}]}})
    };
    for selector in ["one", "two", "one"] {
        let body = body(selector).to_string();
        assert_eq!(it.deliverer.deliver(body.into()).await, Ok(vec![]));
    }
    assert_eq!(it.pnm.pushes("k"), 2);
}

#[tokio::test]
async fn concurrent_repeats_share_one_push() {
    let it = fixture().await;
    let repeats: Vec<_> = (0..10)
        .map(|_| {
            let deliverer = it.deliverer.clone();
            tokio::spawn(async move { deliverer.deliver(request("$e", &["slow-1"])).await })
        })
        .collect();
    it.pnm.until_pushed("slow-1").await;
    while it.deliverer.shared.tracker.len() < repeats.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    it.pnm.gate.notify_one();
    for repeat in repeats {
        assert_eq!(repeat.await.unwrap(), Ok(vec![]));
    }
    assert_eq!(it.pnm.pushes("slow-1"), 1);
}

#[tokio::test]
async fn a_homeserver_that_hangs_up_makes_no_second_push() {
    let it = fixture().await;
    let body = request("$e", &["slow-1"]);
    let deliverer = it.deliverer.clone();
    let first = tokio::spawn({
        let body = body.clone();
        async move { deliverer.deliver(body).await }
    });
    it.pnm.until_pushed("slow-1").await;
    first.abort();
    assert!(first.await.is_err());
    assert_eq!(it.tracker.len(), 1, "the push goes on");
    it.pnm.gate.notify_one();
    it.tracker.close();
    it.tracker.wait().await;
    assert_eq!(it.deliverer.deliver(body).await, Ok(vec![]));
    assert_eq!(it.pnm.pushes("slow-1"), 1);
}

#[tokio::test]
async fn many_devices_go_side_by_side() {
    let it = fixture().await;
    let keys: Vec<_> = (0..DEVICES_AT_A_TIME)
        .map(|n| format!("slow-{n}"))
        .collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let deliverer = it.deliverer.clone();
    let body = request("$e", &keys);
    let answer = tokio::spawn(async move { deliverer.deliver(body).await });
    for key in keys {
        it.pnm.until_pushed(key).await;
    }
    it.pnm.gate.notify_waiters();
    assert_eq!(answer.await.unwrap(), Ok(vec![]));
}

#[tokio::test]
async fn mass_rejections_are_withheld() {
    let it = fixture().await;
    for n in 0..19 {
        let key = format!("gone-{n}");
        let answer = it.deliverer.deliver(request("$e", &[&key])).await;
        assert_eq!(answer, Ok(vec![key]));
    }
    let withheld = Err(DeliveryError::Retry("mass_rejection"));
    for _ in 0..2 {
        assert_eq!(
            it.deliverer.deliver(request("$e", &["gone-20"])).await,
            withheld
        );
    }
    assert_eq!(it.book.0.lock().unwrap().len(), 19, "nor is it marked");
    for n in 0..20 {
        let answer = it
            .deliverer
            .deliver(request("$e", &[&format!("k{n}")]))
            .await;
        assert_eq!(answer, Ok(vec![]));
    }
    let answer = it.deliverer.deliver(request("$e", &["gone-20"])).await;
    assert_eq!(
        answer,
        Ok(vec!["gone-20".to_owned()]),
        "half is normal again"
    );
}

/// The same with marks by our key.
fn marked(event: &str, keys: &[&str]) -> Bytes {
    let device = |pushkey: &&str| {
        json!({"app_id": "app", "pushkey": pushkey,
            "data": {"selector": "sel", "mark": key().mark(pushkey)}})
    };
    let devices: Vec<_> = keys.iter().map(device).collect();
    let body = json!({"notification": {"event_id": event, "devices": devices}});
    body.to_string().into()
}

#[tokio::test]
async fn a_repeat_of_what_was_sent_costs_no_budget() {
    let it = fixture_with(NotifyAuth::Prefer).await;
    for _ in 0..20 {
        let answer = it.deliverer.deliver(request("$same", &["k1"])).await;
        assert_eq!(answer, Ok(vec![]));
    }
    for n in 0..9 {
        let body = request(&format!("$e{n}"), &["k1"]);
        assert_eq!(it.deliverer.deliver(body).await, Ok(vec![]));
    }
    let over = it.deliverer.deliver(request("$over", &["k1"])).await;
    assert!(matches!(over, Err(DeliveryError::Limited(wait)) if wait <= Duration::from_secs(3)));
    let body = marked("$over", &["k1"]);
    assert_eq!(it.deliverer.deliver(body).await, Ok(vec![]));
    assert_eq!(it.pnm.pushes("k1"), 11);
}

#[tokio::test]
async fn without_a_mark_nothing_passes_where_it_is_required() {
    let it = fixture_with(NotifyAuth::Require).await;
    for key in ["k1", "unknown-1", "dead-1", "broken-1"] {
        let answer = it.deliverer.deliver(request("$e", &[key])).await;
        assert_eq!(answer, Err(DeliveryError::Forbidden), "{key}");
    }
    assert!(it.pnm.pushes.lock().unwrap().is_empty());
    let body = marked("$e", &["k1", "unknown-1"]);
    let answer = it.deliverer.deliver(body).await;
    assert_eq!(answer, Ok(vec!["unknown-1".to_owned()]));
}

#[tokio::test]
async fn tokens_of_nobody_neither_count_in_the_guard_nor_hold_others_up() {
    let it = fixture_with(NotifyAuth::Prefer).await;
    for n in 0..25 {
        let key = format!("gone-{n}");
        let answer = it.deliverer.deliver(nobodys("$e", &key)).await;
        assert_eq!(answer, Ok(vec![key]));
    }
    let _places = it.deliverer.shared.strangers.acquire_many(64).await;
    let busy = it.deliverer.deliver(nobodys("$e", "k-x")).await;
    assert_eq!(busy, Err(DeliveryError::Unavailable("overloaded")));
    let answer = it.deliverer.deliver(request("$e", &["k1"])).await;
    assert_eq!(answer, Ok(vec![]));
}

#[tokio::test]
async fn without_the_check_tokens_of_nobody_are_like_any_other() {
    let it = fixture_with(NotifyAuth::Off).await;
    let _places = it.deliverer.shared.strangers.acquire_many(64).await;
    for n in 0..20 {
        let key = format!("gone-{n}");
        let answer = it.deliverer.deliver(nobodys("$e", &key)).await;
        let expected = if n < 19 {
            Ok(vec![key])
        } else {
            Err(DeliveryError::Retry("mass_rejection"))
        };
        assert_eq!(answer, expected, "{n}");
    }
}

/// A request about a token of nobody.
fn nobodys(event: &str, key: &str) -> Bytes {
    let device = json!({"app_id": "nobodys", "pushkey": key});
    let body = json!({"notification": {"event_id": event, "devices": [device]}});
    body.to_string().into()
}

#[tokio::test]
async fn a_mass_of_unknown_pushkeys_is_not_rejected() {
    let it = fixture().await;
    let unknown = |n: u32| format!("unknown-{n}");
    for n in 0..19 {
        let answer = it.deliverer.deliver(request("$e", &[&unknown(n)])).await;
        assert_eq!(answer, Ok(vec![unknown(n)]));
    }
    let withheld = it.deliverer.deliver(request("$e", &[&unknown(19)])).await;
    assert_eq!(withheld, Err(DeliveryError::Unavailable("mass_unknown")));
    for n in 0..20 {
        let known = if n % 2 == 0 { "k" } else { "dead-" };
        let body = request("$e", &[&format!("{known}{n}")]);
        assert!(it.deliverer.deliver(body).await.is_ok());
    }
    let answer = it.deliverer.deliver(request("$e", &[&unknown(19)])).await;
    assert_eq!(answer, Ok(vec![unknown(19)]), "half is normal again");
}

#[tokio::test]
async fn troubles_are_no_verdicts_for_the_guard() {
    let it = fixture().await;
    *it.pnm.all_fail.lock().unwrap() = true;
    for n in 0..30 {
        let key = format!("gone-{n}");
        let answer = it.deliverer.deliver(request("$e", &[&key])).await;
        assert_eq!(answer, Err(DeliveryError::Retry("server_error")));
    }
    *it.pnm.all_fail.lock().unwrap() = false;
    let answer = it.deliverer.deliver(request("$e", &["gone-1"])).await;
    assert_eq!(answer, Ok(vec!["gone-1".to_owned()]));
}

#[tokio::test]
async fn takes_nothing_when_stopping_or_overloaded() {
    let it = fixture().await;
    let all = it
        .deliverer
        .requests
        .clone()
        .acquire_many_owned(2048)
        .await
        .unwrap();
    let answer = it.deliverer.deliver(request("$e", &["k1"])).await;
    assert_eq!(answer, Err(DeliveryError::Unavailable("overloaded")));
    drop(all);
    it.stopping.cancel();
    let answer = it.deliverer.deliver(request("$e", &["k1"])).await;
    assert_eq!(answer, Err(DeliveryError::Unavailable("stopping")));
}

#[tokio::test]
async fn the_deadline_ends_the_request_but_not_the_push() {
    // Never answers, and waits longer for PNM than a request may take.
    net::install_tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/send", listener.local_addr().unwrap());
    let client = PnmClient::new(
        &Url::parse(&url).unwrap(),
        Duration::from_secs(2),
        &Outgoing::new(None).unwrap(),
    )
    .unwrap();
    let tracker = TaskTracker::new();
    let stopping = CancellationToken::new();
    let rules = Rules {
        time: Duration::from_millis(200),
        ..rules(NotifyAuth::Off)
    };
    let deliverer = Deliverer::new(
        Book::default(),
        Arc::new(Dedupe::new(9999, Instant::now().into_std())),
        Arc::new(client),
        rules,
        tracker.clone(),
        stopping,
    );
    let accepted = async {
        let mut pushes = Vec::new();
        while let Ok((push, _)) = listener.accept().await {
            pushes.push(push);
            if pushes.len() > DEVICES_AT_A_TIME {
                break;
            }
        }
    };
    let keys: Vec<_> = (0..=DEVICES_AT_A_TIME).map(|n| format!("k{n}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let ended = async {
        let answer = deliverer.deliver(request("$e", &keys)).await;
        assert_eq!(answer, Err(DeliveryError::Retry("deadline")));
        assert!(!tracker.is_empty(), "the pushes go on");
        tracker.close();
        tracker.wait().await;
    };
    tokio::select! {
        () = accepted => panic!("the last device was tried after the deadline"),
        () = ended => {}
    }
}
