//! Troubles of the database while a homeserver pushes to two apis, and while two workers hold jobs.
//!
//! They need PostgreSQL's server from Debian's package; where there is none, they say so and test nothing.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on stops where it is"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use matrix2acrobits_test_postgres::Server;
use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::database::Database;
use matrix2acrobits_tests::fixtures::Phone;
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::process::{Process, Program};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout};

use crate::several_apis::{Api, Apis};

/// Events that are under way at the same time.
const SENDERS: u64 = 4;

/// What happens to the server.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// It stands still for some seconds, as a virtual machine that is moved.
    Frozen,
    /// It closes all connections, as for a failover.
    Disconnected,
    /// An administrator restarts it.
    Restarted,
    /// It goes down at once, and has to recover.
    StoppedAtOnce,
    /// All of its processes are killed.
    Killed,
}

impl Trouble {
    async fn befall(self, server: &Server, apis: &Apis) {
        match self {
            Self::Frozen => {
                block_in_place(|| server.signal("STOP"));
                sleep(Duration::from_secs(4)).await;
                block_in_place(|| server.signal("CONT"));
            }
            Self::Disconnected => {
                let all = "SELECT pg_terminate_backend(pid)
                           FROM pg_stat_activity
                           WHERE datname = current_database()
                             AND pid <> pg_backend_pid()";
                apis.app.database.meddle(all).await;
            }
            Self::Restarted => block_in_place(|| server.stop("fast")),
            Self::StoppedAtOnce => block_in_place(|| server.stop("immediate")),
            Self::Killed => block_in_place(|| server.kill()),
        }
        if matches!(self, Self::Restarted | Self::StoppedAtOnce | Self::Killed) {
            sleep(Duration::from_secs(1)).await;
            block_in_place(|| server.start());
        }
    }
}

