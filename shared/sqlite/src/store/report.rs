//! Saving what phones report, many reports at a time, and enqueueing what follows for their pushers.

use std::collections::HashSet;

use serde::Deserialize;
use sqlx::SqliteConnection;

use super::{
    StoreError, from_json, inserted, json,
    settle::{Touched, settle},
    tokens::{Field, Report, Saved},
};
use crate::writer::Bulk;
use matrix2acrobits_shared::ids::{AppId, Device, Pushkey, UserId};

/// An unchanged report only renews `updated_at` when that is older than this, in seconds: a phone that
/// reports at every start costs no write.
const TOUCH_AFTER: i64 = 3600;

/// A pushkey and its app id, where a row has both.
type Pair<'a> = (&'a str, &'a str);

impl<T> Field<T> {
    fn over(&self, stored: Option<&str>, text: impl Fn(&T) -> &str) -> Option<String> {
        match self {
            Self::Absent => stored.map(str::to_owned),
            Self::Clear => None,
            Self::Set(value) => Some(text(value).to_owned()),
        }
    }

    fn is_set(&self) -> bool {
        matches!(self, Self::Set(_))
    }
}

/// What a report sets in a row.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Contents {
    owner: Option<String>,
    token_msgs: Option<String>,
    app_id_msgs: Option<String>,
    token_calls: Option<String>,
    app_id_calls: Option<String>,
}

impl Contents {
    /// What the row holds after `report`, and now holds `stored`.
    fn after(report: &Report, stored: Option<&Self>) -> Self {
        let stored = |get: fn(&Self) -> Option<&String>| stored.and_then(get).map(String::as_str);
        let owner = report.from.owner.as_ref().map(UserId::as_str);
        let (token_msgs, app_id_msgs) = (
            stored(|it| it.token_msgs.as_ref()),
            stored(|it| it.app_id_msgs.as_ref()),
        );
        let (token_calls, app_id_calls) = (
            stored(|it| it.token_calls.as_ref()),
            stored(|it| it.app_id_calls.as_ref()),
        );
        Self {
            owner: owner.or(stored(|it| it.owner.as_ref())).map(str::to_owned),
            token_msgs: report.token_msgs.over(token_msgs, Pushkey::as_str),
            app_id_msgs: report.app_id_msgs.over(app_id_msgs, AppId::as_str),
            token_calls: report.token_calls.over(token_calls, Pushkey::as_str),
            app_id_calls: report.app_id_calls.over(app_id_calls, AppId::as_str),
        }
    }

    fn pair(&self) -> Option<Pair<'_>> {
        self.token_msgs.as_deref().zip(self.app_id_msgs.as_deref())
    }
}

#[derive(Debug, Deserialize)]
struct Row {
    id: i64,
    contents: Contents,
    dead_at: Option<i64>,
    updated_at: i64,
}

impl Bulk for Report {
    type Value = Saved;

    /// In rounds: of those that meet at a selector or a token, one comes after the other.
    async fn write_all(
        connection: &mut SqliteConnection,
        reports: &[&Self],
        now: i64,
    ) -> Result<Vec<Saved>, StoreError> {
        let mut saved: Vec<Option<Saved>> = vec![None; reports.len()];
        let mut waiting: Vec<(usize, &Self)> = reports.iter().copied().enumerate().collect();
        while !waiting.is_empty() {
            save_round(connection, &waiting, &mut saved, now).await?;
            waiting.retain(|(at, _)| saved[*at].is_none());
        }
        Ok(saved.into_iter().flatten().collect())
    }
}

/// Saves one report, as [`Report::write_all`] does many.
pub(super) async fn save_report(
    connection: &mut SqliteConnection,
    report: &Report,
    now: i64,
) -> Result<Saved, StoreError> {
    let mut saved = [None];
    save_round(connection, &[(0, report)], &mut saved, now).await?;
    let [saved] = saved;
    saved.ok_or(StoreError::Stopped)
}

/// What is there when a report comes.
#[derive(Debug, Deserialize)]
struct Stored {
    row: Option<Row>,
    /// Whose the selector is by the operator's word.
    mapped: Option<String>,
    /// Another user's login has claimed the selector.
    taken: bool,
}

