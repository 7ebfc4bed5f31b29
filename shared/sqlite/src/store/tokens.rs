//! What the phones reported: the words for it, forgetting it, and finding the row for a push. Saving is in
//! `report`.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use sqlx::{SqliteConnection, SqlitePool};

use super::{
    Store, StoreError, from_json, json,
    settle::{Touched, forget_rejected, settle},
};
use crate::batch::Batch;
use matrix2acrobits_shared::ids::{AppId, Device, Pushkey, Selector, UserId};

/// A field of a report: not there (what is stored stays), empty (clears it), or a value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Field<T> {
    /// What is stored stays.
    #[default]
    Absent,
    /// What is stored goes.
    Clear,
    /// The new value.
    Set(T),
}

/// Which row a request is about, and who sent it.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// The account on the phone.
    pub selector: Selector,
    /// The phone, where it says so.
    pub device: Option<Device>,
    /// The user that a login proved; none where nobody logs in.
    pub owner: Option<UserId>,
    /// Whether a row may be made that neither a login nor a mapping stands for.
    pub strangers: bool,
}

/// What a phone reports.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who and which phone.
    pub from: Reporter,
    /// Token for messages: the Matrix pushkey.
    pub token_msgs: Field<Pushkey>,
    /// App id for messages: the Matrix app id.
    pub app_id_msgs: Field<AppId>,
    /// Token for calls; stored only.
    pub token_calls: Field<Pushkey>,
    /// App id for calls; stored only.
    pub app_id_calls: Field<AppId>,
}

/// What became of a report or a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// It is in the database; these pushkeys may be cached with what they were before.
    Done {
        /// Pushkeys whose row changed.
        stale: Vec<String>,
        /// The user whose pusher this is; none until the operator maps the selector.
        user: Option<UserId>,
        /// A row was made that neither a login nor a mapping stands for.
        stranger: bool,
    },
    /// It needs such a row, and `strangers` says no.
    Strange,
    /// The token has no app id, neither in the report nor stored.
    NeedsAppId,
    /// The selector belongs to another user.
    NotYours,
}

/// A row that a push can go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushTarget {
    /// Its id.
    pub row_id: i64,
    /// Counts the reports that changed it.
    pub report: i64,
    /// The account on the phone.
    pub selector: Selector,
    /// The app.
    pub app_id: AppId,
    /// The token.
    pub pushkey: Pushkey,
    /// PNM said that the token is gone, and the phone has not reported since.
    pub dead: bool,
}

impl Store {
    /// Saves a report and, in the same transaction, enqueues what it changes at the homeserver.
    pub async fn save_report(&self, report: Report) -> Result<Saved, StoreError> {
        self.writer.write_bulk(report).await
    }

