//! Pushers, and who holds their pushkeys.

use matrix2acrobits_shared::{
    flow::{IdPage, Pair, PairFacts, Result},
    rules::pushers::{Pusher, Replay},
};
use sqlx::{SqliteConnection, SqliteExecutor};

use super::{from_json, inserted, json};
use crate::errors::from_sqlx;

/// Holders and pushers of pairs.
pub(crate) async fn pairs(
    executor: impl SqliteExecutor<'_>,
    pairs: &[Pair<'_>],
) -> Result<Vec<PairFacts>> {
    let pairs = json(pairs.iter().map(|pair| (pair.app_id, pair.pushkey)))?;
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_object(
               'holders', (SELECT json_group_array(json_object(
                               'row', t.id,
                               'user_id', coalesce(m.user_id, t.owner),
                               'selector', t.selector,
                               'updated_at', t.updated_at
                           ) ORDER BY t.updated_at, t.id)
                           FROM push_tokens t
                           LEFT JOIN mappings m ON m.selector = t.selector
                           WHERE t.token_msgs = i.value ->> 1
                             AND t.app_id_msgs = i.value ->> 0
                             AND t.dead_at IS NULL
                             AND coalesce(m.user_id, t.owner) IS NOT NULL),
               'pushers', (SELECT json_group_array(json_object(
                               'id', p.id,
                               'user_id', p.user_id,
                               'app_id', p.app_id,
                               'pushkey', p.pushkey,
                               'selector', p.selector,
                               'wanted', p.wanted,
                               'state', p.state,
                               'generation', p.generation,
                               'claim', p.claim,
                               'ask_first', iif(p.ask_first, json('true'), json('false')),
                               'attempts', p.attempts,
                               'last_error', p.last_error,
                               'registered_as', p.registered_as,
                               'refresh_at', p.refresh_at,
                               'updated_at', p.updated_at,
                               'job', iif(j.id IS NULL, NULL, json_object(
                                   'key', j.rowid,
                                   'status', CAST(j.status AS TEXT),
                                   'attempts', CAST(j.attempts AS INTEGER),
                                   'run_at', CAST(j.run_at AS INTEGER),
                                   'not_before', CAST(j.not_before AS INTEGER),
                                   'lost', CAST(j.lost AS INTEGER),
                                   'recalled', iif(j.recalled, json('true'), json('false')),
                                   'lock_by', CAST(j.lock_by AS TEXT),
                                   'error', CAST(iif(json_valid(j.last_result), j.last_result ->> '$.Err', j.last_result)
                                                 AS TEXT),
                                   'done_at', CAST(j.done_at AS INTEGER)))))
                           FROM pushers p
                           LEFT JOIN Jobs j ON j.pusher_id = p.id
                           WHERE p.pushkey = i.value ->> 1
                             AND p.app_id = i.value ->> 0)
           ) ORDER BY i.key) AS BLOB) AS "rows!: Vec<u8>"
           FROM jsonb_each(?) i"#,
        pairs
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    from_json(&rows)
}

/// App id and pushkey of pushers.
pub(crate) async fn pairs_of(
    executor: impl SqliteExecutor<'_>,
    ids: &[i64],
) -> Result<Vec<(i64, (String, String))>> {
    let ids = json(ids)?;
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_array(id, json_array(app_id, pushkey))) AS BLOB) AS "rows!: Vec<u8>"
           FROM pushers
           WHERE id IN (SELECT value FROM jsonb_each(?))"#,
        ids
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    from_json(&rows)
}

/// App id and pushkey of the pushers with these pushkeys that the homeserver should hold.
pub(crate) async fn pairs_with(
    executor: impl SqliteExecutor<'_>,
    pushkeys: &[&str],
) -> Result<Vec<(String, String)>> {
    let pushkeys = json(pushkeys)?;
    let rows = sqlx::query_scalar!(
        r#"SELECT CAST(json_group_array(json_array(app_id, pushkey)) AS BLOB) AS "rows!: Vec<u8>"
           FROM pushers
           WHERE pushkey IN (SELECT value FROM jsonb_each(?))
             AND wanted = 'present'"#,
        pushkeys
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    from_json(&rows)
}

/// Creates pushers. Returns their ids, in order.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    pushers: &[&Pusher],
) -> Result<Vec<i64>> {
    let rows = json(pushers.iter().map(|pusher| {
        (
            &pusher.user_id,
            &pusher.app_id,
            &pusher.pushkey,
            &pusher.selector,
            pusher.wanted,
            pusher.state,
            pusher.generation,
            pusher.claim,
            pusher.updated_at,
        )
    }))?;
    let done = sqlx::query!(
        "INSERT INTO pushers (user_id, app_id, pushkey, selector, wanted, state, generation, claim, created_at,
             updated_at)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
             value ->> 8, value ->> 8
         FROM jsonb_each(?)
         ORDER BY key",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(inserted(done.last_insert_rowid(), pushers.len()))
}

