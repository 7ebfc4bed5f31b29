//! Reads the database that the processes share, and gets in their way when a test wants that. It is an SQLite file, or a
//! PostgreSQL database where TEST_DATABASE=postgres.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use matrix2acrobits_test_postgres as postgres;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Connection, FromRow, PgConnection, SqliteConnection};

use crate::marks::MarkKey;

/// A row of the queue.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Job {
    /// Pending, Queued, Running, Failed (waiting for its next try), Killed (dead letter) or Done.
    pub status: String,
    /// Tries so far.
    pub attempts: i64,
    /// When it may run, in seconds since 1970.
    pub run_at: i64,
    /// The worker that has it.
    pub lock_by: Option<String>,
    /// What keeps a pusher from having two.
    pub pusher_id: Option<i64>,
}

/// A row of our table of pushers.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct PusherTask {
    /// Whose.
    pub user_id: String,
    /// Push token.
    pub pushkey: String,
    /// present or absent
    pub wanted: String,
    /// pending, registered, failed or removed
    pub state: String,
    /// Failed attempts since the last success.
    pub attempts: i64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// The database, opened for reading.
#[derive(Debug, Clone)]
pub enum Database {
    /// A file.
    Sqlite {
        /// How others open it.
        options: Box<SqliteConnectOptions>,
        /// A connection that only reads.
        pool: SqlitePool,
    },
    /// A database in the server of all tests.
    Postgres {
        /// It is dropped with the last clone.
        database: Arc<postgres::Database>,
        /// A connection.
        pool: PgPool,
    },
}

/// Keeps every writer waiting until it is dropped.
#[derive(Debug)]
pub enum Lock {
    /// The one lock of the file.
    Sqlite(Box<SqliteConnection>),
    /// The locks of the tables that every write needs.
    Postgres(Box<PgConnection>),
}

/// Runs a query on whichever database it is.
macro_rules! fetch {
    ($database:expr, $query:expr, $fetch:ident) => {
        match $database {
            Database::Sqlite { pool, .. } => $query.$fetch(pool).await.unwrap(),
            Database::Postgres { pool, .. } => $query.$fetch(pool).await.unwrap(),
        }
    };
}

