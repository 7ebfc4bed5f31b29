//! What the phones reported: saving a report, forgetting it, and finding the row for a push.

use sqlx::SqliteConnection;

use super::{Store, StoreError, settle};
use crate::ids::{AppId, Pushkey, Selector, UserId};

/// An unchanged report only renews `updated_at` when that is older than this, in seconds: a phone that
/// reports at every start costs no write.
const TOUCH_AFTER: i64 = 3600;

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

/// Which row a request is about, and who sent it.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// The account on the phone.
    pub selector: Selector,
    /// The phone, where it says so.
    pub device: Option<String>,
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

/// What a report sets in a row.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    owner: Option<String>,
    token_msgs: Option<String>,
    app_id_msgs: Option<String>,
    token_calls: Option<String>,
    app_id_calls: Option<String>,
}

impl Contents {
    /// What the row holds after `report`.
    fn after(report: &Report, row: Option<&Row>) -> Self {
        let stored = |get: fn(&Row) -> Option<&String>| row.and_then(get).map(String::as_str);
        let owner = report.from.owner.as_ref().map(UserId::as_str);
        Self {
            owner: owner
                .or(stored(|row| row.owner.as_ref()))
                .map(str::to_owned),
            token_msgs: report
                .token_msgs
                .over(stored(|row| row.token_msgs.as_ref()), Pushkey::as_str),
            app_id_msgs: report
                .app_id_msgs
                .over(stored(|row| row.app_id_msgs.as_ref()), AppId::as_str),
            token_calls: report
                .token_calls
                .over(stored(|row| row.token_calls.as_ref()), Pushkey::as_str),
            app_id_calls: report
                .app_id_calls
                .over(stored(|row| row.app_id_calls.as_ref()), AppId::as_str),
        }
    }

    fn pair(&self) -> Option<Pair<'_>> {
        self.token_msgs.as_deref().zip(self.app_id_msgs.as_deref())
    }
}

#[derive(Debug)]
struct Row {
    id: i64,
    owner: Option<String>,
    token_msgs: Option<String>,
    app_id_msgs: Option<String>,
    token_calls: Option<String>,
    app_id_calls: Option<String>,
    dead_at: Option<i64>,
    updated_at: i64,
}

impl Row {
    fn contents(&self) -> Contents {
        Contents {
            owner: self.owner.clone(),
            token_msgs: self.token_msgs.clone(),
            app_id_msgs: self.app_id_msgs.clone(),
            token_calls: self.token_calls.clone(),
            app_id_calls: self.app_id_calls.clone(),
        }
    }
}

impl Store {
    /// Saves a report and, in the same transaction, enqueues what it changes at the homeserver.
    pub async fn save_report(&self, report: Report) -> Result<Saved, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (report, now) = (report.clone(), clock.unix());
                Box::pin(async move { save_report(connection, &report, now).await })
            })
            .await
    }

    /// Forgets the tokens of a phone (of all phones with this selector when none is named) and enqueues
    /// the removal of their pushers.
    pub async fn remove_account(&self, from: Reporter) -> Result<Saved, StoreError> {
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let (from, now) = (from.clone(), clock.unix());
                Box::pin(async move {
                    if belongs_to_another(connection, &from).await? {
                        return Ok(Saved::NotYours);
                    }
                    let (selector, device) = (from.selector.as_str(), from.device.as_deref());
                    let stale = remove_rows(connection, Some(selector), device, now).await?;
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
                    remove_rows(
                        connection,
                        selector.as_ref().map(Selector::as_str),
                        None,
                        now,
                    )
                    .await
                })
            })
            .await
    }

    /// The rows that hold this pushkey, the latest report first.
    pub async fn targets(&self, pushkey: &str) -> Result<Vec<PushTarget>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id, report, selector, app_id_msgs AS "app_id!", token_msgs AS "pushkey!", dead_at
               FROM push_tokens WHERE token_msgs = ? AND app_id_msgs IS NOT NULL
               ORDER BY updated_at DESC, id DESC"#,
            pushkey
        )
        .fetch_all(self.readers())
        .await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                parse_target((
                    row.id,
                    row.report,
                    row.selector,
                    row.app_id,
                    row.pushkey,
                    row.dead_at,
                ))
            })
            .collect())
    }

    /// Remembers that PNM called this row's token gone, for all rows that hold it, until the phone reports
    /// again. False when the phone has reported since `target` was read: the verdict is about the past then.
    pub async fn mark_dead(&self, target: &PushTarget) -> Result<bool, StoreError> {
        let (id, report) = (target.row_id, target.report);
        let clock = self.clock.clone();
        self.writer
            .write(move |connection| {
                let now = clock.unix();
                Box::pin(async move { mark_dead(connection, id, report, now).await })
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

type TargetColumns = (i64, i64, String, String, String, Option<i64>);

/// A row that an operator's shell has broken is passed over rather than failing every push.
fn parse_target(
    (row_id, report, selector, app_id, pushkey, dead_at): TargetColumns,
) -> Option<PushTarget> {
    Some(PushTarget {
        row_id,
        report,
        selector: Selector::parse(&selector).ok()?,
        app_id: AppId::parse(&app_id).ok()?,
        pushkey: Pushkey::parse(&pushkey).ok()?,
        dead: dead_at.is_some(),
    })
}

pub(super) async fn save_report(
    connection: &mut SqliteConnection,
    report: &Report,
    now: i64,
) -> Result<Saved, StoreError> {
    if belongs_to_another(connection, &report.from).await? {
        return Ok(Saved::NotYours);
    }
    let selector = report.from.selector.as_str();
    let device = report.from.device.as_deref().unwrap_or_default();
    let stored = sqlx::query_as!(
        Row,
        "SELECT id, owner, token_msgs, app_id_msgs, token_calls, app_id_calls, dead_at, updated_at
         FROM push_tokens WHERE selector = ? AND device = ?",
        selector,
        device
    )
    .fetch_optional(&mut *connection)
    .await?;

    let new = Contents::after(report, stored.as_ref());
    if report.token_msgs.is_set() && new.app_id_msgs.is_none() {
        return Ok(Saved::NeedsAppId);
    }
    let Some(row) = stored else {
        if new.token_msgs.is_none() && new.token_calls.is_none() {
            // Nothing to remember, and a row without a token would hide a lost volume.
            return Ok(Saved::Done {
                stale: Vec::new(),
                user: None,
                stranger: false,
            });
        }
        // Each statement costs 20 µs and more, so what settling finds out is not asked twice.
        let ask = new.owner.is_none() && (!report.from.strangers || new.pair().is_none());
        let mapped = ask && is_mapped(connection, selector).await?;
        if ask && !mapped && !report.from.strangers {
            return Ok(Saved::Strange);
        }
        let id = insert(connection, selector, device, &new, now).await?;
        let (stale, user) = settle_rows(connection, None, new.pair(), id, now).await?;
        let stranger = new.owner.is_none() && !mapped && user.is_none();
        return Ok(Saved::Done {
            stale,
            user,
            stranger,
        });
    };

    let old = row.contents();
    let changed = old != new || row.dead_at.is_some();
    if changed {
        sqlx::query!(
            "UPDATE push_tokens SET owner = ?, token_msgs = ?, app_id_msgs = ?, token_calls = ?,
                 app_id_calls = ?, report = report + 1, dead_at = NULL, updated_at = ? WHERE id = ?",
            new.owner,
            new.token_msgs,
            new.app_id_msgs,
            new.token_calls,
            new.app_id_calls,
            now,
            row.id
        )
        .execute(&mut *connection)
        .await?;
    } else if now - row.updated_at >= TOUCH_AFTER {
        sqlx::query!(
            "UPDATE push_tokens SET updated_at = ? WHERE id = ?",
            now,
            row.id
        )
        .execute(&mut *connection)
        .await?;
    }
    let left = old.pair().filter(|old| new.pair() != Some(*old));
    let (stale, user) = settle_rows(connection, left, new.pair(), row.id, now).await?;
    Ok(Saved::Done {
        stale: if changed { stale } else { Vec::new() },
        user,
        stranger: false,
    })
}

async fn is_mapped(connection: &mut SqliteConnection, selector: &str) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM mappings WHERE selector = ?) AS "mapped: bool""#,
        selector
    )
    .fetch_one(connection)
    .await?)
}