/// Pushes one event after the other until it is told to stop, each until it is taken, as a homeserver does. Returns them.
async fn send(apis: &Apis, name: &str, sender: u64, stop: &AtomicBool) -> Vec<String> {
    let mut events = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let event = format!("${name}-{sender}-{}", events.len());
        let began = Instant::now();
        for turn in 0.. {
            let api = [Api::First, Api::Second][(events.len() + turn) % 2];
            let reply = apis.push_to(api, &event, &apis.device).await;
            if reply.status == 200 {
                assert_eq!(reply.json(), json!({"rejected": []}));
                break;
            }
            assert_eq!(reply.status, 503, "{reply:?}");
            assert!(began.elapsed() < SOON, "{event} is not taken: {reply:?}");
            sleep(Duration::from_millis(50)).await;
        }
        events.push(event);
        sleep(Duration::from_millis(10)).await;
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_flow_through_the_troubles_of_the_database() {
    let Some(server) = Server::own() else {
        return;
    };
    let apis = Apis::at(&server).await;
    for trouble in [
        Trouble::Frozen,
        Trouble::Disconnected,
        Trouble::Restarted,
        Trouble::StoppedAtOnce,
        Trouble::Killed,
    ] {
        let (name, stop) = (format!("{trouble:?}"), AtomicBool::new(false));
        let senders = (0..SENDERS).map(|sender| send(&apis, &name, sender, &stop));
        let befalls = async {
            sleep(Duration::from_millis(500)).await;
            trouble.befall(&server, &apis).await;
            sleep(Duration::from_secs(2)).await;
            stop.store(true, Ordering::SeqCst);
        };
        let (sent, ()) = tokio::join!(join_all(senders), befalls);
        let rang = apis.rang();
        for event in sent.iter().flatten() {
            assert!(rang.contains_key(event), "{event} did not ring");
        }
        println!(
            "{name}: {} events",
            sent.iter().map(Vec::len).sum::<usize>()
        );
    }
}

/// While the database is away no worker can say that it lives. The first to reach it again must not take the others for
/// dead: their jobs would run twice, and count as those that kill their workers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_do_not_take_each_other_for_dead_after_an_outage() {
    let Some(server) = Server::own() else {
        return;
    };
    let app = App::builder()
        .database(Database::of(server.database()))
        .worker("WORKER_CONCURRENCY", "1")
        .worker("HOMESERVER_TIMEOUT", "60s")
        .start()
        .await;
    let mut second = Process::start(Program::Worker, &[], &app.worker_env);
    second.listening().await;
    // Both hold jobs, and will for longer than this takes.
    app.homeserver.break_with(Fault::Delay(50_000)).await;
    let phones: Vec<_> = (0..12).map(|n| Phone::new(&format!("p{n}"))).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    let holders = "(SELECT DISTINCT lock_by FROM jobs WHERE lock_by IS NOT NULL) holders";
    eventually(SOON, "both workers hold jobs", async || {
        app.database.count(holders).await == 2
    })
    .await;
    block_in_place(|| server.signal("STOP"));
    sleep(Duration::from_secs(13)).await;
    block_in_place(|| server.signal("CONT"));
    let alive = "workers WHERE last_seen > extract(epoch FROM now()) - 3";
    eventually(SOON, "both workers are heard again", async || {
        app.database.count(alive).await == 2
    })
    .await;
    for log in [app.worker().log(), second.log()] {
        assert!(!log.contains("took over"), "{log}");
    }
    assert_eq!(app.database.count("jobs WHERE lost IS NOT NULL").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_end_soon_when_the_server_stands_still() {
    let Some(server) = Server::own() else {
        return;
    };
    let app = App::builder().database(Database::of(server.database()));
    let app = app.start().await;
    let pages = ["push_tokens", "mappings", "mappings/x", "pushers"];
    let get = async |page: &str| {
        let path = format!("/api/internal/{page}");
        let asked = app.admin(Method::GET, &path, None);
        let reply = timeout(Duration::from_secs(10), asked).await;
        reply
            .unwrap_or_else(|_| panic!("{page} does not end"))
            .status
    };
    // The connections are there already.
    for page in pages {
        get(page).await;
    }
    block_in_place(|| server.signal("STOP"));
    let statuses = join_all(pages.map(get)).await;
    block_in_place(|| server.signal("CONT"));
    assert_eq!(statuses, [503; 4]);
    eventually(SOON, "the pages are back", async || {
        get("push_tokens").await == 200
    })
    .await;
}

/// Takes a lock as an operator's forgotten psql does, until the answer is dropped.
async fn lock(database: &Database, table: &str) -> PgConnection {
    let mut psql = PgConnection::connect(&database.url()).await.unwrap();
    let lock = format!("BEGIN; LOCK TABLE {table}");
    let lock = sqlx::raw_sql(sqlx::AssertSqlSafe(lock));
    lock.execute(&mut psql).await.unwrap();
    psql
}

/// A database that was dropped and made anew is one that has never held a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_database_rejects_nobody_though_the_apis_run_on() {
    let Some(server) = Server::own() else {
        return;
    };
    let apis = Apis::at(&server).await;
    let unknown = Phone::new("unknown").device();
    for api in [Api::First, Api::Second] {
        let reply = apis.push_to(api, "$unknown", &unknown).await;
        assert_eq!(
            reply.expect_status(200).json()["rejected"][0],
            unknown["pushkey"]
        );
    }
    let url = apis.app.database.url();
    let (elsewhere, name) = url.rsplit_once('/').unwrap();
    let mut administrator = PgConnection::connect(&format!("{elsewhere}/postgres"))
        .await
        .unwrap();
    for sql in [
        format!("DROP DATABASE {name} WITH (FORCE)"),
        format!("CREATE DATABASE {name}"),
    ] {
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        sql.execute(&mut administrator).await.unwrap();
    }
    // A process that starts makes the tables.
    let made = Program::Api.run(&["mappings", "import", "/dev/null"], &apis.app.api_env);
    assert!(made.await.status.success());
    let until = Instant::now() + Duration::from_secs(6);
    for round in 0.. {
        for api in [Api::First, Api::Second] {
            let reply = apis
                .push_to(api, &format!("$lost-{round}"), &apis.device)
                .await;
            reply.expect_error(503);
        }
        if Instant::now() > until {
            break;
        }
    }
}

/// Reports get their answer in time, and what needs no lock goes on: an event rings once whichever api gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_is_a_503_soon_and_holds_up_nothing_else() {
    const REPORTERS: usize = 100;
    let Some(server) = Server::own() else {
        return;
    };
    let apis = Apis::at(&server).await;
    apis.push(Api::Second, "$known").await;
    let psql = lock(&apis.app.database, "push_tokens IN SHARE MODE").await;
    let until = Instant::now() + Duration::from_secs(9);
    let report = async |number: usize| {
        let mut longest = Duration::ZERO;
        while Instant::now() < until {
            let began = Instant::now();
            let reply = apis
                .app
                .report(&Phone::new(&format!("p{number}")).report())
                .await;
            reply.expect_error(503);
            longest = longest.max(began.elapsed());
        }
        longest
    };
    let push = async {
        for number in 0..3 {
            let event = format!("$locked-{number}");
            apis.push(Api::First, &event).await;
            // No homeserver repeats a notification sooner.
            sleep(Duration::from_secs(2)).await;
            apis.push(Api::Second, &event).await;
            assert_eq!(apis.rang()[&event], 1);
        }
    };
    let (waits, ()) = tokio::join!(join_all((0..REPORTERS).map(report)), push);
    let longest = waits.into_iter().max().unwrap();
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    // Said once, though some writes have succeeded meanwhile.
    let api = apis.app.api();
    assert_eq!(api.log_lines("does not take writes").len(), 1);
    assert_eq!(api.log_lines("takes writes again").len(), 0);
    drop(psql);
    let late = Phone::new("late");
    eventually(SOON, "reports are saved, and the log says so", async || {
        let saved = apis.app.report(&late.report()).await.status == 200;
        saved && api.log_lines("takes writes again").len() == 1
    })
    .await;
}

