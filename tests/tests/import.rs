//! Many at once: mappings imported and exported, and the Go proxy's tokens taken over, beside running processes.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on stops where it is"
)]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::database::Database;
use matrix2acrobits_tests::fixtures::{ALICE, APP_ID, BOB, MALLORY, Phone, folder, message};
use matrix2acrobits_tests::process::{Env, Process, Program};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

/// Runs a command of the api with this database; its exit code, output and errors.
async fn run(args: &[&str], database: &Path) -> (Option<i32>, String, String) {
    let url = format!("sqlite://{}", database.display());
    let env = Env::from([("DATABASE_URL".to_owned(), url)]);
    let output = Program::Api.run(args, &env).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// The same, of which success is expected; its output.
async fn good(args: &[&str], database: &Path) -> String {
    let (code, text, errors) = run(args, database).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{args:?}: {text}");
    text
}

fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// One of its rows; absent is an empty text there.
#[derive(Clone)]
struct Old<'a> {
    selector: &'a str,
    token: &'a str,
    app_id: &'a str,
    updated_at: &'a str,
}

impl<'a> Old<'a> {
    fn of(phone: &'a Phone, updated_at: &'a str) -> Self {
        Self {
            selector: &phone.selector,
            token: &phone.token,
            app_id: &phone.app_id,
            updated_at,
        }
    }
}

const LONG_AGO: &str = "2020-01-02 03:04:05.678901234 +0000 UTC m=+12.3";
const FAR_AHEAD: &str = "2100-01-01 00:00:00";

/// A database as the Go proxy makes it, still open and in WAL mode if `wal`.
async fn go_proxy(path: &Path, wal: bool, rows: &[Old<'_>]) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    if wal {
        sqlx::query("PRAGMA journal_mode=WAL")
            .execute(&mut connection)
            .await
            .unwrap();
    }
    let table = "CREATE TABLE IF NOT EXISTS push_tokens (
        id INTEGER PRIMARY KEY AUTOINCREMENT, selector TEXT NOT NULL UNIQUE, token_msgs TEXT, appid_msgs TEXT,
        token_calls TEXT, appid_calls TEXT, created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
        updated_at DATETIME DEFAULT CURRENT_TIMESTAMP)";
    sqlx::query(table).execute(&mut connection).await.unwrap();
    for row in rows {
        let insert = "INSERT INTO push_tokens (selector, token_msgs, appid_msgs, token_calls, appid_calls, updated_at)
            VALUES (?1, ?2, ?3, '', '', ?4) ON CONFLICT (selector) DO UPDATE SET token_msgs = ?2, updated_at = ?4";
        let insert = sqlx::query(insert)
            .bind(row.selector)
            .bind(row.token)
            .bind(row.app_id);
        insert
            .bind(row.updated_at)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection
}

