//! Rows that an operator's shell, another program or a broken disk has spoilt: each hurts itself alone.

use futures::future::join_all;
use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::fixtures::{BOB, Phone, message};
use matrix2acrobits_tests::http;
use matrix2acrobits_tests::process::Program;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::json;

/// What becomes of the job of one phone, whose pusher has the id 1; it has to end as a dead letter.
const JOBS: [&str; 11] = [
    "UPDATE Jobs SET job = CAST('{\"x\":' AS BLOB) WHERE pusher_id = 1",
    "UPDATE Jobs SET job = x'ff' WHERE pusher_id = 1",
    "UPDATE Jobs SET job = CAST('{\"pusher_id\":77}' AS BLOB) WHERE pusher_id = 1",
    "UPDATE Jobs SET pusher_id = 'x' WHERE pusher_id = 1",
    "UPDATE Jobs SET pusher_id = x'ff' WHERE pusher_id = 1",
    "UPDATE Jobs SET pusher_id = 1.5 WHERE pusher_id = 1",
    "UPDATE Jobs SET pusher_id = NULL WHERE pusher_id = 1",
    "UPDATE pushers SET user_id = CAST(x'40ff' AS TEXT) WHERE id = 1",
    "UPDATE pushers SET user_id = 'bob' WHERE id = 1",
    "UPDATE pushers SET selector = '' WHERE id = 1",
    "UPDATE pushers SET pushkey = CAST(x'ff' AS TEXT) WHERE id = 1",
];

/// What can be read in spite of it, or again after a while.
const HARMLESS: [&str; 11] = [
    "UPDATE Jobs SET status = 'Done' WHERE pusher_id = 1",
    "UPDATE Jobs SET status = x'ff' WHERE pusher_id = 1",
    "UPDATE Jobs SET status = 'Queued' WHERE pusher_id = 1",
    "UPDATE Jobs SET status = 'Running', lock_by = NULL WHERE pusher_id = 1",
    "UPDATE Jobs SET metadata = 'no {json' WHERE pusher_id = 1",
    "UPDATE Jobs SET metadata = x'ff', id = x'ff' WHERE pusher_id = 1",
    "UPDATE Jobs SET attempts = 'many', priority = 'x' WHERE pusher_id = 1",
    "UPDATE Jobs SET run_at = 'soon' WHERE pusher_id = 1",
    "UPDATE Jobs SET run_at = x'ff' WHERE pusher_id = 1",
    "UPDATE Jobs SET lost = 'x', not_before = 'x', recalled = 'x' WHERE pusher_id = 1",
    "UPDATE Jobs SET last_result = x'ff' WHERE pusher_id = 1",
];

fn healthy() -> Vec<Phone> {
    let phone = |number| Phone::new(&format!("healthy-{number}"));
    (0..20).map(phone).collect()
}

/// All that people see of the database can be read.
async fn pages_work(app: &App) {
    for page in ["push_tokens?show_tokens=true", "pushers", "mappings"] {
        let path = format!("/api/internal/{page}");
        app.admin(Method::GET, &path, None).await.expect_status(200);
    }
    let status = app
        .admin_bare(Method::GET, "/")
        .basic_auth("admin", Some(ADMIN_TOKEN));
    http::send(status).await.expect_status(200);
    let jobs = Program::Worker.run(&["jobs"], &app.worker_env).await;
    assert!(jobs.status.success(), "{jobs:?}");
}

async fn all_set(app: &App, phones: &[Phone]) {
    eventually(SOON, "the pushers of the healthy", async || {
        let there = app.homeserver.pushkeys_of(BOB);
        phones.iter().all(|phone| there.contains(&phone.token))
    })
    .await;
}

/// A bridge whose first phone's job was spoilt, with healthy ones beside it.
async fn spoilt(how: &'static str) -> App {
    let mut app = App::start().await;
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    app.enroll(&[&Phone::new("spoilt")]).await;
    app.database.meddle(how).await;
    let phones = healthy();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    app.start_worker().await;
    app
}