/// Writes all columns of pushers that can change.
pub(crate) async fn update(connection: &mut SqliteConnection, pushers: &[&Pusher]) -> Result<()> {
    let rows = json(pushers.iter().map(|pusher| {
        (
            pusher.id,
            &pusher.selector,
            pusher.wanted,
            pusher.state,
            pusher.generation,
            pusher.claim,
            i64::from(pusher.ask_first),
            pusher.attempts,
            &pusher.last_error,
            &pusher.registered_as,
            pusher.refresh_at,
            pusher.updated_at,
        )
    }))?;
    sqlx::query!(
        "UPDATE pushers
         SET selector = i.value ->> 1,
             wanted = i.value ->> 2,
             state = i.value ->> 3,
             generation = i.value ->> 4,
             claim = i.value ->> 5,
             ask_first = i.value ->> 6,
             attempts = i.value ->> 7,
             last_error = i.value ->> 8,
             registered_as = i.value ->> 9,
             refresh_at = i.value ->> 10,
             updated_at = i.value ->> 11
         FROM jsonb_each(?) i
         WHERE pushers.id = i.value ->> 0",
        rows
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Deletes up to `limit` pushers that were removed before a time and that have no job.
pub(crate) async fn delete_removed(
    connection: &mut SqliteConnection,
    before: i64,
    limit: i64,
) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM pushers
         WHERE id IN (SELECT p.id
                      FROM pushers p
                      WHERE p.state = 'removed'
                        AND p.updated_at < ?1
                        AND NOT EXISTS (SELECT 1 FROM Jobs j WHERE j.pusher_id = p.id)
                      LIMIT ?2)",
        before,
        limit
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected())
}

/// Those without a live job among the next `limit` pushers that are not as wanted.
pub(crate) async fn without_job(
    executor: impl SqliteExecutor<'_>,
    after: i64,
    limit: i64,
) -> Result<Option<IdPage>> {
    let page = sqlx::query!(
        r#"SELECT max(id) AS "last: i64",
               CAST(json_group_array(id) FILTER (WHERE lacks) AS BLOB) AS "ids!: Vec<u8>"
           FROM (SELECT p.id,
                     NOT EXISTS (SELECT 1
                                 FROM Jobs j
                                 WHERE j.pusher_id = p.id
                                   AND (j.status IN ('Pending', 'Failed')
                                        OR (j.status IN ('Queued', 'Running') AND j.lock_by IS NOT NULL))) AS lacks
                 FROM pushers p
                 WHERE p.state = 'pending'
                   AND p.id > ?1
                 ORDER BY p.id
                 LIMIT ?2)"#,
        after,
        limit
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    id_page(page.last, &page.ids)
}

/// Those that are registered with other settings than these among the next `limit` pushers.
pub(crate) async fn outdated(
    executor: impl SqliteExecutor<'_>,
    settings: &str,
    after: i64,
    limit: i64,
) -> Result<Option<IdPage>> {
    let page = sqlx::query!(
        r#"SELECT max(id) AS "last: i64",
               CAST(json_group_array(id) FILTER (WHERE outdated) AS BLOB) AS "ids!: Vec<u8>"
           FROM (SELECT id,
                     state = 'registered'
                     AND wanted = 'present'
                     AND registered_as IS NOT ?1 AS outdated
                 FROM pushers
                 WHERE id > ?2
                 ORDER BY id
                 LIMIT ?3)"#,
        settings,
        after,
        limit
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)?;
    id_page(page.last, &page.ids)
}

fn id_page(last: Option<i64>, ids: &[u8]) -> Result<Option<IdPage>> {
    let Some(last) = last else {
        return Ok(None);
    };
    let ids = from_json(ids)?;
    Ok(Some(IdPage { last, ids }))
}

/// How many pushers a replay covers.
pub(crate) async fn count_replay(
    executor: impl SqliteExecutor<'_>,
    replay: &Replay,
) -> Result<i64> {
    let (dead, user, since) = filter(replay);
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM pushers
           WHERE state <> 'removed'
             AND (NOT ?1 OR state = 'failed')
             AND (?2 IS NULL OR user_id = ?2)
             AND (?3 IS NULL OR updated_at >= ?3)"#,
        dead,
        user,
        since
    )
    .fetch_one(executor)
    .await
    .map_err(from_sqlx)
}

/// The next pushers that a replay covers.
pub(crate) async fn replay(
    executor: impl SqliteExecutor<'_>,
    replay: &Replay,
    after: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    let (dead, user, since) = filter(replay);
    sqlx::query_scalar!(
        r#"SELECT id AS "id!"
           FROM pushers
           WHERE id > ?1
             AND state <> 'removed'
             AND (NOT ?2 OR state = 'failed')
             AND (?3 IS NULL OR user_id = ?3)
             AND (?4 IS NULL OR updated_at >= ?4)
           ORDER BY id
           LIMIT ?5"#,
        after,
        dead,
        user,
        since,
        limit
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)
}

fn filter(replay: &Replay) -> (bool, Option<&str>, Option<i64>) {
    match replay {
        Replay::Dead => (true, None, None),
        Replay::All => (false, None, None),
        Replay::User(user) => (false, Some(user.as_str()), None),
        Replay::Since(time) => (false, None, Some(*time)),
    }
}

/// The number of pushers by state.
pub(crate) async fn count(executor: impl SqliteExecutor<'_>) -> Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT state, count(*) AS "count!"
           FROM pushers
           GROUP BY state"#
    )
    .fetch_all(executor)
    .await
    .map_err(from_sqlx)?;
    Ok(rows.into_iter().map(|row| (row.state, row.count)).collect())
}