/// A worker whose outcomes wait for a lock is no dead worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_heard_while_its_outcomes_wait_for_a_lock() {
    const JOBS: usize = 100;
    let Some(server) = Server::own() else {
        return;
    };
    let app = App::builder()
        .database(Database::of(server.database()))
        .worker("WORKER_CONCURRENCY", "100")
        .worker("HOMESERVER_TIMEOUT", "60s")
        .start()
        .await;
    app.homeserver.break_with(Fault::Delay(4000)).await;
    let phones: Vec<_> = (0..JOBS).map(|n| Phone::new(&format!("p{n}"))).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    let waiting = "jobs WHERE lock_by IS NULL";
    eventually(SOON, "the worker holds all jobs", async || {
        app.database.count(waiting).await == 0
    })
    .await;
    let psql = lock(&app.database, "pushers IN SHARE MODE").await;
    let until = Instant::now() + Duration::from_secs(14);
    while Instant::now() < until {
        let silent = "workers WHERE last_seen < extract(epoch FROM now()) - 5";
        assert_eq!(app.database.count(silent).await, 0);
        sleep(Duration::from_millis(200)).await;
    }
    drop(psql);
    app.settled().await;
}

/// The server goes on with what nobody waits for any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_hang_up_take_no_more_connections_than_others() {
    let Some(server) = Server::own() else {
        return;
    };
    let app = App::builder()
        .database(Database::of(server.database()))
        .api("DATABASE_MAX_CONNECTIONS", "8")
        .without_worker()
        .start()
        .await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let psql = lock(&app.database, "mappings IN ACCESS EXCLUSIVE MODE").await;
    for _ in 0..40 {
        let page = app.admin(Method::GET, "/api/internal/mappings", None);
        let _ = timeout(Duration::from_millis(60), page).await;
    }
    let ours = "pg_stat_activity WHERE application_name LIKE 'matrix2acrobits%'";
    let count = app.database.count(ours).await;
    assert!(count <= 8, "{count}");
    drop(psql);
    eventually(SOON, "the page is back", async || {
        let page = app.admin(Method::GET, "/api/internal/mappings", None);
        page.await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_while_the_database_is_away_ends_as_it_was_told() {
    let Some(server) = Server::own() else {
        return;
    };
    let mut app = App::builder()
        .database(Database::of(server.database()))
        .start()
        .await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    block_in_place(|| server.stop("fast"));
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    let said = app.worker().log_lines("others take them over");
    assert_eq!(said.len(), 1, "{}", app.worker().log());
    block_in_place(|| server.start());
}
