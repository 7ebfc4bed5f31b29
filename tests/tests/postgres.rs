//! A PostgreSQL database that cannot be used, or not well: what the operator reads, the exit code, what callers get, and
//! what the doctor says.
//!
//! All of it is left out, with a line that says so, where there is no server.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests outside of #[test] functions; what the programs say is worth showing"
)]

use matrix2acrobits_test_postgres::{Database as TestDatabase, Server};
use matrix2acrobits_tests::app::{AS_TOKEN, App};
use matrix2acrobits_tests::database::Database;
use matrix2acrobits_tests::fixtures::{self, Phone, message};
use matrix2acrobits_tests::http;
use matrix2acrobits_tests::process::{Env, Program};
use matrix2acrobits_tests::stand_in_postgres::{self, Oddity};
use matrix2acrobits_tests::tls::Certificate;
use matrix2acrobits_tests::{SOON, eventually};
use reqwest::Method;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// Ends the connections of all others.
const DISCONNECT: &str = "SELECT pg_terminate_backend(pid)
                          FROM pg_stat_activity
                          WHERE datname = current_database()
                            AND pid <> pg_backend_pid()";

/// How a program ended and what it said.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    lines: Vec<String>,
}

impl Ended {
    /// It ended with this code and one line, with these words.
    #[track_caller]
    fn says(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.lines.len(), 1, "{self:#?}");
        for word in words {
            assert!(self.lines[0].contains(word), "{word:?} in {self:#?}");
        }
        assert!(!self.lines[0].contains("s3cr3t"), "{self:#?}");
        let named = self.lines[0].matches("DATABASE_URL").count();
        assert!(named <= 1, "{self:#?}");
    }

    /// The doctor has a line of this level about this part.
    #[track_caller]
    fn finds(&self, level: &str, what: &str, words: &str) {
        let found = self.lines.iter().any(|line| {
            let line = line.strip_prefix(level).map(str::trim_start);
            line.is_some_and(|line| line.starts_with(what) && line.contains(words))
        });
        assert!(found, "no {level:?} {what:?} with {words:?} in {self:#?}");
    }
}

/// Runs a program with a database and nothing else around it.
async fn run(program: Program, args: &[&str], url: &str) -> Ended {
    let settings = [
        ("DATABASE_URL", url),
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("ADMIN_LISTEN_ADDR", "127.0.0.1:0"),
        ("MATRIX_HOMESERVER_URL", "http://127.0.0.1:9"),
        ("MATRIX_AS_TOKEN", AS_TOKEN),
        ("PROXY_URL", "https://matrix-proxy.example.com"),
        ("PNM_URL", "http://127.0.0.1:9/pnm2/send"),
        ("LOGLEVEL", "ERROR"),
    ];
    let env: Env = settings
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let output = program.run(args, &env).await;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    println!("{program:?} {args:?}: {:?}\n{text}", output.status.code());
    Ended {
        code: output.status.code(),
        lines: text.lines().map(str::to_owned).collect(),
    }
}

/// Both programs and a command end with this code and one line each.
async fn all_say(url: &str, code: i32, words: &[&str]) {
    for (program, args) in [
        (Program::Api, &[][..]),
        (Program::Worker, &[]),
        (Program::Worker, &["jobs"]),
    ] {
        run(program, args, url).await.says(code, words);
    }
}

async fn doctor(url: &str) -> Ended {
    run(Program::Worker, &["doctor"], url).await
}

/// Runs statements as the server's administrator, in this database.
async fn administer(database: &TestDatabase, sql: &str) {
    administer_at(&database.url(), sql).await;
}

async fn administer_at(url: &str, sql: &str) {
    let mut administrator = PgConnection::connect(url).await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    let sql = sql.replace("{database}", name);
    // Not with the rest, since some statements want no transaction around them.
    for sql in ["SET default_transaction_read_only = off", &sql] {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        sql.execute(&mut administrator).await.unwrap();
    }
    administrator.close().await.unwrap();
}

/// A database of this release's schema that belongs to a user of its own, and how that user reaches it.
async fn owned(server: &Server) -> (TestDatabase, String) {
    let database = server.database();
    let role = format!("{}_owner", database.name());
    let sql = format!("CREATE ROLE {role} LOGIN; ALTER DATABASE {{database}} OWNER TO {role}");
    administer(&database, &sql).await;
    let url = url_of(&database, &role);
    // It only has to make the tables.
    let import = ["mappings", "import", "/dev/null"];
    let made = run(Program::Api, &import, &url).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    (database, url)
}

