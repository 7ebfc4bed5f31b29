//! `matrix2acrobits-worker doctor`: each fault is named, with what to do, and ends it with an exit code.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests outside of #[test] functions; what the doctor says is worth showing"
)]

use std::time::{Duration, Instant};

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{self, BOB, Phone};
use matrix2acrobits_tests::homeserver::{Fault, Profile};
use matrix2acrobits_tests::http;
use matrix2acrobits_tests::process::{Env, Program};
use matrix2acrobits_tests::server::{self, Server};
use matrix2acrobits_tests::synapse::{self, Synapse};
use matrix2acrobits_tests::{SOON, eventually};
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

/// What it printed, and how it ended.
#[derive(Debug)]
struct Finding {
    code: Option<i32>,
    lines: Vec<String>,
}

impl Finding {
    /// The lines of this level about this part.
    #[track_caller]
    fn says(&self, level: &str, what: &str, words: &str) {
        let found = self.lines.iter().any(|line| {
            let line = line.strip_prefix(level).map(str::trim_start);
            line.is_some_and(|line| line.starts_with(what) && line.contains(words))
        });
        assert!(
            found,
            "no line {level:?} {what:?} with {words:?} in {self:#?}"
        );
    }

    /// This part is wrong, and the exit code says so.
    #[track_caller]
    fn wrong(&self, what: &str, words: &str) {
        self.says("WRONG", what, words);
        assert_eq!(self.code, Some(1), "{self:#?}");
    }

    /// Nothing is wrong.
    #[track_caller]
    fn well(&self) {
        let wrong = self.lines.iter().any(|line| line.starts_with("WRONG"));
        assert!(!wrong && self.code == Some(0), "{self:#?}");
    }
}

/// Runs it with the worker's settings and some that differ; an empty value is as good as none.
async fn doctor(app: &App, differ: &[(&str, &str)], args: &[&str]) -> Finding {
    let mut env: Env = app.worker_env.clone();
    let elsewhere = |(name, _): &(&str, &str)| *name == "ADMIN_LISTEN_ADDR";
    if !differ.iter().any(elsewhere) {
        let worker = app.worker().admin_url().replace("http://", "");
        env.insert("ADMIN_LISTEN_ADDR".into(), worker);
    }
    for &(name, value) in differ {
        env.insert(name.into(), value.into());
    }
    let args: Vec<_> = ["doctor"].iter().chain(args).copied().collect();
    let output = Program::Worker.run(&args, &env).await;
    let text = String::from_utf8(output.stdout).unwrap();
    println!("\n{args:?} with {differ:?}\n{text}");
    assert!(!text.contains(&app.worker_env["MATRIX_AS_TOKEN"]), "{text}");
    Finding {
        code: output.status.code(),
        lines: text.lines().map(str::to_owned).collect(),
    }
}

#[tokio::test]
async fn a_bridge_with_a_real_synapse() {
    // As Synapse comes: without a word about private addresses.
    let as_it_comes = json!({"ip_range_blacklist": null});
    let mut synapse = Synapse::start_with(&synapse::registration().await, &as_it_comes).await;
    let app = synapse.bridge().start().await;
    let bob = synapse.register("bob").await;
    let alice = synapse.register("alice").await;
    let phone = Phone::seed();
    let about_bob = ["--user", BOB];

    let finding = doctor(&app, &[], &about_bob).await;
    finding.wrong("pushers", "no phone has reported, or no mapping");
    app.enroll(&[&phone]).await;
    synapse.holds(BOB, &[&phone.token]).await;
    let room = alice.room_with(&[&bob]).await;
    let finding = doctor(&app, &[], &about_bob).await;
    finding.says("suspect", "notifications", "have somebody write");
    finding.says("suspect", "namespace", "exclusive: false");

    // Synapse does not push to a private address; all else is as it should be, and the doctor says so.
    alice.say(&room, "Are you there?").await;
    eventually(SOON, "Synapse's line about a blocked address", async || {
        !synapse.log_lines("IP address blocked").is_empty()
    })
    .await;
    assert!(app.pnm.pushes().is_empty());
    let finding = doctor(&app, &[], &about_bob).await;
    finding.well();
    for (what, words) in [
        ("settings", "/_matrix/push/v1/notify"),
        ("database", "1 registered"),
        ("jobs", "no dead letter"),
        ("worker", "ready"),
        ("homeserver", "answers"),
        ("clock", ""),
        ("as_token", "@_matrix2acrobits:example.org"),
        ("PROXY_URL", "the api answers"),
        ("user", BOB),
        ("pusher", "held as wanted"),
        ("mark", "hands our mark back"),
        ("notifications", "not exclusive"),
    ] {
        finding.says("ok", what, words);
    }
    finding.says("suspect", "network", "ip_range_whitelist");
    finding.says("ok", "arrival", "nothing was pushed yet");
    let last = finding.lines.last().unwrap();
    assert!(last.ends_with(&format!("push-test --user {BOB}")), "{last}");
    let finding = doctor(&app, &[], &[]).await;
    finding.well();
    finding.says("skipped", "user", "--user");

    users_and_pushers(&app, &synapse, &phone, &bob).await;
    settings(&app, &synapse).await;

    // The pusher was set anew meanwhile; so this is what Synapse holds.
    let held = alice.say(&room, "Still there?").await;
    synapse.stop().await;
    let finding = doctor(&app, &[], &about_bob).await;
    finding.wrong("homeserver", "refused");
    finding.says("skipped", "user", "homeserver");

    // As the doctor advised: what Synapse held comes at its start.
    let allowed = json!({"ip_range_blacklist": null, "ip_range_whitelist": ["127.0.0.1"]});
    synapse.configure(&allowed);
    synapse.start_again().await;
    eventually(SOON, "the push that was blocked", async || {
        app.pnm.pushes().iter().any(|push| push.body["Id"] == held)
    })
    .await;
}

