//! Fills a database directly, since a million reports over HTTP would take minutes.

use std::ops::Range;
use std::path::Path;

use matrix2acrobits_test_postgres as postgres;
use matrix2acrobits_tests::marks::MarkKey;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

/// The key of the marks that the homeserver's notifications carry.
pub(crate) const MARK_KEY: [u8; 32] = [7; 32];
/// `PROXY_URL` of the worker.
pub(crate) const PROXY_URL: &str = "https://matrix-proxy.example.com";
/// The app of all phones.
pub(crate) const APP_ID: &str = "com.acrobits.softphone";

/// Scatters numbers over 32 bits, so that neighbours do not lie side by side in the indexes; the SQL
/// below does the same.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(2_654_435_761) & 0xffff_ffff
}

/// The push token of phone number n: 64 hexadecimal digits, as on iOS.
pub(crate) fn token(number: u64) -> String {
    format!("{:08x}{number:056x}", scattered(number))
}

/// Its selector, of the usual length.
pub(crate) fn selector(number: u64) -> String {
    format!("{:08X}{number:032X}:{number:08X}", scattered(number))
}

const TOKEN: &str = "printf('%08x%056x', (i * 2654435761) & 4294967295, i)";
const SELECTOR: &str = "printf('%08X%032X:%08X', (i * 2654435761) & 4294967295, i, i)";
const USER: &str = "printf('@user-%d:example.org', i)";

/// Without it the worker takes them up as soon as the homeserver takes one.
const NOT_BEFORE: &str = "unixepoch() + 3600";

/// What phones 0 to n have left in the database.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows {
    Tokens,
    Mappings,
    /// Pushers that the homeserver holds.
    Registered,
    /// Pushers that are yet to be set, and their jobs, due now.
    Due,
    /// The same in backoff, due in an hour and not before, as after a 429.
    Waiting,
    /// The same given up.
    Dead,
}

/// Adds rows for `count` phones to a database that the api has created, and sets the key of the marks.
pub(crate) async fn fill(file: &Path, count: u64, rows: &[Rows]) -> Result<(), sqlx::Error> {
    fill_phones(file, 0..count, rows).await
}

/// The same for the phones with these numbers, of which there must be one.
pub(crate) async fn fill_phones(
    file: &Path,
    phones: Range<u64>,
    rows: &[Rows],
) -> Result<(), sqlx::Error> {
    let Range { start, end } = phones;
    let options = SqliteConnectOptions::new().filename(file);
    let mut database = SqliteConnection::connect_with(&options).await?;
    // One long transaction; the processes under test set their own.
    run(&mut database, "PRAGMA cache_size = -262144").await?;
    run(&mut database, "BEGIN").await?;
    for rows in rows {
        for statement in statements(*rows) {
            let numbers = format!(
                "WITH RECURSIVE n(i) AS (SELECT {start} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {end})"
            );
            run(&mut database, &format!("{numbers} {statement}")).await?;
        }
    }
    let key = MARK_KEY.escape_ascii().to_string().replace("\\x", "");
    let sql = format!("UPDATE meta SET value = x'{key}' WHERE name = 'mark_key'");
    run(&mut database, &sql).await?;
    run(&mut database, "COMMIT").await?;
    run(&mut database, "PRAGMA wal_checkpoint(TRUNCATE)").await?;
    database.close().await
}

/// The same for a PostgreSQL database, in the state in which autovacuum leaves it.
pub(crate) async fn fill_postgres(
    database: &postgres::Database,
    count: u64,
    rows: &[Rows],
) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(&database.url()).await?;
    let key = MARK_KEY.escape_ascii().to_string().replace("\\x", "");
    let mut sql = format!("UPDATE meta SET value = '\\x{key}' WHERE name = 'mark_key';");
    for rows in rows {
        sql.push_str(&postgres_statements(*rows, count));
    }
    let sql = AssertSqlSafe(sql);
    sqlx::raw_sql(sql).execute(&mut connection).await?;
    let vacuum = sqlx::raw_sql("VACUUM ANALYZE");
    vacuum.execute(&mut connection).await?;
    connection.close().await
}

