//! Settings: every one is documented, a wrong one stops the process with one line, secrets may come from files.

use std::process::Output;

use matrix2acrobits_tests::app::{ADMIN_TOKEN, AS_TOKEN, App};
use matrix2acrobits_tests::fixtures::{BOB, Phone, folder};
use matrix2acrobits_tests::http::send;
use matrix2acrobits_tests::process::{Env, Process, Program};
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Settings with which a program would run, in a folder of its own, with some changed; `None` unsets.
fn env(program: Program, folder: &TempDir, changes: &[(&str, Option<&str>)]) -> Env {
    let file = folder.path().join("matrix2acrobits.db");
    let mut env = Env::from([
        (
            "DATABASE_URL".to_owned(),
            format!("sqlite://{}", file.display()),
        ),
        ("ADMIN_LISTEN_ADDR".to_owned(), "127.0.0.1:0".to_owned()),
        ("MATRIX_SERVER_NAME".to_owned(), "example.org".to_owned()),
    ]);
    let own: &[(&str, &str)] = match program {
        Program::Api => &[
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("PNM_URL", "http://127.0.0.1:9/pnm2/send"),
        ],
        Program::Worker => &[
            ("MATRIX_HOMESERVER_URL", "http://127.0.0.1:9"),
            ("MATRIX_AS_TOKEN", AS_TOKEN),
            ("PROXY_URL", "https://matrix-proxy.example.com"),
        ],
    };
    env.extend(
        own.iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned())),
    );
    for &(name, value) in changes {
        match value {
            Some(value) => env.insert(name.to_owned(), value.to_owned()),
            None => env.remove(name),
        };
    }
    env
}

/// The process must end with code 2 and one line on standard error that names the setting.
fn refuses(output: &Output, setting: &str, context: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{context}: {error}");
    let lines: Vec<_> = error
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    assert_eq!(lines.len(), 1, "{context}: {error}");
    assert!(lines[0].contains(setting), "{context}: {error}");
}

/// Starts a program that must come up, and stops it again.
async fn comes_up(program: Program, env: &Env) {
    let mut process = Process::start(program, &[], env);
    process.listening().await;
    assert_eq!(process.terminate().await, Some(0), "{}", process.log());
}

const COMMON: [&str; 15] = [
    "EXTRA_CA_FILE",
    "DATABASE_URL",
    "DATABASE_URL_FILE",
    "DATABASE_MAX_CONNECTIONS",
    "[default: 8]",
    "ADMIN_LISTEN_ADDR",
    "ADMIN_TOKEN",
    "ADMIN_TOKEN_FILE",
    "MATRIX_HOMESERVER_URL",
    "MATRIX_SERVER_NAME",
    "LOGLEVEL",
    "RUST_LOG",
    "LOG_FORMAT",
    "sqlite://data/matrix2acrobits.db",
    "INFO",
];
const API: [&str; 25] = [
    "CANARY_USER",
    "CANARY_SELECTOR",
    "CANARY_INTERVAL",
    "24h",
    "NEW_SELECTORS_PER_HOUR",
    "5000",
    "LISTEN_ADDR",
    "127.0.0.1:8080",
    "127.0.0.1:9090",
    "REPORT_AUTH",
    "NOTIFY_AUTH",
    "nethcti",
    "EXT_AUTH_URL",
    "EXT_AUTH_TIMEOUT_S",
    "CACHE_TTL_SECONDS",
    "PNM_URL",
    "https://pnm.cloudsoftphone.com/pnm2/send",
    "PNM_TIMEOUT",
    "10s",
    "PUSH_FALLBACK_TEXT",
    "PUSH_TEXTS_FILE",
    "PUSH_BADGE_UPDATES",
    "PUSH_IDENTITY",
    "New message",
    "MATRIX_HS_TOKEN",
];
const WORKER: [&str; 18] = [
    "127.0.0.1:9091",
    "MATRIX_AS_TOKEN",
    "MATRIX_AS_TOKEN_FILE",
    "PROXY_URL",
    "ALLOW_INSECURE_PROXY_URL",
    "PUSH_FORMAT",
    "event_id_only",
    "PUSHER_APPEND",
    "PUSHER_DISABLE_BADGE_COUNT",
    "WORKER_CONCURRENCY",
    "16",
    "HOMESERVER_TIMEOUT",
    "30s",
    "RETRY_INITIAL_INTERVAL",
    "RETRY_MAX_INTERVAL",
    "5m",
    "RETRY_MULTIPLIER",
    "PUSHER_REFRESH_INTERVAL",
];