async fn mappings(app: &App) -> Value {
    let list = app.admin(Method::GET, "/api/internal/mappings", None).await;
    let rows = list.json()["mappings"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    rows.iter()
        .map(|row| json!([row["selector"], row["user_id"]]))
        .collect()
}

#[tokio::test]
async fn mappings_are_imported_beside_running_processes_and_set_pushers() {
    let app = App::start().await;
    let phones = [Phone::new("a"), Phone::new("b").of(ALICE)];
    for phone in &phones {
        app.report(&phone.report()).await.expect_status(200);
    }
    let folder = folder();
    let text =
        format!("selector,user_id\nSELECTOR-a,{BOB}\nSELECTOR-b,{ALICE}\nSELECTOR-c,nobody\n");
    let csv = file(&folder, "mappings.csv", &text);

    let said = good(&["mappings", "import", &csv, "--dry-run"], &app.file).await;
    assert!(
        said.contains("mappings: 2 added, 0 changed, 0 unchanged, 1 skipped"),
        "{said}"
    );
    assert!(
        said.contains("line 4: skipped: user_id must look like"),
        "{said}"
    );
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(mappings(&app).await, json!([]));

    let said = good(&["mappings", "import", &csv], &app.file).await;
    assert!(
        said.contains("mappings: 2 added, 0 changed, 0 unchanged, 1 skipped"),
        "{said}"
    );
    assert_eq!(
        mappings(&app).await,
        json!([["SELECTOR-a", BOB], ["SELECTOR-b", ALICE]])
    );
    app.pushers_are(BOB, &[&phones[0]]).await;
    app.pushers_are(ALICE, &[&phones[1]]).await;

    // Again, and as JSON with a change.
    let said = good(&["mappings", "import", &csv], &app.file).await;
    assert!(
        said.contains("0 added, 0 changed, 2 unchanged, 1 skipped"),
        "{said}"
    );
    let changed = json!([{"selector": "SELECTOR-b", "user_id": BOB}]).to_string();
    let said = good(
        &["mappings", "import", &file(&folder, "m.json", &changed)],
        &app.file,
    )
    .await;
    assert!(
        said.contains("0 added, 1 changed, 0 unchanged, 0 skipped"),
        "{said}"
    );
    app.pushers_are(BOB, &[&phones[0], &phones[1]]).await;
    app.pushers_are(ALICE, &[]).await;
}

#[tokio::test]
async fn exported_mappings_go_back_in_and_do_not_undo_what_came_later() {
    let folder = folder();
    let database = folder.path().join("new.db");
    let rows = (0..1203).fold(String::new(), |mut rows, n| {
        let _ = writeln!(rows, "SELECTOR-{n},@user{n}:example.org");
        rows
    });
    good(
        &["mappings", "import", &file(&folder, "m.csv", &rows)],
        &database,
    )
    .await;

    let csv = good(&["mappings", "export"], &database).await;
    assert!(csv.starts_with("selector,user_id,updated_at\n"), "{csv}");
    assert_eq!(csv.lines().count(), 1204);
    let json = good(&["mappings", "export", "--format", "json"], &database).await;
    let list: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(list.as_array().map(Vec::len), Some(1203));
    for (name, text) in [("e.csv", &csv), ("e.json", &json)] {
        let said = good(
            &["mappings", "import", &file(&folder, name, text)],
            &database,
        )
        .await;
        assert!(
            said.contains("0 added, 0 changed, 1203 unchanged, 0 skipped"),
            "{said}"
        );
    }
    // An export is from its time: what was said since stays.
    let old = format!(
        "selector,user_id,updated_at\nSELECTOR-7,{BOB},86400\nSELECTOR-8,{BOB},4102444800\n"
    );
    let said = good(
        &["mappings", "import", &file(&folder, "o.csv", &old)],
        &database,
    )
    .await;
    assert!(
        said.contains("0 added, 1 changed, 0 unchanged, 1 skipped"),
        "{said}"
    );
    assert!(
        said.contains("line 2: skipped: what is here is newer"),
        "{said}"
    );
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_changes_nothing() {
    let folder = folder();
    let database = folder.path().join("new.db");
    let none = folder.path().join("none").display().to_string();
    let bad = file(&folder, "bad.json", "{}");
    let text = file(
        &folder,
        "text.db",
        "not a database, but long enough to be taken for one by its size",
    );
    let empty = folder.path().join("empty.db");
    SqliteConnection::connect_with(
        &SqliteConnectOptions::new()
            .filename(&empty)
            .create_if_missing(true),
    )
    .await
    .unwrap();
    let empty = empty.to_str().unwrap();
    let cases: [(&[&str], &str); 8] = [
        (&["mappings", "import", &none], &none),
        (&["mappings", "import", &bad], &bad),
        (&["mappings", "import"], "FILE"),
        (&["mappings", "export"], "DATABASE_URL"),
        (&["import"], "--from"),
        (&["import", "--from", &none], "--from"),
        (&["import", "--from", &text], "--from"),
        (&["import", "--from", empty], "push_tokens"),
    ];
    for (args, word) in cases {
        let (code, said, errors) = run(args, &database).await;
        assert_eq!(code, Some(2), "{args:?}: {said}{errors}");
        assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
        assert!(errors.contains(word), "{args:?}: {errors}");
    }
    assert!(!database.exists());
}

#[tokio::test]
async fn the_go_proxys_tokens_are_taken_over_with_their_pushers() {
    let app = App::start().await;
    let folder = folder();
    let path: PathBuf = folder.path().join("push_tokens.db");
    let a = Phone::new("a").with_token("APA91b+a/==");
    let b = Phone::new("b").of(ALICE);
    let (newer, stray) = (Phone::new("newer"), Phone::new("stray").of(MALLORY));
    // The app did not escape the plus, so the Go proxy read a space.
    let spaced = a.clone().with_token("APA91b a/==");
    // This phone has reported here since; its old token must not come back.
    app.enroll(&[&newer]).await;
    let was = newer.clone().with_token("APA91b-newer-old");
    let long = "x".repeat(513);
    let rows = [
        Old::of(&spaced, LONG_AGO),
        Old::of(&b, FAR_AHEAD),
        Old::of(&was, LONG_AGO),
        Old::of(&stray, "unreadable"),
        Old {
            selector: "S-none",
            token: "",
            app_id: APP_ID,
            updated_at: LONG_AGO,
        },
        Old {
            selector: "S-app",
            token: "t-secret",
            app_id: "",
            updated_at: LONG_AGO,
        },
        Old {
            selector: "S-long",
            token: &long,
            app_id: APP_ID,
            updated_at: LONG_AGO,
        },
        Old {
            selector: "S-hole",
            token: "%pushTokenOther%",
            app_id: APP_ID,
            updated_at: LONG_AGO,
        },
    ];
    // The Go proxy still runs.
    let _old = go_proxy(&path, true, &rows).await;
    let csv = file(
        &folder,
        "users.csv",
        &format!("{},{BOB}\n{},{ALICE}\n", a.selector, b.selector),
    );
    let args = [
        "import",
        "--from",
        path.to_str().unwrap(),
        "--mappings",
        &csv,
    ];
    let dry = [&args[..], &["--dry-run"]].concat();
    let before = (
        app.database.count("push_tokens").await,
        app.database.count("mappings").await,
    );

    let sums = "push tokens: 3 added, 0 changed, 0 unchanged, 5 skipped";
    let said = good(&dry, &app.file).await;
    assert!(
        said.contains(sums) && said.contains("nothing was changed"),
        "{said}"
    );
    let after = (
        app.database.count("push_tokens").await,
        app.database.count("mappings").await,
    );
    assert_eq!(before, after);

    let said = good(&args, &app.file).await;
    assert!(said.contains(sums), "{said}");
    for line in [
        "8 push tokens",
        "mappings: 2 added",
        "row 3: skipped: what is here is newer",
        "row 5: skipped: has no token",
        "row 6: skipped: has a token but no app id",
        "row 7: skipped: token_msgs must not be longer than 512 bytes",
        "row 8: skipped: has no token",
        "1 push tokens are of selectors without a user",
    ] {
        assert!(said.contains(line), "no {line:?} in:\n{said}");
    }
    assert!(
        !said.contains("t-secret") && !said.contains(&a.token),
        "{said}"
    );
    app.pushers_are(ALICE, &[&b]).await;
    app.pushers_are(BOB, &[&a, &newer]).await;
    // Known, though nobody's yet: the pusher that the Go proxy has set still delivers.
    let reply = app
        .notify(&message("$1", &[stray.device()]))
        .await
        .expect_status(200);
    assert_eq!(reply.json(), json!({"rejected": []}));

    let said = good(&args, &app.file).await;
    assert!(
        said.contains("push tokens: 0 added, 0 changed, 3 unchanged, 5 skipped"),
        "{said}"
    );
}

#[tokio::test]
async fn a_phone_that_reports_to_the_go_proxy_once_more_is_followed() {
    let app = App::start().await;
    let folder = folder();
    let path = folder.path().join("push_tokens.db");
    let phone = Phone::seed();
    app.map(&phone.selector, BOB).await;
    let mut old = go_proxy(&path, false, &[Old::of(&phone, LONG_AGO)]).await;
    let args = ["import", "--from", path.to_str().unwrap()];
    good(&args, &app.file).await;
    app.pusher_set(&phone).await;

    let moved = phone.clone().with_token("APA91b-moved");
    let update = sqlx::query("UPDATE push_tokens SET token_msgs = ?, updated_at = ?");
    let update = update.bind(&moved.token).bind(FAR_AHEAD);
    update.execute(&mut old).await.unwrap();
    let said = good(&args, &app.file).await;
    assert!(
        said.contains("push tokens: 0 added, 1 changed, 0 unchanged, 0 skipped"),
        "{said}"
    );
    app.pushers_are(BOB, &[&moved]).await;
}

#[tokio::test]
async fn a_copy_in_a_folder_that_is_read_only_will_do_and_a_dry_run_makes_no_database() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let sub = folder.path().join("copy");
    std::fs::create_dir(&sub).unwrap();
    let path = sub.join("push_tokens.db");
    let phone = Phone::seed();
    go_proxy(&path, true, &[Old::of(&phone, LONG_AGO)])
        .await
        .close()
        .await
        .unwrap();
    std::fs::set_permissions(&sub, PermissionsExt::from_mode(0o500)).unwrap();
    let database = folder.path().join("new.db");
    let args = ["import", "--from", path.to_str().unwrap()];
    let said = good(&[&args[..], &["--dry-run"]].concat(), &database).await;
    assert!(said.contains("push tokens: 1 added"), "{said}");
    assert!(!database.exists());
    let said = good(&args, &database).await;
    std::fs::set_permissions(&sub, PermissionsExt::from_mode(0o700)).unwrap();
    assert!(said.contains("push tokens: 1 added"), "{said}");
    assert_eq!(Database::at(&database).count("push_tokens").await, 1);
}

#[tokio::test]
async fn the_go_proxys_environment_is_understood() {
    let folder = folder();
    let url = format!("sqlite://{}", folder.path().join("x.db").display());
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("ADMIN_LISTEN_ADDR", "127.0.0.1:0"),
        ("PROXY_PORT", "0"),
        ("PUSH_TOKEN_DB_PATH", "/tmp/push_tokens.db"),
        ("AS_USER_ID", "@_acrobits_proxy:example.org"),
        ("SUPER_ADMIN_TOKEN", "do-not-log"),
        ("LOGLEVEL", "info"),
        ("PNM_URL", "http://127.0.0.1:9/"),
    ];
    let env: Env = settings
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let mut api = Process::start(Program::Api, &[], &env);
    api.listening().await;
    for name in [
        "PROXY_PORT",
        "PUSH_TOKEN_DB_PATH",
        "AS_USER_ID",
        "SUPER_ADMIN_TOKEN",
    ] {
        assert_eq!(
            api.log_lines(&format!("{name} of the Go proxy: ")).len(),
            1,
            "{}",
            api.log()
        );
    }
    assert!(
        api.public_url().starts_with("http://0.0.0.0:"),
        "{}",
        api.log()
    );
    assert!(!api.log().contains("do-not-log"));
    assert_eq!(api.terminate().await, Some(0));
    let output = Program::Api.run(&["registration"], &env).await;
    assert!(String::from_utf8_lossy(&output.stdout).contains(r"'@.*:example\.org'"));
}