fn postgres_statements(rows: Rows, count: u64) -> String {
    const HASH: &str = "lpad(to_hex((i * 2654435761) & 4294967295), 8, '0')";
    const NOW: &str = "extract(epoch FROM now())::bigint";
    let token = format!("{HASH} || lpad(to_hex(i), 56, '0')");
    let selector =
        format!("upper({HASH} || lpad(to_hex(i), 32, '0') || ':' || lpad(to_hex(i), 8, '0'))");
    let user = "'@user-' || i || ':example.org'";
    let numbers = format!("FROM generate_series(0::bigint, {count} - 1) i;");
    match rows {
        Rows::Tokens => format!(
            "INSERT INTO push_tokens (selector, device, token_msgs, app_id_msgs, token_calls, app_id_calls, report,
                 created_at, updated_at)
             SELECT {selector}, '', {token}, '{APP_ID}', {token}, '{APP_ID}', 1, {NOW}, {NOW} {numbers}"
        ),
        Rows::Mappings => format!(
            "INSERT INTO mappings (selector, user_id, created_at, updated_at)
             SELECT {selector}, {user}, {NOW}, {NOW} {numbers}"
        ),
        Rows::Due => format!(
            "INSERT INTO pushers (id, user_id, app_id, pushkey, selector, wanted, state, generation, claim, created_at,
                 updated_at)
             SELECT i + 1, {user}, '{APP_ID}', {token}, {selector}, 'present', 'pending', 1, 1, {NOW}, {NOW} {numbers}
             INSERT INTO jobs (pusher_id, created_ms, state, run_at)
             SELECT i + 1, {NOW} * 1000, 'Pending', {NOW} {numbers}
             SELECT setval(pg_get_serial_sequence('pushers', 'id'), {count});"
        ),
        Rows::Registered | Rows::Waiting | Rows::Dead => unreachable!("no part asks for it"),
    }
}

/// Bytes of the file; call it when nobody writes.
pub(crate) fn size(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

/// How many jobs there are, also those that were given up; a job that is done has no row.
pub(crate) async fn jobs(file: &Path) -> Result<u64, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let mut database = SqliteConnection::connect_with(&options).await?;
    let count = sqlx::query_scalar("SELECT count(*) FROM Jobs");
    let jobs: i64 = count.fetch_one(&mut database).await?;
    database.close().await?;
    Ok(jobs.unsigned_abs())
}

/// The worker's name for its settings and the key of the marks. It sets pushers with another name anew, 50 a second.
fn registered_as() -> String {
    let key = MarkKey::new(&MARK_KEY).mark("\0name");
    format!(
        "event_id_only {PROXY_URL}/_matrix/push/v1/notify {}",
        &key[..8]
    )
}

fn statements(rows: Rows) -> Vec<String> {
    let job = |status: &str, attempts: u8, wait: u16, not_before: &str| {
        format!(
            "INSERT INTO Jobs (job, id, job_type, status, attempts, max_attempts, run_at, priority, metadata, pusher_id, not_before)
             SELECT CAST(printf('{{\"pusher_id\":%d}}', i + 1) AS BLOB), printf('01%024d', i), 'sync_pusher', '{status}',
                 {attempts}, 2147483647, unixepoch() + {wait}, 0, '{{}}', i + 1, {not_before} FROM n"
        )
    };
    let pusher = |state: &str, registered: &str| {
        format!(
            "INSERT INTO pushers (id, user_id, app_id, pushkey, selector, wanted, state, generation, claim,
                 registered_as, refresh_at, created_at, updated_at)
             SELECT i + 1, {USER}, '{APP_ID}', {TOKEN}, {SELECTOR}, 'present', '{state}', 1, 1,
                 {registered}, unixepoch(), unixepoch() FROM n"
        )
    };
    match rows {
        Rows::Tokens => vec![format!(
            "INSERT INTO push_tokens (selector, device, token_msgs, app_id_msgs, token_calls, app_id_calls, report, created_at, updated_at)
             SELECT {SELECTOR}, '', {TOKEN}, '{APP_ID}', {TOKEN}, '{APP_ID}', 1, unixepoch(), unixepoch() FROM n"
        )],
        Rows::Mappings => vec![format!(
            "INSERT INTO mappings (selector, user_id, created_at, updated_at)
             SELECT {SELECTOR}, {USER}, unixepoch(), unixepoch() FROM n"
        )],
        Rows::Registered => {
            let registered = format!("'{}', unixepoch() + 86400", registered_as());
            vec![pusher("registered", &registered)]
        }
        Rows::Due => vec![pusher("pending", "NULL, NULL"), job("Pending", 0, 0, "NULL")],
        Rows::Dead => vec![
            pusher("failed", "NULL, NULL"),
            job("Killed", 3, 0, "NULL"),
            "UPDATE Jobs SET done_at = unixepoch() FROM n WHERE Jobs.id = printf('01%024d', i)".to_owned(),
        ],
        Rows::Waiting => vec![pusher("pending", "NULL, NULL"), job("Failed", 3, 3600, NOT_BEFORE)],
    }
}

async fn run(database: &mut SqliteConnection, sql: &str) -> Result<(), sqlx::Error> {
    let sql = AssertSqlSafe(sql.to_owned());
    sqlx::query(sql).execute(database).await?;
    Ok(())
}
