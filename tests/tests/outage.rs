//! The homeserver answers with errors or not at all: what is retried, when, and what waits for an operator.

use std::time::{Duration, Instant};

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{ALICE, BOB, MALLORY, Phone};
use matrix2acrobits_tests::homeserver::{Call, Fault};
use matrix2acrobits_tests::process::{Process, Program};
use matrix2acrobits_tests::{SOON, eventually};
use serde_json::json;

/// Each fault in turn: a report, a failed call, repair, and the pusher must be there.
async fn survives(faults: &[Fault]) {
    let app = App::start().await;
    for (number, &fault) in faults.iter().enumerate() {
        let phone = Phone::new(&format!("fault-{number}"));
        app.homeserver.break_with(fault).await;
        app.enroll(&[&phone]).await;
        eventually(SOON, &format!("a failed attempt: {fault:?}"), async || {
            let tried = app.database.jobs().await.iter().any(|job| job.attempts > 0);
            let row = app.database.pusher(&phone.token).await;
            tried || row.is_some_and(|row| row.attempts > 0)
        })
        .await;
        assert_eq!(app.homeserver.pushkeys_of(BOB).len(), number, "{fault:?}");
        app.homeserver.repair().await;
        app.pusher_set(&phone).await;
    }
    app.settled().await;
    assert_eq!(app.database.dead_jobs().await, 0);
}

#[tokio::test]
async fn connection_trouble_is_retried() {
    survives(&[Fault::Refuse, Fault::Reset, Fault::Hang]).await;
}

