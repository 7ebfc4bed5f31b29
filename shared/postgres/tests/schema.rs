//! Making the schema: beside an operator's open transaction, in another program's database, and what its triggers do for
//! sessions that are not ours.
//!
//! It needs PostgreSQL's server from Debian's package; where there is none, it says so and tests nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{str::FromStr, time::Duration};

use matrix2acrobits_postgres::{DatabaseUrl, OpenError, prepare};
use matrix2acrobits_test_postgres::{Database, Server};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgListener};
use tokio::time::timeout;

const PHONE: &str =
    "INSERT INTO push_tokens (selector, device, report, created_at, updated_at, of_nobody)
     VALUES ('s', '', 1, 1, 1, true)";

async fn execute(connection: &mut PgConnection, sql: &str) {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    sql.execute(connection).await.unwrap();
}

/// A database with our schema, and a session of somebody else's.
async fn prepared() -> Option<(Database, PgConnection)> {
    let database = Server::shared()?.database();
    prepare(&DatabaseUrl::from_str(&database.url()).unwrap())
        .await
        .unwrap();
    let psql = PgConnection::connect(&database.url()).await.unwrap();
    Some((database, psql))
}

/// Writers go on, and the change of the schema comes when the transaction is over.
#[tokio::test]
async fn a_change_of_the_schema_holds_nobody_up() {
    let Some(server) = Server::shared() else {
        return;
    };
    let database = server.database();
    let url = DatabaseUrl::from_str(&database.url()).unwrap();
    prepare(&url).await.unwrap();
    let mut operator = PgConnection::connect(&database.url()).await.unwrap();
    let mut writer = PgConnection::connect(&database.url()).await.unwrap();
    // It can be made again and again.
    let last = "DELETE FROM _sqlx_migrations WHERE version = 20261126000002";
    execute(&mut operator, last).await;
    execute(
        &mut operator,
        "BEGIN;
         UPDATE push_tokens SET device = device;
         UPDATE mappings SET user_id = user_id",
    )
    .await;
    let preparing = tokio::spawn(async move { prepare(&url).await });
    execute(&mut writer, "SET lock_timeout TO '3s'").await;
    // Through its first attempt and the pause after it.
    for _ in 0..40 {
        execute(&mut writer, "UPDATE mappings SET user_id = user_id").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!preparing.is_finished());
    operator.close().await.unwrap();
    let prepared = timeout(Duration::from_secs(20), preparing).await;
    prepared.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn another_programs_migrations_are_not_a_newer_version() {
    let Some(server) = Server::shared() else {
        return;
    };
    let database = server.database();
    let mut theirs = PgConnection::connect(&database.url()).await.unwrap();
    execute(
        &mut theirs,
        "CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, description text NOT NULL,
             installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL,
             execution_time bigint NOT NULL);
         INSERT INTO _sqlx_migrations
         VALUES (20250101000000, 'theirs', DEFAULT, true, '', 0)",
    )
    .await;
    let url = DatabaseUrl::from_str(&database.url()).unwrap();
    let refused = prepare(&url).await.unwrap_err();
    assert!(matches!(refused, OpenError::NotOurs(_)), "{refused}");
    theirs.close().await.unwrap();
}

/// PgBouncer resets a session before it gives it to the next client.
#[tokio::test]
async fn changes_by_a_session_that_was_reset_are_told() {
    let Some((database, mut psql)) = prepared().await else {
        return;
    };
    let mut listener = PgListener::connect(&database.url()).await.unwrap();
    listener.listen("matrix2acrobits").await.unwrap();
    execute(&mut psql, "SET matrix2acrobits.program TO '1'").await;
    execute(&mut psql, "DISCARD ALL").await;
    for sql in [
        PHONE,
        "INSERT INTO mappings VALUES ('other', '@bob:example.org', 1, 1)",
        "INSERT INTO jobs (pusher_id, created_ms, state, run_at) VALUES (1, 1, 'Pending', 1)",
    ] {
        execute(&mut psql, sql).await;
        let told = timeout(Duration::from_secs(5), listener.recv()).await;
        assert_eq!(told.unwrap().unwrap().payload(), "- everything", "{sql}");
    }
    psql.close().await.unwrap();
}

/// As `pg_restore --data-only` writes them.
#[tokio::test]
async fn mappings_are_written_with_any_search_path() {
    let Some((_database, mut psql)) = prepared().await else {
        return;
    };
    execute(&mut psql, PHONE).await;
    execute(
        &mut psql,
        "SET search_path TO '';
         INSERT INTO public.mappings VALUES ('s', '@bob:example.org', 1, 1)",
    )
    .await;
    let of_nobody = "SELECT count(*) FROM public.push_tokens WHERE of_nobody";
    let of_nobody = sqlx::query_scalar::<_, i64>(of_nobody);
    assert_eq!(of_nobody.fetch_one(&mut psql).await.unwrap(), 0);
    psql.close().await.unwrap();
}
