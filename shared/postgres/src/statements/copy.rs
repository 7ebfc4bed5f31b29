//! Reads and writes all tables page by page, for a copy of the database. Each row is a JSON object with the columns
//! that both kinds of database have.

use matrix2acrobits_shared::flow::{
    Result,
    copy::{PAGE, Row, Rows, from_json, to_json},
};
use sqlx::PgConnection;

use crate::{errors::from_sqlx, statements::server::FEED};

/// The other users of this database, by the names of their programs. None if there are none. A copy may log in as
/// another role than the processes, but finds the change feed that each of them has.
pub(crate) async fn others(connection: &mut PgConnection) -> Result<Option<String>> {
    sqlx::query_scalar!(
        "SELECT string_agg(DISTINCT application_name || coalesce(' at ' || host(client_addr), ''), ', ')
         FROM pg_stat_activity
         WHERE datname = current_database()
           -- What kind of process another role's is, is hidden from us.
           AND ((usename = current_user AND backend_type = 'client backend')
                OR right(application_name, length($1)) = $1)
           AND pid <> pg_backend_pid()",
        FEED
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// Begins a transaction that reads a snapshot and changes nothing.
pub(crate) async fn begin_reading(connection: &mut PgConnection) -> Result<()> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let done = sqlx::raw_sql(begin).execute(connection).await;
    done.map_err(from_sqlx)?;
    Ok(())
}

/// Begins a transaction in which nobody else can write.
pub(crate) async fn begin_alone(connection: &mut PgConnection) -> Result<()> {
    let begin = "BEGIN;
         SET LOCAL lock_timeout = '2s';
         LOCK TABLE push_tokens, arrivals, mappings, pushers, jobs, meta IN SHARE ROW EXCLUSIVE MODE";
    let done = sqlx::raw_sql(begin).execute(connection).await;
    done.map_err(from_sqlx)?;
    Ok(())
}

/// The number of rows.
pub(crate) async fn rows(connection: &mut PgConnection) -> Result<Rows> {
    sqlx::query_as!(
        Rows,
        r#"SELECT (SELECT count(*) FROM mappings) AS "mappings!",
               (SELECT count(*) FROM push_tokens) AS "phones!",
               (SELECT count(*) FROM arrivals) AS "arrivals!",
               (SELECT count(*) FROM pushers) AS "pushers!",
               (SELECT count(*) FROM jobs) AS "jobs!",
               0::int8 AS "lost_jobs!""#
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// The keys.
pub(crate) async fn keys(connection: &mut PgConnection, after: &str) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT coalesce(json_agg(t ORDER BY t.name), '[]')::text AS "page!"
           FROM (SELECT name, upper(encode(value, 'hex')) AS value
                 FROM meta
                 WHERE name > $1
                 ORDER BY name
                 LIMIT $2) t"#,
        after,
        PAGE
    );
    let page = page.fetch_one(connection).await.map_err(from_sqlx)?;
    from_json(page.as_bytes())
}

/// Writes the keys, and deletes all other keys.
pub(crate) async fn insert_keys(connection: &mut PgConnection, rows: &[Row]) -> Result<()> {
    let rows = to_json(rows)?;
    sqlx::query!(
        "DELETE FROM meta
         WHERE name NOT IN (SELECT name
                            FROM json_to_recordset($1::text::json) i (name text))",
        rows
    )
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    sqlx::query!(
        "INSERT INTO meta (name, value)
         SELECT name, decode(value, 'hex')
         FROM json_to_recordset($1::text::json) i (name text, value text)
         ON CONFLICT (name) DO UPDATE
         SET value = excluded.value",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Mappings.
pub(crate) async fn mappings(connection: &mut PgConnection, after: &str) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT coalesce(json_agg(t ORDER BY t.selector), '[]')::text AS "page!"
           FROM (SELECT selector, user_id, created_at, updated_at
                 FROM mappings
                 WHERE selector > $1
                 ORDER BY selector
                 LIMIT $2) t"#,
        after,
        PAGE
    );
    let page = page.fetch_one(connection).await.map_err(from_sqlx)?;
    from_json(page.as_bytes())
}

/// Writes mappings.
pub(crate) async fn insert_mappings(connection: &mut PgConnection, rows: &[Row]) -> Result<()> {
    sqlx::query!(
        "INSERT INTO mappings (selector, user_id, created_at, updated_at)
         SELECT selector, user_id, created_at, updated_at
         FROM json_populate_recordset(NULL::mappings, $1::text::json)",
        to_json(rows)?
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The phones' rows.
pub(crate) async fn phones(connection: &mut PgConnection, after: i64) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT coalesce(json_agg(t ORDER BY t.id), '[]')::text AS "page!"
           FROM (SELECT id, selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls, imported, report,
                     dead_at, created_at, updated_at, of_nobody
                 FROM push_tokens
                 WHERE id > $1
                 ORDER BY id
                 LIMIT $2) t"#,
        after,
        PAGE
    );
    let page = page.fetch_one(connection).await.map_err(from_sqlx)?;
    from_json(page.as_bytes())
}

/// Writes phones' rows.
pub(crate) async fn insert_phones(connection: &mut PgConnection, rows: &[Row]) -> Result<()> {
    sqlx::query!(
        "INSERT INTO push_tokens (id, selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls, imported,
             report, dead_at, created_at, updated_at, of_nobody)
         SELECT id, selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls, imported, report, dead_at,
             created_at, updated_at, of_nobody
         FROM json_populate_recordset(NULL::push_tokens, $1::text::json)",
        to_json(rows)?
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// What we know about the pushes to phones.
pub(crate) async fn arrivals(connection: &mut PgConnection, after: i64) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT coalesce(json_agg(t ORDER BY t.phone), '[]')::text AS "page!"
           FROM (SELECT phone, pushed_at, waiting_since, received_at, receipts
                 FROM arrivals
                 WHERE phone > $1
                 ORDER BY phone
                 LIMIT $2) t"#,
        after,
        PAGE
    );
    let page = page.fetch_one(connection).await.map_err(from_sqlx)?;
    from_json(page.as_bytes())
}