#[tokio::test]
async fn server_errors_are_retried() {
    survives(&[Fault::Status(500), Fault::Status(502), Fault::Status(503)]).await;
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_retried() {
    // A page of some proxy, with any status.
    survives(&[Fault::Status(200), Fault::Status(404), Fault::Status(403)]).await;
}

#[tokio::test]
async fn timeouts_and_limits_in_the_answer_are_retried() {
    let answer = |status, errcode| Fault::Answer {
        status,
        errcode,
        error: "try later",
    };
    let limited = Fault::RateLimited {
        retry_after_ms: 500,
    };
    survives(&[answer(408, "M_UNKNOWN"), answer(425, "M_UNKNOWN"), limited]).await;
}

#[tokio::test]
async fn half_of_the_answers_may_fail() {
    let app = App::start().await;
    app.homeserver.break_with(Fault::FlakyPercent(50)).await;
    let phones: Vec<_> = (0..40).map(|n| Phone::new(&format!("p{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    // The unluckiest of 40 fails some seven times in a row, and waits twice as long each time.
    eventually(Duration::from_mins(2), "all 40 pushers", async || {
        app.homeserver.pushkeys_of(BOB).len() == 40
    })
    .await;
    app.settled().await;
    assert_eq!(app.database.dead_jobs().await, 0);
}

#[tokio::test]
async fn a_429_is_waited_for() {
    let app = App::start().await;
    let phone = Phone::seed();
    let limited = Fault::RateLimited {
        retry_after_ms: 3500,
    };
    app.homeserver.break_for(BOB, limited);
    app.enroll(&[&phone]).await;
    eventually(SOON, "the first call", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    app.homeserver.repair().await;
    app.pusher_set(&phone).await;
    let sets = app.homeserver.sets();
    let waited = sets[1].at - sets[0].at;
    assert!(waited >= Duration::from_millis(3500), "{waited:?}");
    assert_eq!(sets.len(), 2);
    let said = app.worker().log_lines("asks everybody to wait");
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(
        said[0].contains("WARN") && said[0].contains("retry_in="),
        "{said:#?}"
    );
    eventually(SOON, "the line at its end", async || {
        app.worker().log_lines("the homeserver works again").len() == 1
    })
    .await;
}

#[tokio::test]
async fn a_date_in_retry_after_is_waited_for() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.homeserver.break_for(BOB, Fault::LimitedUntil(5));
    app.enroll(&[&phone]).await;
    eventually(SOON, "the first call", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    app.homeserver.repair().await;
    app.pusher_set(&phone).await;
    let sets = app.homeserver.sets();
    let waited = sets[1].at - sets[0].at;
    // The date has whole seconds.
    assert!(waited >= Duration::from_secs(4), "{waited:?}");
}

#[tokio::test]
async fn a_429_that_asks_for_no_wait_is_no_licence_to_hammer() {
    let app = App::start().await;
    let now = Fault::RateLimited { retry_after_ms: 0 };
    app.homeserver.break_with(now).await;
    let phones: Vec<_> = (0..40).map(|n| Phone::new(&format!("p{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    let since = Instant::now();
    eventually(SOON, "five seconds", async || {
        since.elapsed() > Duration::from_secs(5)
    })
    .await;
    let (calls, busiest) = (
        app.homeserver.calls().len(),
        app.homeserver.busiest_second(),
    );
    assert!(calls <= 20, "{calls} requests in five seconds");
    assert!(busiest <= 10, "{busiest} requests in a second");
    app.homeserver.repair().await;
    app.pushers_are(BOB, &all).await;
    assert_eq!(app.database.dead_jobs().await, 0);
}

#[tokio::test]
async fn an_answer_from_before_a_429_does_not_lift_it() {
    let app = App::start().await;
    let hers = Phone::new("hers").of(ALICE);
    app.homeserver.break_for(ALICE, Fault::Delay(1500));
    app.enroll(&[&hers]).await;
    eventually(SOON, "her call is on its way", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    let limited = Fault::RateLimited {
        retry_after_ms: 5000,
    };
    app.homeserver.break_for(BOB, limited);
    let phones: Vec<_> = (0..30).map(|n| Phone::new(&format!("p{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    app.pusher_set(&hers).await;
    let first = |calls: &[Call]| {
        let limited = calls.iter().find(|call| call.status == Some(429));
        limited.map(|call| call.at)
    };
    let since = Instant::now();
    eventually(SOON, "most of the wait is over", async || {
        since.elapsed() > Duration::from_secs(3)
    })
    .await;
    let calls = app.homeserver.calls();
    let limited = first(&calls).unwrap_or(since);
    let late = calls
        .iter()
        .filter(|call| call.at > limited + Duration::from_millis(300));
    assert_eq!(late.count(), 0, "{calls:#?}");
    app.homeserver.repair().await;
    app.pushers_are(BOB, &all).await;
}

#[tokio::test]
async fn what_stands_in_front_of_the_homeserver_makes_no_dead_letters() {
    for fault in [
        Fault::Gateway(404, r#"{"message":"no Route matched with those values"}"#),
        Fault::Gateway(403, r#"{"message":"Forbidden"}"#),
        Fault::Gateway(400, r#"{"message":"bad gateway configuration"}"#),
        Fault::Status(407),
        Fault::Status(302),
        Fault::Answer {
            status: 405,
            errcode: "M_UNRECOGNIZED",
            error: "Unrecognized request",
        },
    ] {
        let app = App::start().await;
        app.homeserver.break_with(fault).await;
        let phones: Vec<_> = (0..60).map(|n| Phone::new(&format!("p{n}"))).collect();
        let all: Vec<_> = phones.iter().collect();
        app.enroll(&all).await;
        let since = Instant::now();
        eventually(SOON, "two seconds of it", async || {
            since.elapsed() > Duration::from_secs(2) && !app.homeserver.sets().is_empty()
        })
        .await;
        let busiest = app.homeserver.busiest_second();
        assert!(busiest <= 10, "{busiest} requests in a second: {fault:?}");
        app.homeserver.repair().await;
        app.pushers_are(BOB, &all).await;
        app.settled().await;
        assert_eq!(app.database.dead_jobs().await, 0, "{fault:?}");
    }
}

#[tokio::test]
async fn a_locked_user_is_no_wrong_token() {
    let app = App::start().await;
    let locked = Fault::Answer {
        status: 401,
        errcode: "M_USER_LOCKED",
        error: "This account has been locked",
    };
    app.homeserver.break_for(BOB, locked);
    let (his, hers) = (Phone::new("his"), Phone::new("hers").of(ALICE));
    app.enroll(&[&his]).await;
    app.dead_letters(1).await;
    app.enroll(&[&hers]).await;
    app.pusher_set(&hers).await;
    assert!(app.worker().log_lines("ERROR").is_empty());
    assert!(app.worker().log_lines("MATRIX_AS_TOKEN is").is_empty());
}

/// The homeserver did it, and the answer got lost in front of it: one look, and no second set, which would
/// drop what it still has to send.
#[tokio::test]
async fn what_may_be_done_is_looked_at_before_it_is_done_again() {
    for status in [502, 504, 200] {
        let app = App::start().await;
        // Somebody else's, as Dendrite lists it.
        let foreign =
            json!({"app_id": "im.vector.app", "pushkey": "k", "kind": "http", "data": null});
        app.homeserver.hold(BOB, &foreign);
        app.homeserver.break_for(BOB, Fault::DoneBut(status));
        let phone = Phone::seed();
        app.enroll(&[&phone]).await;
        eventually(SOON, "a failed attempt", async || {
            let row = app.database.pusher(&phone.token).await;
            row.is_some_and(|row| row.attempts > 0)
        })
        .await;
        app.homeserver.repair().await;
        app.settled().await;
        let calls = app.homeserver.calls();
        assert!(calls.iter().any(Call::is_list), "{calls:#?}");
        assert_eq!(app.homeserver.sets().len(), 1, "{status}: {calls:#?}");
    }
}

#[tokio::test]
async fn several_workers_share_what_they_know_of_the_homeserver() {
    let app = App::start().await;
    let before = Phone::new("before");
    app.enroll(&[&before]).await;
    app.pusher_set(&before).await;
    let mut others = Vec::new();
    for _ in 0..3 {
        let mut worker = Process::start(Program::Worker, &[], &app.worker_env);
        worker.listening().await;
        others.push(worker);
    }
    app.homeserver.break_with(Fault::Status(503)).await;
    app.homeserver.clear_calls();
    let phones: Vec<_> = (0..200).map(|n| Phone::new(&format!("p{n}"))).collect();
    let mut all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    app.homeserver
        .is_asked_little_for(Duration::from_secs(4))
        .await;
    let workers = others.iter().chain([app.worker()]);
    let errors: usize = workers.map(|worker| worker.log_lines("ERROR").len()).sum();
    assert_eq!(errors, 1, "one loud error for all");
    app.homeserver.repair().await;
    all.push(&before);
    app.pushers_are(BOB, &all).await;
    app.settled().await;
}

#[tokio::test]
async fn an_outage_costs_few_calls_and_ends_at_once() {
    let app = App::start().await;
    app.homeserver.break_with(Fault::Status(503)).await;
    let phones: Vec<_> = (0..200).map(|n| Phone::new(&format!("p{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    app.homeserver
        .is_asked_little_for(Duration::from_secs(5))
        .await;

    app.homeserver.repair().await;
    let back = Instant::now();
    app.pushers_are(BOB, &all).await;
    assert!(
        back.elapsed() < Duration::from_secs(10),
        "{:?}",
        back.elapsed()
    );
    app.settled().await;
}

#[tokio::test]
async fn a_worker_that_starts_during_an_outage_recovers() {
    let mut app = App::builder().without_worker().start().await;
    app.homeserver.break_with(Fault::Refuse).await;
    let phones: Vec<_> = (0..20).map(|n| Phone::new(&format!("p{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    app.start_worker().await;
    eventually(SOON, "an attempt", async || {
        app.database.pushers().await.iter().any(|p| p.attempts > 0)
    })
    .await;
    app.homeserver.repair().await;
    app.pushers_are(BOB, &all).await;
}

#[tokio::test]
async fn a_deletion_survives_an_outage() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    app.homeserver.break_with(Fault::Refuse).await;
    app.removal(&json!({"selector": phone.selector}))
        .await
        .expect_status(200);
    let renewed = Phone::new("renewed");
    app.enroll(&[&renewed]).await;
    app.homeserver.repair().await;
    app.pushers_are(BOB, &[&renewed]).await;
}

#[tokio::test]
async fn one_users_trouble_is_not_everybodys() {
    let app = App::start().await;
    for fault in [Fault::Status(500), Fault::Hang] {
        app.homeserver.break_for(ALICE, fault);
        let hers: Vec<_> = (0..3)
            .map(|n| Phone::new(&format!("a{n}-{fault:?}")).of(ALICE))
            .collect();
        app.enroll(&hers.iter().collect::<Vec<_>>()).await;
        let his = Phone::new(&format!("b-{fault:?}"));
        app.enroll(&[&his]).await;
        app.pusher_set(&his).await;
        assert!(app.homeserver.pushkeys_of(ALICE).is_empty());
    }
    app.homeserver.repair().await;
    eventually(SOON, "her pushers", async || {
        app.homeserver.pushkeys_of(ALICE).len() == 6
    })
    .await;
}

/// Our configuration is wrong: everything waits, quietly but for one error, and goes on by itself.
async fn waits(fault: Fault) {
    let app = App::start().await;
    app.homeserver.break_with(fault).await;
    let phones: Vec<_> = (0..12).map(|n| Phone::new(&format!("p{n}"))).collect();
    let all: Vec<_> = phones.iter().collect();
    app.enroll(&all).await;
    let since = Instant::now();
    eventually(SOON, "a call, and some seconds", async || {
        since.elapsed() > Duration::from_secs(4) && !app.homeserver.sets().is_empty()
    })
    .await;
    let busiest = app.homeserver.busiest_second();
    assert!(busiest <= 10, "{busiest} requests in a second");
    let errors = app.worker().log_lines("ERROR");
    assert_eq!(errors.len(), 1, "one loud error: {errors:#?}");
    assert_eq!(app.database.dead_jobs().await, 0);

    app.homeserver.repair().await;
    app.pushers_are(BOB, &all).await;
}

#[tokio::test]
async fn a_wrong_token_makes_everything_wait() {
    waits(Fault::WrongToken).await;
}

#[tokio::test]
async fn a_wrong_token_after_an_outage_is_named() {
    let app = App::start().await;
    app.homeserver.break_with(Fault::Refuse).await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    eventually(SOON, "the outage is noticed", async || {
        !app.worker().log_lines("ERROR").is_empty()
    })
    .await;
    // It comes back with another registration.
    app.homeserver.break_with(Fault::WrongToken).await;
    eventually(SOON, "an error about the token", async || {
        let errors = app.worker().log_lines("ERROR");
        errors.iter().any(|line| line.contains("MATRIX_AS_TOKEN"))
    })
    .await;
    app.homeserver.repair().await;
    app.pusher_set(&phone).await;
}

#[tokio::test]
async fn a_homeserver_without_that_api_makes_everything_wait() {
    waits(Fault::Answer {
        status: 404,
        errcode: "M_UNRECOGNIZED",
        error: "Unrecognized request",
    })
    .await;
}

#[tokio::test]
async fn a_user_who_is_not_registered_yet_is_tried_again_at_the_next_report() {
    let app = App::start().await;
    let phone = Phone::seed().of(MALLORY);
    app.enroll(&[&phone]).await;
    app.dead_letters(1).await;
    let row = app.database.pusher(&phone.token).await;
    let (state, error) = row
        .map(|row| (row.state, row.last_error))
        .unwrap_or_default();
    assert_eq!(state, "failed");
    assert!(error.is_some_and(|error| error.contains("M_FORBIDDEN")));

    app.homeserver.register(&[MALLORY]);
    app.report(&phone.report()).await.expect_status(200);
    app.pushers_are(MALLORY, &[&phone]).await;
    app.settled().await;
    app.dead_letters(0).await;
}

#[tokio::test]
async fn what_the_homeserver_calls_wrong_is_a_dead_letter_with_its_words() {
    let app = App::start().await;
    for (number, (status, errcode)) in [
        (400, "M_INVALID_PARAM"),
        (409, "M_UNKNOWN"),
        (403, "M_FORBIDDEN"),
    ]
    .into_iter()
    .enumerate()
    {
        let fault = Fault::Answer {
            status,
            errcode,
            error: "words of the homeserver",
        };
        app.homeserver.break_for(BOB, fault);
        let phone = Phone::new(&format!("dead-{number}"));
        app.enroll(&[&phone]).await;
        app.dead_letters(number + 1).await;
        let row = app.database.pusher(&phone.token).await;
        let error = row.and_then(|row| row.last_error).unwrap_or_default();
        assert!(error.contains(errcode), "{error}");
        assert!(error.contains("words of the homeserver"), "{error}");
    }
    // A dead letter is not tried again by itself, and is revived by a report.
    let calls = app.homeserver.sets().len();
    app.homeserver.repair().await;
    let phone = Phone::new("dead-0");
    app.report(&phone.report()).await.expect_status(200);
    app.pushers_are(BOB, &[&phone]).await;
    assert_eq!(app.homeserver.sets().len(), calls + 1);
    app.dead_letters(2).await;
}

#[tokio::test]
async fn a_report_brings_a_waiting_retry_forward() {
    let app = App::builder()
        .worker("RETRY_INITIAL_INTERVAL", "5m")
        .worker("RETRY_MAX_INTERVAL", "10m")
        .start()
        .await;
    let phone = Phone::seed();
    app.homeserver.break_for(BOB, Fault::Status(500));
    app.enroll(&[&phone]).await;
    eventually(SOON, "a job that waits", async || {
        let jobs = app.database.jobs().await;
        jobs.iter()
            .any(|job| job.status == "Failed" && job.lock_by.is_none())
    })
    .await;
    app.homeserver.repair().await;
    app.report(&phone.report()).await.expect_status(200);
    app.pusher_set(&phone).await;
}

/// Connections that hang hold their places for the whole time-out; the backlog must not wait for them.
#[tokio::test]
async fn requests_that_hang_hold_up_nobody_once_the_homeserver_answers_again() {
    let app = App::builder()
        .worker("HOMESERVER_TIMEOUT", "5m")
        .worker("WORKER_CONCURRENCY", "4")
        .start()
        .await;
    app.homeserver.break_with(Fault::Hang).await;
    let phones: Vec<_> = (0..20).map(|n| Phone::new(&format!("p{n}"))).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    eventually(SOON, "all places are taken", async || {
        app.homeserver.calls().len() >= 4
    })
    .await;
    app.homeserver.repair().await;
    eventually(Duration::from_mins(1), "all 20 pushers", async || {
        app.homeserver.pushkeys_of(BOB).len() == 20
    })
    .await;
    app.settled().await;
    app.dead_letters(0).await;
}

/// Such a row stays behind where a worker is killed while it probes, and the clock is set back.
#[tokio::test]
async fn a_turn_that_ends_far_ahead_holds_nobody_up() {
    let app = App::start().await;
    let phone = Phone::seed();
    app.map(&phone.selector, BOB).await;
    app.database
        .meddle(
            "UPDATE outage_gate
             SET version = version + 1, epoch = epoch + 1, state = 'down', holder = 'nobody',
                 next_try_ms = 32503680000000",
        )
        .await;
    app.report(&phone.report()).await.expect_status(200);
    app.pusher_set(&phone).await;
}
