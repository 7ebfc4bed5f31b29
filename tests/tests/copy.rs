//! `copy-database`: from a file to PostgreSQL and back, with rows in every state, interrupted, repeated, and where it must
//! not be done.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on stops where it is"
)]

use std::path::Path;

use matrix2acrobits_test_postgres as postgres;
use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::database::Database;
use matrix2acrobits_tests::fixtures::{ALICE, BOB, MALLORY, Phone, folder, message};
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::process::{Env, Process, Program};
use matrix2acrobits_tests::{SOON, eventually};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tokio::sync::Mutex;

/// As many phones as take a while to copy.
const MANY: &str = "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 20000)
    INSERT INTO push_tokens (selector, device, token_msgs, app_id_msgs, report, created_at, updated_at)
    SELECT 'SELECTOR-' || n, '', 'token-' || n, 'app', 1, 1, 1
    FROM number";

/// None where no server can be had, which `tests/run` says.
fn new_database() -> Option<postgres::Database> {
    Some(postgres::Server::shared()?.database())
}

fn url(file: &Path) -> String {
    format!("sqlite://{}", file.display())
}

/// Copies; the exit code and what was said.
async fn copy(from: &str, to: &str, more: &[&str]) -> (Option<i32>, String) {
    let args = [&["copy-database", "--from", from, "--to", to], more].concat();
    let output = Program::Api.run(&args, &Env::new()).await;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.code(), said)
}

/// Copies, of which success is expected; the lines with the sums.
async fn copied(from: &str, to: &str) -> Vec<String> {
    let (code, said) = copy(from, to, &[]).await;
    assert_eq!(code, Some(0), "{said}");
    let sums = said.lines().filter(|line| line.contains(", sum "));
    sums.map(str::to_owned).collect()
}

async fn in_file(file: &Path, statements: &[&str]) {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .foreign_keys(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    for sql in statements {
        sqlx::query(AssertSqlSafe((*sql).to_owned()))
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection.close().await.unwrap();
}

/// A bridge on a file, with phones, pushers and jobs in every state, stopped.
async fn stopped_with_all_states() -> (App, [Phone; 2]) {
    let mut app = App::start().await;
    let live = [Phone::new("live"), Phone::new("alice").of(ALICE)];
    let gone = Phone::new("gone");
    let refused = Phone::new("refused").of(MALLORY);
    let nobody = Phone::new("of-nobody");
    app.enroll(&[&live[0], &live[1], &gone, &refused]).await;
    app.report(&nobody.report()).await.expect_status(200);
    app.settled().await;
    for phone in &live {
        app.pusher_set(phone).await;
        let pushed = app.notify(&message("$1", &[app.marked(phone).await])).await;
        pushed.expect_status(200);
    }
    // A dead token, and the tombstone of its pusher.
    app.pnm.answer(Answer::Gone).await;
    let pushed = app.notify(&message("$2", &[app.marked(&gone).await])).await;
    assert_eq!(pushed.json()["rejected"][0], gone.token);
    app.pnm.answer(Answer::Ok).await;
    app.settled().await;
    // One in backoff.
    app.homeserver.break_with(Fault::Status(503)).await;
    let waiting = Phone::new("waiting");
    app.enroll(&[&waiting]).await;
    eventually(SOON, "a job in backoff", async || {
        let jobs = app.database.jobs().await;
        jobs.iter().any(|job| job.status == "Failed")
    })
    .await;
    eventually(SOON, "the pushes are noted", async || {
        app.database.count("arrivals").await > 0
    })
    .await;
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    assert_eq!(app.api_mut().terminate().await, Some(0));
    // Those that no clean stop leaves behind: in the hands of a worker that died, given up, asked to wait, unreadable.
    let made = ["Queued", "Running", "Killed", "Failed"].map(|status| {
        let id = match status {
            "Queued" => 9001,
            "Running" => 9002,
            "Killed" => 9003,
            _ => 9004,
        };
        [
            format!(
                "INSERT INTO pushers (id, user_id, app_id, pushkey, selector, wanted, state, generation, claim, created_at,
                     updated_at)
                 VALUES ({id}, '{BOB}', 'app', 'token-{id}', 'SELECTOR-{id}', 'present', 'pending', 1, 1, 1, 1)"
            ),
            format!(
                "INSERT INTO Jobs (id, job, job_type, status, attempts, max_attempts, run_at, not_before, last_result, done_at,
                     priority, metadata, pusher_id)
                 VALUES ('01JDMZ8Q0Z000000000000{id}', '{{\"pusher_id\":{id}}}', 'sync_pusher', '{status}', 3, 2147483647,
                     4102444800, 4102444700, '{{\"Err\":\"no\"}}', 4102444000, 0, '{{}}', {id})"
            ),
        ]
    });
    let made = made.as_flattened().iter().map(String::as_str);
    let unreadable =
        "INSERT INTO Jobs (id, job, job_type, status, run_at, priority, metadata, pusher_id)
        VALUES ('odd', 'odd', 'sync_pusher', 'Pending', 1, 0, '{}', NULL)";
    let made: Vec<_> = made.chain([unreadable]).collect();
    in_file(&app.file, &made).await;
    (app, live)
}