/// What the Go proxy heard before counts less than what it or this bridge heard later, in whatever order it comes.
#[tokio::test]
async fn an_old_row_takes_no_phone_from_its_user() {
    let mut app = App::start().await;
    let folder = folder();
    let [here, later] = ["here", "later"].map(Phone::new);
    let before = |phone: &Phone| {
        let selector = format!("{}-before", phone.selector);
        phone.clone().with_selector(&selector).of(ALICE)
    };
    let (of_here, of_later) = (before(&here), before(&later));
    app.enroll(&[&here]).await;
    app.pusher_set(&here).await;
    let path: PathBuf = folder.path().join("push_tokens.db");
    let rows = [
        Old::of(&later, "2021-01-01 00:00:00"),
        Old::of(&of_later, LONG_AGO),
        Old::of(&of_here, LONG_AGO),
    ];
    let _old = go_proxy(&path, false, &rows).await;
    let users = [&later, &of_later, &of_here].map(|it| format!("{},{}\n", it.selector, it.user));
    let csv = file(&folder, "users.csv", &users.concat());
    let path = path.to_str().unwrap();
    assert_eq!(app.worker_mut().terminate().await, Some(0));
    good(&["import", "--from", path, "--mappings", &csv], &app.file).await;
    app.start_worker().await;
    app.settled().await;
    app.pushers_are(BOB, &[&here, &later]).await;
    app.pushers_are(ALICE, &[]).await;
}

