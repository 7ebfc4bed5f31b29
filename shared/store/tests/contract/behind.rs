//! The database behind the store under test, reached without the store: all SQL of this suite.

use matrix2acrobits_shared::flow::Held;
use matrix2acrobits_test_postgres as postgres;
use sqlx::{Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

/// What a step spoils in the rows of a phone that shares nothing with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoilt {
    /// The job's payload.
    Payload,
    /// Which pusher the job is for.
    PusherOfJob,
    /// The user in the pusher's row.
    User,
    /// Columns that can be spoilt without harm.
    Harmless,
}

impl Spoilt {
    /// Whether it leaves a dead letter behind that no replay can revive.
    pub(crate) fn is_fatal(self) -> bool {
        matches!(self, Self::PusherOfJob | Self::User)
    }
}

pub(crate) enum Behind {
    /// A file in its own folder.
    Sqlite(TempDir),
    /// A database that the cases of one test use in turn.
    Postgres(postgres::Database),
}

impl Behind {
    /// Uses memory if available, because the tests make thousands of small files with `synchronous=FULL`.
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm");
        Self::Sqlite(folder.unwrap_or_else(|_| tempfile::tempdir().unwrap()))
    }

    /// None if no server is available.
    pub(crate) fn postgres() -> Option<Self> {
        let server = postgres::Server::shared()?;
        Some(Self::Postgres(server.database()))
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => {
                format!("sqlite://{}", folder.path().join("test.db").display())
            }
            Self::Postgres(database) => database.url(),
        }
    }

    async fn connect_postgres(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    /// Deletes the rows of the previous case.
    pub(crate) async fn empty(&self) {
        if let Self::Postgres(_) = self {
            let sql =
                "TRUNCATE push_tokens, arrivals, mappings, pushers, jobs, workers RESTART IDENTITY";
            let mut connection = self.connect_postgres().await;
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        }
    }

    async fn connect(&self) -> SqliteConnection {
        SqliteConnection::connect(&self.url()).await.unwrap()
    }

    /// The worker that the database calls the job's holder.
    pub(crate) async fn holder(&self, held: &Held) -> Option<String> {
        let lock: Result<Option<Option<String>>, _> = match self {
            Self::Sqlite(_) => {
                sqlx::query_scalar("SELECT lock_by FROM Jobs WHERE id = ?")
                    .bind(&held.job_id)
                    .fetch_optional(&mut self.connect().await)
                    .await
            }
            Self::Postgres(_) => {
                sqlx::query_scalar("SELECT lock_by FROM jobs WHERE pusher_id = $1")
                    .bind(held.pusher_id)
                    .fetch_optional(&mut self.connect_postgres().await)
                    .await
            }
        };
        lock.unwrap().flatten()
    }

    /// How many pushers have two jobs.
    pub(crate) async fn doubled(&self) -> i64 {
        if let Self::Postgres(_) = self {
            // The pusher is the table's primary key.
            return 0;
        }
        let twice =
            "SELECT count(*) FROM (SELECT 1 FROM Jobs GROUP BY pusher_id HAVING count(*) > 1)";
        let count = sqlx::query_scalar(twice)
            .fetch_one(&mut self.connect().await)
            .await;
        count.unwrap()
    }

    /// Writes values into the rows of one pusher that our programs never write. Returns what was spoilt. A job in
    /// PostgreSQL has no payload, and its pusher is always a number, so fewer things can be spoilt there.
    pub(crate) async fn spoil(&self, what: Spoilt, pusher: i64) -> Spoilt {
        if let Self::Postgres(_) = self {
            if what == Spoilt::Harmless {
                return what;
            }
            let sql = "UPDATE pushers SET user_id = 'nobody' WHERE id = $1";
            let mut connection = self.connect_postgres().await;
            let done = sqlx::query(sql).bind(pusher).execute(&mut connection).await;
            done.unwrap();
            return Spoilt::User;
        }
        let statements: &[&'static str] = match what {
            Spoilt::Payload => &["UPDATE Jobs SET job = x'ff' WHERE pusher_id = ?"],
            Spoilt::PusherOfJob => &["UPDATE Jobs SET pusher_id = 'x' || ?1 WHERE pusher_id = ?1"],
            Spoilt::User => &["UPDATE pushers SET user_id = CAST(x'40ff' AS TEXT) WHERE id = ?"],
            Spoilt::Harmless => &[
                "UPDATE Jobs SET run_at = 'soon', attempts = 'many', metadata = '{', last_result = x'ff', lost = 'x'
                 WHERE pusher_id = ?",
                "UPDATE push_tokens SET owner = CAST(x'ff' AS TEXT), app_id_calls = CAST(x'ff' AS TEXT)
                 WHERE token_msgs = (SELECT pushkey FROM pushers WHERE id = ?)",
            ],
        };
        let mut connection = self.connect().await;
        for &sql in statements {
            let done = sqlx::query(sql).bind(pusher).execute(&mut connection).await;
            done.unwrap();
        }
        what
    }
}
