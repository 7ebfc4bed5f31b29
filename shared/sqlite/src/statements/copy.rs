//! Reads and writes all tables page by page, for a copy of the database. Each row is a JSON object with the columns
//! that both kinds of database have.

use matrix2acrobits_shared::{
    flow::{
        Result,
        copy::{CopiedJob, PAGE, Row, Rows, from_json, to_json},
    },
    rules::jobs::SyncPusher,
};
use serde_json::json;
use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::errors::from_sqlx;

/// The number of rows.
pub(crate) async fn rows(connection: &mut SqliteConnection) -> Result<Rows> {
    sqlx::query_as!(
        Rows,
        r#"SELECT (SELECT count(*) FROM mappings) AS "mappings!",
               (SELECT count(*) FROM push_tokens) AS "phones!",
               (SELECT count(*) FROM arrivals) AS "arrivals!",
               (SELECT count(*) FROM pushers) AS "pushers!",
               (SELECT count(*)
                FROM Jobs
                WHERE job_type = 'sync_pusher'
                  AND typeof(pusher_id) = 'integer') AS "jobs!",
               (SELECT count(*)
                FROM Jobs
                WHERE job_type = 'sync_pusher'
                  AND typeof(pusher_id) <> 'integer') AS "lost_jobs!""#
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// The keys.
pub(crate) async fn keys(connection: &mut SqliteConnection, after: &str) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'name', name,
               'value', hex(value)
           ) ORDER BY name) AS BLOB) AS "page!: Vec<u8>"
           FROM (SELECT *
                 FROM meta
                 WHERE name > ?1
                 ORDER BY name
                 LIMIT ?2)"#,
        after,
        PAGE
    );
    from_json(&page.fetch_one(connection).await.map_err(from_sqlx)?)
}

/// Writes the keys, and deletes all other keys.
pub(crate) async fn insert_keys(connection: &mut SqliteConnection, rows: &[Row]) -> Result<()> {
    let rows = to_json(rows)?;
    sqlx::query!(
        "DELETE FROM meta
         WHERE name NOT IN (SELECT value ->> 'name' FROM jsonb_each(?))",
        rows
    )
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    sqlx::query!(
        "INSERT OR REPLACE INTO meta (name, value)
         SELECT value ->> 'name', unhex(value ->> 'value')
         FROM jsonb_each(?)",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Mappings.
pub(crate) async fn mappings(connection: &mut SqliteConnection, after: &str) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'selector', selector,
               'user_id', user_id,
               'created_at', created_at,
               'updated_at', updated_at
           ) ORDER BY selector) AS BLOB) AS "page!: Vec<u8>"
           FROM (SELECT *
                 FROM mappings
                 WHERE selector > ?1
                 ORDER BY selector
                 LIMIT ?2)"#,
        after,
        PAGE
    );
    from_json(&page.fetch_one(connection).await.map_err(from_sqlx)?)
}

/// Writes mappings.
pub(crate) async fn insert_mappings(connection: &mut SqliteConnection, rows: &[Row]) -> Result<()> {
    let rows = to_json(rows)?;
    sqlx::query!(
        "INSERT INTO mappings (selector, user_id, created_at, updated_at)
         SELECT value ->> 'selector', value ->> 'user_id', value ->> 'created_at', value ->> 'updated_at'
         FROM jsonb_each(?)",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The phones' rows.
pub(crate) async fn phones(connection: &mut SqliteConnection, after: i64) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'id', id,
               'selector', selector,
               'device', device,
               'owner', owner,
               'token_msgs', token_msgs,
               'app_id_msgs', app_id_msgs,
               'token_calls', token_calls,
               'app_id_calls', app_id_calls,
               'imported', iif(imported, json('true'), json('false')),
               'report', report,
               'dead_at', dead_at,
               'created_at', created_at,
               'updated_at', updated_at,
               'of_nobody', iif(of_nobody, json('true'), json('false'))
           ) ORDER BY id) AS BLOB) AS "page!: Vec<u8>"
           FROM (SELECT *
                 FROM push_tokens
                 WHERE id > ?1
                 ORDER BY id
                 LIMIT ?2)"#,
        after,
        PAGE
    );
    from_json(&page.fetch_one(connection).await.map_err(from_sqlx)?)
}