    /// Forgets the tokens of a phone (of all phones with this selector when none is named) and enqueues
    /// the removal of their pushers. Where a pushkey is named, a phone that has another one by now stays.
    pub async fn remove_account(
        &self,
        from: Reporter,
        pushkey: Option<Pushkey>,
    ) -> Result<Saved, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (from, pushkey, now) = (from.clone(), pushkey.clone(), clock.unix());
                Box::pin(async move {
                    if belongs_to_another(connection, &from).await? {
                        return Ok(Saved::NotYours);
                    }
                    let rows = Removed {
                        selector: Some(from.selector.as_str()),
                        device: from.device.as_ref().map(Device::as_str),
                        pushkey: pushkey.as_ref().map(Pushkey::as_str),
                    };
                    let stale = remove_rows(connection, rows, now).await?;
                    Ok(Saved::Done {
                        stale,
                        user: None,
                        stranger: false,
                    })
                })
            })
            .await
    }

    /// Forgets the tokens of one selector, or all there are, for the operator. Returns the pushkeys.
    pub async fn remove_tokens(
        &self,
        selector: Option<Selector>,
    ) -> Result<Vec<String>, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (selector, now) = (selector.clone(), clock.unix());
                Box::pin(async move {
                    let rows = Removed {
                        selector: selector.as_ref().map(Selector::as_str),
                        ..Removed::default()
                    };
                    remove_rows(connection, rows, now).await
                })
            })
            .await
    }

    /// The rows that hold this pushkey, the latest report first.
    pub async fn targets(&self, pushkey: &str) -> Result<Vec<PushTarget>, StoreError> {
        match Pushkey::parse(pushkey) {
            Ok(pushkey) => self.targets.ask(pushkey).await,
            // What is no pushkey is in no row.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Up to `limit` rows that a push can go to, with ids below `before`, the latest phones first. None when there
    /// are no more.
    pub async fn live_targets(
        &self,
        before: i64,
        limit: u32,
    ) -> Result<Option<(i64, Vec<PushTarget>)>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id, report, selector, app_id_msgs AS "app_id!", token_msgs AS "pushkey!" FROM push_tokens
               WHERE id < ? AND token_msgs IS NOT NULL AND app_id_msgs IS NOT NULL AND dead_at IS NULL
               ORDER BY id DESC LIMIT ?"#,
            before,
            limit
        )
        .fetch_all(self.readers())
        .await?;
        let Some(last) = rows.last().map(|row| row.id) else {
            return Ok(None);
        };
        let targets = rows.into_iter().filter_map(|row| {
            Some(PushTarget {
                row_id: row.id,
                report: row.report,
                selector: Selector::parse(&row.selector).ok()?,
                app_id: AppId::parse(&row.app_id).ok()?,
                pushkey: Pushkey::parse(&row.pushkey).ok()?,
                dead: false,
            })
        });
        Ok(Some((last, targets.collect())))
    }

    /// Remembers that PNM called this row's token gone, for all rows that hold it, until the phone reports
    /// again. False when the phone has reported since `target` was read: the verdict is about the past then.
    /// `pushed_to` is the selector that the pusher carries.
    pub async fn mark_dead(
        &self,
        target: &PushTarget,
        pushed_to: Option<&str>,
    ) -> Result<bool, StoreError> {
        let (id, report) = (target.row_id, target.report);
        let (clock, pushed_to) = (self.clock.clone(), pushed_to.map(str::to_owned));
        self.writer
            .write(move |connection| {
                let (now, pushed_to) = (clock.unix(), pushed_to.clone());
                Box::pin(async move {
                    mark_dead(connection, (id, report), pushed_to.as_deref(), now).await
                })
            })
            .await
    }

    /// Whether this database has ever held a token: an empty one may be a lost volume.
    pub async fn has_held_a_token(&self) -> Result<bool, StoreError> {
        let held = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'push_tokens') AS "held: bool""#
        )
        .fetch_one(self.readers())
        .await?;
        Ok(held)
    }
}

/// Starts what [`Store::targets`] asks.
pub(super) fn read_targets(readers: SqlitePool) -> Batch<Pushkey, Vec<PushTarget>> {
    Batch::start(move |pushkeys: Arc<[Pushkey]>| {
        let readers = readers.clone();
        async move { targets(&readers, &pushkeys).await }
    })
}

async fn targets(
    readers: &SqlitePool,
    pushkeys: &[Pushkey],
) -> Result<Vec<Vec<PushTarget>>, StoreError> {
    let list = json(pushkeys.iter().map(Pushkey::as_str))?;
    let rows = sqlx::query_scalar!(
        r#"SELECT json_group_array(json_array(i.key, t.id, t.report, t.selector, t.app_id_msgs, t.dead_at,
               t.updated_at)) AS "rows!: String"
           FROM json_each(?) i CROSS JOIN push_tokens t
           WHERE t.token_msgs = i.value AND t.app_id_msgs IS NOT NULL"#,
        list
    )
    .fetch_one(readers)
    .await?;
    let mut rows: Vec<TargetRow<'_>> = from_json(&rows)?;
    rows.sort_unstable_by_key(|&(_, id, .., updated_at)| (updated_at, id));
    let mut targets = vec![Vec::new(); pushkeys.len()];
    for (at, row_id, report, selector, app_id, dead_at, _) in rows.into_iter().rev() {
        let Some((targets, pushkey)) = targets.get_mut(at).zip(pushkeys.get(at)) else {
            continue;
        };
        // A row that an operator's shell has broken is passed over rather than failing every push.
        if let (Ok(selector), Ok(app_id)) = (Selector::parse(&selector), AppId::parse(&app_id)) {
            targets.push(PushTarget {
                row_id,
                report,
                selector,
                app_id,
                pushkey: pushkey.clone(),
                dead: dead_at.is_some(),
            });
        }
    }
    Ok(targets)
}