async fn insert(
    connection: &mut SqliteConnection,
    selector: &str,
    device: &str,
    new: &Contents,
    now: i64,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"INSERT INTO push_tokens (selector, device, owner, token_msgs, app_id_msgs, token_calls,
               app_id_calls, report, created_at, updated_at)
           VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1, ?8, ?8) RETURNING id AS "id!""#,
        selector,
        device,
        new.owner,
        new.token_msgs,
        new.app_id_msgs,
        new.token_calls,
        new.app_id_calls,
        now
    )
    .fetch_one(connection)
    .await?)
}

/// A pushkey and its app id, where a row has both.
type Pair<'a> = (&'a str, &'a str);

/// The pushkeys whose rows changed, and the user of `row`.
async fn settle_rows(
    connection: &mut SqliteConnection,
    left: Option<Pair<'_>>,
    now_at: Option<Pair<'_>>,
    row: i64,
    now: i64,
) -> Result<(Vec<String>, Option<UserId>), StoreError> {
    let mut stale = Vec::new();
    let mut user = None;
    if let Some((pushkey, app_id)) = left {
        settle::settle(connection, pushkey, app_id, None, now).await?;
        stale.push(pushkey.to_owned());
    }
    if let Some((pushkey, app_id)) = now_at {
        user = settle::settle(connection, pushkey, app_id, Some(row), now).await?;
        stale.push(pushkey.to_owned());
    }
    Ok((stale, user))
}

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

async fn remove_rows(
    connection: &mut SqliteConnection,
    selector: Option<&str>,
    device: Option<&str>,
    now: i64,
) -> Result<Vec<String>, StoreError> {
    let gone = sqlx::query!(
        "DELETE FROM push_tokens WHERE (?1 IS NULL OR selector = ?1) AND (?2 IS NULL OR device = ?2)
         RETURNING token_msgs, app_id_msgs",
        selector,
        device
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut stale = Vec::new();
    for row in gone {
        if let Some((pushkey, app_id)) = row.token_msgs.as_deref().zip(row.app_id_msgs.as_deref()) {
            settle::settle(connection, pushkey, app_id, None, now).await?;
        }
        stale.extend(row.token_msgs);
    }
    Ok(stale)
}

async fn mark_dead(
    connection: &mut SqliteConnection,
    id: i64,
    report: i64,
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
    let user = sqlx::query_scalar!(
        r#"SELECT coalesce(m.user_id, t.owner) AS "user_id?" FROM push_tokens t
           LEFT JOIN mappings m ON m.selector = t.selector WHERE t.id = ?"#,
        id
    )
    .fetch_optional(&mut *connection)
    .await?;
    let user = user.flatten();
    settle::forget_rejected(connection, &row.pushkey, &row.app_id, user.as_deref(), now).await?;
    Ok(true)
}