async fn users_and_pushers(app: &App, synapse: &Synapse, phone: &Phone, bob: &synapse::User) {
    let finding = doctor(app, &[], &["--user", "@nobody:example.org"]).await;
    finding.wrong("user", "there is no such user");
    let finding = doctor(app, &[], &["--user", "@bob:elsewhere.org"]).await;
    finding.wrong("user", "regular expression");
    let finding = doctor(app, &[], &["--user", "bob"]).await;
    assert_eq!(finding.code, Some(2), "{finding:#?}");

    bob.mute(true).await;
    let finding = doctor(app, &[], &["--user", BOB]).await;
    finding.wrong("notifications", "switched off");
    bob.mute(false).await;

    let url = format!("{}/_matrix/push/v1/notify", app.worker_env["PROXY_URL"]);
    // As a version without marks set it.
    let data = json!({"url": url, "format": "event_id_only", "selector": phone.selector});
    let before = json!({"app_id": phone.app_id, "pushkey": phone.token, "kind": "http", "data": data,
        "app_display_name": "x", "device_display_name": "x", "lang": "en"});
    synapse.set_pusher(BOB, &before).await;
    let finding = doctor(app, &[], &["--user", BOB]).await;
    finding.says("ok", "pusher", "held as wanted, but for its mark");
    finding.says("suspect", "mark", "no mark is in the pusher's data");

    // Behind the bridge's back: its pusher goes, another comes.
    synapse
        .set_pusher(
            BOB,
            &json!({"app_id": phone.app_id, "pushkey": phone.token, "kind": null}),
        )
        .await;
    let stranger = json!({"app_id": "x", "pushkey": "y", "kind": "http", "app_display_name": "x",
        "device_display_name": "x", "lang": "en", "data": {"url": url}});
    synapse.set_pusher(BOB, &stranger).await;
    let finding = doctor(app, &[], &["--user", BOB]).await;
    finding.wrong("pusher", "not held (here registered): `replay --user");
    finding.says("suspect", "pusher", "not known here");
    let replay = Program::Worker
        .run(&["replay", "--user", BOB], &app.worker_env)
        .await;
    assert!(replay.status.success(), "{replay:?}");
    synapse.holds(BOB, &[&phone.token, "y"]).await;
    app.settled().await;
}

