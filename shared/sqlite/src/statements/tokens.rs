//! Finds the row for a push.

use matrix2acrobits_shared::{
    flow::{PushTarget, Result, TargetRow},
    ids::{AppId, Pushkey, Selector, UserId},
};
use serde::Deserialize;
use sqlx::SqliteExecutor;

use super::{by_place, from_json, json};
use crate::errors::from_sqlx;

#[derive(Deserialize)]
struct Row {
    id: i64,
    report: i64,
    selector: String,
    app_id: String,
    pushkey: String,
    user: Option<String>,
    owned: bool,
    dead: bool,
    #[serde(default)]
    shared: bool,
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
                owned: self.owned,
                dead: self.dead,
            },
            user: user.and_then(|user| UserId::parse(user).ok()),
        })
    }
}

/// The rows that hold these pushkeys, for each the latest report first.
pub(crate) async fn of(
    executor: impl SqliteExecutor<'_>,
    pushkeys: &[Pushkey],
) -> Result<Vec<Vec<TargetRow>>> {
    let list = json(pushkeys.iter().map(Pushkey::as_str))?;
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_array(i.key, json_object(
               'id', t.id,
               'report', t.report,
               'selector', t.selector,
               'app_id', t.app_id_msgs,
               'pushkey', t.token_msgs,
               'user', coalesce(m.user_id, t.owner),
               'owned', iif(t.imported OR coalesce(m.user_id, t.owner) IS NOT NULL, json('true'), json('false')),
               'dead', iif(t.dead_at IS NULL, json('false'), json('true'))
           )) ORDER BY t.updated_at DESC, t.id DESC) AS BLOB) AS "rows!: Vec<u8>"
           FROM jsonb_each(?) i
           CROSS JOIN push_tokens t
           LEFT JOIN mappings m ON m.selector = t.selector
           WHERE t.token_msgs = i.value
             AND t.app_id_msgs IS NOT NULL"#,
        list
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    let rows: Vec<(usize, Row)> = from_json(&rows)?;
    let targets = rows.into_iter();
    let targets = targets.filter_map(|(place, row)| Some((place, row.target()?)));
    Ok(by_place(pushkeys.len(), targets.collect()))
}

/// The live rows that alone hold their pushkey, among the next `limit` live rows with ids below `before`, the latest
/// phones first. Also the last id that was read. None when there are no more.
pub(crate) async fn live(
    executor: impl SqliteExecutor<'_>,
    before: i64,
    limit: u32,
) -> Result<Option<(i64, Vec<PushTarget>)>> {
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'id', t.id,
               'report', t.report,
               'selector', t.selector,
               'app_id', t.app_id_msgs,
               'pushkey', t.token_msgs,
               'user', coalesce(m.user_id, t.owner),
               'owned', iif(t.imported OR coalesce(m.user_id, t.owner) IS NOT NULL, json('true'), json('false')),
               'dead', json('false'),
               -- Which of several rows a push is for depends on the push.
               'shared', iif(EXISTS (SELECT 1
                                     FROM push_tokens o
                                     WHERE o.token_msgs = t.token_msgs
                                       AND o.id <> t.id), json('true'), json('false'))
           ) ORDER BY t.id DESC) AS BLOB) AS "rows!: Vec<u8>"
           FROM (SELECT *
                 FROM push_tokens
                 WHERE id < ?1
                   AND token_msgs IS NOT NULL
                   AND app_id_msgs IS NOT NULL
                   AND dead_at IS NULL
                 ORDER BY id DESC
                 LIMIT ?2) t
           LEFT JOIN mappings m ON m.selector = t.selector"#,
        before,
        limit
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    let rows: Vec<Row> = from_json(&rows)?;
    let Some(last) = rows.last().map(|row| row.id) else {
        return Ok(None);
    };
    let alone = rows.iter().filter(|row| !row.shared);
    let targets = alone.filter_map(|row| Some(row.target()?.target));
    Ok(Some((last, targets.collect())))
}

/// Whether this database has ever held a token. One that has not may be a lost volume.
pub(crate) async fn held_any(executor: impl SqliteExecutor<'_>) -> Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1
                          FROM sqlite_sequence
                          WHERE name = 'push_tokens') AS "held: bool""#
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)
}

/// How many tokens for messages belong to no user yet, and so have no pusher.
pub(crate) async fn count_unmapped(executor: impl SqliteExecutor<'_>) -> Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM push_tokens t
           LEFT JOIN mappings m ON m.selector = t.selector
           WHERE t.token_msgs IS NOT NULL
             AND t.owner IS NULL
             AND m.user_id IS NULL"#
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)
}