/// Writes what we know about the pushes to phones.
pub(crate) async fn insert_arrivals(connection: &mut PgConnection, rows: &[Row]) -> Result<()> {
    sqlx::query!(
        "INSERT INTO arrivals (phone, pushed_at, waiting_since, received_at, receipts)
         SELECT phone, pushed_at, waiting_since, received_at, receipts
         FROM json_populate_recordset(NULL::arrivals, $1::text::json)",
        to_json(rows)?
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Pushers.
pub(crate) async fn pushers(connection: &mut PgConnection, after: i64) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT coalesce(json_agg(t ORDER BY t.id), '[]')::text AS "page!"
           FROM (SELECT id, user_id, app_id, pushkey, selector, wanted, state, generation, claim, ask_first, attempts,
                     last_error, registered_as, refresh_at, created_at, updated_at
                 FROM pushers
                 WHERE id > $1
                 ORDER BY id
                 LIMIT $2) t"#,
        after,
        PAGE
    );
    let page = page.fetch_one(connection).await.map_err(from_sqlx)?;
    from_json(page.as_bytes())
}

/// Writes pushers.
pub(crate) async fn insert_pushers(connection: &mut PgConnection, rows: &[Row]) -> Result<()> {
    sqlx::query!(
        "INSERT INTO pushers (id, user_id, app_id, pushkey, selector, wanted, state, generation, claim, ask_first, attempts,
             last_error, registered_as, refresh_at, created_at, updated_at)
         SELECT id, user_id, app_id, pushkey, selector, wanted, state, generation, claim, ask_first, attempts, last_error,
             registered_as, refresh_at, created_at, updated_at
         FROM json_populate_recordset(NULL::pushers, $1::text::json)",
        to_json(rows)?
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Jobs.
pub(crate) async fn jobs(connection: &mut PgConnection, after: i64) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT coalesce(json_agg(t ORDER BY t.key), '[]')::text AS "page!"
           FROM (SELECT pusher_id AS key, created_ms, state AS status, attempts, run_at, not_before, lost, recalled, lock_by,
                     last_error AS error, done_at
                 FROM jobs
                 WHERE pusher_id > $1
                 ORDER BY pusher_id
                 LIMIT $2) t"#,
        after,
        PAGE
    );
    let page = page.fetch_one(connection).await.map_err(from_sqlx)?;
    from_json(page.as_bytes())
}

/// Writes jobs.
pub(crate) async fn insert_jobs(connection: &mut PgConnection, rows: &[Row]) -> Result<()> {
    sqlx::query!(
        "INSERT INTO jobs (pusher_id, created_ms, state, attempts, run_at, not_before, lost, last_error, done_at)
         SELECT key, created_ms, status, attempts, run_at, not_before, lost, error, done_at
         FROM json_to_recordset($1::text::json)
              i (key int8, created_ms int8, status text, attempts int8, run_at int8, not_before int8, lost int8, error text,
              done_at int8)",
        to_json(rows)?
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The highest ids ever used. They distinguish an empty table from a lost one, and prevent an id from being used twice.
pub(crate) async fn ids(connection: &mut PgConnection, after: &str) -> Result<Vec<Row>> {
    let page = sqlx::query_scalar!(
        r#"SELECT coalesce(json_agg(t ORDER BY t.name COLLATE "C"), '[]')::text AS "page!"
           FROM (SELECT i.name, pg_sequence_last_value(pg_get_serial_sequence(i.name, 'id')::regclass) AS last
                 FROM unnest(ARRAY['push_tokens', 'pushers']) i (name)) t
           WHERE t.last IS NOT NULL
             AND t.name COLLATE "C" > $1"#,
        after
    );
    let page = page.fetch_one(connection).await.map_err(from_sqlx)?;
    from_json(page.as_bytes())
}

/// Writes the highest ids.
pub(crate) async fn insert_ids(connection: &mut PgConnection, rows: &[Row]) -> Result<()> {
    sqlx::query!(
        "SELECT count(setval(pg_get_serial_sequence(i.name, 'id'), i.last))
         FROM json_to_recordset($1::text::json) i (name text, last int8)",
        to_json(rows)?
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}