async fn settings(app: &App, synapse: &Synapse) {
    // Synapse looks at a token even where it needs none; so nobody may show it one to see whether it is there.
    let versions = format!("{}/_matrix/client/versions", synapse.url());
    let asked = http::client().get(versions).bearer_auth("another");
    http::send(asked).await.expect_error(401);
    let wrong_token = [("MATRIX_AS_TOKEN", "another")];
    let finding = doctor(app, &wrong_token, &["--user", BOB]).await;
    finding.wrong("as_token", "app_service_config_files");
    finding.says("skipped", "user", "MATRIX_AS_TOKEN");

    let other_name = [("MATRIX_SERVER_NAME", "matrix.example.org")];
    let finding = doctor(app, &other_name, &[]).await;
    finding.says("suspect", "server name", "set it to example.org");

    let finding = doctor(app, &[("PROXY_URL", "")], &[]).await;
    finding.wrong("settings", "PROXY_URL is not set");
    let closed = format!("http://127.0.0.1:{}", server::free_port());
    let finding = doctor(app, &[("PROXY_URL", &closed)], &["--user", BOB]).await;
    finding.wrong("PROXY_URL", "refused");
    finding.wrong("pusher", "another URL");
    let finding = doctor(app, &[("PROXY_URL", &synapse.url())], &[]).await;
    finding.wrong("PROXY_URL", "not the api");
    let finding = doctor(app, &[("PROXY_URL", "https://nowhere.invalid")], &[]).await;
    finding.wrong("PROXY_URL", "nowhere.invalid has no address");

    let finding = doctor(app, &[("DATABASE_URL", "sqlite://none/here.db")], &[]).await;
    finding.wrong("database", "there is no file");
    let finding = doctor(app, &[("MATRIX_HOMESERVER_URL", "")], &[]).await;
    finding.wrong("settings", "MATRIX_HOMESERVER_URL");
    let nobody = format!("127.0.0.1:{}", server::free_port());
    let finding = doctor(app, &[("ADMIN_LISTEN_ADDR", &nobody)], &[]).await;
    finding.says("suspect", "worker", "start it");
}

#[tokio::test]
async fn an_exclusive_namespace_is_silent_and_suspected() {
    let registration = synapse::registration().await;
    let mut synapse = Synapse::start(&registration).await;
    let app = synapse.bridge().start().await;
    let bob = synapse.register("bob").await;
    let alice = synapse.register("alice").await;
    let room = alice.room_with(&[&bob]).await;
    let exclusive = registration.replace("exclusive: false\n", "exclusive: true\n");
    assert_ne!(registration, exclusive);
    synapse.change_registration(&exclusive);
    synapse.stop().await;
    synapse.start_again().await;

    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    synapse.holds(BOB, &[&phone.token]).await;
    alice.say(&room, "Are you there?").await;
    // An invitation is pushed even so, and comes later: a push of the message would be there before it.
    let other_room = alice.invite(&bob).await;
    eventually(SOON, "the push of the invitation", async || {
        !app.pnm.pushes().is_empty()
    })
    .await;
    let pushes = app.pnm.pushes();
    assert_eq!(pushes.len(), 1, "{pushes:?}");
    assert_eq!(pushes[0].body["ThreadId"], other_room);
    let finding = doctor(&app, &[], &["--user", BOB]).await;
    finding.well();
    finding.says("suspect", "notifications", "have somebody write");
    finding.says("suspect", "namespace", "exclusive: false");
}

#[tokio::test]
async fn another_clock_and_no_homeserver() {
    let app = App::start().await;
    let late = Server::start(|_| {
        let mut answer = server::json(
            200,
            &json!({"versions": ["v1.11"], "user_id": "@b:example.org"}),
        );
        let date = "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap();
        answer.headers_mut().insert("date", date);
        Box::pin(async { Some(answer) })
    })
    .await;
    let finding = doctor(&app, &[("MATRIX_HOMESERVER_URL", &late.url())], &[]).await;
    finding.wrong("clock", "s ahead of the homeserver");

    let page = Server::start(|_| Box::pin(async { Some(server::html(200)) })).await;
    let finding = doctor(&app, &[("MATRIX_HOMESERVER_URL", &page.url())], &[]).await;
    finding.wrong("homeserver", "no Matrix homeserver: HTTP 200 without JSON");

    let limiting = Server::start(|_| {
        let body = json!({"errcode": "M_LIMIT_EXCEEDED", "error": "Too Many Requests"});
        let answer = server::json(429, &body);
        Box::pin(async { Some(answer) })
    })
    .await;
    let finding = doctor(&app, &[("MATRIX_HOMESERVER_URL", &limiting.url())], &[]).await;
    finding.wrong("homeserver", "versions: HTTP 429 M_LIMIT_EXCEEDED");

    let token_of_a_user = json!({"versions": [], "user_id": "@bob:example.org", "device_id": "D"});
    let user = Server::start(move |_| {
        let answer = server::json(200, &token_of_a_user);
        Box::pin(async { Some(answer) })
    })
    .await;
    let finding = doctor(&app, &[("MATRIX_HOMESERVER_URL", &user.url())], &[]).await;
    finding.wrong("as_token", "access token of @bob:example.org");
}

#[tokio::test]
async fn a_run_leaves_no_warning_in_the_apis_log() {
    let app = App::builder().api("LOGLEVEL", "INFO").start().await;
    let proxy_url = app.api().public_url();
    let finding = doctor(&app, &[("PROXY_URL", &proxy_url)], &[]).await;
    finding.says("ok", "PROXY_URL", "the api answers");
    let refused = app.api().log_lines("a notification was refused");
    assert!(refused.is_empty(), "{refused:#?}");
}