/// Writes phones' rows.
pub(crate) async fn insert_phones(connection: &mut SqliteConnection, rows: &[Row]) -> Result<()> {
    let rows = to_json(rows)?;
    sqlx::query!(
        "INSERT INTO push_tokens (id, selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls, imported,
             report, dead_at, created_at, updated_at, of_nobody)
         SELECT value ->> 'id', value ->> 'selector', value ->> 'device', value ->> 'owner', value ->> 'token_msgs',
             value ->> 'app_id_msgs', value ->> 'token_calls', value ->> 'app_id_calls', value ->> 'imported',
             value ->> 'report', value ->> 'dead_at', value ->> 'created_at', value ->> 'updated_at',
             value ->> 'of_nobody'
         FROM jsonb_each(?)",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// What we know about the pushes to phones.
pub(crate) async fn arrivals(connection: &mut SqliteConnection, after: i64) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'phone', phone,
               'pushed_at', pushed_at,
               'waiting_since', waiting_since,
               'received_at', received_at,
               'receipts', receipts
           ) ORDER BY phone) AS BLOB) AS "page!: Vec<u8>"
           FROM (SELECT *
                 FROM arrivals
                 WHERE phone > ?1
                 ORDER BY phone
                 LIMIT ?2)"#,
        after,
        PAGE
    );
    from_json(&page.fetch_one(connection).await.map_err(from_sqlx)?)
}

/// Writes what we know about the pushes to phones.
pub(crate) async fn insert_arrivals(connection: &mut SqliteConnection, rows: &[Row]) -> Result<()> {
    let rows = to_json(rows)?;
    sqlx::query!(
        "INSERT INTO arrivals (phone, pushed_at, waiting_since, received_at, receipts)
         SELECT value ->> 'phone', value ->> 'pushed_at', value ->> 'waiting_since', value ->> 'received_at',
             value ->> 'receipts'
         FROM jsonb_each(?)",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Pushers.
pub(crate) async fn pushers(connection: &mut SqliteConnection, after: i64) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'id', id,
               'user_id', user_id,
               'app_id', app_id,
               'pushkey', pushkey,
               'selector', selector,
               'wanted', wanted,
               'state', state,
               'generation', generation,
               'claim', claim,
               'ask_first', iif(ask_first, json('true'), json('false')),
               'attempts', attempts,
               'last_error', last_error,
               'registered_as', registered_as,
               'refresh_at', refresh_at,
               'created_at', created_at,
               'updated_at', updated_at
           ) ORDER BY id) AS BLOB) AS "page!: Vec<u8>"
           FROM (SELECT *
                 FROM pushers
                 WHERE id > ?1
                 ORDER BY id
                 LIMIT ?2)"#,
        after,
        PAGE
    );
    from_json(&page.fetch_one(connection).await.map_err(from_sqlx)?)
}

