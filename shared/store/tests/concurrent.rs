//! Several processes at one PostgreSQL database, each with its own store: they do not deadlock, and they do not undo
//! each other's changes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use matrix2acrobits_shared::{
    clock::Clock,
    flow::{Claim, Finished, Held, feed::Changed, feed::Freshness},
    ids::{AppId, Pushkey, Selector, UserId},
    rules::{
        pushers::{FinishSettings, Goal, Loaded, Outcome},
        report::{Field, Report, Reporter, Saved},
    },
};
use matrix2acrobits_store::{Database, Role, Store, StoreError};
use matrix2acrobits_test_postgres as postgres;
use sqlx::{Connection, PgConnection};

const SETTINGS: &str = "event_id_only https://push.example.org";

struct Processes {
    stores: Vec<Store>,
    database: postgres::Database,
}

impl Processes {
    /// None if no server is available.
    async fn start(count: usize) -> Option<Self> {
        let database = postgres::Server::shared()?.database();
        let settings = Database {
            url: database.url().parse().unwrap(),
            max_connections: 5,
        };
        // All start at the same time, on an empty database.
        let opening = (0..count).map(|_| Store::open(&settings, Role::Ahead, Clock::system()));
        let stores = join_all(opening).await;
        Some(Self {
            stores: stores.into_iter().map(Result::unwrap).collect(),
            database,
        })
    }

