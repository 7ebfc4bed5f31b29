//! A rolling upgrade: the programs of the release before go on working beside those of this one, on the schema of this
//! one. Its statements are kept in `fixtures/statements/{release}`, and all of them must still be understood, with the
//! same types. At a release `KEEP_STATEMENTS=1` writes them (CONTRIBUTING.md).
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests outside of #[test] functions; what was kept is worth showing"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use matrix2acrobits_test_postgres::Server;
use matrix2acrobits_tests::fixtures::folder;
use matrix2acrobits_tests::process::{Env, Program};
use sqlx::{
    AssertSqlSafe, Column, Connection, Database, Either, Executor, PgConnection, SqlSafeStr,
    SqliteConnection, Statement, TypeInfo,
};

/// Ends a statement in a kept file.
const END: &str = "\n;\n";
/// Begins the line after it that says what it takes and gives.
const TYPES: &str = "\n-- ";

/// One database: what its statements are called, and which columns have to be given a value.
struct Kind {
    name: &'static str,
    needed: &'static str,
}

const POSTGRES: Kind = Kind {
    name: "postgres",
    needed: "SELECT table_name || '.' || column_name
             FROM information_schema.columns
             WHERE table_schema = 'public'
               AND is_nullable = 'NO'
               AND column_default IS NULL
               AND is_identity = 'NO'
               AND is_generated = 'NEVER'
             ORDER BY 1",
};

const SQLITE: Kind = Kind {
    name: "sqlite",
    needed: r#"SELECT m.name || '.' || c.name
               FROM sqlite_schema m
               CROSS JOIN pragma_table_info(m.name) c
               WHERE m.type = 'table'
                 AND c."notnull"
                 AND c.dflt_value IS NULL
                 AND c.pk = 0
               ORDER BY 1"#,
};

/// Has the api make a database of this release.
async fn make(url: &str) {
    let env = Env::from([("DATABASE_URL".to_owned(), url.to_owned())]);
    let made = Program::Api.run(&["mappings", "import", "/dev/null"], &env);
    let made = made.await;
    assert!(made.status.success(), "{made:?}");
}

#[tokio::test]
async fn the_statements_of_the_release_before_work_on_this_schema_of_sqlite() {
    let folder = folder();
    let url = format!("sqlite://{}", folder.path().join("new.db").display());
    make(&url).await;
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let needed = sqlx::query_scalar(SQLITE.needed);
    let needed: Vec<String> = needed.fetch_all(&mut connection).await.unwrap();
    SQLITE.check::<sqlx::Sqlite>(&mut connection, &needed).await;
}

#[tokio::test]
async fn the_statements_of_the_release_before_work_on_this_schema_of_postgres() {
    let Some(server) = Server::shared() else {
        return;
    };
    let database = server.database();
    make(&database.url()).await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let needed = sqlx::query_scalar(POSTGRES.needed);
    let needed: Vec<String> = needed.fetch_all(&mut connection).await.unwrap();
    POSTGRES
        .check::<sqlx::Postgres>(&mut connection, &needed)
        .await;
    connection.close().await.unwrap();
}

impl Kind {
    /// Compares with what was kept of releases, or keeps it.
    async fn check<DB: Database>(&self, connection: &mut DB::Connection, needed: &[String])
    where
        for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/statements");
        if std::env::var_os("KEEP_STATEMENTS").is_some() {
            self.keep::<DB>(connection, needed, &kept).await;
        }
        let releases = fs::read_dir(&kept).unwrap();
        let files = releases.map(|it| it.unwrap().path().join(format!("{}.sql", self.name)));
        let files: Vec<PathBuf> = files.collect();
        assert!(!files.is_empty(), "no release's statements are kept");
        let mut complaints = Vec::new();
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let (before, statements) = text.split_once(END).unwrap();
            complaints.extend(newly_needed(before, needed));
            for statement in statements.split_terminator(END) {
                let (sql, before) = statement.rsplit_once(TYPES).unwrap();
                match types::<DB>(connection, sql).await {
                    Ok(now) if now == before => {}
                    Ok(now) => complaints.push(format!("was {before}\n is {now}\n{sql}")),
                    Err(error) => complaints.push(format!("{error}\n{sql}")),
                }
            }
        }
        let complaints = complaints.join("\n\n");
        assert!(
            complaints.is_empty(),
            "the release before does not work on this schema:\n\n{complaints}"
        );
    }

    /// Writes the statements that sqlx has checked, with their types on this schema.
    async fn keep<DB: Database>(
        &self,
        connection: &mut DB::Connection,
        needed: &[String],
        kept: &Path,
    ) where
        for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    {
        let mut text = format!("-- needed: {}{END}", needed.join(" "));
        let statements = checked(self.name);
        for sql in &statements {
            let types = types::<DB>(connection, sql).await.unwrap();
            write!(text, "{sql}{TYPES}{types}{END}").unwrap();
        }
        let folder = kept.join(env!("CARGO_PKG_VERSION"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{}.sql", self.name)), text).unwrap();
        println!("{}: {} statements kept", self.name, statements.len());
    }
}

/// Columns of tables known before that have to be given a value now: a statement that does not know them would fail.
fn newly_needed(before: &str, needed: &[String]) -> Vec<String> {
    let before: BTreeSet<_> = before.split_whitespace().collect();
    let table = |column: &str| column.split('.').next().map(str::to_owned);
    let tables: BTreeSet<_> = before.iter().map(|it| table(it)).collect();
    let new = needed
        .iter()
        .filter(|it| !before.contains(it.as_str()) && tables.contains(&table(it)));
    new.map(|it| format!("{it} has no default, and the release before does not set it"))
        .collect()
}

/// What a statement takes and gives, once the database has understood it.
async fn types<DB: Database>(
    connection: &mut DB::Connection,
    sql: &str,
) -> Result<String, sqlx::Error>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    let sql = AssertSqlSafe(sql.to_owned()).into_sql_str();
    let statement = connection.prepare(sql).await?;
    let takes = match statement.parameters() {
        Some(Either::Left(types)) => {
            let names: Vec<_> = types.iter().map(TypeInfo::name).collect();
            names.join(", ")
        }
        Some(Either::Right(count)) => count.to_string(),
        None => String::new(),
    };
    let gives = statement.columns().iter();
    let gives = gives.map(|it| format!("{} {}", it.name(), it.type_info().name()));
    let gives: Vec<_> = gives.collect();
    Ok(format!("takes {takes}; gives {}", gives.join(", ")))
}

/// The statements of a database's crate, in an order that no other statement changes.
fn checked(name: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let files = fs::read_dir(root.join(name).join(".sqlx")).unwrap();
    let query = |file: std::io::Result<fs::DirEntry>| {
        let file = fs::read(file.unwrap().path()).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        file["query"].as_str().unwrap().to_owned()
    };
    files.map(query).collect()
}
