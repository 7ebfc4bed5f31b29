//! Rows of phones: `push_tokens`.

use std::collections::BTreeMap;

use matrix2acrobits_shared::{
    flow::{Phones, Result},
    rules::report::{Account, Contents, Phone},
};
use sqlx::PgConnection;

use crate::errors::from_sqlx;

struct Row {
    id: i64,
    selector: String,
    device: String,
    owner: Option<String>,
    token_msgs: Option<String>,
    app_id_msgs: Option<String>,
    token_calls: Option<String>,
    app_id_calls: Option<String>,
    imported: bool,
    report: i64,
    dead_at: Option<i64>,
    updated_at: i64,
}

impl From<Row> for Phone {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            selector: row.selector,
            device: row.device,
            contents: Contents {
                owner: row.owner,
                token_msgs: row.token_msgs,
                app_id_msgs: row.app_id_msgs,
                token_calls: row.token_calls,
                app_id_calls: row.app_id_calls,
            },
            imported: row.imported,
            report: row.report,
            dead_at: row.dead_at,
            updated_at: row.updated_at,
        }
    }
}

/// What is stored about each account: its user by the mapping and by a login, and the rows of this device and without a
/// device.
pub(crate) async fn accounts(
    connection: &mut PgConnection,
    asked: &[(&str, &str)],
) -> Result<Vec<Account>> {
    let selectors: Vec<_> = asked.iter().map(|(selector, _)| *selector).collect();
    let devices: Vec<_> = asked.iter().map(|(_, device)| *device).collect();
    let rows = sqlx::query!(
        r#"SELECT i.place AS "place!",
               (SELECT m.user_id
                FROM mappings m
                WHERE m.selector = i.selector) AS mapped,
               -- All rows of a selector that have an owner have the same.
               (SELECT o.owner
                FROM push_tokens o
                WHERE o.selector = i.selector
                  AND o.owner IS NOT NULL
                LIMIT 1) AS account_owner,
               t.id AS "id?",
               t.device AS "device?",
               t.owner AS "owner?",
               t.token_msgs AS "token_msgs?",
               t.app_id_msgs AS "app_id_msgs?",
               t.token_calls AS "token_calls?",
               t.app_id_calls AS "app_id_calls?",
               t.imported AS "imported?",
               t.report AS "report?",
               t.dead_at AS "dead_at?",
               t.updated_at AS "updated_at?"
           FROM unnest($1::text[], $2::text[]) WITH ORDINALITY i (selector, device, place)
           LEFT JOIN LATERAL (SELECT *
                              FROM push_tokens p
                              WHERE p.selector = i.selector
                                AND p.device = ANY (ARRAY[i.device, ''])
                              OFFSET 0) t ON true"#,
        &selectors as &[&str],
        &devices as &[&str]
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let mut accounts: Vec<Account> = Vec::new();
    accounts.resize_with(asked.len(), Account::default);
    for row in rows {
        let place = usize::try_from(row.place - 1).unwrap_or(usize::MAX);
        let (Some(account), Some(selector)) = (accounts.get_mut(place), selectors.get(place))
        else {
            continue;
        };
        account.mapped = row.mapped;
        account.owner = row.account_owner;
        let phone = row.id.zip(row.device).zip(row.report).zip(row.updated_at);
        if let Some((((id, device), report), updated_at)) = phone {
            account.phones.push(Phone {
                id,
                selector: (*selector).to_owned(),
                device,
                contents: Contents {
                    owner: row.owner,
                    token_msgs: row.token_msgs,
                    app_id_msgs: row.app_id_msgs,
                    token_calls: row.token_calls,
                    app_id_calls: row.app_id_calls,
                },
                imported: row.imported.unwrap_or_default(),
                report,
                dead_at: row.dead_at,
                updated_at,
            });
        }
    }
    Ok(accounts)
}

/// Rows of phones, by id.
pub(crate) async fn phones(connection: &mut PgConnection, which: Phones<'_>) -> Result<Vec<Phone>> {
    let rows = match which {
        Phones::Selectors(selectors) => of_selectors(connection, selectors).await?,
        Phones::After(after, limit) => after_id(connection, after, limit).await?,
        Phones::Id(id) => after_id(connection, id.saturating_sub(1), 1)
            .await?
            .into_iter()
            .filter(|row| row.id == id)
            .collect(),
        Phones::OfNobody { before, limit } => of_nobody(connection, before, limit).await?,
    };
    Ok(rows.into_iter().map(Phone::from).collect())
}

async fn of_selectors(connection: &mut PgConnection, selectors: &[&str]) -> Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        "SELECT id, selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls, imported, report,
             dead_at, updated_at
         FROM push_tokens
         WHERE selector = ANY ($1)
         ORDER BY id",
        selectors as &[&str]
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

async fn after_id(connection: &mut PgConnection, after: i64, limit: i64) -> Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        "SELECT id, selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls, imported, report,
             dead_at, updated_at
         FROM push_tokens
         WHERE id > $1
         ORDER BY id
         LIMIT $2",
        after,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

async fn of_nobody(connection: &mut PgConnection, before: i64, limit: i64) -> Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        "SELECT id, selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls, imported, report,
             dead_at, updated_at
         FROM push_tokens
         WHERE of_nobody
           AND updated_at < $1
           -- An operator's shell may have changed these.
           AND owner IS NULL
           AND NOT imported
         ORDER BY updated_at
         LIMIT $2",
        before,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// How many rows nobody stands for.
pub(crate) async fn count_of_nobody(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM push_tokens t
           WHERE t.of_nobody"#
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// The columns of phones, each as an array.
#[derive(Default)]
struct Columns<'p> {
    ids: Vec<i64>,
    selectors: Vec<&'p str>,
    devices: Vec<&'p str>,
    owners: Vec<Option<&'p str>>,
    tokens_msgs: Vec<Option<&'p str>>,
    app_ids_msgs: Vec<Option<&'p str>>,
    tokens_calls: Vec<Option<&'p str>>,
    app_ids_calls: Vec<Option<&'p str>>,
    imported: Vec<bool>,
    reports: Vec<i64>,
    dead_at: Vec<Option<i64>>,
    updated_at: Vec<i64>,
}

impl<'p> Columns<'p> {
    fn of(phones: &[&'p Phone]) -> Self {
        let mut all = Self::default();
        for phone in phones {
            let contents = &phone.contents;
            all.ids.push(phone.id);
            all.selectors.push(&phone.selector);
            all.devices.push(&phone.device);
            all.owners.push(contents.owner.as_deref());
            all.tokens_msgs.push(contents.token_msgs.as_deref());
            all.app_ids_msgs.push(contents.app_id_msgs.as_deref());
            all.tokens_calls.push(contents.token_calls.as_deref());
            all.app_ids_calls.push(contents.app_id_calls.as_deref());
            all.imported.push(phone.imported);
            all.reports.push(phone.report);
            all.dead_at.push(phone.dead_at);
            all.updated_at.push(phone.updated_at);
        }
        all
    }
}

/// Creates rows. Returns their ids, in order.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    phones: &[&Phone],
    now: i64,
) -> Result<Vec<i64>> {
    let all = Columns::of(phones);
    sqlx::query_scalar!(
        "INSERT INTO push_tokens (selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls,
             imported, report, dead_at, created_at, updated_at, of_nobody)
         SELECT i.selector, i.device, i.owner, i.token_msgs, i.app_id_msgs, i.token_calls, i.app_id_calls,
             i.imported, i.report, i.dead_at, $12, i.updated_at,
             i.owner IS NULL
                 AND NOT i.imported
                 AND (SELECT m.user_id
                      FROM mappings m
                      WHERE m.selector = i.selector) IS NULL
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                  $8::bool[], $9::int8[], $10::int8[], $11::int8[])
              WITH ORDINALITY i (selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls,
                  imported, report, dead_at, updated_at, place)
         ORDER BY i.place
         RETURNING id",
        &all.selectors as &[&str],
        &all.devices as &[&str],
        &all.owners as &[Option<&str>],
        &all.tokens_msgs as &[Option<&str>],
        &all.app_ids_msgs as &[Option<&str>],
        &all.tokens_calls as &[Option<&str>],
        &all.app_ids_calls as &[Option<&str>],
        &all.imported[..],
        &all.reports[..],
        &all.dead_at as &[Option<i64>],
        &all.updated_at[..],
        now
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Writes rows.
pub(crate) async fn update(connection: &mut PgConnection, phones: &[&Phone]) -> Result<()> {
    let all = Columns::of(phones);
    sqlx::query!(
        "UPDATE push_tokens t
         SET device = i.device,
             owner = i.owner,
             token_msgs = i.token_msgs,
             app_id_msgs = i.app_id_msgs,
             token_calls = i.token_calls,
             app_id_calls = i.app_id_calls,
             imported = i.imported,
             report = i.report,
             dead_at = i.dead_at,
             updated_at = i.updated_at,
             of_nobody = i.owner IS NULL
                 AND NOT i.imported
                 AND (SELECT m.user_id
                      FROM mappings m
                      WHERE m.selector = t.selector) IS NULL
         FROM unnest($1::int8[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                  $8::bool[], $9::int8[], $10::int8[], $11::int8[])
              i (id, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls, imported, report, dead_at,
                  updated_at)
         WHERE t.id = i.id",
        &all.ids[..],
        &all.devices as &[&str],
        &all.owners as &[Option<&str>],
        &all.tokens_msgs as &[Option<&str>],
        &all.app_ids_msgs as &[Option<&str>],
        &all.tokens_calls as &[Option<&str>],
        &all.app_ids_calls as &[Option<&str>],
        &all.imported[..],
        &all.reports[..],
        &all.dead_at as &[Option<i64>],
        &all.updated_at[..]
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Renews the time of rows. If a row is named twice, the last time counts.
pub(crate) async fn touch(connection: &mut PgConnection, phones: &[(i64, i64)]) -> Result<()> {
    let last: BTreeMap<i64, i64> = phones.iter().copied().collect();
    let (ids, times): (Vec<i64>, Vec<i64>) = last.into_iter().unzip();
    sqlx::query!(
        "UPDATE push_tokens t
         SET updated_at = i.updated_at
         FROM unnest($1::int8[], $2::int8[]) i (id, updated_at)
         WHERE t.id = i.id",
        &ids[..],
        &times[..]
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes rows.
pub(crate) async fn delete(connection: &mut PgConnection, ids: &[i64]) -> Result<()> {
    sqlx::query!(
        "DELETE FROM push_tokens
         WHERE id = ANY ($1)",
        ids
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}