fn url_of(database: &TestDatabase, role: &str) -> String {
    let url = database.url();
    assert!(url.contains("postgres:no-secret-here@"), "{url}");
    url.replace("postgres:no-secret-here@", &format!("{role}:s3cr3t@"))
}

async fn drop_owner(database: TestDatabase) {
    let role = format!("{}_owner", database.name());
    let sql = format!("REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}");
    administer(&database, &sql).await;
    administer(
        &database,
        &format!("ALTER DATABASE {{database}} OWNER TO postgres; DROP ROLE {role}"),
    )
    .await;
}

#[tokio::test]
async fn what_time_does_not_mend_is_a_wrong_setting() {
    let pooler = stand_in_postgres::start(Oddity::Pooler).await;
    all_start(&pooler, 2, &["transaction mode", "pool_mode=session"]).await;
    let found = doctor(&pooler).await;
    found.finds("WRONG", "database", "pool_mode=session");
    let old = stand_in_postgres::start(Oddity::Old).await;
    all_start(&old, 2, &["is PostgreSQL 13.14: 14 or newer"]).await;
    doctor(&old).await.finds("WRONG", "database", "14 or newer");
    let refused = stand_in_postgres::start(Oddity::WrongPassword).await;
    all_say(&refused, 2, &["refuses the login", "password"]).await;

    let Some(server) = Server::shared() else {
        return;
    };
    let (database, url) = owned(server).await;
    let nobody = url_of(&database, "nobody_of_this_name");
    all_say(&nobody, 2, &["refuses the login", "nobody_of_this_name"]).await;
    let nowhere = format!("{url}_of_another_name");
    all_say(&nowhere, 2, &["no such database", "createdb"]).await;
    doctor(&nowhere)
        .await
        .finds("WRONG", "database", "createdb");

    let later =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (99991231000001, 'of a later release', true, '', 0)";
    administer(&database, later).await;
    all_say(&url, 2, &["newer version", "upgrade this one"]).await;
    doctor(&url)
        .await
        .finds("WRONG", "database", "newer version");
    drop_owner(database).await;
}

/// The way there is encrypted, and whoever is at its end has to prove it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_trusted_by_its_certificate() {
    let Some(server) = Server::own() else {
        return;
    };
    let (made, folder) = (Certificate::make(), fixtures::folder());
    let database = server.database();
    tokio::task::block_in_place(|| server.require_tls(&made.certificate, &made.key));
    let url = |mode: &str, authority: &str| {
        let file = folder.path().join(format!("{mode}.pem"));
        std::fs::write(&file, authority).unwrap();
        let (port, name, file) = (server.port(), database.name(), file.display());
        format!("postgres://postgres@localhost:{port}/{name}?sslmode={mode}&sslrootcert={file}")
    };
    let bare = url("disable", &made.authority);
    all_start(&bare, 2, &["refuses the login"]).await;
    let strange = url("verify-full", &Certificate::make().authority);
    all_start(&strange, 1, &["certificate"]).await;

    let trusted = url("verify-full", &made.authority);
    let app = App::builder().both("DATABASE_URL", &trusted).start().await;
    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    eventually(SOON, "the pusher is set", async || {
        !app.homeserver.pushers().is_empty()
    })
    .await;
    doctor(&trusted).await.finds("ok", "TLS", "encrypted");
}

/// Both programs end with this code and one line each when they are to serve.
async fn all_start(url: &str, code: i32, words: &[&str]) {
    for program in [Program::Api, Program::Worker] {
        run(program, &[], url).await.says(code, words);
    }
}