impl Database {
    /// The one that the environment asks for; a file lies at this path, and need not exist before the first query.
    pub fn at(path: &Path) -> Self {
        if std::env::var("TEST_DATABASE").is_ok_and(|it| it == "postgres") {
            let server = postgres::Server::shared().expect("a PostgreSQL server");
            return Self::of(server.database());
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(Duration::from_secs(1))
            .connect_lazy_with(options.clone().read_only(true));
        let options = Box::new(options);
        Self::Sqlite { options, pool }
    }

    /// A PostgreSQL database.
    pub fn of(database: postgres::Database) -> Self {
        let pool = PgPoolOptions::new().max_connections(1);
        Self::Postgres {
            pool: pool.connect_lazy(&database.url()).unwrap(),
            database: Arc::new(database),
        }
    }

    /// `DATABASE_URL` for the programs.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite { options, .. } => {
                format!("sqlite://{}", options.get_filename().display())
            }
            Self::Postgres { database, .. } => database.url(),
        }
    }

    /// Whether it is PostgreSQL; for tests of what only a file has.
    pub fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres { .. })
    }

    /// All jobs.
    pub async fn jobs(&self) -> Vec<Job> {
        match self {
            Self::Sqlite { pool, .. } => {
                // Some tests write what is no number.
                let sql = "SELECT status, CAST(attempts AS INTEGER) AS attempts, run_at, lock_by,
                               iif(typeof(pusher_id) = 'integer', pusher_id, NULL) AS pusher_id
                           FROM Jobs";
                sqlx::query_as(sql).fetch_all(pool).await.unwrap()
            }
            Self::Postgres { pool, .. } => {
                let sql = "SELECT state AS status, attempts, run_at, lock_by, pusher_id FROM jobs";
                sqlx::query_as(sql).fetch_all(pool).await.unwrap()
            }
        }
    }

    /// Jobs that are neither finished nor dead letters.
    pub async fn live_jobs(&self) -> usize {
        let jobs = self.jobs().await;
        let live = |job: &&Job| !matches!(job.status.as_str(), "Killed" | "Done");
        jobs.iter().filter(live).count()
    }

    /// Dead letters.
    pub async fn dead_jobs(&self) -> usize {
        let jobs = self.jobs().await;
        jobs.iter().filter(|job| job.status == "Killed").count()
    }

    /// All pushers.
    pub async fn pushers(&self) -> Vec<PusherTask> {
        let sql = "SELECT user_id, pushkey, wanted, state, attempts, last_error FROM pushers";
        fetch!(self, sqlx::query_as(sql), fetch_all)
    }

    /// The pusher of this token; none, or the first of several users' that is wanted.
    pub async fn pusher(&self, pushkey: &str) -> Option<PusherTask> {
        let mut pushers = self.pushers().await;
        pushers.retain(|pusher| pusher.pushkey == pushkey);
        pushers.sort_by_key(|pusher| pusher.wanted != "present");
        pushers.into_iter().next()
    }

    /// The selectors of all phones.
    pub async fn selectors(&self) -> Vec<String> {
        let sql = "SELECT selector FROM push_tokens";
        fetch!(self, sqlx::query_scalar(sql), fetch_all)
    }

    /// The tokens of all phones.
    pub async fn tokens(&self) -> Vec<String> {
        let sql = "SELECT token_msgs FROM push_tokens WHERE token_msgs IS NOT NULL";
        fetch!(self, sqlx::query_scalar(sql), fetch_all)
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        let sql = || AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        fetch!(self, sqlx::query_scalar(sql()), fetch_one)
    }

    /// The key of the marks that pushers carry.
    pub async fn mark_key(&self) -> MarkKey {
        let sql = "SELECT value FROM meta WHERE name = 'mark_key'";
        let key: Vec<u8> = fetch!(self, sqlx::query_scalar(sql), fetch_one);
        MarkKey::new(&key)
    }

    /// The time as this database writes it in SQL, in whole seconds since 1970.
    pub fn now(&self) -> &'static str {
        if self.is_postgres() {
            "extract(epoch FROM now())::bigint"
        } else {
            "unixepoch()"
        }
    }

    /// SQLite's own check of the whole file; PostgreSQL looks after its own.
    pub async fn integrity(&self) -> String {
        match self {
            Self::Sqlite { pool, .. } => {
                let check = sqlx::query_scalar("PRAGMA integrity_check");
                check.fetch_one(pool).await.unwrap()
            }
            Self::Postgres { .. } => "ok".into(),
        }
    }

    /// Runs one statement as somebody else who has the database open.
    pub async fn meddle(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Sqlite { options, .. } => {
                let mut other = SqliteConnection::connect_with(options).await.unwrap();
                sqlx::query(sql).execute(&mut other).await.unwrap();
                other.close().await.unwrap();
            }
            Self::Postgres { database, .. } => {
                let mut other = PgConnection::connect(&database.url()).await.unwrap();
                sqlx::query(sql).execute(&mut other).await.unwrap();
                other.close().await.unwrap();
            }
        }
    }

    /// Takes what every writer needs, until the answer is dropped.
    pub async fn lock(&self) -> Lock {
        // What connecting needs is large, and tests hold it beside much else.
        Box::pin(self.take_lock()).await
    }

    async fn take_lock(&self) -> Lock {
        match self {
            Self::Sqlite { options, .. } => {
                let mut other = SqliteConnection::connect_with(options).await.unwrap();
                let begin = sqlx::query("BEGIN IMMEDIATE");
                begin.execute(&mut other).await.unwrap();
                Lock::Sqlite(Box::new(other))
            }
            Self::Postgres { database, .. } => {
                let mut other = PgConnection::connect(&database.url()).await.unwrap();
                let lock = "BEGIN; LOCK TABLE push_tokens, pushers, jobs IN EXCLUSIVE MODE";
                sqlx::raw_sql(lock).execute(&mut other).await.unwrap();
                Lock::Postgres(Box::new(other))
            }
        }
    }
}