/// Writes pushers.
pub(crate) async fn insert_pushers(connection: &mut SqliteConnection, rows: &[Row]) -> Result<()> {
    let rows = to_json(rows)?;
    sqlx::query!(
        "INSERT INTO pushers (id, user_id, app_id, pushkey, selector, wanted, state, generation, claim, ask_first, attempts,
             last_error, registered_as, refresh_at, created_at, updated_at)
         SELECT value ->> 'id', value ->> 'user_id', value ->> 'app_id', value ->> 'pushkey', value ->> 'selector',
             value ->> 'wanted', value ->> 'state', value ->> 'generation', value ->> 'claim', value ->> 'ask_first',
             value ->> 'attempts', value ->> 'last_error', value ->> 'registered_as', value ->> 'refresh_at',
             value ->> 'created_at', value ->> 'updated_at'
         FROM jsonb_each(?)",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Jobs that tell their pusher, in the order of the pushers.
pub(crate) async fn jobs(connection: &mut SqliteConnection, after: i64) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'id', CAST(id AS TEXT),
               'key', pusher_id,
               'status', CAST(status AS TEXT),
               'attempts', CAST(attempts AS INTEGER),
               'run_at', CAST(run_at AS INTEGER),
               'not_before', CAST(not_before AS INTEGER),
               'lost', CAST(lost AS INTEGER),
               'recalled', iif(recalled, json('true'), json('false')),
               'lock_by', CAST(lock_by AS TEXT),
               'error', CAST(iif(json_valid(last_result), last_result ->> '$.Err', last_result) AS TEXT),
               'done_at', CAST(done_at AS INTEGER)
           ) ORDER BY pusher_id) AS BLOB) AS "page!: Vec<u8>"
           FROM (SELECT *
                 FROM Jobs
                 WHERE pusher_id > ?1
                   AND typeof(pusher_id) = 'integer'
                   AND job_type = 'sync_pusher'
                 ORDER BY pusher_id
                 LIMIT ?2)"#,
        after,
        PAGE
    );
    let mut rows = from_json(&page.fetch_one(connection).await.map_err(from_sqlx)?)?;
    for row in &mut rows {
        // The job's name contains the time when it was made.
        let name = row.remove("id");
        let name = name.as_ref().and_then(serde_json::Value::as_str);
        let name = name.and_then(|name| Ulid::from_string(name).ok());
        let created_ms = name.map_or(0, |name| name.timestamp_ms());
        row.insert("created_ms".to_owned(), created_ms.into());
    }
    Ok(rows)
}

/// Writes jobs.
pub(crate) async fn insert_jobs(connection: &mut SqliteConnection, rows: &[Row]) -> Result<()> {
    let named = rows.iter().map(|row| {
        let copied: CopiedJob = serde_json::from_value(row.clone().into_iter().collect())?;
        let created_ms = u64::try_from(copied.created_ms).unwrap_or_default();
        let pusher_id = copied.job.key;
        let payload = serde_json::to_string(&SyncPusher { pusher_id })?;
        let name = Ulid::from_parts(created_ms, rand::random()).to_string();
        Ok(json!({"id": name, "payload": payload, "job": copied.job}))
    });
    let named: std::result::Result<Vec<_>, serde_json::Error> = named.collect();
    let jobs = serde_json::Value::from(
        named.map_err(|error| from_sqlx(sqlx::Error::Encode(Box::new(error))))?,
    );
    let jobs = jobs.to_string();
    sqlx::query!(
        "INSERT INTO Jobs (id, job, job_type, status, attempts, max_attempts, run_at, not_before, lost, last_result, done_at,
             priority, metadata, pusher_id)
         SELECT value ->> 'id', CAST(value ->> 'payload' AS BLOB), 'sync_pusher', value ->> '$.job.status',
             value ->> '$.job.attempts', 2147483647, value ->> '$.job.run_at', value ->> '$.job.not_before',
             value ->> '$.job.lost',
             iif(value ->> '$.job.error' IS NULL, NULL, json_object('Err', value ->> '$.job.error')),
             value ->> '$.job.done_at', 0, '{}', value ->> '$.job.key'
         FROM jsonb_each(?)",
        jobs
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The highest ids ever used. They distinguish an empty table from a lost one, and prevent an id from being used twice.
pub(crate) async fn ids(connection: &mut SqliteConnection, after: &str) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'name', name,
               'last', seq
           ) ORDER BY name) AS BLOB) AS "page!: Vec<u8>"
           FROM sqlite_sequence
           WHERE name IN ('push_tokens', 'pushers')
             AND seq > 0
             AND name > ?"#,
        after
    );
    from_json(&page.fetch_one(connection).await.map_err(from_sqlx)?)
}

/// Writes the highest ids.
pub(crate) async fn insert_ids(connection: &mut SqliteConnection, rows: &[Row]) -> Result<()> {
    let rows = to_json(rows)?;
    sqlx::query!(
        "DELETE FROM sqlite_sequence
         WHERE name IN ('push_tokens', 'pushers')"
    )
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    sqlx::query!(
        "INSERT INTO sqlite_sequence (name, seq)
         SELECT value ->> 'name', value ->> 'last'
         FROM jsonb_each(?)",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}
