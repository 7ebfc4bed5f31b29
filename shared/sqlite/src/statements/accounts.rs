//! Rows of phones: `push_tokens`.

use matrix2acrobits_shared::{
    flow::{Phones, Result},
    rules::report::{Account, Phone},
};
use sqlx::{SqliteConnection, SqliteExecutor};

use super::{from_json, inserted, json};
use crate::errors::from_sqlx;

/// What is stored about each account: its user by the mapping and by a login, and the rows of this device and without a
/// device.
pub(crate) async fn accounts(
    connection: &mut SqliteConnection,
    asked: &[(&str, &str)],
) -> Result<Vec<Account>> {
    let asked = json(asked)?;
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'mapped', (SELECT m.user_id
                          FROM mappings m
                          WHERE m.selector = i.value ->> 0),
               -- All rows of a selector that have an owner have the same.
               'owner', (SELECT o.owner
                         FROM push_tokens o
                         WHERE o.selector = i.value ->> 0
                           AND o.owner IS NOT NULL
                         LIMIT 1),
               'phones', (SELECT json_group_array(json_object(
                              'id', t.id,
                              'selector', t.selector,
                              'device', t.device,
                              'contents', json_object(
                                  'owner', t.owner,
                                  'token_msgs', t.token_msgs,
                                  'app_id_msgs', t.app_id_msgs,
                                  'token_calls', t.token_calls,
                                  'app_id_calls', t.app_id_calls),
                              'imported', iif(t.imported, json('true'), json('false')),
                              'report', t.report,
                              'dead_at', t.dead_at,
                              'updated_at', t.updated_at))
                          FROM push_tokens t
                          WHERE t.selector = i.value ->> 0
                            AND t.device IN (i.value ->> 1, ''))
           ) ORDER BY i.key) AS BLOB) AS "rows!: Vec<u8>"
           FROM jsonb_each(?) i"#,
        asked
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    from_json(&rows)
}

/// Rows of phones, by id.
pub(crate) async fn phones(
    connection: &mut SqliteConnection,
    which: Phones<'_>,
) -> Result<Vec<Phone>> {
    let ids = match which {
        Phones::Selectors(selectors) => of_selectors(connection, selectors).await?,
        Phones::After(after, limit) => after_id(connection, after, limit).await?,
        Phones::Id(id) => vec![id],
        Phones::OfNobody { before, limit } => of_nobody(connection, before, limit).await?,
    };
    let ids = json(ids)?;
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'id', t.id,
               'selector', t.selector,
               'device', t.device,
               'contents', json_object(
                   'owner', t.owner,
                   'token_msgs', t.token_msgs,
                   'app_id_msgs', t.app_id_msgs,
                   'token_calls', t.token_calls,
                   'app_id_calls', t.app_id_calls),
               'imported', iif(t.imported, json('true'), json('false')),
               'report', t.report,
               'dead_at', t.dead_at,
               'updated_at', t.updated_at
           ) ORDER BY t.id) AS BLOB) AS "rows!: Vec<u8>"
           FROM push_tokens t
           WHERE t.id IN (SELECT value FROM jsonb_each(?))"#,
        ids
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    from_json(&rows)
}

async fn of_selectors(connection: &mut SqliteConnection, selectors: &[&str]) -> Result<Vec<i64>> {
    let selectors = json(selectors)?;
    sqlx::query_scalar!(
        r#"SELECT id AS "id!"
           FROM push_tokens
           WHERE selector IN (SELECT value FROM jsonb_each(?))"#,
        selectors
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

async fn after_id(connection: &mut SqliteConnection, after: i64, limit: i64) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT id AS "id!"
           FROM push_tokens
           WHERE id > ?
           ORDER BY id
           LIMIT ?"#,
        after,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

async fn of_nobody(connection: &mut SqliteConnection, before: i64, limit: i64) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT id AS "id!"
           FROM push_tokens
           WHERE of_nobody = 1
             AND updated_at < ?
             -- An operator's shell may have changed these.
             AND owner IS NULL
             AND imported = 0
           ORDER BY updated_at
           LIMIT ?"#,
        before,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// How many rows nobody stands for.
pub(crate) async fn count_of_nobody(executor: impl SqliteExecutor<'_>) -> Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM push_tokens
           WHERE of_nobody = 1"#
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)
}

/// Creates rows. Returns their ids, in order.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    phones: &[&Phone],
    now: i64,
) -> Result<Vec<i64>> {
    let rows = json(phones.iter().map(|phone| row(phone)))?;
    let done = sqlx::query!(
        "INSERT INTO push_tokens (selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls,
             imported, report, dead_at, created_at, updated_at, of_nobody)
         SELECT value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
             value ->> 8, value ->> 9, value ->> 10, ?2, value ->> 11,
             value ->> 3 IS NULL
                 AND value ->> 8 = 0
                 AND NOT EXISTS (SELECT 1
                                 FROM mappings m
                                 WHERE m.selector = value ->> 1)
         FROM jsonb_each(?1)
         ORDER BY key",
        rows,
        now
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(inserted(done.last_insert_rowid(), phones.len()))
}

/// Writes rows.
pub(crate) async fn update(connection: &mut SqliteConnection, phones: &[&Phone]) -> Result<()> {
    let rows = json(phones.iter().map(|phone| row(phone)))?;
    sqlx::query!(
        "UPDATE push_tokens
         SET device = i.value ->> 2,
             owner = i.value ->> 3,
             token_msgs = i.value ->> 4,
             app_id_msgs = i.value ->> 5,
             token_calls = i.value ->> 6,
             app_id_calls = i.value ->> 7,
             imported = i.value ->> 8,
             report = i.value ->> 9,
             dead_at = i.value ->> 10,
             updated_at = i.value ->> 11,
             of_nobody = i.value ->> 3 IS NULL
                 AND i.value ->> 8 = 0
                 AND NOT EXISTS (SELECT 1
                                 FROM mappings m
                                 WHERE m.selector = i.value ->> 1)
         FROM jsonb_each(?) i
         WHERE push_tokens.id = i.value ->> 0",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// A row in the order of the two statements above.
fn row(phone: &Phone) -> impl serde::Serialize + use<'_> {
    let contents = &phone.contents;
    (
        phone.id,
        &phone.selector,
        &phone.device,
        &contents.owner,
        &contents.token_msgs,
        &contents.app_id_msgs,
        &contents.token_calls,
        &contents.app_id_calls,
        i64::from(phone.imported),
        phone.report,
        phone.dead_at,
        phone.updated_at,
    )
}

/// Renews the time of rows.
pub(crate) async fn touch(connection: &mut SqliteConnection, phones: &[(i64, i64)]) -> Result<()> {
    let rows = json(phones)?;
    sqlx::query!(
        "UPDATE push_tokens
         SET updated_at = i.value ->> 1
         FROM jsonb_each(?) i
         WHERE push_tokens.id = i.value ->> 0",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes rows.
pub(crate) async fn delete(connection: &mut SqliteConnection, ids: &[i64]) -> Result<()> {
    let ids = json(ids)?;
    sqlx::query!(
        "DELETE FROM push_tokens
         WHERE id IN (SELECT value FROM jsonb_each(?))",
        ids
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}