    async fn ask<T>(&self, sql: &'static str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let mut connection = PgConnection::connect(&self.database.url()).await.unwrap();
        sqlx::query_scalar(sql)
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    /// Ends all processes, and returns how many deadlocks the server had to break.
    async fn deadlocks(mut self) -> i64 {
        self.stores.clear();
        // The server counts a connection's deadlocks when the connection ends.
        let others = "SELECT count(*) FROM pg_stat_activity
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";
        eventually("all connections are closed", async || {
            self.ask::<i64>(others).await == 0
        })
        .await;
        let count = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
        self.ask(count).await
    }
}

async fn eventually(what: &str, reached: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !reached().await {
        assert!(started.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn selector(number: usize) -> Selector {
    Selector::parse(&format!("selector-{number}")).unwrap()
}

fn key(number: usize) -> Pushkey {
    Pushkey::parse(&format!("key-{number}")).unwrap()
}

fn user(number: usize) -> UserId {
    UserId::parse(&format!("@user-{number}:example.org")).unwrap()
}

/// The user of a phone logs in and reports a token.
fn report(phone: usize, token: usize) -> Report {
    Report {
        from: Reporter {
            selector: selector(phone),
            device: None,
            owner: Some(user(phone)),
            strangers: true,
        },
        token_msgs: Field::Set(key(token)),
        app_id_msgs: Field::Set(AppId::parse("app").unwrap()),
        token_calls: Field::Absent,
        app_id_calls: Field::Absent,
    }
}

/// Every phone's token has the pusher that it should have, no other token has one, and whatever is not yet so has a job.
async fn check(processes: &Processes) {
    let store = &processes.stores[0];
    let rows = store.list_tokens(0, 10_000).await.unwrap();
    let pushers = store.list_pushers(None, 0, 10_000).await.unwrap();
    let mut holders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows {
        let (token, user) = (row.token_msgs.unwrap(), row.user_id.unwrap());
        holders.entry(token).or_default().insert(user);
    }
    let mut held: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pusher in pushers.iter().filter(|pusher| pusher.wanted == "present") {
        let users = held.entry(pusher.pushkey.clone()).or_default();
        users.insert(pusher.user_id.clone());
    }
    assert_eq!(
        held.keys().collect::<Vec<_>>(),
        holders.keys().collect::<Vec<_>>(),
        "tokens with a pusher and tokens of phones"
    );
    for (token, users) in &held {
        assert!(users.is_subset(&holders[token]), "{token}: {users:?}");
    }
    assert_eq!(
        store.reconcile(false).await.unwrap(),
        0,
        "somebody was forgotten"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_the_same_phones_in_opposite_order() {
    const PHONES: usize = 40;
    let Some(processes) = Processes::start(3).await else {
        return;
    };
    for round in 0..30 {
        let reporting = processes.stores.iter().enumerate().flat_map(|(at, store)| {
            (0..PHONES).map(move |number| {
                // Each process reports in a different order and gives phones different tokens.
                let phone = if at % 2 == 0 {
                    number
                } else {
                    PHONES - 1 - number
                };
                let token = (phone + at * 7 + round) % PHONES;
                store.save_report(report(phone, token))
            })
        });
        for saved in join_all(reporting).await {
            assert!(matches!(saved, Ok(Saved::Done { .. })), "{saved:?}");
        }
    }
    check(&processes).await;
    assert_eq!(
        processes
            .ask::<i64>("SELECT count(*) FROM push_tokens")
            .await,
        40
    );
    assert_eq!(processes.deadlocks().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_report_counts_whichever_process_took_it() {
    let Some(processes) = Processes::start(2).await else {
        return;
    };
    for round in 0..60 {
        let store = &processes.stores[round % 2];
        store.save_report(report(1, round)).await.unwrap();
        // Another account on the same phone, reported to the other process.
        let other = &processes.stores[(round + 1) % 2];
        other.save_report(report(2, round)).await.unwrap();
        for store in &processes.stores {
            let rows = store.targets(key(round).as_str()).await.unwrap();
            let rows: Vec<_> = rows
                .iter()
                .map(|row| row.target.selector.as_str())
                .collect();
            assert_eq!(rows, ["selector-2", "selector-1"]);
            if round > 0 {
                let before = store.targets(key(round - 1).as_str()).await.unwrap();
                assert!(before.is_empty(), "{before:?}");
            }
        }
    }
    check(&processes).await;
    // Both accounts want the token. The user who reported last gets it, unless the worker lets users share.
    let claims = "SELECT array_agg(user_id ORDER BY claim) FROM pushers WHERE pushkey = 'key-59'";
    let claims: Vec<String> = processes.ask(claims).await;
    assert_eq!(claims.last().unwrap(), "@user-2:example.org", "{claims:?}");
}

/// A caller gets an error at once when too many writes wait, instead of waiting longer than it is prepared to.
#[tokio::test]
async fn no_more_than_4096_writes_wait() {
    const REPORTS: usize = 5000;
    let Some(processes) = Processes::start(1).await else {
        return;
    };
    let store = &processes.stores[0];
    let reporting = (0..REPORTS).map(|number| store.save_report(report(number, number)));
    let saved = join_all(reporting).await;
    let refused = saved
        .iter()
        .filter(|result| matches!(result, Err(StoreError::Overloaded)))
        .count();
    let accepted = saved.iter().filter(|result| result.is_ok()).count();
    // The writer may have taken some batches meanwhile.
    assert!((4096..REPORTS).contains(&accepted), "{accepted}");
    assert_eq!(accepted + refused, REPORTS);
    let last = store.save_report(report(REPORTS, REPORTS)).await;
    assert!(last.is_ok(), "{last:?}");
}

async fn claim(store: &Store, worker: &Arc<str>, limit: i64) -> Vec<Held> {
    let claim = Claim {
        worker: worker.clone(),
        settings: SETTINGS.into(),
        limit,
        suspect: false,
        knows: None,
    };
    store.claim(claim).await.unwrap().jobs
}

async fn register(store: &Store, name: &str) -> Arc<str> {
    let name: Arc<str> = name.into();
    let registered = store.register_worker(name.clone(), SETTINGS.into());
    registered.await.unwrap();
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_taken_by_one_worker() {
    const JOBS: usize = 600;
    let Some(processes) = Processes::start(3).await else {
        return;
    };
    let store = &processes.stores[0];
    let reporting = (0..JOBS).map(|number| store.save_report(report(number, number)));
    for saved in join_all(reporting).await {
        saved.unwrap();
    }
    let taking = processes
        .stores
        .iter()
        .enumerate()
        .map(async |(at, store)| {
            let worker = register(store, &format!("worker-{at}")).await;
            let mut taken = Vec::new();
            loop {
                let jobs = claim(store, &worker, 16).await;
                if jobs.is_empty() {
                    return taken;
                }
                taken.extend(jobs.into_iter().map(|held| held.pusher_id));
            }
        });
    let taken: Vec<i64> = join_all(taking).await.concat();
    let different: BTreeSet<_> = taken.iter().collect();
    assert_eq!((taken.len(), different.len()), (JOBS, JOBS));
}

/// Takes and finishes jobs until there are none and no phone reports any more.
async fn work(store: &Store, name: &str, reporting: &AtomicUsize) {
    let worker = register(store, name).await;
    let mut attempts = 0;
    loop {
        let ended = reporting.load(Ordering::SeqCst) == 0;
        let jobs = claim(store, &worker, 8).await;
        if jobs.is_empty() && ended && store.next_due().await.unwrap().is_none() {
            return;
        }
        let running = jobs.into_iter().map(async |held| {
            let task = match store.task(&held, false).await.unwrap() {
                Loaded::Task(task) => task,
                Loaded::Taken => return,
                Loaded::Gone => {
                    store.drop_job(held).await.unwrap();
                    return;
                }
                Loaded::Unreadable => panic!("unreadable"),
            };
            let outcome = match task.goal {
                Goal::Set | Goal::Check => Outcome::Registered,
                Goal::Delete => Outcome::Removed,
                Goal::Outdone => Outcome::Outdone,
                Goal::Nothing | Goal::Yield => Outcome::Nothing,
            };
            let finished = Finished {
                held,
                task,
                outcome,
                settings: FinishSettings {
                    fingerprint: SETTINGS.into(),
                    settings: SETTINGS.into(),
                    mark_key: store.mark_keys().await.unwrap().current.name().to_owned(),
                    one_per_pushkey: false,
                    append: false,
                    refresh_after: 86_400,
                },
            };
            store.finish(finished).await.unwrap();
        });
        join_all(running).await;
        attempts += 1;
        assert!(attempts < 20_000, "it never ends");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_and_workers_at_once_leave_nothing_behind() {
    const PHONES: usize = 30;
    let Some(processes) = Processes::start(4).await else {
        return;
    };
    let [first, second, third, fourth] = &processes.stores[..] else {
        panic!("four");
    };
    let reporting = AtomicUsize::new(2);
    let reports = async |store: &Store, step: usize| {
        for round in 0..25 {
            let saving = (0..PHONES).map(|number| {
                let phone = (number * step) % PHONES;
                store.save_report(report(phone, (phone + round * step) % PHONES))
            });
            for saved in join_all(saving).await {
                saved.unwrap();
            }
        }
        reporting.fetch_sub(1, Ordering::SeqCst);
    };
    tokio::join!(
        reports(first, 1),
        reports(second, 7),
        work(third, "worker-3", &reporting),
        work(fourth, "worker-4", &reporting),
    );
    check(&processes).await;
    let jobs = first.list_jobs(None, "", 100).await.unwrap();
    assert!(jobs.is_empty(), "{jobs:?}");
    let pushers = first.list_pushers(None, 0, 10_000).await.unwrap();
    for pusher in pushers {
        let settled = [("present", "registered"), ("absent", "removed")];
        let state = (pusher.wanted.as_str(), pusher.state.as_str());
        assert!(settled.contains(&state), "{pusher:?}");
    }
    assert_eq!(processes.deadlocks().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_to_others_also_after_the_feed_was_cut_off() {
    let Some(processes) = Processes::start(2).await else {
        return;
    };
    let [teller, hearer] = &processes.stores[..] else {
        panic!("two");
    };
    let told = Arc::<std::sync::Mutex<Vec<String>>>::default();
    let everything = Arc::<AtomicUsize>::default();
    let (keys, all) = (told.clone(), everything.clone());
    hearer.listen(move |changed| match changed {
        Changed::Pushkeys(pushkeys) => keys.lock().unwrap().extend_from_slice(pushkeys),
        Changed::Everything => drop(all.fetch_add(1, Ordering::SeqCst)),
    });
    let fresh = async || hearer.freshness() == Freshness::Fresh;
    eventually("the feed hears", fresh).await;
    assert_eq!(everything.load(Ordering::SeqCst), 1);
    teller.save_report(report(1, 1)).await.unwrap();
    eventually("the report is heard of", async || {
        told.lock().unwrap().contains(&"key-1".to_owned())
    })
    .await;
    // An operator's shell.
    let _: i64 = processes
        .ask("WITH gone AS (DELETE FROM push_tokens RETURNING 1) SELECT count(*) FROM gone")
        .await;
    eventually("the shell is heard of", async || {
        everything.load(Ordering::SeqCst) == 2
    })
    .await;
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let ended: i64 = processes.ask(cut).await;
    assert!(ended > 0);
    eventually("everything is forgotten", async || {
        everything.load(Ordering::SeqCst) == 3
    })
    .await;
    eventually("the feed hears again", fresh).await;
    teller.save_report(report(2, 2)).await.unwrap();
    eventually("the next report is heard of", async || {
        told.lock().unwrap().contains(&"key-2".to_owned())
    })
    .await;
}
