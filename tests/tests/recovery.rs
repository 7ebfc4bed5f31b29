//! What breaks comes back: workers that die or are poisoned, second processes, lost pushers, disks and files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{BOB, Phone, message, phones};
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::hook::Moment;
use matrix2acrobits_tests::http::{self, Reply};
use matrix2acrobits_tests::process::{Process, Program};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Client;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

#[tokio::test]
async fn a_job_that_kills_its_worker_ends_as_a_dead_letter_and_the_others_go_on() {
    let mut app = App::start().await;
    app.worker_mut().kill().await;
    let poison = Phone::new("poison");
    let mut all = phones("good", 30);
    all.insert(7, poison.clone());
    app.enroll(&all.iter().collect::<Vec<_>>()).await;
    all.remove(7);

    let (victim, deaths) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (pid, count, pushkey) = (victim.clone(), deaths.clone(), poison.token.clone());
    app.homeserver.hook().set(move |moment, request| {
        let text = String::from_utf8_lossy(&request.body);
        let kills = moment == Moment::Arrived && text.contains(&pushkey);
        if kills {
            Process::kill_pid(pid.load(Ordering::SeqCst));
            count.fetch_add(1, Ordering::SeqCst);
        }
        !kills
    });
    let mut workers = Vec::new();
    while app.database.dead_jobs().await == 0 {
        // As compose does it; and the ten seconds after which a worker counts as dead have passed.
        let aged = "UPDATE Workers SET last_seen = last_seen - 60";
        app.database.meddle(aged).await;
        let before = deaths.load(Ordering::SeqCst);
        assert!(before < 6, "it goes on killing");
        let worker = Process::start(Program::Worker, &[], &app.worker_env);
        victim.store(worker.pid().unwrap_or_default(), Ordering::SeqCst);
        workers.push(worker);
        eventually(
            SOON,
            "the worker dies, or the job is given up",
            async || deaths.load(Ordering::SeqCst) > before || app.database.dead_jobs().await > 0,
        )
        .await;
    }
    app.pushers_are(BOB, &all.iter().collect::<Vec<_>>()).await;
    app.settled().await;
    assert_eq!(deaths.load(Ordering::SeqCst), 5);
    assert_eq!(app.database.dead_jobs().await, 1);
    let row = app.database.pusher(&poison.token).await;
    let (state, error) = row
        .map(|row| (row.state, row.last_error))
        .unwrap_or_default();
    assert_eq!(state, "failed");
    assert!(error.is_some_and(|error| error.contains("killed its worker")));

    // The cause is gone: the next report revives it.
    app.homeserver.hook().clear();
    app.report(&poison.report()).await.expect_status(200);
    app.pusher_set(&poison).await;
}

