//! Many mappings or tokens at once, from a file or another program's database. Each chunk is one transaction of
//! the writer, and what it does is what a mapping or a report does, jobs included. What is here and newer
//! stays. Repeating an import changes nothing.

use sqlx::{Connection, SqliteConnection};

use super::{
    Store, StoreError,
    mappings::put_mapping,
    report::save_report,
    tokens::{Field, Report, Saved},
};
use crate::url::DatabaseUrl;
use matrix2acrobits_shared::ids::{AppId, Pushkey, Selector, UserId};

/// Rows that one transaction takes: few enough that reports of phones get in between.
pub const IMPORT_CHUNK: usize = 200;

/// A mapping to import.
#[derive(Debug, Clone)]
pub struct MappingRow {
    /// The selector.
    pub selector: Selector,
    /// Whose it is.
    pub user: UserId,
    /// When that was said, in seconds since 1970; unknown: now.
    pub updated_at: Option<i64>,
}

/// A token to import.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// What the phone reported.
    pub report: Report,
    /// When, in seconds since 1970; unknown: before all that is here.
    pub updated_at: Option<i64>,
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imported {
    /// It was not here.
    Added,
    /// It was here, older and different.
    Changed,
    /// It is here already.
    Unchanged,
    /// What is here is newer and stays.
    NewerHere,
    /// A token without an app id makes no pusher.
    NeedsAppId,
}

/// Takes rows in, or only tells what would become of them.
#[derive(Debug)]
pub struct Import(Target);

#[derive(Debug)]
enum Target {
    Store(Box<Store>),
    /// For looking only.
    Existing(SqliteConnection),
    /// For looking only, where there is no database yet.
    Nothing,
}

impl Import {
    /// Takes rows into a store.
    pub fn into_store(store: Store) -> Self {
        Self(Target::Store(Box::new(store)))
    }

    /// Only tells; neither makes nor changes the file.
    pub async fn dry_run(database: &DatabaseUrl) -> Result<Self, StoreError> {
        if !database.path().exists() {
            return Ok(Self(Target::Nothing));
        }
        let options = database.options().read_only(true).create_if_missing(false);
        let connection = SqliteConnection::connect_with(&options).await?;
        Ok(Self(Target::Existing(connection)))
    }

    /// Takes a chunk of mappings; one answer for each, in order.
    pub async fn mappings(&mut self, rows: Vec<MappingRow>) -> Result<Vec<Imported>, StoreError> {
        match &mut self.0 {
            Target::Nothing => Ok(vec![Imported::Added; rows.len()]),
            Target::Existing(connection) => {
                let mut results = Vec::with_capacity(rows.len());
                for row in &rows {
                    results.push(judge_mapping(connection, row).await?);
                }
                Ok(results)
            }
            Target::Store(store) => {
                let clock = store.clock.clone();
                store
                    .writer
                    .write(move |connection| {
                        let (rows, now) = (rows.clone(), clock.unix());
                        Box::pin(async move { import_mappings(connection, &rows, now).await })
                    })
                    .await
            }
        }
    }

    /// Takes a chunk of tokens; one answer for each, in order.
    pub async fn tokens(&mut self, rows: Vec<TokenRow>) -> Result<Vec<Imported>, StoreError> {
        match &mut self.0 {
            Target::Nothing => Ok(rows.iter().map(|row| judge_first(&row.report)).collect()),
            Target::Existing(connection) => {
                let mut results = Vec::with_capacity(rows.len());
                for row in &rows {
                    results.push(judge_token(connection, row).await?);
                }
                Ok(results)
            }
            Target::Store(store) => {
                let clock = store.clock.clone();
                store
                    .writer
                    .write(move |connection| {
                        let (rows, now) = (rows.clone(), clock.unix());
                        Box::pin(async move { import_tokens(connection, &rows, now).await })
                    })
                    .await
            }
        }
    }

    /// How many tokens for messages belong to nobody yet, and so have no pusher; none when nothing is written.
    pub async fn unmapped(&self) -> Result<Option<i64>, StoreError> {
        let Target::Store(store) = &self.0 else {
            return Ok(None);
        };
        let count = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM push_tokens t LEFT JOIN mappings m ON m.selector = t.selector
               WHERE t.token_msgs IS NOT NULL AND t.owner IS NULL AND m.user_id IS NULL"#
        )
        .fetch_one(store.readers())
        .await?;
        Ok(Some(count))
    }
}

