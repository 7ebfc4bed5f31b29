//! Pushers, and who holds their pushkeys.

use std::collections::HashMap;

use matrix2acrobits_shared::{
    flow::{IdPage, Pair, PairFacts, Result},
    rules::{
        jobs::Job,
        pushers::{Holder, Pusher, Replay},
    },
};
use sqlx::PgConnection;

use super::{by_place, jobs, state, wanted, wanted_word};
use crate::errors::from_sqlx;

/// Whether the jobs that are read will be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jobs {
    /// The jobs are only read.
    Read,
    /// The jobs are locked until the end of the transaction.
    Lock,
}

/// Holders and pushers of pairs.
pub(crate) async fn pairs(
    connection: &mut PgConnection,
    pairs: &[Pair<'_>],
    with: Jobs,
) -> Result<Vec<PairFacts>> {
    let apps: Vec<_> = pairs.iter().map(|pair| pair.app_id).collect();
    let pushkeys: Vec<_> = pairs.iter().map(|pair| pair.pushkey).collect();
    let holders = holders(connection, &apps, &pushkeys).await?;
    let mut pushers = of_pairs(connection, &apps, &pushkeys).await?;
    let ids: Vec<_> = pushers.iter().map(|(_, pusher)| pusher.id).collect();
    if !ids.is_empty() {
        let jobs = match with {
            Jobs::Read => jobs::of(connection, &ids).await?,
            Jobs::Lock => jobs::lock(connection, &ids).await?,
        };
        let jobs: HashMap<i64, Job> = jobs.into_iter().map(|job| (job.key, job)).collect();
        for (_, pusher) in &mut pushers {
            // A pair that was asked for twice has its pushers twice.
            pusher.job = jobs.get(&pusher.id).cloned();
        }
    }
    let holders = by_place(pairs.len(), holders);
    let pushers = by_place(pairs.len(), pushers);
    let facts = holders.into_iter().zip(pushers);
    Ok(facts
        .map(|(holders, pushers)| PairFacts { holders, pushers })
        .collect())
}

async fn holders(
    connection: &mut PgConnection,
    apps: &[&str],
    pushkeys: &[&str],
) -> Result<Vec<(i64, Holder)>> {
    let rows = sqlx::query!(
        r#"SELECT i.place AS "place!", t.id, t.user_id AS "user_id!", t.selector, t.updated_at
           FROM unnest($1::text[], $2::text[]) WITH ORDINALITY i (app_id, pushkey, place)
           CROSS JOIN LATERAL (SELECT p.id,
                                   coalesce((SELECT m.user_id
                                             FROM mappings m
                                             WHERE m.selector = p.selector), p.owner) AS user_id,
                                   p.selector,
                                   p.updated_at
                               FROM push_tokens p
                               WHERE p.token_msgs = i.pushkey
                                 AND p.app_id_msgs = i.app_id
                                 AND p.dead_at IS NULL
                               OFFSET 0) t
           WHERE t.user_id IS NOT NULL
           ORDER BY i.place, t.updated_at, t.id"#,
        apps as &[&str],
        pushkeys as &[&str]
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let holders = rows.into_iter().map(|row| {
        let holder = Holder {
            row: row.id,
            user_id: row.user_id,
            selector: row.selector,
            updated_at: row.updated_at,
        };
        (row.place, holder)
    });
    Ok(holders.collect())
}

async fn of_pairs(
    connection: &mut PgConnection,
    apps: &[&str],
    pushkeys: &[&str],
) -> Result<Vec<(i64, Pusher)>> {
    let rows = sqlx::query!(
        r#"SELECT i.place AS "place!",
               t.id,
               t.user_id,
               t.app_id,
               t.pushkey,
               t.selector,
               t.wanted,
               t.state,
               t.generation,
               t.claim,
               t.ask_first,
               t.attempts,
               t.last_error,
               t.registered_as,
               t.refresh_at,
               t.updated_at
           FROM unnest($1::text[], $2::text[]) WITH ORDINALITY i (app_id, pushkey, place)
           CROSS JOIN LATERAL (SELECT *
                               FROM pushers p
                               WHERE p.pushkey = i.pushkey
                                 AND p.app_id = i.app_id
                               OFFSET 0) t"#,
        apps as &[&str],
        pushkeys as &[&str]
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let pushers = rows.into_iter().map(|row| {
        let pusher = Pusher {
            id: row.id,
            user_id: row.user_id,
            app_id: row.app_id,
            pushkey: row.pushkey,
            selector: row.selector,
            wanted: wanted(&row.wanted)?,
            state: state(&row.state)?,
            generation: row.generation,
            claim: row.claim,
            ask_first: row.ask_first,
            attempts: row.attempts,
            last_error: row.last_error,
            registered_as: row.registered_as,
            refresh_at: row.refresh_at,
            updated_at: row.updated_at,
            job: None,
        };
        Ok((row.place, pusher))
    });
    pushers.collect()
}

/// App id and pushkey of pushers.
pub(crate) async fn pairs_of(
    connection: &mut PgConnection,
    ids: &[i64],
) -> Result<Vec<(i64, (String, String))>> {
    let rows = sqlx::query!(
        "SELECT id, app_id, pushkey
         FROM pushers
         WHERE id = ANY ($1)",
        ids
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let pairs = rows
        .into_iter()
        .map(|row| (row.id, (row.app_id, row.pushkey)));
    Ok(pairs.collect())
}

/// App id and pushkey of the pushers with these pushkeys that the homeserver should hold.
pub(crate) async fn pairs_with(
    connection: &mut PgConnection,
    pushkeys: &[&str],
) -> Result<Vec<(String, String)>> {
    let rows = sqlx::query!(
        "SELECT p.app_id, p.pushkey
         FROM unnest($1::text[]) i (pushkey)
         CROSS JOIN LATERAL (SELECT app_id, pushkey
                             FROM pushers
                             WHERE pushkey = i.pushkey
                               AND wanted = 'present'
                             OFFSET 0) p",
        pushkeys as &[&str]
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(rows
        .into_iter()
        .map(|row| (row.app_id, row.pushkey))
        .collect())
}

/// Creates pushers. Returns their ids, in order.
pub(crate) async fn insert(connection: &mut PgConnection, pushers: &[&Pusher]) -> Result<Vec<i64>> {
    let users: Vec<_> = pushers
        .iter()
        .map(|pusher| pusher.user_id.as_str())
        .collect();
    let apps: Vec<_> = pushers
        .iter()
        .map(|pusher| pusher.app_id.as_str())
        .collect();
    let pushkeys: Vec<_> = pushers
        .iter()
        .map(|pusher| pusher.pushkey.as_str())
        .collect();
    let selectors: Vec<_> = pushers
        .iter()
        .map(|pusher| pusher.selector.as_str())
        .collect();
    let wanted: Vec<_> = pushers
        .iter()
        .map(|pusher| wanted_word(pusher.wanted))
        .collect();
    let states: Vec<_> = pushers.iter().map(|pusher| pusher.state.as_str()).collect();
    let generations: Vec<_> = pushers.iter().map(|pusher| pusher.generation).collect();
    let claims: Vec<_> = pushers.iter().map(|pusher| pusher.claim).collect();
    let times: Vec<_> = pushers.iter().map(|pusher| pusher.updated_at).collect();
    sqlx::query_scalar!(
        "INSERT INTO pushers (user_id, app_id, pushkey, selector, wanted, state, generation, claim, created_at,
             updated_at)
         SELECT i.user_id, i.app_id, i.pushkey, i.selector, i.wanted, i.state, i.generation, i.claim, i.at, i.at
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int8[], $8::int8[],
                  $9::int8[])
              WITH ORDINALITY i (user_id, app_id, pushkey, selector, wanted, state, generation, claim, at, place)
         ORDER BY i.place
         RETURNING id",
        &users as &[&str],
        &apps as &[&str],
        &pushkeys as &[&str],
        &selectors as &[&str],
        &wanted as &[&str],
        &states as &[&str],
        &generations[..],
        &claims[..],
        &times[..]
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)
}

/// Writes all columns of pushers that can change.
pub(crate) async fn update(connection: &mut PgConnection, pushers: &[&Pusher]) -> Result<()> {
    let ids: Vec<_> = pushers.iter().map(|pusher| pusher.id).collect();
    let selectors: Vec<_> = pushers
        .iter()
        .map(|pusher| pusher.selector.as_str())
        .collect();
    let wanted: Vec<_> = pushers
        .iter()
        .map(|pusher| wanted_word(pusher.wanted))
        .collect();
    let states: Vec<_> = pushers.iter().map(|pusher| pusher.state.as_str()).collect();
    let generations: Vec<_> = pushers.iter().map(|pusher| pusher.generation).collect();
    let claims: Vec<_> = pushers.iter().map(|pusher| pusher.claim).collect();
    let ask_first: Vec<_> = pushers.iter().map(|pusher| pusher.ask_first).collect();
    let attempts: Vec<_> = pushers.iter().map(|pusher| pusher.attempts).collect();
    let errors: Vec<_> = pushers
        .iter()
        .map(|pusher| pusher.last_error.as_deref())
        .collect();
    let registered: Vec<_> = pushers
        .iter()
        .map(|pusher| pusher.registered_as.as_deref())
        .collect();
    let refresh: Vec<_> = pushers.iter().map(|pusher| pusher.refresh_at).collect();
    let times: Vec<_> = pushers.iter().map(|pusher| pusher.updated_at).collect();
    sqlx::query!(
        "UPDATE pushers t
         SET selector = i.selector,
             wanted = i.wanted,
             state = i.state,
             generation = i.generation,
             claim = i.claim,
             ask_first = i.ask_first,
             attempts = i.attempts,
             last_error = i.last_error,
             registered_as = i.registered_as,
             refresh_at = i.refresh_at,
             updated_at = i.updated_at
         FROM unnest($1::int8[], $2::text[], $3::text[], $4::text[], $5::int8[], $6::int8[], $7::bool[], $8::int8[],
                  $9::text[], $10::text[], $11::int8[], $12::int8[])
              i (id, selector, wanted, state, generation, claim, ask_first, attempts, last_error, registered_as,
                  refresh_at, updated_at)
         WHERE t.id = i.id",
        &ids[..],
        &selectors as &[&str],
        &wanted as &[&str],
        &states as &[&str],
        &generations[..],
        &claims[..],
        &ask_first[..],
        &attempts[..],
        &errors as &[Option<&str>],
        &registered as &[Option<&str>],
        &refresh as &[Option<i64>],
        &times[..]
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

/// Up to `limit` pushers that were removed before a time and that have no job.
pub(crate) async fn removed(
    connection: &mut PgConnection,
    before: i64,
    limit: i64,
) -> Result<Vec<(i64, (String, String))>> {
    let rows = sqlx::query!(
        "SELECT p.id, p.app_id, p.pushkey
         FROM pushers p
         WHERE p.state = 'removed'
           AND p.updated_at < $1
           AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.pusher_id = p.id)
         LIMIT $2",
        before,
        limit
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let pairs = rows
        .into_iter()
        .map(|row| (row.id, (row.app_id, row.pushkey)));
    Ok(pairs.collect())
}

/// Deletes these pushers if they are still as [`removed`] found them. Their pairs have to be locked.
pub(crate) async fn delete_removed(
    connection: &mut PgConnection,
    ids: &[i64],
    before: i64,
) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM pushers p
         WHERE p.id = ANY ($1)
           AND p.state = 'removed'
           AND p.updated_at < $2
           AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.pusher_id = p.id)",
        ids,
        before
    )
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(done.rows_affected())
}

/// Those without a live job among the next `limit` pushers that are not as wanted.
pub(crate) async fn without_job(
    connection: &mut PgConnection,
    after: i64,
    limit: i64,
) -> Result<Option<IdPage>> {
    let page = sqlx::query!(
        r#"SELECT max(p.id) AS last,
               coalesce(array_agg(p.id) FILTER (WHERE j.there IS NULL), '{}') AS "ids!"
           FROM (SELECT id
                 FROM pushers
                 WHERE state = 'pending'
                   AND id > $1
                 ORDER BY id
                 LIMIT $2) p
           LEFT JOIN LATERAL (SELECT true AS there
                              FROM jobs
                              WHERE pusher_id = p.id
                                AND (state IN ('Pending', 'Failed')
                                     OR (state IN ('Queued', 'Running') AND lock_by IS NOT NULL))
                              OFFSET 0) j ON true"#,
        after,
        limit
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    let ids = page.ids;
    Ok(page.last.map(|last| IdPage { last, ids }))
}

/// Those that are registered with other settings than these among the next `limit` pushers.
pub(crate) async fn outdated(
    connection: &mut PgConnection,
    settings: &str,
    after: i64,
    limit: i64,
) -> Result<Option<IdPage>> {
    let page = sqlx::query!(
        r#"SELECT max(id) AS last,
               coalesce(array_agg(id) FILTER (WHERE outdated), '{}') AS "ids!"
           FROM (SELECT id,
                     state = 'registered'
                     AND wanted = 'present'
                     AND registered_as IS DISTINCT FROM $1 AS outdated
                 FROM pushers
                 WHERE id > $2
                 ORDER BY id
                 LIMIT $3) p"#,
        settings,
        after,
        limit
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    let ids = page.ids;
    Ok(page.last.map(|last| IdPage { last, ids }))
}

/// How many pushers a replay covers.
pub(crate) async fn count_replay(connection: &mut PgConnection, replay: &Replay) -> Result<i64> {
    let (dead, user, since) = filter(replay);
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!"
           FROM pushers
           WHERE state <> 'removed'
             AND (NOT $1 OR state = 'failed')
             AND ($2::text IS NULL OR user_id = $2)
             AND ($3::int8 IS NULL OR updated_at >= $3)"#,
        dead,
        user,
        since
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)
}

/// The next pushers that a replay covers.
pub(crate) async fn replay(
    connection: &mut PgConnection,
    replay: &Replay,
    after: i64,
    limit: i64,
) -> Result<Vec<i64>> {
    let (dead, user, since) = filter(replay);
    sqlx::query_scalar!(
        "SELECT id
         FROM pushers
         WHERE id > $1
           AND state <> 'removed'
           AND (NOT $2 OR state = 'failed')
           AND ($3::text IS NULL OR user_id = $3)
           AND ($4::int8 IS NULL OR updated_at >= $4)
         ORDER BY id
         LIMIT $5",
        after,
        dead,
        user,
        since,
        limit
    )
    .fetch_all(connection)
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
pub(crate) async fn count(connection: &mut PgConnection) -> Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"SELECT p.state, count(*) AS "count!"
           FROM pushers p
           GROUP BY p.state"#
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(rows.into_iter().map(|row| (row.state, row.count)).collect())
}