#[tokio::test]
async fn the_other_worker_takes_over_within_15_seconds() {
    let mut app = App::builder()
        .worker("HOMESERVER_TIMEOUT", "60s")
        .start()
        .await;
    app.homeserver.break_with(Fault::Hang).await;
    let caught = Phone::new("caught");
    app.enroll(&[&caught]).await;
    eventually(SOON, "the call is on the way", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    let mut second = Process::start(Program::Worker, &[], &app.worker_env);
    second.listening().await;
    app.homeserver.repair().await;
    app.worker_mut().kill().await;
    let died = Instant::now();
    app.pusher_set(&caught).await;
    let took = died.elapsed();
    println!("taken over after {took:.1?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    app.settled().await;
    assert_eq!(app.homeserver.sets().len(), 2);
}

async fn report_to(client: &Client, api: &Process, body: &Value) -> Reply {
    let url = format!("{}/api/client/push_token_report", api.public_url());
    http::send(client.post(url).json(body)).await
}

async fn notify_at(client: &Client, api: &Process, phone: &Phone, event: &str) -> Reply {
    let url = format!("{}/_matrix/push/v1/notify", api.public_url());
    http::send(client.post(url).json(&message(event, &[phone.device()]))).await
}

#[tokio::test]
async fn two_apis_on_one_file_do_not_disturb_each_other() {
    let mut app = App::start().await;
    let mut second = Process::start(Program::Api, &[], &app.api_env);
    second.listening().await;
    let client = http::client();
    let old = phones("phone", 40);
    app.enroll(&old.iter().collect::<Vec<_>>()).await;
    // Each phone's new token goes to either at once, the old one again to the other.
    let new: Vec<_> = old
        .iter()
        .map(|phone| phone.clone().with_token(&format!("new-{}", phone.token)))
        .collect();
    let first = app.api();
    let replies = join_all(new.iter().enumerate().map(async |(number, phone)| {
        let (here, there) = if number % 2 == 0 {
            (first, &second)
        } else {
            (&second, first)
        };
        let again = report_to(&client, there, &old[number].report()).await;
        (
            again.status,
            report_to(&client, here, &phone.report()).await.status,
        )
    }))
    .await;
    assert!(
        replies.iter().all(|&statuses| statuses == (200, 200)),
        "{replies:?}"
    );
    app.pushers_are(BOB, &new.iter().collect::<Vec<_>>()).await;

    // What one saved, the other knows at once; what one forgot, the other forgets soon.
    let phone = Phone::new("shared");
    app.enroll(&[&phone]).await;
    let reply = notify_at(&client, &second, &phone, "$1")
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": []}));
    app.removal(&json!({"selector": phone.selector}))
        .await
        .expect_status(200);
    eventually(SOON, "the other rejects it", async || {
        let reply = notify_at(&client, &second, &phone, "$2").await;
        reply.json() == json!({"rejected": [phone.token]})
    })
    .await;

    app.api_mut().kill().await;
    let last = Phone::new("last");
    report_to(&client, &second, &last.report())
        .await
        .expect_status(200);
    notify_at(&client, &second, &last, "$3")
        .await
        .expect_status(200);
}

#[tokio::test]
async fn a_homeserver_restored_without_its_pushers_is_told_again() {
    let app = App::start().await;
    let all = phones("phone", 100);
    app.enroll(&all.iter().collect::<Vec<_>>()).await;
    app.pushers_are(BOB, &all.iter().collect::<Vec<_>>()).await;
    app.settled().await;
    for phone in &all[..60] {
        app.homeserver.forget(&phone.token);
    }
    app.homeserver.clear_calls();
    let replay = async || {
        let output = Program::Worker
            .run(&["replay", "--all"], &app.worker_env)
            .await;
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("100 pushers"), "{text}");
    };
    replay().await;
    app.pushers_are(BOB, &all.iter().collect::<Vec<_>>()).await;
    app.settled().await;
    assert_eq!(
        app.homeserver.sets().len(),
        60,
        "only what was missing is set"
    );
    replay().await;
    app.settled().await;
    assert_eq!(app.homeserver.sets().len(), 60, "a repeat changes nothing");
}

/// Files of this process cannot grow beyond `limit` bytes from now on: a disk that is full, or with a very
/// small one a file that takes no write at all.
async fn limit_files(process: &Process, limit: &str) {
    let pid = process.pid().map(|pid| pid.to_string()).unwrap_or_default();
    let args = ["--pid", &pid, &format!("--fsize={limit}:unlimited")];
    let prlimit = tokio::process::Command::new("prlimit")
        .args(args)
        .status()
        .await;
    assert!(prlimit.is_ok_and(|status| status.success()), "prlimit");
}

/// Without this the kernel kills a process that writes beyond the limit instead of failing the write.
const IGNORE_THE_SIGNAL: &str = r#"trap "" XFSZ; exec "$0""#;

async fn a_file_that_takes_no_writes(limit: &str) {
    let mut app = App::start().await;
    app.api_mut().kill().await;
    app.worker_mut().kill().await;
    let mut api = Process::start_in_shell(Program::Api, IGNORE_THE_SIGNAL, &app.api_env);
    let mut worker = Process::start_in_shell(Program::Worker, IGNORE_THE_SIGNAL, &app.worker_env);
    api.listening().await;
    worker.listening().await;
    let client = http::client();
    let [known, new] = ["known", "new"].map(Phone::new);
    for phone in [&known, &new] {
        let url = format!(
            "{}/api/internal/mappings/{}",
            api.admin_url(),
            phone.selector
        );
        let token = matrix2acrobits_tests::app::ADMIN_TOKEN;
        let request = client
            .put(url)
            .bearer_auth(token)
            .json(&json!({"user_id": BOB}));
        http::send(request).await.expect_status(200);
    }
    report_to(&client, &api, &known.report())
        .await
        .expect_status(200);
    app.pusher_set(&known).await;

    // The api's writes fail, several in a row; pushes go on and nothing is rejected.
    limit_files(&api, limit).await;
    for number in 0..5 {
        report_to(&client, &api, &new.report())
            .await
            .expect_error(503);
        let reply = notify_at(&client, &api, &known, &format!("$full-{number}")).await;
        assert_eq!(reply.expect_status(200).json(), json!({"rejected": []}));
    }
    limit_files(&api, "unlimited").await;
    // The worker's fail: it has set the pusher, and cannot note it.
    limit_files(&worker, limit).await;
    report_to(&client, &api, &new.report())
        .await
        .expect_status(200);
    eventually(SOON, "the worker notices", async || {
        !worker.log_lines("does not take writes").is_empty()
    })
    .await;
    limit_files(&worker, "unlimited").await;
    app.pushers_are(BOB, &[&known, &new]).await;
    app.settled().await;
    assert_eq!(app.database.dead_jobs().await, 0);
    assert_eq!(app.database.integrity().await, "ok");
    assert_eq!(
        (api.terminate().await, worker.terminate().await),
        (Some(0), Some(0))
    );
}

#[tokio::test]
async fn a_full_disk_is_a_503_and_recovers() {
    // The write-ahead log is larger than that after the migrations.
    a_file_that_takes_no_writes("65536").await;
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_a_503_and_recovers() {
    a_file_that_takes_no_writes("1").await;
}

#[tokio::test]
async fn a_damaged_file_stops_the_start_with_what_to_do() {
    let mut app = App::start().await;
    app.enroll(&phones("phone", 50).iter().collect::<Vec<_>>())
        .await;
    app.settled().await;
    app.worker_mut().terminate().await;
    app.api_mut().terminate().await;
    app.database.meddle("PRAGMA wal_checkpoint(TRUNCATE)").await;
    let good = std::fs::read(&app.file).unwrap_or_default();
    assert!(good.len() > 16_384, "{}", good.len());
    let garbage = |from: usize, to: usize| {
        let mut bytes = good.clone();
        bytes[from..to].fill(0xA5);
        bytes
    };
    let damages = [
        ("header", garbage(0, 100)),
        ("schema", garbage(100, 4096)),
        ("all but the schema", garbage(4096, good.len())),
        ("cut", good[..good.len() / 3].to_vec()),
        ("other file", b"selector,token\n".repeat(1000)),
    ];
    for (what, bytes) in damages {
        assert!(std::fs::write(&app.file, &bytes).is_ok());
        for (program, env) in [
            (Program::Api, &app.api_env),
            (Program::Worker, &app.worker_env),
        ] {
            let output = program.run(&[], env).await;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{what}: {text}");
            for word in ["DATABASE_URL", "damaged", "restore the last backup"] {
                assert!(text.contains(word), "{what}: {text}");
            }
        }
    }
    assert!(std::fs::write(&app.file, &good).is_ok());
    app.start_api().await;
    app.start_worker().await;
}

/// An operator's shell, or a copy that somebody makes.
#[tokio::test]
async fn a_start_beside_somebody_elses_lock() {
    let mut app = App::start().await;
    if app.database.is_postgres() {
        return;
    }
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    assert_eq!(app.api_mut().terminate().await, Some(0));
    let lock = app.database.lock().await;
    // Who only reads at the start has no reason to wait.
    app.start_api().await;
    drop(lock);
    assert_eq!(app.api_mut().terminate().await, Some(0));

    let mut shell = SqliteConnection::connect(&app.database.url())
        .await
        .unwrap();
    let alone = "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE";
    sqlx::raw_sql(alone).execute(&mut shell).await.unwrap();
    let output = Program::Api.run(&[], &app.api_env).await;
    let text = String::from_utf8_lossy(&output.stderr);
    // Not the code for a wrong setting, after which nobody would start it again.
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot be used now"), "{text}");
}

#[tokio::test]
async fn what_a_killed_worker_had_not_begun_runs_side_by_side() {
    let mut app = App::start().await;
    app.homeserver.break_with(Fault::Delay(500)).await;
    let phones = phones("held", 40);
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    eventually(SOON, "the worker holds all of them", async || {
        let jobs = app.database.jobs().await;
        jobs.iter().filter(|job| job.lock_by.is_some()).count() > 30
    })
    .await;
    app.worker_mut().kill().await;
    app.homeserver.clear_calls();
    app.start_worker().await;
    eventually(SOON, "several at a time", async || {
        let calls = app.homeserver.calls();
        let waiting = calls
            .iter()
            .filter(|call| call.is_set() && call.status.is_none());
        waiting.count() >= 4
    })
    .await;
    app.homeserver.repair().await;
    app.pushers_are(BOB, &phones.iter().collect::<Vec<_>>())
        .await;
}