#[tokio::test]
async fn help_lists_every_setting_with_its_default() {
    for (program, own) in [(Program::Api, &API[..]), (Program::Worker, &WORKER[..])] {
        let output = program.run(&["--help"], &Env::new()).await;
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8_lossy(&output.stdout);
        for word in COMMON.iter().chain(own) {
            assert!(text.contains(word), "{program:?}: no {word} in --help");
        }
    }
}

/// docker-compose.yml sets these.
const BY_COMPOSE: [&str; 3] = ["DATABASE_URL", "LISTEN_ADDR", "ADMIN_LISTEN_ADDR"];

#[tokio::test]
async fn the_example_names_every_setting() {
    let example = include_str!("../../.env.example");
    for program in [Program::Api, Program::Worker] {
        let output = program.run(&["--help"], &Env::new()).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = text.split("[env: ").skip(1);
        let names: Vec<_> = names
            .map(|it| it.split(['=', ']']).next().unwrap())
            .collect();
        assert!(names.len() > 15, "{names:?}");
        for name in names {
            let listed = example.lines().any(|line| {
                line.trim_start_matches('#')
                    .starts_with(&format!("{name}="))
            });
            let left_out = BY_COMPOSE.contains(&name) || is_file_of_a_secret(name);
            assert!(listed != left_out, "{name} in .env.example");
        }
    }
}

/// The example's first lines explain these.
fn is_file_of_a_secret(name: &str) -> bool {
    name.ends_with("_FILE") && !["EXTRA_CA_FILE", "PUSH_TEXTS_FILE"].contains(&name)
}

#[tokio::test]
async fn help_shows_no_secret_of_the_environment() {
    for program in [Program::Api, Program::Worker] {
        let secrets = [
            "DATABASE_URL",
            "ADMIN_TOKEN",
            "MATRIX_AS_TOKEN",
            "MATRIX_HS_TOKEN",
        ];
        let env = secrets
            .map(|name| (name.to_owned(), "very-secret".to_owned()))
            .into();
        let output = program.run(&["--help"], &env).await;
        assert!(!String::from_utf8_lossy(&output.stdout).contains("very-secret"));
    }
}

/// Both programs refuse these.
const WRONG_ANYWHERE: [(&str, Option<&str>); 23] = [
    ("EXTRA_CA_FILE", Some("/no/such/file")),
    ("EXTRA_CA_FILE", Some("/etc/hostname")),
    ("DATABASE_URL", Some("mysql://localhost/x")),
    ("DATABASE_URL", Some("postgres://localhost")),
    (
        "DATABASE_URL",
        Some("postgres://localhost/x?sslmod=require"),
    ),
    ("DATABASE_URL", Some("postgres://localhost/x?sslmode=on")),
    (
        "DATABASE_URL",
        Some("postgres://localhost/x?sslrootcert=/no/such/file"),
    ),
    ("DATABASE_URL_FILE", Some("/no/such/file")),
    ("DATABASE_MAX_CONNECTIONS", Some("3")),
    ("DATABASE_MAX_CONNECTIONS", Some("many")),
    ("DATABASE_URL", Some("sqlite::memory:")),
    (
        "DATABASE_URL",
        Some("sqlite:///no/such/folder/anywhere/x.db"),
    ),
    ("ADMIN_LISTEN_ADDR", Some("nowhere")),
    ("ADMIN_LISTEN_ADDR", Some("127.0.0.1:99999")),
    ("ADMIN_TOKEN_FILE", Some("/no/such/file")),
    ("MATRIX_SERVER_NAME", Some("not a name")),
    ("LOGLEVEL", Some("matrix2acrobits_api=loud")),
    ("LOGLEVEL", Some("VERBOSE")),
    ("RUST_LOG", Some("a=b=c")),
    ("ADMIN_TOKEN", Some("one\ntwo")),
    ("ADMIN_TOKEN", Some("schlüssel")),
    ("LOG_FORMAT", Some("xml")),
    ("MATRIX_HOMESERVER_URL", Some("matrix.example.org")),
];