#[tokio::test]
async fn a_job_that_cannot_be_read_is_a_dead_letter_and_stops_nobody() {
    for how in JOBS {
        println!("{how}");
        let app = spoilt(how).await;
        // Upkeep may have found the spoilt one's pusher without a job, and have made a new one.
        all_set(&app, &healthy()).await;
        app.dead_letters(1).await;
        app.settled().await;
        pages_work(&app).await;
    }
}

#[tokio::test]
async fn what_can_be_read_in_spite_of_it_is_done() {
    for how in HARMLESS {
        println!("{how}");
        let app = spoilt(how).await;
        let mut all = healthy();
        all.push(Phone::new("spoilt"));
        app.pushers_are(BOB, &all.iter().collect::<Vec<_>>()).await;
        app.settled().await;
        app.dead_letters(0).await;
    }
}

#[tokio::test]
async fn a_report_revives_a_job_whose_payload_was_spoilt() {
    for how in &JOBS[..3] {
        println!("{how}");
        let app = spoilt(how).await;
        app.dead_letters(1).await;
        let phone = Phone::new("spoilt");
        app.report(&phone.report()).await.expect_status(200);
        app.pusher_set(&phone).await;
        app.dead_letters(0).await;
    }
}

/// What becomes of the row of one phone, which has the id 1.
const PHONES: [&str; 6] = [
    "UPDATE push_tokens SET token_msgs = CAST(x'ff' AS TEXT) WHERE id = 1",
    "UPDATE push_tokens SET selector = CAST(x'ff' AS TEXT) WHERE id = 1",
    "UPDATE push_tokens SET device = CAST(x'ff' AS TEXT) WHERE id = 1",
    "UPDATE push_tokens SET owner = CAST(x'ff' AS TEXT), app_id_calls = CAST(x'00ff' AS TEXT) WHERE id = 1",
    "UPDATE push_tokens SET app_id_msgs = CAST(x'ff' AS TEXT) WHERE id = 1",
    "UPDATE mappings SET user_id = CAST(x'ff' AS TEXT) WHERE selector = 'SELECTOR-spoilt'",
];

#[tokio::test]
async fn a_phones_row_that_cannot_be_read_hurts_no_other_phone() {
    for how in PHONES {
        println!("{how}");
        let mut app = App::start().await;
        let spoilt = Phone::new("spoilt");
        app.enroll(&[&spoilt]).await;
        app.settled().await;
        app.database.meddle(how).await;
        // Reports that share a transaction with the spoilt phone's own.
        let (phones, again) = (healthy(), spoilt.report());
        let each = phones.iter().map(async |phone| {
            let report = phone.report();
            let (_, other) = tokio::join!(app.report(&again), app.report(&report));
            other.expect_status(200);
            app.map(&phone.selector, BOB).await;
        });
        join_all(each).await;
        all_set(&app, &phones).await;
        // One start later nothing is in memory.
        app.start_api().await;
        let devices: Vec<_> = phones.iter().chain([&spoilt]).map(Phone::device).collect();
        let reply = app.notify(&message("$1", &devices)).await;
        let rejected = reply.expect_status(200).json()["rejected"].clone();
        let pushed = app.pnm.pushes();
        for phone in &phones {
            assert_eq!(
                pushed
                    .iter()
                    .filter(|push| push.token() == phone.token)
                    .count(),
                1
            );
            assert!(!rejected.as_array().unwrap().contains(&json!(phone.token)));
        }
        pages_work(&app).await;
        // What the operator does about it.
        let all = "/api/internal/push_tokens?confirm=all";
        app.admin(Method::DELETE, all, None)
            .await
            .expect_status(200);
        eventually(SOON, "no token left", async || {
            app.database.count("push_tokens").await == 0
        })
        .await;
    }
}
