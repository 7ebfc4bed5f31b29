//! Starting, stopping and being killed: what was acknowledged stays, what runs is finished, nothing secret is logged.

use std::time::Duration;

use futures::{StreamExt, stream};
use matrix2acrobits_tests::app::{ADMIN_TOKEN, AS_TOKEN, App};
use matrix2acrobits_tests::fixtures::{BOB, MALLORY, Phone, message};
use matrix2acrobits_tests::homeserver::{Call, Fault};
use matrix2acrobits_tests::http::{send, try_send};
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::process::{Process, Program};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::json;

#[tokio::test]
async fn both_stop_cleanly_when_idle() {
    let mut app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    assert_eq!(app.api_mut().terminate().await, Some(0));
    assert_eq!(app.database.integrity().await, "ok");
}

#[tokio::test]
async fn an_interrupt_stops_cleanly_too() {
    let mut app = App::start().await;
    for process in [app.api(), app.worker()] {
        process.signal("INT").await;
    }
    let deadline = Duration::from_secs(20);
    assert_eq!(app.api_mut().ended(deadline).await, Some(0));
    assert_eq!(app.worker_mut().ended(deadline).await, Some(0));
}

#[tokio::test]
async fn both_work_and_stop_when_nobody_reads_their_logs() {
    let mut app = App::start().await;
    app.api().stop_reading();
    app.worker().stop_reading();
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    app.api().signal("TERM").await;
    app.worker().signal("TERM").await;
    assert_eq!(app.worker_mut().ended(SOON).await, Some(0));
    assert_eq!(app.api_mut().ended(SOON).await, Some(0));
}

#[tokio::test]
async fn a_notification_in_flight_is_answered_before_the_stop() {
    let mut app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pnm.answer(Answer::Slow(1500)).await;
    let request = app.notification(&message("$1", &[phone.device()]));
    let in_flight = tokio::spawn(send(request));
    eventually(SOON, "PNM has it", async || app.pnm.pushes().len() == 1).await;
    app.api().signal("TERM").await;
    let reply = in_flight.await;
    let status = reply.map(|reply| reply.status).ok();
    assert_eq!(status, Some(200));
    assert_eq!(app.api_mut().ended(Duration::from_secs(20)).await, Some(0));
}

