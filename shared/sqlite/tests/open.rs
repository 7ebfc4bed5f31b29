//! Opening the file: several processes may do so at the same moment, as compose starts them.

use std::{
    str::FromStr,
    sync::{Arc, Barrier},
    time::Duration,
};

use apalis_sqlite::SqliteStorage;
use matrix2acrobits_shared::clock::Clock;
use matrix2acrobits_sqlite::{DatabaseUrl, OpenError, Sharing, Sqlite, prepare};

use sqlx::{Connection, SqliteConnection, migrate::Migrator};

/// The migration that makes the table of pushers anew.
const FEWER_INDEXES: i64 = 20_261_124_000_001;

#[tokio::test]
async fn pushers_survive_the_change_of_their_table() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/old.db?mode=rwc", folder.path().display());
    let mut old = SqliteConnection::connect(&url).await.unwrap();
    let ours = sqlx::migrate!("../../migrations/sqlite");
    let theirs = SqliteStorage::migrations();
    let all = ours.iter().chain(theirs.iter());
    let before = all.filter(|it| it.version < FEWER_INDEXES).cloned();
    let before = Migrator::with_migrations(before.collect());
    before.run_direct(None, &mut old, false).await.unwrap();
    let pushers = "INSERT INTO pushers (id, user_id, app_id, pushkey, selector, wanted, state, generation, claim,
                       ask_first, attempts, last_error, registered_as, refresh_at, created_at, updated_at)
                   VALUES (3, '@a:x', 'app', 'key', 's', 'present', 'failed', 4, 5, 1, 6, 'no', 'as', 7, 8, 9),
                       (12, '@b:x', 'app', 'key', 's', 'absent', 'removed', 1, 1, 0, 0, NULL, NULL, NULL, 0, 0)";
    sqlx::query(pushers).execute(&mut old).await.unwrap();
    let gone = "DELETE FROM pushers WHERE id = 12";
    sqlx::query(gone).execute(&mut old).await.unwrap();
    old.close().await.unwrap();

    let url = url.trim_end_matches("?mode=rwc");
    let database = DatabaseUrl::from_str(url).unwrap();
    let sharing = Sharing::ahead(Duration::from_secs(10));
    let store = Sqlite::open(&database, sharing, Clock::system()).await;
    let store = store.unwrap();
    let kept = "SELECT json_array(id, user_id, app_id, pushkey, selector, wanted, state, generation, claim, ask_first,
                    attempts, last_error, registered_as, refresh_at, created_at, updated_at) FROM pushers";
    let kept: Vec<String> = sqlx::query_scalar(kept)
        .fetch_all(store.readers())
        .await
        .unwrap();
    let row = r#"[3,"@a:x","app","key","s","present","failed",4,5,1,6,"no","as",7,8,9]"#;
    assert_eq!(kept, [row]);
    // No id is used twice, for a job may outlive its pusher.
    let last: i64 = sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'pushers'")
        .fetch_one(store.readers())
        .await
        .unwrap();
    assert_eq!(last, 12);
}

#[tokio::test]
async fn another_programs_migrations_are_not_a_newer_version() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/theirs.db", folder.path().display());
    let mut theirs = SqliteConnection::connect(&format!("{url}?mode=rwc")).await;
    let theirs = theirs.as_mut().unwrap();
    let made = "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL,
                    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL,
                    checksum BLOB NOT NULL, execution_time BIGINT NOT NULL);
                INSERT INTO _sqlx_migrations VALUES (20250101000000, 'theirs', 1, 1, '', 0)";
    sqlx::raw_sql(made).execute(theirs).await.unwrap();
    let refused = prepare(&DatabaseUrl::from_str(&url).unwrap()).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, OpenError::NotOurs(_)), "{refused}");
}

/// The migration that gives the queue columns of its own.
const QUEUE_COLUMNS: i64 = 20_261_125_000_002;

#[tokio::test]
async fn jobs_of_the_first_version_keep_their_facts() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/old.db?mode=rwc", folder.path().display());
    let mut old = SqliteConnection::connect(&url).await.unwrap();
    let ours = sqlx::migrate!("../../migrations/sqlite");
    let theirs = SqliteStorage::migrations();
    let all = ours.iter().chain(theirs.iter());
    let before = all.filter(|it| it.version < QUEUE_COLUMNS).cloned();
    let before = Migrator::with_migrations(before.collect());
    before.run_direct(None, &mut old, false).await.unwrap();
    let jobs = r#"INSERT INTO Jobs (id, job, job_type, status, attempts, run_at, metadata, idempotency_key)
                  VALUES ('1', '{}', 'sync_pusher', 'Pending', 0, 5, '{}', 'pusher:1'),
                      ('2', '{}', 'sync_pusher', 'Queued', 1, 5, NULL, 'pusher:2'),
                      ('3', '{}', 'sync_pusher', 'Failed', 2, 5, '{"not_before":77}', 'pusher:3'),
                      ('4', '{}', 'sync_pusher', 'Killed', 3, 5, '{"lost":4}', 'pusher:4'),
                      ('5', '{}', 'sync_pusher', 'Pending', 1, 5, '{"lost":0}', 'pusher:5'),
                      ('6', '{}', 'sync_pusher', 'Failed', 2, 5, 'no {json', 'pusher:6'),
                      ('7', '{}', 'sync_pusher', 'Failed', 2, 5, '{"not_before":"soon"}', 'pusher:x')"#;
    sqlx::query(jobs).execute(&mut old).await.unwrap();
    old.close().await.unwrap();

    let url = url.trim_end_matches("?mode=rwc");
    let database = DatabaseUrl::from_str(url).unwrap();
    let sharing = Sharing::ahead(Duration::from_secs(10));
    let store = Sqlite::open(&database, sharing, Clock::system()).await;
    let kept = "SELECT json_array(id, status, attempts, pusher_id, not_before, lost, recalled) FROM Jobs ORDER BY id";
    let kept: Vec<String> = sqlx::query_scalar(kept)
        .fetch_all(store.unwrap().readers())
        .await
        .unwrap();
    let expected = [
        r#"["1","Pending",0,1,null,null,0]"#,
        r#"["2","Queued",1,2,null,null,0]"#,
        r#"["3","Failed",2,3,77,null,0]"#,
        r#"["4","Killed",3,4,null,4,0]"#,
        r#"["5","Pending",1,5,null,null,0]"#,
        r#"["6","Failed",2,6,null,null,0]"#,
        r#"["7","Failed",2,null,null,null,0]"#,
    ];
    assert_eq!(kept, expected);
}

#[test]
fn two_open_a_new_file_at_once() {
    for _ in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/new.db", folder.path().display());
        let url = DatabaseUrl::from_str(&url).unwrap();
        let together = Arc::new(Barrier::new(2));
        let open = || {
            let (url, together) = (url.clone(), together.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                together.wait();
                runtime.block_on(async {
                    let store = Sqlite::open(
                        &url,
                        Sharing::ahead(Duration::from_secs(10)),
                        Clock::system(),
                    )
                    .await;
                    store.unwrap().ping().await.unwrap();
                });
            })
        };
        for thread in [open(), open()] {
            thread.join().unwrap();
        }
    }
}