/// What a report makes of its row.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    contents: Contents,
    row: RowChange,
    /// The app id and pushkey that the row held and holds no more.
    left: Option<(String, String)>,
    user: Option<UserId>,
    stranger: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RowChange {
    Insert,
    Update(i64),
    /// As it was; only its age is renewed.
    Touch(i64),
    Nothing(i64),
}

/// Decides what `report` does, or what it is answered where it does nothing.
fn decide(report: &Report, stored: Stored, now: i64) -> Result<Change, Saved> {
    if stored.taken {
        return Err(Saved::NotYours);
    }
    let row = stored.row;
    let contents = Contents::after(report, row.as_ref().map(|row| &row.contents));
    if report.token_msgs.is_set() && contents.app_id_msgs.is_none() {
        return Err(Saved::NeedsAppId);
    }
    let stranger = row.is_none() && contents.owner.is_none() && stored.mapped.is_none();
    let (mut change, mut left) = (RowChange::Insert, None);
    match row {
        None if contents.token_msgs.is_none() && contents.token_calls.is_none() => {
            // Nothing to remember, and a row without a token would hide a lost volume.
            return Err(Saved::Done {
                stale: Vec::new(),
                user: None,
                stranger: false,
            });
        }
        None if stranger && !report.from.strangers => return Err(Saved::Strange),
        None => {}
        Some(row) => {
            let old = row.contents;
            change = if old != contents || row.dead_at.is_some() {
                RowChange::Update(row.id)
            } else if now - row.updated_at >= TOUCH_AFTER {
                RowChange::Touch(row.id)
            } else {
                RowChange::Nothing(row.id)
            };
            left = old
                .pair()
                .filter(|old| contents.pair() != Some(*old))
                .map(|(pushkey, app_id)| (pushkey.to_owned(), app_id.to_owned()));
        }
    }
    let user = stored.mapped.as_deref().or(contents.owner.as_deref());
    let user = user.filter(|_| contents.pair().is_some());
    Ok(Change {
        user: user.and_then(|user| UserId::parse(user).ok()),
        contents,
        row: change,
        left,
        stranger,
    })
}

impl Change {
    /// The pairs whose pushers it may change.
    fn pairs(&self) -> impl Iterator<Item = Pair<'_>> {
        let left = self.left.as_ref();
        let left = left.map(|(pushkey, app_id)| (pushkey.as_str(), app_id.as_str()));
        left.into_iter().chain(self.contents.pair())
    }
}

/// Saves the first of these, and all others that meet none before them at a selector or a token.
async fn save_round(
    connection: &mut SqliteConnection,
    reports: &[(usize, &Report)],
    saved: &mut [Option<Saved>],
    now: i64,
) -> Result<(), StoreError> {
    let stored = stored(connection, reports).await?;
    let changes = reports.iter().zip(stored);
    let changes: Vec<_> = changes
        .map(|((at, report), stored)| (*at, *report, decide(report, stored, now)))
        .collect();
    let (mut selectors, mut pairs) = (HashSet::new(), HashSet::new());
    let mut round = Vec::with_capacity(changes.len());
    for (at, report, change) in &changes {
        let its = || change.iter().flat_map(Change::pairs);
        let free = its().all(|pair| !pairs.contains(&pair));
        pairs.extend(its());
        match change {
            // What was decided of one that has to wait may not be so any more when its turn comes.
            _ if !selectors.insert(report.from.selector.as_str()) || !free => {}
            Ok(change) => round.push((*at, *report, change)),
            Err(refused) => saved[*at] = Some(refused.clone()),
        }
    }

    let mut new = insert_all(connection, &round, now).await?;
    update_all(connection, &round, now).await?;
    let mut touched = Vec::with_capacity(round.len());
    for (_, _, change) in &round {
        let row = match change.row {
            RowChange::Insert => new.next(),
            RowChange::Update(id) | RowChange::Touch(id) | RowChange::Nothing(id) => Some(id),
        };
        touched.extend(change.pairs().map(|pair| Touched {
            pushkey: pair.0,
            app_id: pair.1,
            row: row.filter(|_| change.contents.pair() == Some(pair)),
        }));
    }
    settle(connection, touched, now).await?;
    for (at, _, change) in round {
        let written = matches!(change.row, RowChange::Insert | RowChange::Update(_));
        let stale = change.pairs().filter(|_| written);
        saved[at] = Some(Saved::Done {
            stale: stale.map(|(pushkey, _)| pushkey.to_owned()).collect(),
            user: change.user.clone(),
            stranger: change.stranger,
        });
    }
    Ok(())
}