async fn import_mappings(
    connection: &mut SqliteConnection,
    rows: &[MappingRow],
    now: i64,
) -> Result<Vec<Imported>, StoreError> {
    let mut results = Vec::with_capacity(rows.len());
    for row in rows {
        let result = judge_mapping(connection, row).await?;
        if matches!(result, Imported::Added | Imported::Changed) {
            put_mapping(connection, &row.selector, &row.user, now).await?;
        }
        results.push(result);
    }
    Ok(results)
}

async fn judge_mapping(
    connection: &mut SqliteConnection,
    row: &MappingRow,
) -> Result<Imported, StoreError> {
    let selector = row.selector.as_str();
    let stored = sqlx::query!(
        "SELECT user_id, updated_at FROM mappings WHERE selector = ?",
        selector
    )
    .fetch_optional(connection)
    .await?;
    Ok(match stored {
        None => Imported::Added,
        Some(stored) if stored.user_id == row.user.as_str() => Imported::Unchanged,
        Some(stored) if row.updated_at.is_some_and(|at| at < stored.updated_at) => {
            Imported::NewerHere
        }
        Some(_) => Imported::Changed,
    })
}

async fn import_tokens(
    connection: &mut SqliteConnection,
    rows: &[TokenRow],
    now: i64,
) -> Result<Vec<Imported>, StoreError> {
    let mut results = Vec::with_capacity(rows.len());
    for row in rows {
        let mut result = judge_token(connection, row).await?;
        if matches!(result, Imported::Added | Imported::Changed) {
            result = match save_report(connection, &row.report, now).await? {
                Saved::Done { .. } => result,
                Saved::NeedsAppId => Imported::NeedsAppId,
                // Neither can be: a report is refused so for its login, and for `strangers`.
                Saved::NotYours | Saved::Strange => Imported::NewerHere,
            };
        }
        results.push(result);
    }
    Ok(results)
}

fn judge_first(report: &Report) -> Imported {
    let lacks_app_id =
        matches!(report.token_msgs, Field::Set(_)) && !matches!(report.app_id_msgs, Field::Set(_));
    if lacks_app_id {
        Imported::NeedsAppId
    } else {
        Imported::Added
    }
}

/// Compares with all rows of the selector: a phone that names its device reports into a row of its own, which
/// is newer than what the other program knew of the same phone.
async fn judge_token(
    connection: &mut SqliteConnection,
    row: &TokenRow,
) -> Result<Imported, StoreError> {
    let (report, selector) = (&row.report, row.report.from.selector.as_str());
    let stored = sqlx::query!(
        "SELECT token_msgs, app_id_msgs, token_calls, app_id_calls, dead_at, updated_at FROM push_tokens
         WHERE selector = ? ORDER BY updated_at DESC, id DESC LIMIT 1",
        selector
    )
    .fetch_optional(connection)
    .await?;
    let Some(stored) = stored else {
        return Ok(judge_first(report));
    };
    let same = keeps(
        &report.token_msgs,
        stored.token_msgs.as_deref(),
        Pushkey::as_str,
    ) && keeps(
        &report.app_id_msgs,
        stored.app_id_msgs.as_deref(),
        AppId::as_str,
    ) && keeps(
        &report.token_calls,
        stored.token_calls.as_deref(),
        Pushkey::as_str,
    ) && keeps(
        &report.app_id_calls,
        stored.app_id_calls.as_deref(),
        AppId::as_str,
    );
    let older = row.updated_at.is_none_or(|at| at <= stored.updated_at);
    Ok(match (same, older) {
        (true, _) if stored.dead_at.is_none() => Imported::Unchanged,
        (_, true) => Imported::NewerHere,
        _ => Imported::Changed,
    })
}

/// Whether a field of a report leaves what is stored as it is.
fn keeps<T>(field: &Field<T>, stored: Option<&str>, text: impl Fn(&T) -> &str) -> bool {
    match field {
        Field::Absent => true,
        Field::Clear => stored.is_none(),
        Field::Set(value) => stored == Some(text(value)),
    }
}
