//! How a homeserver that is down is treated: few requests, growing gaps, and a quick return. Prints the figures.
#![expect(clippy::print_stdout, reason = "the figures are for people")]

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{BOB, Phone, phones};
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::{SOON, eventually, http};
use reqwest::Method;

const SET: &str = "/_matrix/client/v3/pushers/set";
/// How many requests of an outage are watched.
const WATCHED: u64 = 8;

/// How many requests the worker has sent, also those that nobody took.
async fn requests(app: &App) -> u64 {
    let reply = http::send(app.worker_admin(Method::GET, "/metrics")).await;
    let of_requests = |line: &&str| line.starts_with("matrix2acrobits_homeserver_requests_total{");
    let lines = reply.text.lines().filter(of_requests);
    let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// The homeserver was well and idle; then this happens, and 100 phones report.
async fn is_left_in_peace(fault: Fault, path: Option<&str>) {
    let app = App::start().await;
    let before = Phone::new("before");
    app.enroll(&[&before]).await;
    app.pusher_set(&before).await;
    app.settled().await;
    // Its last answer no longer vouches for the homeserver.
    let last = app.homeserver.calls().last().map(|call| call.at);
    eventually(SOON, "a moment of silence", async || {
        last.is_some_and(|last| last.elapsed() > Duration::from_millis(200))
    })
    .await;
    app.homeserver.clear_calls();
    let already = requests(&app).await;
    match path {
        Some(path) => app.homeserver.break_path(path, fault),
        None => app.homeserver.break_with(fault).await,
    }
    let mut all = phones("phone", 100);
    app.enroll(&all.iter().collect::<Vec<_>>()).await;
    let began = Instant::now();
    eventually(Duration::from_secs(30), "some requests", async || {
        requests(&app).await >= already + WATCHED
    })
    .await;
    let watched = began.elapsed();
    let (busiest, calls) = (
        app.homeserver.busiest_second(),
        app.homeserver.calls().len(),
    );
    app.homeserver.repair().await;
    let back = Instant::now();
    all.push(before);
    app.pushers_are(BOB, &all.iter().collect::<Vec<_>>()).await;
    let took = back.elapsed();
    println!(
        "{fault:?}: {calls} requests in {watched:.1?}, at most {busiest} in a second; all set {took:.1?} after"
    );
    assert!(busiest <= 10, "{busiest} requests in a second");
    app.settled().await;
    assert_eq!(app.database.dead_jobs().await, 0);
}

#[tokio::test]
async fn refusing() {
    is_left_in_peace(Fault::Refuse, None).await;
}

#[tokio::test]
async fn failing_with_500() {
    is_left_in_peace(Fault::Status(500), None).await;
}

#[tokio::test]
async fn failing_with_503() {
    is_left_in_peace(Fault::Status(503), None).await;
}

#[tokio::test]
async fn hanging() {
    is_left_in_peace(Fault::Hang, None).await;
}

#[tokio::test]
async fn resetting() {
    is_left_in_peace(Fault::Reset, None).await;
}

#[tokio::test]
async fn refusing_our_token() {
    is_left_in_peace(Fault::WrongToken, None).await;
}

#[tokio::test]
async fn failing_only_where_pushers_are_set() {
    is_left_in_peace(Fault::Status(500), Some(SET)).await;
}

#[tokio::test]
async fn gaps_between_tries_grow() {
    let app = App::builder()
        .worker("RETRY_MAX_INTERVAL", "60s")
        .worker("RETRY_MULTIPLIER", "1.5")
        .start()
        .await;
    let phone = Phone::seed();
    // The homeserver itself is well, and answers probes.
    app.homeserver.break_path(SET, Fault::Status(500));
    app.enroll(&[&phone]).await;
    eventually(Duration::from_mins(1), "seven tries", async || {
        app.homeserver.sets().len() >= 7
    })
    .await;
    let sets = app.homeserver.sets();
    let gaps: Vec<_> = sets
        .windows(2)
        .map(|pair| (pair[1].at - pair[0].at).as_secs_f64())
        .collect();
    println!("gaps: {gaps:.1?} s");
    let mut least = 1.0;
    for gap in &gaps {
        assert!(*gap >= least, "{gap} s instead of {least} s: {gaps:?}");
        least *= 1.5;
    }
}

#[tokio::test]
async fn two_thousand_are_set_within_30_seconds_of_the_return() {
    let app = App::builder()
        .worker("RETRY_INITIAL_INTERVAL", "1m")
        .worker("RETRY_MAX_INTERVAL", "5m")
        .start()
        .await;
    app.homeserver.break_with(Fault::Status(503)).await;
    // Each phone is a user's own, as in life: the homeserver is asked for short lists.
    let all: Vec<_> = phones("phone", 2000)
        .into_iter()
        .zip(0..)
        .map(|(phone, number)| phone.of(&format!("@user{number}:example.org")))
        .collect();
    let users: Vec<_> = all.iter().map(|phone| phone.user.as_str()).collect();
    app.homeserver.register(&users);
    let enrolled = stream::iter(&all).map(async |phone| app.enroll(&[phone]).await);
    enrolled.buffer_unordered(64).collect::<()>().await;
    eventually(SOON, "a job in backoff", async || {
        app.database
            .jobs()
            .await
            .iter()
            .any(|job| job.status == "Failed")
    })
    .await;
    // Half of them have been in backoff for long.
    let in_backoff = "UPDATE Jobs SET status = 'Failed', attempts = 9, run_at = unixepoch() + 290
                      WHERE lock_by IS NULL AND rowid % 2 = 0";
    app.database.meddle(in_backoff).await;
    app.homeserver.repair().await;
    let back = Instant::now();
    eventually(Duration::from_secs(30), "all 2000", async || {
        app.homeserver.pushers().len() == 2000
    })
    .await;
    println!("2000 pushers set {:.1?} after the return", back.elapsed());
    app.settled().await;
    assert_eq!(app.database.dead_jobs().await, 0);
}

#[tokio::test]
async fn half_of_the_answers_fail_and_none_of_100_is_lost() {
    let app = App::start().await;
    app.homeserver.break_with(Fault::FlakyPercent(50)).await;
    let all = phones("phone", 100);
    let began = Instant::now();
    app.enroll(&all.iter().collect::<Vec<_>>()).await;
    // After an error the worker looks first, so that two answers in a row must be good: some four requests for each, at not
    // quite ten a second.
    eventually(Duration::from_secs(150), "all 100 pushers", async || {
        app.homeserver.pushkeys_of(BOB).len() == 100
    })
    .await;
    let calls = app.homeserver.calls().len();
    println!(
        "100 of 100 set in {:.1?}, with {calls} requests",
        began.elapsed()
    );
    app.homeserver.repair().await;
    app.settled().await;
    assert_eq!(app.database.dead_jobs().await, 0);
}