#[tokio::test]
async fn a_stopping_api_rejects_nothing() {
    let mut app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pnm.answer(Answer::Slow(2000)).await;
    let in_flight = tokio::spawn(send(app.notification(&message("$1", &[phone.device()]))));
    eventually(SOON, "PNM has it", async || app.pnm.pushes().len() == 1).await;
    app.api().signal("TERM").await;
    let late = try_send(app.notification(&message("$2", &[phone.device()]))).await;
    // Refused, cut, answered 503, or served: all of these lose nothing.
    if let Ok(reply) = late {
        assert!(matches!(reply.status, 200 | 503), "{reply:?}");
        assert!(!reply.text.contains(&phone.token));
    }
    let status = in_flight.await.map(|reply| reply.status).ok();
    assert_eq!(status, Some(200));
    assert_eq!(app.api_mut().ended(Duration::from_secs(20)).await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut app = App::start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pnm.answer(Answer::Hang).await;
    let in_flight = tokio::spawn(try_send(
        app.notification(&message("$1", &[phone.device()])),
    ));
    eventually(SOON, "PNM has it", async || app.pnm.pushes().len() == 1).await;
    app.api().signal("TERM").await;
    eventually(SOON, "it is stopping", async || {
        try_send(app.public(Method::GET, "/health"))
            .await
            .map_or(true, |reply| reply.status != 200)
    })
    .await;
    app.api().signal("TERM").await;
    let code = app.api_mut().ended(Duration::from_secs(3)).await;
    assert_ne!(code, Some(0));
    in_flight.abort();
}

#[tokio::test]
async fn a_worker_finishes_the_call_that_runs() {
    let mut app = App::start().await;
    let phone = Phone::seed();
    app.homeserver.break_with(Fault::Delay(1200)).await;
    app.enroll(&[&phone]).await;
    eventually(SOON, "the call is on the way", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    assert_eq!(app.homeserver.pushkeys_of(BOB), [phone.token]);
    assert_eq!(app.homeserver.sets().len(), 1);
    assert_eq!(app.database.live_jobs().await, 0);
}

#[tokio::test]
async fn a_worker_with_a_hanging_call_ends_in_time_and_the_next_one_asks_first() {
    let mut app = App::builder()
        .worker("HOMESERVER_TIMEOUT", "60s")
        .start()
        .await;
    let phone = Phone::seed();
    app.homeserver.break_with(Fault::Hang).await;
    app.enroll(&[&phone]).await;
    eventually(SOON, "the call is on the way", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    app.worker().signal("TERM").await;
    let code = app.worker_mut().ended(Duration::from_secs(15)).await;
    assert_eq!(code, Some(0));
    assert!(
        app.database
            .jobs()
            .await
            .iter()
            .all(|job| job.lock_by.is_none())
    );
    app.homeserver.repair().await;
    app.homeserver.clear_calls();
    app.start_worker().await;
    app.pusher_set(&phone).await;
    let calls = app.homeserver.calls();
    let asked = calls.iter().position(Call::is_list);
    let set = calls.iter().position(Call::is_set);
    assert!(asked.is_some() && asked < set, "{calls:#?}");
}

#[tokio::test]
async fn a_job_whose_workers_are_stopped_again_and_again_is_never_given_up() {
    let mut app = App::builder()
        .worker("HOMESERVER_TIMEOUT", "60s")
        .start()
        .await;
    let phone = Phone::seed();
    app.homeserver.break_with(Fault::Hang).await;
    app.enroll(&[&phone]).await;
    for round in 0..7 {
        if round > 0 {
            app.start_worker().await;
        }
        eventually(SOON, "the call is on the way", async || {
            let calls = app.homeserver.calls();
            calls.iter().any(|call| call.is_set() || call.is_list())
        })
        .await;
        app.worker().signal("TERM").await;
        eventually(SOON, "it is stopping", async || {
            !app.worker().log_lines("finishing what runs").is_empty()
        })
        .await;
        // Somebody is in a hurry.
        app.worker().signal("TERM").await;
        let code = app.worker_mut().ended(Duration::from_secs(5)).await;
        assert_eq!(code, Some(1), "{}", app.worker().log());
        let jobs = app.database.jobs().await;
        let free = jobs
            .iter()
            .all(|job| job.lock_by.is_none() && job.status != "Killed");
        assert!(free, "{jobs:#?}");
        app.homeserver.clear_calls();
    }
    app.homeserver.repair().await;
    app.start_worker().await;
    app.pusher_set(&phone).await;
    app.settled().await;
    assert_eq!(app.database.dead_jobs().await, 0);
}

#[tokio::test]
async fn nobody_takes_over_what_a_stopping_worker_still_does() {
    let mut app = App::builder()
        .worker("HOMESERVER_TIMEOUT", "60s")
        .start()
        .await;
    let phone = Phone::seed();
    // Longer than a worker is silent before it counts as dead, and shorter than it may take to stop.
    app.homeserver.break_with(Fault::Delay(12_000)).await;
    app.enroll(&[&phone]).await;
    eventually(SOON, "the call is on the way", async || {
        !app.homeserver.sets().is_empty()
    })
    .await;
    app.worker().signal("TERM").await;
    let mut second = Process::start(Program::Worker, &[], &app.worker_env);
    second.listening().await;
    assert_eq!(
        app.worker_mut().ended(Duration::from_secs(15)).await,
        Some(0)
    );
    assert_eq!(app.homeserver.pushkeys_of(BOB), [phone.token]);
    assert_eq!(app.homeserver.sets().len(), 1);
    assert!(second.log_lines("took over").is_empty());
}

#[tokio::test]
async fn a_hangup_stops_both_cleanly() {
    let mut app = App::start().await;
    for process in [app.api(), app.worker()] {
        process.signal("HUP").await;
    }
    let deadline = Duration::from_secs(20);
    assert_eq!(app.api_mut().ended(deadline).await, Some(0));
    assert_eq!(app.worker_mut().ended(deadline).await, Some(0));
}

#[tokio::test]
async fn an_api_killed_after_its_answer_has_lost_nothing() {
    let mut app = App::builder().without_worker().start().await;
    let mut phones = Vec::new();
    for round in 0..3 {
        let phone = Phone::new(&format!("round-{round}"));
        app.enroll(&[&phone]).await;
        app.api_mut().kill().await;
        app.start_api().await;
        phones.push(phone);
    }
    assert_eq!(app.database.count("push_tokens").await, 3);
    let devices: Vec<_> = phones.iter().map(Phone::device).collect();
    let reply = app
        .notify(&message("$1", &devices))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": []}));
    assert_eq!(app.pnm.pushes().len(), 3);
    app.start_worker().await;
    app.pushers_are(BOB, &phones.iter().collect::<Vec<_>>())
        .await;
}

/// The api reads the tokens of all phones at its start, page by page. With 200,000 that takes a while, in which 2,000
/// leave: some of them between the reading of their page and its end.
#[tokio::test]
async fn what_is_removed_as_the_api_starts_is_not_pushed_to() {
    let mut app = App::builder().without_worker().start().await;
    app.api_mut().kill().await;
    app.database
        .meddle(
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 199999)
             INSERT INTO push_tokens (selector, device, owner, token_msgs, app_id_msgs, report, created_at, updated_at)
             SELECT 'SELECTOR-' || i, '', '@bob:example.org', 'APA91b-' || i, 'com.acrobits.softphone', 1, 0, unixepoch()
             FROM n",
        )
        .await;
    app.start_api().await;
    let phone = |number: u32| Phone::new(&number.to_string());
    // In no order: the two numbers have no common factor.
    let leaving = (0..2000).map(|n| phone(n * 7919 % 200_000));
    let leaving: Vec<_> = leaving.collect();
    let removals = stream::iter(&leaving).map(async |phone| {
        let removal = json!({"selector": phone.selector});
        app.removal(&removal).await.expect_status(200);
    });
    removals.buffer_unordered(64).collect::<()>().await;
    for (number, chunk) in leaving.chunks(100).enumerate() {
        let devices: Vec<_> = chunk.iter().map(Phone::device).collect();
        let reply = app.notify(&message(&format!("${number}"), &devices)).await;
        // So many at once are put off rather than rejected.
        reply.expect_status(503);
    }
    let pushed: Vec<_> = app.pnm.pushes().into_iter().map(|push| push.body).collect();
    assert!(
        pushed.is_empty(),
        "{} go on ringing, such as {}",
        pushed.len(),
        pushed[0]
    );
    let stays = phone(1);
    app.notify(&message("$stays", &[stays.device()]))
        .await
        .expect_status(200);
    assert_eq!(app.pnm.pushes_for(&stays.token).len(), 1);
}

#[tokio::test]
async fn each_works_while_the_other_is_down() {
    let mut app = App::start().await;
    let phones = ["a", "b"].map(Phone::new);
    app.worker_mut().kill().await;
    app.enroll(&[&phones[0], &phones[1]]).await;
    app.notify(&message("$1", &[phones[0].device()]))
        .await
        .expect_status(200);
    assert_eq!(app.pnm.pushes().len(), 1);
    app.api_mut().kill().await;
    app.start_worker().await;
    app.pushers_are(BOB, &[&phones[0], &phones[1]]).await;
}

#[tokio::test]
async fn a_lost_volume_rejects_nobody() {
    let mut app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.notify(&message("$1", &[phone.device()]))
        .await
        .expect_status(200);
    assert_eq!(app.api_mut().terminate().await, Some(0));
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", app.file.display()));
    }
    app.start_api().await;
    app.notify(&message("$2", &[phone.device()]))
        .await
        .expect_error(503);
    // The phone reports at its next start, and all is well.
    app.report(&phone.report()).await.expect_status(200);
    app.notify(&message("$2", &[phone.device()]))
        .await
        .expect_status(200);
}

/// Everything that passes through, good and bad, with the logs as loud as they go.
async fn says_nothing_secret(filter: &str, level: &str) {
    let mut app = App::builder().both(filter, level).start().await;
    let phone = Phone::seed();
    let mallorys = Phone::new("secret-of-mallory").of(MALLORY);
    let mut report = phone.report();
    report["username"] = json!("bob@example.org");
    report["password"] = json!("correct horse battery");
    app.map(&phone.selector, BOB).await;
    app.report(&report).await.expect_status(200);
    app.report_query(&[
        ("selector", &phone.selector),
        ("password", "correct horse battery"),
    ])
    .await;
    app.pusher_set(&phone).await;
    app.enroll(&[&mallorys]).await;
    app.dead_letters(1).await;
    for (event, answer) in [
        ("$1", Answer::Ok),
        ("$2", Answer::Http500),
        ("$3", Answer::Bad),
        ("$4", Answer::Gone),
    ] {
        app.pnm.answer(answer).await;
        app.notify(&message(event, &[phone.device()])).await;
    }
    app.notify(
        &json!({"notification": {"content": {"body": "Hello!"}, "devices": [phone.device(), 1]}}),
    )
    .await;
    let broken = app.public(Method::POST, "/_matrix/push/v1/notify");
    send(broken.body(format!("{{\"Hello!\" {}", phone.token))).await;
    app.homeserver.break_with(Fault::WrongToken).await;
    app.report(&phone.clone().with_token("secret-of-renewal").report())
        .await
        .expect_status(200);
    eventually(SOON, "the wrong token is noticed", async || {
        !app.worker().log_lines("ERROR").is_empty()
    })
    .await;
    send(
        app.admin_bare(Method::GET, "/api/internal/mappings")
            .bearer_auth("guessed-token"),
    )
    .await;

    // Each says a last word, after which nothing comes.
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    assert_eq!(app.api_mut().terminate().await, Some(0));
    for process in [app.api(), app.worker()] {
        eventually(SOON, "the last line", async || {
            process
                .log()
                .lines()
                .next_back()
                .is_some_and(|line| line.contains("stopped"))
        })
        .await;
    }
    let log = format!("{}\n{}", app.api().log(), app.worker().log());
    // What happened is there, as loud as it was asked for, and what is no secret is found in it.
    for said in [
        "DEBUG",
        "report saved",
        "a notification was refused",
        "pnm_token_gone",
        "dead letter",
        "user=@bob:example.org",
        "pushkey=",
        &app.pnm.url(),
    ] {
        assert!(log.contains(said), "{said:?} is not in the log");
    }
    for secret in [
        &*phone.token,
        "secret-of-",
        "Hello!",
        "correct horse",
        AS_TOKEN,
        ADMIN_TOKEN,
        "guessed-token",
    ] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(secret)).collect();
        assert!(lines.is_empty(), "{secret:?} in the log: {lines:#?}");
    }
}

