//! Our jobs beside apalis' own: its tools and its worker runtime read them.

use std::{str::FromStr, time::Duration};

use apalis::prelude::TaskBuilder;
use apalis_sqlite::{SqliteStorage, queries::push_tasks};
use matrix2acrobits_shared::clock::Clock;
use matrix2acrobits_sqlite::{DatabaseUrl, Sharing, Sqlite};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

const RUN_AT: i64 = 1_800_000_000;

#[tokio::test]
async fn a_job_is_what_apalis_itself_would_have_written() {
    let folder = tempfile::tempdir().unwrap();
    let url = |name| format!("sqlite://{}/{name}.db", folder.path().display());
    let database = DatabaseUrl::from_str(&url("ours")).unwrap();
    let sharing = Sharing::ahead(Duration::from_secs(10));
    let store = Sqlite::open(&database, sharing, Clock::system()).await;
    let store = store.unwrap();
    let written = store
        .writer
        .write(|tx| Box::pin(async move { tx.insert_jobs(&[(7, RUN_AT)]).await }));
    written.await.unwrap();

    // A table without our columns: it names none when it writes.
    let theirs = format!("{}?mode=rwc", url("theirs"));
    let mut theirs = SqliteConnection::connect(&theirs).await.unwrap();
    let migrations = SqliteStorage::migrations();
    migrations
        .run_direct(None, &mut theirs, false)
        .await
        .unwrap();
    let task = TaskBuilder::new(br#"{"pusher_id":7}"#.to_vec())
        .max_attempts(2_147_483_647)
        .run_at_timestamp(1_800_000_000)
        .build();
    push_tasks(&mut theirs, "sync_pusher", &[task])
        .await
        .unwrap();

    let columns = "SELECT name FROM pragma_table_info('Jobs') WHERE name <> 'id'";
    let columns: Vec<String> = sqlx::query_scalar(columns)
        .fetch_all(&mut theirs)
        .await
        .unwrap();
    assert_eq!(columns.len(), 13);
    for column in columns {
        let value = || AssertSqlSafe(format!("SELECT quote({column}) FROM Jobs"));
        let ours = sqlx::query_scalar(value()).fetch_one(store.readers()).await;
        let theirs = sqlx::query_scalar(value()).fetch_one(&mut theirs).await;
        let (ours, theirs): (String, String) = (ours.unwrap(), theirs.unwrap());
        assert_eq!(ours, theirs, "{column}");
    }
}