async fn wrong(program: Program, cases: &[(&str, Option<&str>)]) {
    let folder = &folder();
    for case in cases.iter().chain(&WRONG_ANYWHERE) {
        let output = program.run(&[], &env(program, folder, &[*case])).await;
        refuses(&output, case.0, &format!("{program:?} with {case:?}"));
    }
}

#[tokio::test]
async fn the_api_stops_at_a_wrong_setting() {
    wrong(
        Program::Api,
        &[
            ("LISTEN_ADDR", Some("8080")),
            ("REPORT_AUTH", Some("nobody")),
            ("NEW_SELECTORS_PER_HOUR", Some("many")),
            ("EXT_AUTH_TIMEOUT_S", Some("soon")),
            ("CACHE_TTL_SECONDS", Some("-1")),
            ("PNM_URL", Some("ftp://pnm.example.org")),
            ("PNM_URL", Some("pnm")),
            ("PNM_TIMEOUT", Some("10")),
            ("PNM_TIMEOUT", Some("0s")),
            ("CANARY_USER", Some("bob")),
            ("CANARY_INTERVAL", Some("daily")),
            ("PUSH_TEXTS_FILE", Some("/nonexistent/texts.toml")),
            ("PUSH_BADGE_UPDATES", Some("perhaps")),
            ("PUSH_IDENTITY", Some("extension")),
            ("PUSH_IDENTITY", Some("number")),
            ("MATRIX_HS_TOKEN", Some("schlüssel")),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_worker_stops_at_a_wrong_setting() {
    wrong(
        Program::Worker,
        &[
            ("MATRIX_HOMESERVER_URL", None),
            ("MATRIX_AS_TOKEN", None),
            ("MATRIX_AS_TOKEN", Some("")),
            ("MATRIX_AS_TOKEN", Some("schlüssel")),
            ("PROXY_URL", Some("push.example.org")),
            ("PROXY_URL", Some("http://push.example.org")),
            ("PROXY_URL", Some("https://push.example.org/bridge")),
            ("PROXY_URL", Some("https://push.example.org/?a=b")),
            ("PROXY_URL", Some("https://user:pass@push.example.org")),
            ("ALLOW_INSECURE_PROXY_URL", Some("perhaps")),
            ("PUSH_FORMAT", Some("everything")),
            ("PUSHER_APPEND", Some("maybe")),
            ("PUSHER_DISABLE_BADGE_COUNT", Some("maybe")),
            ("WORKER_CONCURRENCY", Some("0")),
            ("WORKER_CONCURRENCY", Some("many")),
            ("HOMESERVER_TIMEOUT", Some("30")),
            ("RETRY_INITIAL_INTERVAL", Some("soon")),
            ("RETRY_MAX_INTERVAL", Some("0s")),
            ("RETRY_MULTIPLIER", Some("0.5")),
            ("RETRY_MULTIPLIER", Some("NaN")),
            ("PUSHER_REFRESH_INTERVAL", Some("daily")),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_canary_has_one_target() {
    let folder = &folder();
    let both = [("CANARY_USER", Some(BOB)), ("CANARY_SELECTOR", Some("s"))];
    let output = Program::Api
        .run(&[], &env(Program::Api, folder, &both))
        .await;
    refuses(&output, "CANARY_SELECTOR", "both are set");
}

#[tokio::test]
async fn each_way_to_log_in_needs_its_address() {
    let folder = &folder();
    for (way, missing) in [
        ("nethcti", "EXT_AUTH_URL"),
        ("matrix", "MATRIX_HOMESERVER_URL"),
    ] {
        let env = env(Program::Api, folder, &[("REPORT_AUTH", Some(way))]);
        let output = Program::Api.run(&[], &env).await;
        refuses(&output, missing, way);
    }
}

#[tokio::test]
async fn an_unknown_flag_is_one_line_too() {
    for program in [Program::Api, Program::Worker] {
        let output = program.run(&["--no-such-flag"], &Env::new()).await;
        refuses(&output, "--no-such-flag", "an unknown flag");
    }
}

#[tokio::test]
async fn an_address_in_use_stops_the_process_with_its_name() {
    let app = App::builder().without_worker().start().await;
    let taken = app
        .api()
        .admin_url()
        .trim_start_matches("http://")
        .to_owned();
    let folder = &folder();
    for name in ["LISTEN_ADDR", "ADMIN_LISTEN_ADDR"] {
        let env = env(Program::Api, folder, &[(name, Some(&taken))]);
        let output = Program::Api.run(&[], &env).await;
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(name) && error.contains(&taken), "{error}");
    }
}

#[tokio::test]
async fn addresses_that_are_safe_enough_are_taken() {
    let folder = &folder();
    for changes in [
        vec![("PROXY_URL", Some("http://127.0.0.1:8080"))],
        vec![("PROXY_URL", Some("http://localhost:8080/"))],
        vec![("PROXY_URL", Some("https://push.example.org/"))],
        vec![
            ("PROXY_URL", Some("http://bridge:8080")),
            ("ALLOW_INSECURE_PROXY_URL", Some("true")),
        ],
        vec![("PROXY_URL", None)],
    ] {
        comes_up(Program::Worker, &env(Program::Worker, folder, &changes)).await;
    }
}

#[tokio::test]
async fn the_database_gets_its_folder_but_no_more() {
    let folder = &folder();
    let near = folder.path().join("data/x.db");
    let far = folder.path().join("a/b/x.db");
    for program in [Program::Api, Program::Worker] {
        let url = format!("sqlite://{}", far.display());
        let output = program
            .run(&[], &env(program, folder, &[("DATABASE_URL", Some(&url))]))
            .await;
        refuses(&output, "DATABASE_URL", "a folder in no folder");
        assert!(!folder.path().join("a").exists());
        let url = format!("sqlite://{}", near.display());
        comes_up(
            program,
            &env(program, folder, &[("DATABASE_URL", Some(&url))]),
        )
        .await;
        assert!(near.is_file());
    }
}

#[tokio::test]
async fn secrets_come_from_files() {
    let folder = &folder();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        assert!(std::fs::write(&path, text).is_ok());
        path.display().to_string()
    };
    // Editors end a file with a line feed.
    let admin = file("admin", &format!("{ADMIN_TOKEN}\n"));
    let as_token = file("as", &format!("{AS_TOKEN}\r\n"));
    let database = file(
        "database",
        &format!("sqlite://{}\n", folder.path().join("x.db").display()),
    );
    let app = App::builder()
        .unset("ADMIN_TOKEN")
        .unset("MATRIX_AS_TOKEN")
        .both("ADMIN_TOKEN_FILE", &admin)
        .unset("DATABASE_URL")
        .both("DATABASE_URL_FILE", &database)
        .worker("MATRIX_AS_TOKEN_FILE", &as_token)
        .start()
        .await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;

    let empty = file("empty", "\n");
    // No header can carry this one.
    let foreign = file("foreign", "schlüssel\n");
    for (program, name, bad) in [
        (Program::Api, "ADMIN_TOKEN_FILE", &empty),
        (Program::Worker, "ADMIN_TOKEN_FILE", &empty),
        (Program::Worker, "MATRIX_AS_TOKEN_FILE", &empty),
        (Program::Worker, "MATRIX_AS_TOKEN_FILE", &foreign),
        (Program::Api, "MATRIX_HS_TOKEN_FILE", &foreign),
        (Program::Api, "ADMIN_TOKEN_FILE", &foreign),
    ] {
        let as_token = (name != "MATRIX_AS_TOKEN_FILE").then_some(AS_TOKEN);
        let changes = [("MATRIX_AS_TOKEN", as_token), (name, Some(&**bad))];
        let output = program.run(&[], &env(program, folder, &changes)).await;
        refuses(&output, name, bad);
    }
}

/// As the lines of .env.example are, once they are no comments.
#[tokio::test]
async fn an_empty_file_setting_is_none() {
    let app = App::builder()
        .both("EXTRA_CA_FILE", "")
        .both("DATABASE_URL_FILE", "")
        .both("ADMIN_TOKEN_FILE", "")
        .api("PUSH_TEXTS_FILE", "")
        .api("MATRIX_HS_TOKEN_FILE", "")
        .worker("MATRIX_AS_TOKEN_FILE", "")
        .start()
        .await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
}

#[tokio::test]
async fn an_error_about_a_secret_does_not_tell_it() {
    let folder = &folder();
    for (program, name, secret) in [
        (Program::Api, "ADMIN_TOKEN", "secret\u{1}with control"),
        (Program::Worker, "MATRIX_AS_TOKEN", "secret-schlüssel"),
    ] {
        let changes = [
            (name, Some(secret)),
            ("LISTEN_ADDR", Some("x")),
            ("PUSH_FORMAT", Some("x")),
        ];
        let output = program.run(&[], &env(program, folder, &changes)).await;
        assert_eq!(output.status.code(), Some(2));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"));
    }
}

#[tokio::test]
async fn settings_are_flags_too() {
    let folder = &folder();
    let env = env(
        Program::Api,
        folder,
        &[("LISTEN_ADDR", Some("taken from the flag"))],
    );
    let mut api = Process::start(Program::Api, &["--listen-addr", "127.0.0.1:0"], &env);
    api.listening().await;
    assert_eq!(api.terminate().await, Some(0));
    let mut api = Process::start(Program::Api, &["serve", "--listen-addr=127.0.0.1:0"], &env);
    api.listening().await;
    assert_eq!(api.terminate().await, Some(0));
}

#[tokio::test]
async fn json_logs_are_json() {
    let folder = &folder();
    for program in [Program::Api, Program::Worker] {
        let env = env(program, folder, &[("LOG_FORMAT", Some("json"))]);
        let process = Process::start(program, &[], &env);
        eventually(SOON, "a line", async || process.log().contains("listening")).await;
        for line in process.log().lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            assert!(
                line["level"].is_string() && line["message"].is_string(),
                "{line}"
            );
        }
    }
}

#[tokio::test]
async fn the_server_name_is_taken_from_the_homeservers_address() {
    // Under delegation the names differ, and the setting says so; a mapping is a full user ID in any case.
    let app = App::builder().unset("MATRIX_SERVER_NAME").start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let list = app
        .admin(Method::GET, "/api/internal/mappings", None)
        .await
        .json();
    assert_eq!(list["mappings"][0]["user_id"], json!(BOB));
    send(app.admin_bare(Method::GET, "/health/ready"))
        .await
        .expect_status(200);
}

#[tokio::test]
async fn secrets_on_the_command_line_are_warned_of() {
    let folder = folder();
    for (program, flags) in [
        (Program::Api, &["--admin-token", "--matrix-hs-token"][..]),
        (Program::Worker, &["--matrix-as-token"]),
    ] {
        let secret = "secret-on-the-command-line";
        let args: Vec<_> = flags.iter().flat_map(|&flag| [flag, secret]).collect();
        let mut process = Process::start(program, &args, &env(program, &folder, &[]));
        process.listening().await;
        let lines = process.log_lines("a secret stands on the command line");
        assert_eq!(lines.len(), flags.len(), "{}", process.log());
        for (line, flag) in lines.iter().zip(flags) {
            assert!(line.contains("WARN") && line.contains(flag), "{line}");
        }
        assert!(!process.log().contains(secret), "{}", process.log());

        let by_environment = env(program, &folder, &[("ADMIN_TOKEN", Some(secret))]);
        let mut process = Process::start(program, &[], &by_environment);
        process.listening().await;
        let lines = process.log_lines("a secret stands on the command line");
        assert!(lines.is_empty(), "{lines:?}");
    }
}

#[tokio::test]
async fn a_busy_port_or_a_missing_address_is_worth_another_start() {
    let folder = &folder();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").map(|it| (it.local_addr(), it));
    let Ok((Ok(addr), _held)) = busy else {
        panic!("no port")
    };
    let busy = addr.to_string();
    // TEST-NET-1, which no machine has.
    for (addr, words) in [(busy.as_str(), "in use"), ("192.0.2.1:8080", "assign")] {
        for (program, setting) in [
            (Program::Api, "LISTEN_ADDR"),
            (Program::Api, "ADMIN_LISTEN_ADDR"),
            (Program::Worker, "ADMIN_LISTEN_ADDR"),
        ] {
            let output = program
                .run(&[], &env(program, folder, &[(setting, Some(addr))]))
                .await;
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{error}");
            let said = error.contains(&format!("{setting}: cannot listen on {addr}"));
            assert!(said && error.contains(words), "{error}");
        }
    }
}