/// The reverse proxy may let only the homeserver reach the notifications.
#[tokio::test]
async fn an_api_that_only_the_homeserver_reaches_is_suspected_and_all_else_is_wrong() {
    let app = App::start().await;
    let error = |errcode| json!({"errcode": errcode, "error": "no"});
    let gone = format!("http://127.0.0.1:{}", server::free_port());
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let answers = |status, body: Option<Value>| {
        Server::start(move |_| {
            let answer = match &body {
                Some(body) => server::json(status, body),
                None => server::html(status),
            };
            Box::pin(async { Some(answer) })
        })
    };
    let closes = Server::start(|_| Box::pin(async { None })).await;
    for (url, words) in [
        (answers(403, None).await.url(), "HTTP 403 without JSON"),
        (answers(401, Some(json!({}))).await.url(), "HTTP 401"),
    ] {
        let finding = doctor(&app, &[("PROXY_URL", &url)], &[]).await;
        finding.says("suspect", "PROXY_URL", words);
        finding.says("suspect", "PROXY_URL", "this may be so from here only");
        finding.well();
    }
    for (url, words) in [
        (answers(200, None).await.url(), "not the api: HTTP 200"),
        (answers(404, None).await.url(), "not the api: HTTP 404"),
        (answers(502, None).await.url(), "not the api: HTTP 502"),
        (
            answers(403, Some(error("M_FORBIDDEN"))).await.url(),
            "not the api: HTTP 403 M_FORBIDDEN",
        ),
        (closes.url(), "start the api"),
        (gone, "refused"),
        (silent, "no answer in time"),
        ("https://nowhere.invalid".to_owned(), "has no address"),
    ] {
        let differ = [("PROXY_URL", url.as_str()), ("HOMESERVER_TIMEOUT", "1s")];
        let finding = doctor(&app, &differ, &[]).await;
        finding.wrong("PROXY_URL", words);
    }
}

#[tokio::test]
async fn the_software_is_named_with_what_follows_and_a_generic_worker_is_wrong() {
    let app = App::start().await;
    for (profile, words) in [
        (Profile::Synapse, "Synapse 1.163.2"),
        (Profile::Dendrite, "PUSHER_APPEND=false"),
        (Profile::Tuwunel, "device_management: true"),
        (Profile::Continuwuity, "does not retry"),
    ] {
        app.homeserver.behave_as(profile);
        let finding = doctor(&app, &[], &[]).await;
        finding.says("ok", "software", words);
        finding.says("ok", "logins", "with a password");
    }
    app.homeserver.behave_as(Profile::SynapseWorker);
    let finding = doctor(&app, &[], &[]).await;
    finding.wrong("pushers", "the main process");

    app.homeserver
        .break_path("/_matrix/federation/v1/version", Fault::Status(404));
    let finding = doctor(&app, &[], &[]).await;
    finding.says("skipped", "software", "does not name itself");
}

#[tokio::test]
async fn a_matrix_authentication_service_is_seen_and_is_no_fault() {
    let app = App::start().await;
    let delegated = json!({"type": "m.login.sso", "oauth_aware_preferred": true});
    for flows in [None, Some(vec![delegated])] {
        app.homeserver.offer_logins(flows);
        let finding = doctor(&app, &[], &[]).await;
        finding.says("suspect", "logins", "Matrix Authentication Service");
        let wrong = |line: &String| line.starts_with("WRONG") && line.contains("logins");
        assert!(!finding.lines.iter().any(wrong), "{finding:#?}");
    }
    app.homeserver
        .offer_logins(Some(vec![json!({"type": "m.login.sso"})]));
    let finding = doctor(&app, &[], &[]).await;
    finding.says("suspect", "logins", "no login with a password");
}