#[tokio::test]
async fn the_loudest_log_tells_no_secret() {
    says_nothing_secret("LOGLEVEL", "TRACE").await;
}

#[tokio::test]
async fn not_even_the_libraries_tell_a_secret() {
    says_nothing_secret("RUST_LOG", "trace").await;
}

/// A counter that an operator's shell has set so high that the next count panics, where overflow is checked: in the
/// binaries that tests start.
#[tokio::test]
async fn a_panic_in_a_task_of_the_store_ends_the_process_with_an_error() {
    let mut app = App::start().await;
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    let phone = Phone::new("first").of(MALLORY);
    app.enroll(&[&phone]).await;
    let attempts = "UPDATE pushers SET attempts = 9223372036854775807";
    app.database.meddle(attempts).await;
    // The homeserver refuses this user, which counts as an attempt.
    app.start_worker().await;
    assert_eq!(app.worker_mut().ended(SOON).await, Some(1));

    let second = phone.clone().with_selector("SELECTOR-second").of(BOB);
    app.map(&second.selector, BOB).await;
    let claim = "UPDATE pushers SET claim = 9223372036854775807";
    app.database.meddle(claim).await;
    // The phone changes hands, which is counted, too.
    let report = "/api/client/push_token_report";
    let report = app.public(Method::POST, report).json(&second.report());
    if let Ok(reply) = try_send(report).await {
        reply.expect_error(503);
    }
    assert_eq!(app.api_mut().ended(SOON).await, Some(1));
}