#[tokio::test]
async fn an_import_beside_a_running_api_is_known_to_its_memory() {
    let app = App::builder().without_worker().start().await;
    let folder = folder();
    let first = Phone::new("first");
    let second = first.clone().with_selector("SELECTOR-second");
    app.enroll(&[&first]).await;
    let selector_of = async |event: &str| {
        let reply = app.notify(&message(event, &[first.device()])).await;
        reply.expect_status(200);
        let push = app.pnm.pushes().pop().unwrap();
        push.body["Selector"].clone()
    };
    assert_eq!(selector_of("$0").await, json!(first.selector));
    let path: PathBuf = folder.path().join("push_tokens.db");
    let _old = go_proxy(&path, false, &[Old::of(&second, FAR_AHEAD)]).await;
    let users = format!("{},{BOB}\n", second.selector);
    let csv = file(&folder, "users.csv", &users);
    let path = path.to_str().unwrap();
    good(&["import", "--from", path, "--mappings", &csv], &app.file).await;
    let event = AtomicU64::new(1);
    eventually(SOON, "pushes name the imported account", async || {
        let event = format!("${}", event.fetch_add(1, Ordering::Relaxed));
        selector_of(&event).await == json!(second.selector)
    })
    .await;
}

/// As on a full disk.
#[tokio::test]
async fn a_list_that_cannot_be_written_to_its_end_is_an_error() {
    let app = App::builder().without_worker().start().await;
    app.enroll(&[&Phone::seed()]).await;
    for (program, args) in [
        (Program::Api, &["mappings", "export"][..]),
        (Program::Api, &["mappings", "export", "--format", "json"]),
        (Program::Api, &["phones"]),
        (Program::Api, &["phones", "--json"]),
        (Program::Worker, &["jobs"]),
        (Program::Worker, &["jobs", "--json"]),
        (Program::Worker, &["doctor"]),
        (Program::Api, &["mappings", "import", "/dev/null"]),
        (Program::Api, &["registration"]),
        (Program::Api, &["openapi"]),
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let output = std::process::Command::new(program.path())
            .args(args)
            .env_clear()
            .env("DATABASE_URL", app.database.url())
            .env("MATRIX_SERVER_NAME", "example.org")
            .stdout(full.unwrap())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains("not complete"), "{args:?}: {text}");
    }
}

/// As with `openapi | head -1`.
#[tokio::test]
async fn a_reader_who_has_gone_away_is_no_error() {
    for args in [&["openapi"][..], &["registration"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = std::process::Command::new(Program::Api.path())
            .args(args)
            .env_clear()
            .env("MATRIX_SERVER_NAME", "example.org")
            .stdout(writer)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*text), (Some(0), ""), "{args:?}");
    }
}