fn device(report: &Report) -> &str {
    report.from.device.as_ref().map_or("", Device::as_str)
}

/// What is there for each of these.
async fn stored(
    connection: &mut SqliteConnection,
    reports: &[(usize, &Report)],
) -> Result<Vec<Stored>, StoreError> {
    let asked = json(reports.iter().map(|(_, report)| {
        let owner = report.from.owner.as_ref().map(UserId::as_str);
        (report.from.selector.as_str(), device(report), owner)
    }))?;
    let rows = sqlx::query_scalar!(
        r#"SELECT json_group_array(json_object(
               'mapped', m.user_id,
               'taken', json(iif(i.value ->> 2 IS NOT NULL AND EXISTS (SELECT 1 FROM push_tokens other
                   WHERE other.selector = i.value ->> 0 AND other.owner <> i.value ->> 2), 'true', 'false')),
               'row', json(iif(t.id IS NULL, 'null', json_object('id', t.id, 'dead_at', t.dead_at,
                   'updated_at', t.updated_at, 'contents', json_object('owner', t.owner,
                   'token_msgs', t.token_msgs, 'app_id_msgs', t.app_id_msgs, 'token_calls', t.token_calls,
                   'app_id_calls', t.app_id_calls))))
           ) ORDER BY i.key) AS "rows!: String"
           FROM json_each(?) i LEFT JOIN mappings m ON m.selector = i.value ->> 0
               LEFT JOIN push_tokens t ON t.selector = i.value ->> 0 AND t.device = i.value ->> 1"#,
        asked
    )
    .fetch_one(connection)
    .await?;
    from_json(&rows)
}

/// Makes the rows that are to be made. Returns their ids, in order.
async fn insert_all(
    connection: &mut SqliteConnection,
    round: &[(usize, &Report, &Change)],
    now: i64,
) -> Result<impl Iterator<Item = i64> + use<>, StoreError> {
    let new: Vec<_> = round
        .iter()
        .filter(|(_, _, change)| change.row == RowChange::Insert)
        .map(|(_, report, change)| {
            let it = &change.contents;
            (
                report.from.selector.as_str(),
                device(report),
                &it.owner,
                &it.token_msgs,
                &it.app_id_msgs,
                &it.token_calls,
                &it.app_id_calls,
            )
        })
        .collect();
    if new.is_empty() {
        return Ok(inserted(0, 0));
    }
    let rows = json(&new)?;
    let last = sqlx::query!(
        "INSERT INTO push_tokens (selector, device, owner, token_msgs, app_id_msgs, token_calls, app_id_calls,
             report, created_at, updated_at)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, 1, ?2, ?2
         FROM json_each(?1) ORDER BY key",
        rows,
        now
    )
    .execute(connection)
    .await?
    .last_insert_rowid();
    Ok(inserted(last, new.len()))
}

/// Updates the rows that are to be updated.
async fn update_all(
    connection: &mut SqliteConnection,
    round: &[(usize, &Report, &Change)],
    now: i64,
) -> Result<(), StoreError> {
    let (mut updated, mut touched) = (Vec::new(), Vec::new());
    for (_, _, change) in round {
        let it = &change.contents;
        match change.row {
            RowChange::Update(id) => updated.push((
                id,
                &it.owner,
                &it.token_msgs,
                &it.app_id_msgs,
                &it.token_calls,
                &it.app_id_calls,
            )),
            RowChange::Touch(id) => touched.push(id),
            RowChange::Insert | RowChange::Nothing(_) => {}
        }
    }
    if !updated.is_empty() {
        let updated = json(updated)?;
        sqlx::query!(
            "UPDATE push_tokens SET owner = i.value ->> 1, token_msgs = i.value ->> 2, app_id_msgs = i.value ->> 3,
                 token_calls = i.value ->> 4, app_id_calls = i.value ->> 5, report = report + 1, dead_at = NULL,
                 updated_at = ?2
             FROM json_each(?1) i WHERE push_tokens.id = i.value ->> 0",
            updated,
            now
        )
        .execute(&mut *connection)
        .await?;
    }
    if !touched.is_empty() {
        let touched = json(touched)?;
        sqlx::query!(
            "UPDATE push_tokens SET updated_at = ?2 WHERE id IN (SELECT value FROM json_each(?1))",
            touched,
            now
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