/// A backup is put in the place of the file under the running processes: what they acknowledged from then on would be lost.
#[tokio::test]
async fn nothing_is_accepted_while_the_file_is_another_one() {
    let mut app = App::start().await;
    if app.database.is_postgres() {
        return;
    }
    let [first, second] = ["first", "second"].map(Phone::new);
    app.report(&first.report()).await.expect_status(200);
    let [backup, kept] = ["backup", "kept"].map(|end| app.file.with_extension(end));
    std::fs::copy(&app.file, &backup).unwrap();
    std::fs::hard_link(&app.file, &kept).unwrap();
    std::fs::rename(&backup, &app.file).unwrap();
    app.report(&second.report()).await.expect_error(503);
    let ready = app.admin_bare(Method::GET, "/health/ready");
    assert_eq!(send(ready).await.status, 503);
    // Nobody is called unknown by it.
    let push = message("$1", &[second.device()]);
    app.notify(&push).await.expect_error(503);
    assert!(app.api().log().contains("replaced or removed"));
    // The administrator sees it and puts the file back.
    std::fs::rename(&kept, &app.file).unwrap();
    app.report(&second.report()).await.expect_status(200);
    assert_eq!(app.database.count("push_tokens").await, 2);

    // Or stops both first. Then neither file may take what the log of the other holds.
    let other = b"another file";
    std::fs::hard_link(&app.file, &kept).unwrap();
    std::fs::write(&backup, other).unwrap();
    std::fs::rename(&backup, &app.file).unwrap();
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    assert_eq!(app.api_mut().terminate().await, Some(0));
    assert_eq!(std::fs::read(&app.file).unwrap(), other);
    std::fs::rename(&kept, &app.file).unwrap();
    app.start_api().await;
    assert_eq!(app.database.count("push_tokens").await, 2);
}