/// The number of the pushkey, then id, report, selector, app id, time of death and of the last change.
type TargetRow<'a> = (
    usize,
    i64,
    i64,
    Cow<'a, str>,
    Cow<'a, str>,
    Option<i64>,
    i64,
);

/// Whether another user's login has claimed this selector. Without a login there is nobody to compare.
async fn belongs_to_another(
    connection: &mut SqliteConnection,
    from: &Reporter,
) -> Result<bool, StoreError> {
    let Some(owner) = &from.owner else {
        return Ok(false);
    };
    let (selector, owner) = (from.selector.as_str(), owner.as_str());
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM push_tokens WHERE selector = ? AND owner IS NOT NULL AND owner <> ?)
           AS "other: bool""#,
        selector,
        owner
    )
    .fetch_one(connection)
    .await?)
}

/// Which rows a removal means; what is not named does not matter.
#[derive(Debug, Clone, Copy, Default)]
struct Removed<'a> {
    selector: Option<&'a str>,
    device: Option<&'a str>,
    pushkey: Option<&'a str>,
}

async fn remove_rows(
    connection: &mut SqliteConnection,
    rows: Removed<'_>,
    now: i64,
) -> Result<Vec<String>, StoreError> {
    // A row without a token is no newer phone, so it goes with whatever pushkey is named.
    let gone = sqlx::query!(
        "DELETE FROM push_tokens WHERE (?1 IS NULL OR selector = ?1) AND (?2 IS NULL OR device = ?2)
             AND (?3 IS NULL OR token_msgs IS NULL OR token_msgs = ?3)
         RETURNING token_msgs, app_id_msgs",
        rows.selector,
        rows.device,
        rows.pushkey
    )
    .fetch_all(&mut *connection)
    .await?;
    let left = gone.iter().filter_map(|row| {
        let pushkey = row.token_msgs.as_deref()?;
        Some((pushkey, row.app_id_msgs.as_deref()?))
    });
    let left: BTreeSet<_> = left.collect();
    let left = left.into_iter().map(|(pushkey, app_id)| Touched {
        pushkey,
        app_id,
        row: None,
    });
    settle(connection, left.collect(), now).await?;
    Ok(gone.into_iter().filter_map(|row| row.token_msgs).collect())
}

async fn mark_dead(
    connection: &mut SqliteConnection,
    (id, report): (i64, i64),
    pushed_to: Option<&str>,
    now: i64,
) -> Result<bool, StoreError> {
    let marked = sqlx::query!(
        r#"UPDATE push_tokens SET dead_at = ?1, updated_at = ?1 WHERE id = ?2 AND report = ?3
           RETURNING token_msgs AS "pushkey!", app_id_msgs AS "app_id!""#,
        now,
        id,
        report
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = marked else {
        return Ok(false);
    };
    // The token is gone for whatever other account of that phone reported it, too.
    sqlx::query!(
        "UPDATE push_tokens SET dead_at = ?1, updated_at = ?1
         WHERE token_msgs = ?2 AND app_id_msgs = ?3 AND dead_at IS NULL",
        now,
        row.pushkey,
        row.app_id
    )
    .execute(&mut *connection)
    .await?;
    forget_rejected(connection, &row.pushkey, &row.app_id, pushed_to, now).await?;
    Ok(true)
}
