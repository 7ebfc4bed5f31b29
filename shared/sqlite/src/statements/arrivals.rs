//! The table `arrivals`, with what we know about the pushes to phones, and the listings that show it.

use matrix2acrobits_shared::{
    flow::{NamedPhone, PhoneListing, Result, SilentCursor},
    ids::{Device, Pushkey, Selector},
    rules::arrival::{AHEAD, Arrivals, Candidate},
};
use serde::Deserialize;
use sqlx::{SqliteConnection, SqliteExecutor};

use super::{Text, by_place, from_json, json};
use crate::errors::from_sqlx;

/// Adds events to the stored ones. Another api may have written meanwhile, in any order. A stored time that is
/// still to come was written by a wrong clock.
pub(crate) async fn note(
    connection: &mut SqliteConnection,
    arrivals: &[(i64, Arrivals)],
    now: i64,
) -> Result<()> {
    let rows = arrivals.iter().map(|(phone, noted)| {
        (
            phone,
            noted.pushed,
            noted.waiting,
            noted.received,
            noted.receipts,
        )
    });
    let rows = json(rows)?;
    sqlx::query!(
        "INSERT INTO arrivals (phone, pushed_at, waiting_since, received_at, receipts)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4
         FROM jsonb_each(?1)
         -- Its row may be gone by now.
         WHERE EXISTS (SELECT 1
                       FROM push_tokens t
                       WHERE t.id = value ->> 0)
         ON CONFLICT (phone) DO UPDATE
         SET pushed_at = nullif(max(iif(pushed_at <= ?2 + ?3, pushed_at, 0), coalesce(excluded.pushed_at, 0)), 0),
             waiting_since = CASE
                 WHEN excluded.received_at IS NOT NULL THEN excluded.waiting_since
                 WHEN waiting_since <= ?2 + ?3 THEN waiting_since
                 -- Confirmed already, at another api.
                 WHEN received_at BETWEEN excluded.waiting_since AND ?2 + ?3 THEN NULL
                 ELSE excluded.waiting_since
             END,
             -- Whenever it was, the app sends receipts.
             received_at = nullif(max(iif(received_at > ?2 + ?3, ?2 - ?3, coalesce(received_at, 0)),
                                      coalesce(excluded.received_at, 0)), 0),
             receipts = receipts + excluded.receipts",
        rows,
        now,
        AHEAD
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

#[derive(Deserialize)]
struct Found {
    id: i64,
    selector: String,
    device: String,
    user: Option<String>,
}

impl From<Found> for Candidate {
    fn from(found: Found) -> Self {
        Self {
            id: found.id,
            selector: found.selector,
            device: found.device,
            user: found.user,
        }
    }
}

/// The rows that receipts may be about: by the token if the receipt names one, otherwise by the selector.
pub(crate) async fn candidates(
    executor: impl SqliteExecutor<'_>,
    named: &[NamedPhone],
) -> Result<Vec<Vec<Candidate>>> {
    let list = json(named.iter().map(|phone| {
        let selector = phone.selector.as_ref().map(Selector::as_str);
        let device = phone.device.as_ref().map(Device::as_str);
        (phone.token.as_ref().map(Pushkey::as_str), selector, device)
    }))?;
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_array(f.place, json_object(
               'id', t.id,
               'selector', t.selector,
               'device', t.device,
               'user', coalesce(m.user_id, t.owner)
           ))) AS BLOB) AS "rows!: Vec<u8>"
           FROM (SELECT i.key AS place, o.id
                 FROM jsonb_each(?1) i
                 CROSS JOIN push_tokens o
                 WHERE o.token_msgs = i.value ->> 0
                 UNION ALL
                 SELECT i.key, o.id
                 FROM jsonb_each(?1) i
                 CROSS JOIN push_tokens o
                 WHERE i.value ->> 0 IS NULL
                   AND o.selector = i.value ->> 1
                   -- One selector can be on many phones: two say already that a receipt without a device is nobody's.
                   AND o.device IN (SELECT d.device
                                    FROM push_tokens d
                                    WHERE d.selector = i.value ->> 1
                                      AND (i.value ->> 2 IS NULL OR d.device IN (i.value ->> 2, ''))
                                    LIMIT 2)) f
           CROSS JOIN push_tokens t ON t.id = f.id
           LEFT JOIN mappings m ON m.selector = t.selector"#,
        list
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    let rows: Vec<(usize, Found)> = from_json(&rows)?;
    let rows = rows.into_iter().map(|(place, row)| (place, row.into()));
    Ok(by_place(named.len(), rows.collect()))
}

/// Up to `limit` phones with ids above `after`.
pub(crate) async fn page(
    executor: impl SqliteExecutor<'_>,
    after: i64,
    limit: u32,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT id AS "id!"
           FROM push_tokens
           WHERE id > ?1
           ORDER BY id
           LIMIT ?2"#,
        after,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)
}