#[tokio::test]
async fn what_time_may_mend_is_no_wrong_setting() {
    let Some(server) = Server::shared() else {
        return;
    };
    let (database, url) = owned(server).await;
    let role = format!("{}_owner", database.name());
    administer(&database, &format!("ALTER ROLE {role} CONNECTION LIMIT 0")).await;
    all_say(&url, 1, &["cannot be used now", "too many connections"]).await;
    doctor(&url)
        .await
        .finds("WRONG", "database", "too many connections");
    administer(&database, &format!("ALTER ROLE {role} CONNECTION LIMIT -1")).await;

    administer(
        &database,
        "ALTER DATABASE {database} SET default_transaction_read_only = on",
    )
    .await;
    all_say(&url, 1, &["takes no writes", "primary"]).await;
    doctor(&url)
        .await
        .finds("WRONG", "server", "default_transaction_read_only is on");
    let nobody = "postgres://bridge:s3cr3t@127.0.0.1:9/bridge";
    all_say(nobody, 1, &["does not answer", "refused"]).await;
    drop_owner(database).await;
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong_with_rights_connections_and_encoding() {
    let Some(server) = Server::shared() else {
        return;
    };
    let (database, url) = owned(server).await;
    let role = format!("{}_owner", database.name());
    let found = doctor(&url).await;
    found.finds("ok", "server ", "takes writes, UTF8, autovacuum is on");
    found.finds("ok", "rights", "owns those that exist");
    found.finds("ok", "sessions", "LISTEN hears");
    found.finds("ok", "server clock", "as this machine's");
    found.finds("ok", "connections", "0 processes run");
    found.finds("ok", "TLS", "on this machine");

    administer(&database, "ALTER TABLE jobs OWNER TO postgres").await;
    let found = doctor(&url).await;
    found.finds(
        "WRONG",
        "rights",
        "belong to another user, so an upgrade cannot change them: jobs:",
    );
    administer(&database, &format!("ALTER TABLE jobs OWNER TO {role}")).await;

    // Nothing was made in it yet; the user may not.
    let empty = server.database();
    administer(&empty, "REVOKE ALL ON SCHEMA public FROM public").await;
    let no_rights = url_of(&empty, &role);
    let found = doctor(&no_rights).await;
    found.finds("WRONG", "rights", "make it the database's owner");
    all_start(&no_rights, 2, &["may not make or use the tables"]).await;

    let latin = format!("{}_latin", database.name());
    let sql = format!("CREATE DATABASE {latin} ENCODING 'LATIN1' TEMPLATE template0");
    administer(&database, &sql).await;
    let found = doctor(&format!("{url}_latin")).await;
    found.finds("WRONG", "server", "encoding is LATIN1");
    administer(&database, &format!("DROP DATABASE {latin}")).await;
    drop_owner(database).await;
}

#[tokio::test]
async fn processes_are_counted_and_what_they_may_take() {
    let Some(server) = Server::shared() else {
        return;
    };
    let (database, url) = owned(server).await;
    let role = format!("{}_owner", database.name());
    let app = App::builder().both("DATABASE_URL", &url);
    // Fewer than the doctor reckons with, so that there is room for it.
    let app = app.both("DATABASE_MAX_CONNECTIONS", "4").start().await;
    let connections = async |level: &str, words: &str| {
        let found = doctor(&url).await;
        found.finds(level, "connections", words);
    };
    eventually(SOON, "both processes are seen", async || {
        let found = doctor(&url).await;
        let lines = &found.lines;
        lines.iter().any(|line| line.contains("2 processes run"))
    })
    .await;
    connections("ok", "each may take 8").await;
    administer(&database, &format!("ALTER ROLE {role} CONNECTION LIMIT 23")).await;
    connections("suspect", "one more will not fit").await;
    administer(&database, "ALTER DATABASE {database} CONNECTION LIMIT 15").await;
    connections("WRONG", "the server has 15 for us").await;
    drop(app);
    administer(&database, DISCONNECT).await;
    drop_owner(database).await;
}

/// A standby, or a disk that its keeper has found full: reads go on.
#[tokio::test]
async fn a_database_that_takes_no_writes_rejects_nothing_and_goes_on_by_itself() {
    let Some(server) = Server::shared() else {
        return;
    };
    let app = App::builder()
        .database(Database::of(server.database()))
        .start()
        .await;
    let (phone, other) = (Phone::new("kept"), Phone::new("late"));
    app.enroll(&[&phone]).await;
    app.pusher_set(&phone).await;
    let switch = async |to: &str| {
        let set = format!("ALTER DATABASE {{database}} SET default_transaction_read_only = {to}");
        // Whoever is connected keeps what held when it came.
        administer_at(&app.database.url(), &format!("{set}; {DISCONNECT}")).await;
    };
    switch("on").await;
    app.report(&other.report()).await.expect_error(503);
    let device = [app.marked(&phone).await];
    let pushed = app
        .notify(&message("$while", &device))
        .await
        .expect_status(200);
    assert_eq!(pushed.json(), json!({"rejected": []}));
    assert_eq!(app.pnm.pushes().len(), 1);
    eventually(SOON, "the operator reads why", async || {
        !app.api().log_lines("read-only transaction").is_empty()
    })
    .await;

    switch("off").await;
    eventually(SOON, "reports are saved again", async || {
        app.report(&other.report()).await.status == 200
    })
    .await;
    let ready = app.admin_bare(Method::GET, "/health/ready");
    http::send(ready).await.expect_status(200);
}
