//! Finds the row for a push.

use matrix2acrobits_shared::{
    flow::{PushTarget, Result, TargetRow},
    ids::{AppId, Pushkey, Selector, UserId},
};
use sqlx::PgConnection;

use super::by_place;
use crate::errors::from_sqlx;

struct Row {
    place: i64,
    id: i64,
    report: i64,
    selector: String,
    app_id: String,
    pushkey: String,
    user: Option<String>,
    imported: bool,
    dead: bool,
}

impl Row {
    /// None for a row that was broken by hand. Such a row is skipped, so that it does not make every push fail.
    fn target(&self) -> Option<TargetRow> {
        let user = self.user.as_deref();
        Some(TargetRow {
            target: PushTarget {
                row_id: self.id,
                report: self.report,
                selector: Selector::parse(&self.selector).ok()?,
                app_id: AppId::parse(&self.app_id).ok()?,
                pushkey: Pushkey::parse(&self.pushkey).ok()?,
                owned: self.imported || user.is_some(),
                dead: self.dead,
            },
            user: user.and_then(|user| UserId::parse(user).ok()),
        })
    }
}

/// The rows that hold these pushkeys, for each the latest report first.
pub(crate) async fn of(
    connection: &mut PgConnection,
    pushkeys: &[Pushkey],
) -> Result<Vec<Vec<TargetRow>>> {
    let list: Vec<_> = pushkeys.iter().map(Pushkey::as_str).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT i.place AS "place!",
               t.id,
               t.report,
               t.selector,
               t.app_id_msgs AS "app_id!",
               t.token_msgs AS "pushkey!",
               coalesce((SELECT m.user_id
                         FROM mappings m
                         WHERE m.selector = t.selector), t.owner) AS "user",
               t.imported,
               t.dead_at IS NOT NULL AS "dead!"
           FROM unnest($1::text[]) WITH ORDINALITY i (pushkey, place)
           CROSS JOIN LATERAL (SELECT *
                               FROM push_tokens p
                               WHERE p.token_msgs = i.pushkey
                                 AND p.app_id_msgs IS NOT NULL
                               OFFSET 0) t
           ORDER BY i.place, t.updated_at DESC, t.id DESC"#,
        &list as &[&str]
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let targets = rows.iter();
    let targets = targets.filter_map(|row| Some((row.place, row.target()?)));
    Ok(by_place(pushkeys.len(), targets))
}

/// The live rows that alone hold their pushkey, among the next `limit` live rows with ids below `before`, the latest
/// phones first. Also the last id that was read. None when there are no more.
pub(crate) async fn live(
    connection: &mut PgConnection,
    before: i64,
    limit: u32,
) -> Result<Option<(i64, Vec<PushTarget>)>> {
    let rows = sqlx::query_as!(
        Row,
        // Which of several rows a push is for depends on the push: those have the place 0.
        r#"SELECT CASE WHEN EXISTS (SELECT 1
                                    FROM push_tokens o
                                    WHERE o.token_msgs = t.token_msgs
                                      AND o.id <> t.id) THEN 0 ELSE 1 END::int8 AS "place!",
               t.id AS "id!",
               t.report AS "report!",
               t.selector AS "selector!",
               t.app_id_msgs AS "app_id!",
               t.token_msgs AS "pushkey!",
               coalesce((SELECT m.user_id
                         FROM mappings m
                         WHERE m.selector = t.selector), t.owner) AS "user",
               t.imported AS "imported!",
               false AS "dead!"
           FROM (SELECT *
                 FROM push_tokens p
                 WHERE p.id < $1
                   AND p.token_msgs IS NOT NULL
                   AND p.app_id_msgs IS NOT NULL
                   AND p.dead_at IS NULL
                 ORDER BY p.id DESC
                 LIMIT $2) t
           ORDER BY t.id DESC"#,
        before,
        i64::from(limit)
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let Some(last) = rows.last().map(|row| row.id) else {
        return Ok(None);
    };
    let alone = rows.iter().filter(|row| row.place != 0);
    let targets = alone.filter_map(|row| Some(row.target()?.target));
    Ok(Some((last, targets.collect())))
}

/// Whether this database has ever held a token. One that has not may be a lost volume.
pub(crate) async fn held_any(connection: &mut PgConnection) -> Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT is_called AS "held!"
           FROM push_tokens_id_seq"#
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// How many tokens for messages belong to no user yet, and so have no pusher.
pub(crate) async fn count_unmapped(connection: &mut PgConnection) -> Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "unmapped!"
           FROM push_tokens t
           LEFT JOIN mappings m ON m.selector = t.selector
           WHERE t.token_msgs IS NOT NULL
             AND t.owner IS NULL
             AND m.user_id IS NULL"#
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}