#[tokio::test]
async fn everything_moves_to_postgresql_and_back() {
    let Some(database) = new_database() else {
        return;
    };
    let (mut app, live) = stopped_with_all_states().await;
    let (file, server) = (url(&app.file), database.url());

    let (code, said) = copy(&file, &server, &["--dry-run"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("6 phones"), "{said}");
    let there = copied(&file, &server).await;
    // A file that did not exist, from what has just been written.
    let folder = folder();
    let second = folder.path().join("back.db");
    let back = copied(&server, &url(&second)).await;
    assert_eq!(there, back);
    assert!(
        there
            .iter()
            .any(|line| line.starts_with("jobs: 6 rows, sum ")),
        "{there:?}"
    );

    let after = Database::of(database);
    let mut jobs = after.jobs().await;
    jobs.retain(|job| job.pusher_id.is_some_and(|id| id > 9000));
    jobs.sort_by_key(|job| job.pusher_id);
    let states: Vec<_> = jobs.iter().map(|job| job.status.as_str()).collect();
    assert_eq!(states, ["Pending", "Pending", "Killed", "Failed"]);
    assert!(jobs.iter().all(|job| job.lock_by.is_none()), "{jobs:?}");
    let in_file = Database::at(&app.file);
    let (before, now) = (in_file.pushers().await, after.pushers().await);
    assert_eq!(before, now);
    let (key, same) = (in_file.mark_key().await, after.mark_key().await);
    assert_eq!(key.mark("token"), same.mark("token"));

    // It goes on there as if nothing had been.
    let sets = app.homeserver.sets().len();
    app.homeserver.repair().await;
    app.database = after;
    for env in [&mut app.api_env, &mut app.worker_env] {
        env.insert("DATABASE_URL".into(), server.clone());
    }
    app.start_api().await;
    app.start_worker().await;
    let pushed = app.pnm.pushes().len();
    for phone in &live {
        let reply = app.notify(&message("$3", &[app.marked(phone).await])).await;
        assert_eq!(reply.json()["rejected"], serde_json::json!([]));
        // A phone that was pushed to is one that is still set.
        app.report(&phone.report()).await.expect_status(200);
    }
    assert_eq!(app.pnm.pushes().len(), pushed + live.len());
    app.pusher_set(&Phone::new("waiting")).await;
    let later = Phone::new("later");
    app.enroll(&[&later]).await;
    app.pusher_set(&later).await;
    let again = app.homeserver.sets();
    let again = again.iter().skip(sets);
    let live: Vec<_> = live.iter().map(|phone| phone.token.as_str()).collect();
    assert!(
        again.clone().all(|set| !live.contains(&set.pushkey())),
        "a pusher that is registered was set again"
    );
}

#[tokio::test]
async fn nothing_is_copied_into_a_full_database_or_beside_running_processes() {
    let Some(database) = new_database() else {
        return;
    };
    let mut app = App::builder().without_worker().start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    let (file, server) = (url(&app.file), database.url());

    // The file is in use; a dry run harms nobody.
    let (code, said) = copy(&file, &server, &[]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("in use") && said.contains("stop"), "{said}");
    let (code, said) = copy(&file, &server, &["--dry-run"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(app.api_mut().terminate().await, Some(0));

    copied(&file, &server).await;
    for more in [&[][..], &["--dry-run"]] {
        let (code, said) = copy(&file, &server, more).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains("--to") && said.contains("not empty"),
            "{said}"
        );
    }

    // PostgreSQL is in use.
    app.api_env.insert("DATABASE_URL".into(), server.clone());
    app.start_api().await;
    let folder = folder();
    let second = url(&folder.path().join("second.db"));
    let (code, said) = copy(&server, &second, &[]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("in use by matrix2acrobits"), "{said}");
    assert_eq!(app.api_mut().terminate().await, Some(0));
    copied(&server, &second).await;

    let (code, said) = copy("mysql://x", &second, &[]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.starts_with("--from: must look like"), "{said}");
    let missing = url(&folder.path().join("none.db"));
    let (code, said) = copy(&missing, &second, &[]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--from: there is no file"), "{said}");
}

/// A database with the tables and nothing in them.
async fn with_tables(url: &str) {
    let folder = folder();
    let mappings = folder.path().join("none.csv");
    std::fs::write(&mappings, "selector,user_id\n").unwrap();
    let env = Env::from([("DATABASE_URL".to_owned(), url.to_owned())]);
    let import = ["mappings", "import", mappings.to_str().unwrap()];
    assert!(Program::Api.run(&import, &env).await.status.success());
}

#[tokio::test]
async fn a_database_is_not_copied_into_itself() {
    let folder = folder();
    let file = folder.path().join("one.db");
    with_tables(&url(&file)).await;
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let mut pairs = vec![
        (url(&file), url(&file)),
        (
            url(&file),
            format!("sqlite://{}/./one.db", folder.path().display()),
        ),
        (url(&file), url(&link)),
    ];
    let database = new_database();
    if let Some(database) = &database {
        let server = database.url();
        with_tables(&server).await;
        let other_name = server.replacen("127.0.0.1", "localhost", 1);
        pairs.extend([(server.clone(), server.clone()), (server, other_name)]);
    }
    for (from, to) in &pairs {
        for more in [&[][..], &["--dry-run"]] {
            let (code, said) = copy(from, to, more).await;
            assert_eq!(code, Some(2), "{said}");
            let words = "--from and --to are the same database";
            assert!(said.contains(words), "{from} {to}: {said}");
        }
    }
}

#[tokio::test]
async fn a_target_that_somebody_holds_ends_the_copy_soon() {
    let (Some(source), Some(target)) = (new_database(), new_database()) else {
        return;
    };
    with_tables(&source.url()).await;
    with_tables(&target.url()).await;
    let mut somebody = PgConnection::connect(&target.url()).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE meta IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut somebody)
        .await
        .unwrap();
    let (code, said) = copy(&source.url(), &target.url(), &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot be used now"), "{said}");
}

#[tokio::test]
async fn an_interrupted_copy_leaves_nothing_and_is_repeated() {
    let Some(database) = new_database() else {
        return;
    };
    let folder = folder();
    let file = folder.path().join("large.db");
    with_tables(&url(&file)).await;
    in_file(&file, &[MANY]).await;

    let args = [
        "copy-database",
        "--from",
        &url(&file),
        "--to",
        &database.url(),
    ];
    let mut copying = Process::start(Program::Api, &args, &Env::new());
    // From another database, or the copy would not begin.
    let elsewhere = database.url().replace(database.name(), "postgres");
    let observer = PgConnection::connect(&elsewhere).await.unwrap();
    let inserting = format!(
        "SELECT count(*)
         FROM pg_stat_activity
         WHERE datname = '{}'
           AND query LIKE 'INSERT INTO push_tokens%'",
        database.name()
    );
    let observer = Mutex::new(observer);
    eventually(SOON, "the copy is under way", async || {
        let mut observer = observer.lock().await;
        let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(inserting.clone()));
        query.fetch_one(&mut *observer).await.unwrap() > 0
    })
    .await;
    copying.kill().await;
    drop(observer);
    let (from, to) = (url(&file), database.url());
    let mut looking = PgConnection::connect(&to).await.unwrap();
    let rows = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM push_tokens");
    assert_eq!(rows.fetch_one(&mut looking).await.unwrap(), 0);
    looking.close().await.unwrap();

    let sums = copied(&from, &to).await;
    assert!(
        sums.iter()
            .any(|line| line.starts_with("phones: 20000 rows")),
        "{sums:?}"
    );
}

#[tokio::test]
async fn a_row_that_postgresql_cannot_hold_is_named_and_nothing_is_copied() {
    let Some(database) = new_database() else {
        return;
    };
    let mut app = App::builder().without_worker().start().await;
    app.enroll(&[&Phone::seed()]).await;
    assert_eq!(app.api_mut().terminate().await, Some(0));
    let spoilt = "UPDATE push_tokens SET owner = CAST(x'40ff3a78' AS TEXT)";
    in_file(&app.file, &[spoilt]).await;
    let (code, said) = copy(&url(&app.file), &database.url(), &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("nothing was copied: phones from the first cannot be read"),
        "{said}"
    );
    let after = Database::of(database);
    assert_eq!(
        (
            after.count("mappings").await,
            after.count("push_tokens").await
        ),
        (0, 0)
    );
}

#[tokio::test]
async fn another_programs_database_is_not_filled_up() {
    let mut app = App::builder().without_worker().start().await;
    app.enroll(&[&Phone::seed()]).await;
    assert_eq!(app.api_mut().terminate().await, Some(0));
    let source = app.api_env["DATABASE_URL"].clone();
    let folder = folder();
    let file = folder.path().join("notes.db");
    std::fs::write(&file, "").unwrap();
    in_file(&file, &["CREATE TABLE notes (text)"]).await;
    let mut targets = vec![url(&file)];
    let database = new_database();
    if let Some(database) = &database {
        let mut server = PgConnection::connect(&database.url()).await.unwrap();
        let sql = "CREATE TABLE notes (words TEXT)";
        sqlx::query(sql).execute(&mut server).await.unwrap();
        server.close().await.unwrap();
        targets.push(database.url());
    }
    for target in targets {
        for more in [&[][..], &["--dry-run"]] {
            let (code, said) = copy(&source, &target, more).await;
            assert_eq!(code, Some(2), "{said}");
            let named = said.contains("--to") && said.contains("of another program");
            assert!(named, "{said}");
        }
    }
    // An empty file is as good as none.
    let empty = folder.path().join("empty.db");
    std::fs::write(&empty, "").unwrap();
    copied(&source, &url(&empty)).await;
}

/// An operator may copy as another role than the processes log in as.
#[tokio::test]
async fn nothing_is_copied_beside_processes_of_another_role() {
    let Some(database) = new_database() else {
        return;
    };
    let url_here = database.url();
    let mut app = App::builder()
        .without_worker()
        .database(Database::of(database))
        .start()
        .await;
    app.enroll(&[&Phone::seed()]).await;
    let role = format!("{}_copier", url_here.rsplit('/').next().unwrap());
    let mut administrator = PgConnection::connect(&url_here).await.unwrap();
    let mut administer = async |sql: String| {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql));
        sql.execute(&mut administrator).await.unwrap();
    };
    administer(format!(
        "CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
    ))
    .await;
    let from = url_here.replace("postgres:no-secret-here@", &format!("{role}@"));
    let folder = folder();
    let to = url(&folder.path().join("copy.db"));
    let (code, said) = copy(&from, &to, &[]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("in use by matrix2acrobits feed"), "{said}");
    assert_eq!(app.api_mut().terminate().await, Some(0));
    administer(format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// Nobody writes such a row but an operator's shell; it must not get lost unnoticed.
#[tokio::test]
async fn a_row_that_would_be_left_behind_is_an_error_and_nothing_is_copied() {
    let Some(database) = new_database() else {
        return;
    };
    let mut app = App::builder().without_worker().start().await;
    app.enroll(&[&Phone::seed()]).await;
    assert_eq!(app.api_mut().terminate().await, Some(0));
    let odd = "INSERT INTO mappings VALUES ('', '@bob:example.org', 1, 1)";
    in_file(&app.file, &[odd]).await;
    let (code, said) = copy(&url(&app.file), &database.url(), &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("nothing was copied: mappings has 2 rows, but only 1 of them"),
        "{said}"
    );
    let after = Database::of(database);
    assert_eq!(after.count("mappings").await, 0);
}
