//! Stopping while something hangs: the process ends in time and cleanly, and keeps what it knows.

use std::time::{Duration, Instant};

use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::database::Database;
use matrix2acrobits_tests::fixtures::{BOB, Phone, message};
use matrix2acrobits_tests::http::{send, try_send};
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::json;

/// Less than the 15 s after which the process would exit with 1.
const IN_TIME: Duration = Duration::from_secs(14);

#[tokio::test]
async fn an_api_whose_pnm_hangs_saves_its_last_pushes_and_ends_in_time() {
    let mut app = App::builder()
        .without_worker()
        .api("PNM_TIMEOUT", "30s")
        .start()
        .await;
    let [late, hung] = ["late", "hung"].map(Phone::new);
    app.enroll(&[&late, &hung]).await;
    app.pnm.answer_for(&late.token, Answer::Slow(7000));
    app.pnm.answer_for(&hung.token, Answer::Hang);
    let notification = |phone: &Phone| app.notification(&message("$1", &[phone.device()]));
    let [to_late, to_hung] = [&late, &hung].map(|phone| tokio::spawn(send(notification(phone))));
    eventually(SOON, "PNM has both", async || app.pnm.pushes().len() == 2).await;
    let stopped = Instant::now();
    app.api().signal("TERM").await;
    assert_eq!(to_late.await.map(|reply| reply.status).ok(), Some(200));
    // The homeserver keeps the notification and tries again.
    to_hung.await.unwrap().expect_error(503);
    assert_eq!(app.api_mut().ended(IN_TIME).await, Some(0));
    assert!(stopped.elapsed() < IN_TIME, "{:?}", stopped.elapsed());
    let saved = app.database.count("arrivals WHERE pushed_at IS NOT NULL");
    assert_eq!(saved.await, 1);
    assert_eq!(app.api().log_lines("could not finish in time"), [""; 0]);
}

#[tokio::test]
async fn a_test_push_that_hangs_does_not_hold_up_the_end() {
    let mut app = App::builder()
        .without_worker()
        .api("PNM_TIMEOUT", "30s")
        .start()
        .await;
    app.enroll(&[&Phone::seed()]).await;
    app.pnm.answer(Answer::Hang).await;
    let test = app
        .admin_bare(Method::POST, "/api/internal/push_test")
        .bearer_auth(ADMIN_TOKEN)
        .json(&json!({ "user": BOB }));
    let test = tokio::spawn(try_send(test));
    eventually(SOON, "PNM has it", async || app.pnm.pushes().len() == 1).await;
    app.api().signal("TERM").await;
    assert_eq!(app.api_mut().ended(IN_TIME).await, Some(0));
    test.abort();
}

/// Somebody may copy the file without its log.
#[tokio::test]
async fn after_the_end_the_file_is_complete_by_itself() {
    let mut app = App::start().await;
    if app.database.is_postgres() {
        return;
    }
    let phones: Vec<_> = (0..50).map(|n| Phone::new(&format!("p{n}"))).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    app.settled().await;
    let alone = app.file.with_file_name("alone.db");
    let copy = Database::at(&alone);
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    assert_eq!(app.api_mut().terminate().await, Some(0));
    std::fs::copy(&app.file, &alone).unwrap();
    assert_eq!(copy.count("push_tokens").await, 50);
    assert_eq!(copy.count("pushers WHERE state = 'registered'").await, 50);
}
