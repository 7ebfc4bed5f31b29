//! The table `arrivals`, with what we know about the pushes to phones, and the listings that show it.

use matrix2acrobits_shared::{
    flow::{NamedPhone, PhoneListing, Result, SilentCursor},
    ids::{Device, Pushkey, Selector},
    rules::arrival::{AHEAD, Arrivals, Candidate},
};
use sqlx::PgConnection;

use super::by_place;
use crate::errors::from_sqlx;

/// Adds events to the stored ones. Another api may have written meanwhile, in any order. A stored time that is
/// still to come was written by a wrong clock.
pub(crate) async fn note(
    connection: &mut PgConnection,
    arrivals: &[(i64, Arrivals)],
    now: i64,
) -> Result<()> {
    let phones: Vec<_> = arrivals.iter().map(|(phone, _)| *phone).collect();
    let pushed: Vec<_> = arrivals.iter().map(|(_, noted)| noted.pushed).collect();
    let waiting: Vec<_> = arrivals.iter().map(|(_, noted)| noted.waiting).collect();
    let received: Vec<_> = arrivals.iter().map(|(_, noted)| noted.received).collect();
    let receipts: Vec<_> = arrivals
        .iter()
        .map(|(_, noted)| i64::from(noted.receipts))
        .collect();
    sqlx::query!(
        "INSERT INTO arrivals AS a (phone, pushed_at, waiting_since, received_at, receipts)
         SELECT i.phone, i.pushed_at, i.waiting_since, i.received_at, i.receipts
         FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::int8[], $5::int8[])
              i (phone, pushed_at, waiting_since, received_at, receipts)
         -- Its row may be gone by now, or be about to go.
         CROSS JOIN LATERAL (SELECT t.id
                             FROM push_tokens t
                             WHERE t.id = i.phone
                             FOR KEY SHARE) t
         ORDER BY i.phone
         ON CONFLICT (phone) DO UPDATE
         SET pushed_at = greatest(CASE WHEN a.pushed_at <= $6::int8 + $7::int8 THEN a.pushed_at END, excluded.pushed_at),
             waiting_since = CASE
                 WHEN excluded.received_at IS NOT NULL THEN excluded.waiting_since
                 WHEN a.waiting_since <= $6::int8 + $7::int8 THEN a.waiting_since
                 -- Confirmed already, at another api.
                 WHEN a.received_at BETWEEN excluded.waiting_since AND $6::int8 + $7::int8 THEN NULL
                 ELSE excluded.waiting_since
             END,
             -- Whenever it was, the app sends receipts.
             received_at = greatest(CASE
                                        WHEN a.received_at > $6::int8 + $7::int8 THEN $6::int8 - $7::int8
                                        ELSE a.received_at
                                    END,
                                    excluded.received_at),
             receipts = a.receipts + excluded.receipts",
        &phones[..],
        &pushed as &[Option<i64>],
        &waiting as &[Option<i64>],
        &received as &[Option<i64>],
        &receipts[..],
        now,
        AHEAD
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// The rows that receipts may be about: by the token if the receipt names one, otherwise by the selector.
pub(crate) async fn candidates(
    connection: &mut PgConnection,
    named: &[NamedPhone],
) -> Result<Vec<Vec<Candidate>>> {
    let tokens = named
        .iter()
        .map(|phone| phone.token.as_ref().map(Pushkey::as_str));
    let tokens: Vec<_> = tokens.collect();
    let selectors = named
        .iter()
        .map(|phone| phone.selector.as_ref().map(Selector::as_str));
    let selectors: Vec<_> = selectors.collect();
    let devices = named
        .iter()
        .map(|phone| phone.device.as_ref().map(Device::as_str));
    let devices: Vec<_> = devices.collect();
    let rows = sqlx::query!(
        r#"SELECT i.place AS "place!",
               t.id AS "id!",
               t.selector AS "selector!",
               t.device AS "device!",
               coalesce((SELECT m.user_id
                         FROM mappings m
                         WHERE m.selector = t.selector), t.owner) AS "user"
           FROM unnest($1::text[], $2::text[], $3::text[])
                WITH ORDINALITY i (token, selector, device, place)
           CROSS JOIN LATERAL ((SELECT o.id, o.selector, o.device, o.owner
                                FROM push_tokens o
                                WHERE o.token_msgs = i.token)
                               UNION ALL
                               -- One selector can be on many phones: two say already that a receipt without a device is
                               -- nobody's.
                               (SELECT o.id, o.selector, o.device, o.owner
                                FROM push_tokens o
                                WHERE i.token IS NULL
                                  AND o.selector = i.selector
                                  AND (i.device IS NULL OR o.device IN (i.device, ''))
                                LIMIT 2)) t"#,
        &tokens as &[Option<&str>],
        &selectors as &[Option<&str>],
        &devices as &[Option<&str>]
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let rows = rows.into_iter().map(|row| {
        let candidate = Candidate {
            id: row.id,
            selector: row.selector,
            device: row.device,
            user: row.user,
        };
        (row.place, candidate)
    });
    Ok(by_place(named.len(), rows))
}

/// Up to `limit` phones with ids above `after`.
pub(crate) async fn page(
    connection: &mut PgConnection,
    after: i64,
    limit: u32,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        "SELECT id
         FROM push_tokens
         WHERE id > $1
         ORDER BY id
         LIMIT $2",
        after,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Up to `limit` phones of a user with ids above `after`. A mapping takes precedence over a login.
pub(crate) async fn of_user(
    connection: &mut PgConnection,
    user: &str,
    after: i64,
    limit: u32,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"SELECT u.id AS "id!"
           FROM (SELECT t.id
                 FROM mappings m
                 JOIN push_tokens t ON t.selector = m.selector
                 WHERE m.user_id = $1
                 UNION
                 SELECT t.id
                 FROM push_tokens t
                 WHERE t.owner = $1
                   AND NOT EXISTS (SELECT 1
                                   FROM mappings m
                                   WHERE m.selector = t.selector)) u
           WHERE u.id > $2
           ORDER BY u.id
           LIMIT $3"#,
        user,
        after,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// The phones of a selector, at most `limit`.
pub(crate) async fn of_selector(
    connection: &mut PgConnection,
    selector: &str,
    limit: u32,
) -> Result<Vec<i64>> {
    sqlx::query_scalar!(
        "SELECT id
         FROM push_tokens
         WHERE selector = $1
         LIMIT $2",
        selector,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Up to `limit` phones whose pushes have waited for a receipt since `until` or earlier, the longest waiting first,
/// each with its cursor.
pub(crate) async fn silent(
    connection: &mut PgConnection,
    until: i64,
    after: SilentCursor,
    limit: u32,
) -> Result<Vec<SilentCursor>> {
    let rows = sqlx::query!(
        r#"SELECT a.waiting_since AS "since!", a.phone
           FROM arrivals a
           JOIN push_tokens t ON t.id = a.phone
           WHERE a.waiting_since <= $1
             AND a.waiting_since IS NOT NULL
             AND a.received_at IS NOT NULL
             AND (a.waiting_since, a.phone) > ($2, $3)
             AND t.token_msgs IS NOT NULL
             AND t.dead_at IS NULL
           ORDER BY a.waiting_since, a.phone
           LIMIT $4"#,
        until,
        after.since,
        after.phone,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let cursors = rows.into_iter().map(|row| SilentCursor {
        since: row.since,
        phone: row.phone,
    });
    Ok(cursors.collect())
}

/// How many phones are silent.
pub(crate) async fn count_silent(connection: &mut PgConnection, until: i64) -> Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM arrivals a
           JOIN push_tokens t ON t.id = a.phone
           WHERE a.waiting_since <= $1
             AND a.waiting_since IS NOT NULL
             AND a.received_at IS NOT NULL
             AND t.token_msgs IS NOT NULL
             AND t.dead_at IS NULL"#,
        until
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// What we know about these phones, in the order of their ids.
pub(crate) async fn phones(
    connection: &mut PgConnection,
    ids: &[i64],
) -> Result<Vec<PhoneListing>> {
    let rows = sqlx::query!(
        r#"SELECT t.id,
               t.selector,
               t.device,
               coalesce(m.user_id, t.owner) AS user_id,
               t.app_id_msgs,
               t.token_msgs,
               t.dead_at,
               t.updated_at,
               p.state AS "pusher?",
               a.pushed_at AS "pushed_at?",
               a.waiting_since AS "waiting_since?",
               a.received_at AS "received_at?",
               a.receipts AS "receipts?"
           FROM unnest($1::int8[]) WITH ORDINALITY i (id, place)
           JOIN push_tokens t ON t.id = i.id
           LEFT JOIN mappings m ON m.selector = t.selector
           LEFT JOIN pushers p ON p.pushkey = t.token_msgs
                              AND p.app_id = t.app_id_msgs
                              AND p.user_id = coalesce(m.user_id, t.owner)
           LEFT JOIN arrivals a ON a.phone = t.id
           ORDER BY i.place"#,
        ids
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let rows = rows.into_iter().map(|row| PhoneListing {
        id: row.id,
        selector: row.selector,
        device: row.device,
        user_id: row.user_id,
        app_id: row.app_id_msgs,
        token: row.token_msgs,
        dead: row.dead_at.is_some(),
        reported_at: row.updated_at,
        pusher: row.pusher,
        pushed_at: row.pushed_at,
        waiting_since: row.waiting_since,
        received_at: row.received_at,
        receipts: row.receipts.unwrap_or(0),
    });
    Ok(rows.collect())
}