#[tokio::test]
async fn a_backlog_that_shrinks_is_told_from_one_that_stands() {
    let app = App::builder().without_worker().start().await;
    let phones: Vec<_> = (0..200).map(|n| Phone::new(&format!("p{n}"))).collect();
    app.enroll(&phones.iter().collect::<Vec<_>>()).await;
    let nobody = format!("127.0.0.1:{}", server::free_port());
    let no_worker = [("ADMIN_LISTEN_ADDR", nobody.as_str())];
    let started = Instant::now();
    let finding = doctor(&app, &no_worker, &[]).await;
    finding.says("ok", "jobs", "200 to do, no dead letter");
    // Nothing is late, so it does not look twice.
    assert!(started.elapsed() < Duration::from_secs(5));

    app.database
        .meddle("UPDATE Jobs SET run_at = run_at - 100")
        .await;
    let finding = doctor(&app, &no_worker, &[]).await;
    finding.wrong("jobs", "and is not taken");

    let while_jobs_go = async || {
        let work = async {
            loop {
                let first = "DELETE FROM Jobs WHERE pusher_id = (SELECT min(pusher_id) FROM Jobs)";
                app.database.meddle(first).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            finding = doctor(&app, &no_worker, &[]) => finding,
            () = work => unreachable!(),
        }
    };
    let finding = while_jobs_go().await;
    finding.says("ok", "jobs", "being worked off");
    // Users may be deleted meanwhile, but no worker sets a pusher.
    app.database
        .meddle("UPDATE outage_gate SET state = 'down'")
        .await;
    let finding = while_jobs_go().await;
    finding.wrong("jobs", "no worker runs to try again");
}

#[tokio::test]
async fn a_gate_that_is_shut_is_wrong_although_the_homeserver_answers_again() {
    for (fault, word) in [
        (Fault::WrongToken, "restart the worker"),
        (
            Fault::RateLimited {
                retry_after_ms: 600_000,
            },
            "HTTP 429",
        ),
    ] {
        let app = App::builder()
            .worker("RETRY_INITIAL_INTERVAL", "5m")
            .worker("RETRY_MAX_INTERVAL", "10m")
            .start()
            .await;
        app.homeserver.break_with(fault).await;
        app.enroll(&[&Phone::seed()]).await;
        eventually(SOON, "the gate shuts", async || {
            !app.worker().log_lines("jobs wait").is_empty()
        })
        .await;
        app.homeserver.repair().await;
        let finding = doctor(&app, &[], &[]).await;
        finding.says("ok", "homeserver", "answers");
        finding.wrong("jobs", word);
        finding.wrong("jobs", "the next try is at");
    }
}

#[tokio::test]
async fn a_worker_that_is_not_ready_is_wrong_and_another_program_is_suspected() {
    let app = App::start().await;
    let problem = json!({"status": "unavailable", "problem": "the database does not answer"});
    for (status, body) in [(503, Some(problem)), (200, None)] {
        let ours = body.is_some();
        let server = Server::start(move |_| {
            let answer = match &body {
                Some(body) => server::json(status, body),
                None => server::html(status),
            };
            Box::pin(async { Some(answer) })
        })
        .await;
        let addr = server.url().replace("http://", "");
        let env = Env::from([("ADMIN_LISTEN_ADDR".to_owned(), addr.clone())]);
        let output = Program::Worker.run(&["healthcheck"], &env).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let finding = doctor(&app, &[("ADMIN_LISTEN_ADDR", &addr)], &[]).await;
        if ours {
            finding.wrong("worker", "is not ready");
            finding.wrong("worker", "the database does not answer: see its log");
        } else {
            finding.says("suspect", "worker", "another program answers");
        }
    }
}

#[tokio::test]
async fn nothing_changes_a_file_of_another_program() {
    let folder = fixtures::folder();
    let file = folder.path().join("other.db");
    let url = format!("sqlite://{}", file.display());
    let mut other = SqliteConnection::connect(&format!("{url}?mode=rwc"))
        .await
        .unwrap();
    sqlx::raw_sql("CREATE TABLE push_tokens (token TEXT); INSERT INTO push_tokens VALUES ('x')")
        .execute(&mut other)
        .await
        .unwrap();
    other.close().await.unwrap();
    let before = std::fs::read(&file).unwrap();
    let app = App::start().await;
    let mut env = app.worker_env.clone();
    env.extend(app.api_env.clone());
    env.insert("DATABASE_URL".into(), url);
    for (program, args) in [
        (Program::Worker, &["doctor"][..]),
        (Program::Worker, &["jobs"]),
        (Program::Worker, &["replay", "--dead"]),
        (Program::Api, &["mappings", "export"]),
        (Program::Api, &[]),
        (Program::Worker, &[]),
    ] {
        let output = program.run(args, &env).await;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("another program"), "{args:?}: {text}");
        assert_ne!(output.status.code(), Some(0), "{args:?}: {text}");
        assert_eq!(std::fs::read(&file).unwrap(), before, "{args:?}");
    }
    // A dry run ends as the real one would.
    for more in [&[][..], &["--dry-run"]] {
        let args = [&["mappings", "import", "/dev/null"][..], more].concat();
        let output = Program::Api.run(&args, &env).await;
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        let words = "is the database of another program";
        assert!(text.starts_with("DATABASE_URL: ") && text.contains(words));
    }
}
