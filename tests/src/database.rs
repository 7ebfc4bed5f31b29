//! Reads the SQLite file that the two processes share, and gets in their way when a test wants that.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

use crate::marks::MarkKey;

/// A row of apalis' table.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// The file, opened for reading.
#[derive(Debug, Clone)]
pub struct Database {
    options: SqliteConnectOptions,
    pool: SqlitePool,
}

impl Database {
    /// The file need not exist before the first query.
    pub fn at(path: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(Duration::from_secs(1))
            .connect_lazy_with(options.clone().read_only(true));
        Self { options, pool }
    }

    /// All jobs.
    pub async fn jobs(&self) -> Vec<Job> {
        let sql = "SELECT status, attempts, run_at, lock_by, iif(typeof(pusher_id) = 'integer', pusher_id, NULL)
                   FROM Jobs";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.unwrap();
        let job = |row: &sqlx::sqlite::SqliteRow| Job {
            status: row.get(0),
            attempts: row.get(1),
            run_at: row.get(2),
            lock_by: row.get(3),
            pusher_id: row.get(4),
        };
        rows.iter().map(job).collect()
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
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.unwrap();
        let pusher = |row: &sqlx::sqlite::SqliteRow| PusherTask {
            user_id: row.get(0),
            pushkey: row.get(1),
            wanted: row.get(2),
            state: row.get(3),
            attempts: row.get(4),
            last_error: row.get(5),
        };
        rows.iter().map(pusher).collect()
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
        sqlx::query_scalar(sql).fetch_all(&self.pool).await.unwrap()
    }

    /// The tokens of all phones.
    pub async fn tokens(&self) -> Vec<String> {
        let sql = "SELECT token_msgs FROM push_tokens WHERE token_msgs IS NOT NULL";
        sqlx::query_scalar(sql).fetch_all(&self.pool).await.unwrap()
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// The key of the marks that pushers carry.
    pub async fn mark_key(&self) -> MarkKey {
        let key: Vec<u8> = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'mark_key'")
            .fetch_one(&self.pool)
            .await
            .unwrap();
        MarkKey::new(&key)
    }

    /// SQLite's own check of the whole file.
    pub async fn integrity(&self) -> String {
        let check = sqlx::query_scalar("PRAGMA integrity_check");
        check.fetch_one(&self.pool).await.unwrap()
    }

    /// Runs one statement as somebody else who has the file open.
    pub async fn meddle(&self, sql: &'static str) {
        let mut other = SqliteConnection::connect_with(&self.options).await.unwrap();
        sqlx::query(sql).execute(&mut other).await.unwrap();
        other.close().await.unwrap();
    }

    /// Takes the one lock that every writer needs, until the answer is dropped.
    pub async fn lock(&self) -> SqliteConnection {
        let mut other = SqliteConnection::connect_with(&self.options).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut other)
            .await
            .unwrap();
        other
    }
}