/// Up to `limit` phones of a user with ids above `after`. A mapping takes precedence over a login.
pub(crate) async fn of_user(
    executor: impl SqliteExecutor<'_>,
    user: &str,
    after: i64,
    limit: u32,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT id AS "id!"
           FROM (SELECT t.id
                 FROM mappings m
                 CROSS JOIN push_tokens t ON t.selector = m.selector
                 WHERE m.user_id = ?1
                 UNION
                 SELECT t.id
                 FROM push_tokens t
                 WHERE t.owner = ?1
                   AND NOT EXISTS (SELECT 1
                                   FROM mappings m
                                   WHERE m.selector = t.selector))
           WHERE id > ?2
           ORDER BY id
           LIMIT ?3"#,
        user,
        after,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)
}

/// The phones of a selector, at most `limit`.
pub(crate) async fn of_selector(
    executor: impl SqliteExecutor<'_>,
    selector: &str,
    limit: u32,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT id AS "id!"
           FROM push_tokens
           WHERE selector = ?1
           LIMIT ?2"#,
        selector,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)
}

/// Up to `limit` phones whose pushes have waited for a receipt since `until` or earlier, the longest waiting first,
/// each with its cursor.
pub(crate) async fn silent(
    executor: impl SqliteExecutor<'_>,
    until: i64,
    after: SilentCursor,
    limit: u32,
) -> Result<Vec<SilentCursor>> {
    let rows = sqlx::query!(
        r#"SELECT a.waiting_since AS "since!", a.phone AS "phone!"
           FROM arrivals a INDEXED BY arrivals_waiting
           CROSS JOIN push_tokens t ON t.id = a.phone
           WHERE a.waiting_since <= ?1
             AND a.waiting_since IS NOT NULL
             AND a.received_at IS NOT NULL
             AND (a.waiting_since, a.phone) > (?2, ?3)
             AND t.token_msgs IS NOT NULL
             AND t.dead_at IS NULL
           ORDER BY a.waiting_since, a.phone
           LIMIT ?4"#,
        until,
        after.since,
        after.phone,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    let cursor = |since, phone| SilentCursor { since, phone };
    Ok(rows
        .into_iter()
        .map(|row| cursor(row.since, row.phone))
        .collect())
}

/// How many phones are silent.
pub(crate) async fn count_silent(executor: impl SqliteExecutor<'_>, until: i64) -> Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM arrivals a INDEXED BY arrivals_waiting
           CROSS JOIN push_tokens t ON t.id = a.phone
           WHERE a.waiting_since <= ?
             AND a.waiting_since IS NOT NULL
             AND a.received_at IS NOT NULL
             AND t.token_msgs IS NOT NULL
             AND t.dead_at IS NULL"#,
        until
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)
}

/// What we know about these phones, in the order of their ids.
pub(crate) async fn phones(
    executor: impl SqliteExecutor<'_>,
    ids: &[i64],
) -> Result<Vec<PhoneListing>> {
    let ids = json(ids)?;
    let rows = sqlx::query!(
        r#"SELECT t.id,
               t.selector AS "selector: Text",
               t.device AS "device: Text",
               coalesce(m.user_id, t.owner) AS "user_id: Text",
               t.app_id_msgs AS "app_id: Text",
               t.token_msgs AS "token: Text",
               t.dead_at,
               t.updated_at,
               p.state AS "pusher?: Text",
               a.pushed_at AS "pushed_at?",
               a.waiting_since AS "waiting_since?",
               a.received_at AS "received_at?",
               a.receipts AS "receipts?"
           FROM jsonb_each(?) i
           CROSS JOIN push_tokens t ON t.id = i.value
           LEFT JOIN mappings m ON m.selector = t.selector
           LEFT JOIN pushers p ON p.pushkey = t.token_msgs
                              AND p.app_id = t.app_id_msgs
                              AND p.user_id = coalesce(m.user_id, t.owner)
           LEFT JOIN arrivals a ON a.phone = t.id
           ORDER BY i.key"#,
        ids
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    let rows = rows.into_iter().map(|row| PhoneListing {
        id: row.id,
        selector: row.selector.into(),
        device: row.device.into(),
        user_id: row.user_id.map(String::from),
        app_id: row.app_id.map(String::from),
        token: row.token.map(String::from),
        dead: row.dead_at.is_some(),
        reported_at: row.updated_at,
        pusher: row.pusher.map(String::from),
        pushed_at: row.pushed_at,
        waiting_since: row.waiting_since,
        received_at: row.received_at,
        receipts: row.receipts.unwrap_or(0),
    });
    Ok(rows.collect())
}
