//! Workers with different settings at one database: whose count, and who renews pushers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use matrix2acrobits_shared::{
    clock::Clock,
    flow::{Claim, Finished, GateReport, GateState, Heartbeat, Others, Recorded},
    ids::{AppId, Pushkey, Selector, UserId},
    rules::{
        pushers::{FinishSettings, Loaded, Outcome},
        report::{Field, Report, Reporter},
    },
};
use matrix2acrobits_store::{Database, Role, Store};
use matrix2acrobits_test_postgres as postgres;

const OLD: &str = "event_id_only https://old.example.org";
const NEW: &str = "event_id_only https://new.example.org";

async fn open(url: &str) -> Store {
    let database = Database {
        url: url.parse().unwrap(),
        max_connections: 4,
    };
    let clock = Clock::manual(1_800_000_000);
    Store::open(&database, Role::Ahead, clock).await.unwrap()
}

async fn reports(store: &Store) {
    let report = Report {
        from: Reporter {
            selector: Selector::parse("s").unwrap(),
            device: None,
            owner: Some(UserId::parse("@bob:example.org").unwrap()),
            strangers: true,
        },
        token_msgs: Field::Set(Pushkey::parse("token").unwrap()),
        app_id_msgs: Field::Set(AppId::parse("app").unwrap()),
        token_calls: Field::Absent,
        app_id_calls: Field::Absent,
    };
    store.save_report(report).await.unwrap();
}

/// Sets the pusher, as the worker with the new settings.
async fn sets(store: &Store, worker: &Arc<str>) {
    let claim = Claim {
        worker: worker.clone(),
        settings: NEW.into(),
        limit: 1,
        suspect: false,
        knows: None,
    };
    let held = store.claim(claim).await.unwrap().jobs.remove(0);
    let Loaded::Task(task) = store.task(&held, true).await.unwrap() else {
        unreachable!("the pusher can be read");
    };
    let finished = Finished {
        held,
        task,
        outcome: Outcome::Registered,
        settings: FinishSettings {
            fingerprint: format!("{NEW} key 1"),
            settings: NEW.into(),
            mark_key: store.mark_keys().await.unwrap().current.name().to_owned(),
            one_per_pushkey: false,
            append: true,
            refresh_after: 86_400,
        },
    };
    assert_eq!(store.finish(finished).await.unwrap(), Recorded::Stands);
}

async fn is_outdated(store: &Store, worker: &Arc<str>, started: i64, settings: &str) -> bool {
    let heartbeat = Heartbeat {
        worker: worker.clone(),
        started,
        settings: settings.into(),
        gate: GateReport {
            state: GateState::Open,
            reason: None,
        },
        recovers: true,
    };
    let Others { outdated, .. } = store.heartbeat(heartbeat).await.unwrap();
    outdated
}

async fn only_the_newest_renews(url: &str) {
    let store = open(url).await;
    let (old, new): (Arc<str>, Arc<str>) = ("old".into(), "new".into());
    let first = store
        .register_worker(old.clone(), OLD.into())
        .await
        .unwrap();
    assert!(!is_outdated(&store, &old, first, OLD).await);
    let second = store
        .register_worker(new.clone(), NEW.into())
        .await
        .unwrap();
    assert!(is_outdated(&store, &old, first, OLD).await);
    assert!(!is_outdated(&store, &new, second, NEW).await);
    reports(&store).await;
    sets(&store, &new).await;
    let renewed = async |settings: &str| {
        let fingerprint = format!("{settings} key 2");
        let chunk = store.renew_outdated(settings, &fingerprint, 0).await;
        chunk.unwrap().map(|(_, renewed)| renewed)
    };
    assert_eq!(
        renewed(OLD).await,
        Some(0),
        "another's are as they should be"
    );
    store.release_worker(new).await.unwrap();
    assert!(!is_outdated(&store, &old, first, OLD).await);
    assert_eq!(renewed(OLD).await, Some(1), "it is the newest again");
}

#[tokio::test]
async fn only_the_newest_renews_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("test.db").display());
    only_the_newest_renews(&url).await;
}

#[tokio::test]
async fn only_the_newest_renews_on_postgres() {
    let Some(server) = postgres::Server::shared() else {
        return;
    };
    only_the_newest_renews(&server.database().url()).await;
}
