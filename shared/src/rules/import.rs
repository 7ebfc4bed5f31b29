//! Decides what becomes of an imported mapping or token. A newer row in our database stays, and repeating an import
//! changes nothing.

use std::collections::HashMap;

use super::report::{Field, Phone, Report};
use crate::ids::{AppId, Pushkey, Selector, UserId};

/// Rows in one transaction. The number is small, so that reports from phones are saved in between.
pub const IMPORT_CHUNK: usize = 200;

/// A mapping to import.
#[derive(Debug, Clone)]
pub struct MappingRow {
    /// The selector.
    pub selector: Selector,
    /// The user who owns the selector.
    pub user: UserId,
    /// When the mapping was made, in seconds since 1970. None counts as now.
    pub updated_at: Option<i64>,
}

/// A token to import.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// What the phone reported.
    pub report: Report,
    /// When the phone reported it, in seconds since 1970. None counts as older than all our rows.
    pub updated_at: Option<i64>,
}

/// What became of an imported row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imported {
    /// Our database had no such row.
    Added,
    /// Our row was older and different.
    Changed,
    /// Our database already has the row.
    Unchanged,
    /// Our row is newer and stays.
    NewerHere,
    /// A token without an app id cannot have a pusher.
    NeedsAppId,
}

impl Imported {
    /// Whether the row has to be written.
    pub fn is_written(self) -> bool {
        matches!(self, Self::Added | Self::Changed)
    }
}

/// A selector and the user who owns it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mapping {
    /// The selector.
    pub selector: String,
    /// The Matrix user.
    pub user_id: String,
    /// When the mapping was last changed, in seconds since 1970.
    pub updated_at: i64,
}

/// Judges a mapping by the stored one.
pub fn judge_mapping(row: &MappingRow, stored: Option<&Mapping>) -> Imported {
    match stored {
        None => Imported::Added,
        Some(stored) if stored.user_id == row.user.as_str() => Imported::Unchanged,
        Some(stored) if row.updated_at.is_some_and(|at| at < stored.updated_at) => {
            Imported::NewerHere
        }
        Some(_) => Imported::Changed,
    }
}

/// Judges tokens by the rows of their selectors. `stored` may contain rows of other selectors.
pub fn judge_tokens(rows: &[TokenRow], stored: &[Phone]) -> Vec<Imported> {
    let mut by_selector: HashMap<&str, Vec<Phone>> = HashMap::new();
    for phone in stored {
        let phones = by_selector.entry(phone.selector.as_str()).or_default();
        phones.push(phone.clone());
    }
    let judge = |row: &TokenRow| {
        let phones = by_selector.get(row.report.from.selector.as_str());
        judge_token(row, phones.map_or(&[], Vec::as_slice))
    };
    rows.iter().map(judge).collect()
}

/// Judges a token by all rows of its selector. A phone that names its device reports into its own row, which is newer
/// than the other program's row for the same phone.
pub fn judge_token(row: &TokenRow, stored: &[Phone]) -> Imported {
    let report = &row.report;
    let Some(stored) = stored
        .iter()
        .max_by_key(|phone| (phone.updated_at, phone.id))
    else {
        let lacks_app_id = report.token_msgs.is_set() && !report.app_id_msgs.is_set();
        return if lacks_app_id {
            Imported::NeedsAppId
        } else {
            Imported::Added
        };
    };
    let held = &stored.contents;
    let same = keeps(
        &report.token_msgs,
        held.token_msgs.as_deref(),
        Pushkey::as_str,
    ) && keeps(
        &report.app_id_msgs,
        held.app_id_msgs.as_deref(),
        AppId::as_str,
    ) && keeps(
        &report.token_calls,
        held.token_calls.as_deref(),
        Pushkey::as_str,
    ) && keeps(
        &report.app_id_calls,
        held.app_id_calls.as_deref(),
        AppId::as_str,
    );
    let older = row.updated_at.is_none_or(|at| at <= stored.updated_at);
    match (same, older) {
        (true, _) if stored.dead_at.is_none() => Imported::Unchanged,
        (_, true) => Imported::NewerHere,
        _ => Imported::Changed,
    }
}

/// Whether a field of a report leaves the stored value as it is.
fn keeps<T>(field: &Field<T>, stored: Option<&str>, text: impl Fn(&T) -> &str) -> bool {
    match field {
        Field::Absent => true,
        Field::Clear => stored.is_none(),
        Field::Set(value) => stored == Some(text(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::report::{Contents, Reporter};

    fn token(token: &str, updated_at: Option<i64>) -> TokenRow {
        TokenRow {
            report: Report {
                from: Reporter {
                    selector: Selector::parse("s").unwrap(),
                    device: None,
                    owner: None,
                    strangers: true,
                },
                token_msgs: Field::Set(Pushkey::parse(token).unwrap()),
                app_id_msgs: Field::Set(AppId::parse("app").unwrap()),
                token_calls: Field::Absent,
                app_id_calls: Field::Absent,
            },
            updated_at,
        }
    }

    #[test]
    fn tokens() {
        let stored = |dead_at| Phone {
            id: 1,
            selector: "s".into(),
            device: String::new(),
            contents: Contents {
                token_msgs: Some("t".into()),
                app_id_msgs: Some("app".into()),
                ..Contents::default()
            },
            imported: false,
            report: 1,
            dead_at,
            updated_at: 100,
        };
        for (row, dead_at, expected) in [
            (token("t", Some(200)), None, Imported::Unchanged),
            (token("t", Some(200)), Some(1), Imported::Changed),
            (token("t", Some(50)), Some(1), Imported::NewerHere),
            (token("u", Some(200)), None, Imported::Changed),
            (token("u", Some(100)), None, Imported::NewerHere),
            (token("u", None), None, Imported::NewerHere),
        ] {
            assert_eq!(judge_token(&row, &[stored(dead_at)]), expected, "{row:?}");
        }
        assert_eq!(judge_token(&token("t", None), &[]), Imported::Added);
        let mut bare = token("t", None);
        bare.report.app_id_msgs = Field::Absent;
        assert_eq!(judge_token(&bare, &[]), Imported::NeedsAppId);
    }

    #[test]
    fn mappings() {
        let row = |user: &str, updated_at| MappingRow {
            selector: Selector::parse("s").unwrap(),
            user: UserId::parse(user).unwrap(),
            updated_at,
        };
        let stored = Mapping {
            selector: "s".into(),
            user_id: "@a:x".into(),
            updated_at: 100,
        };
        for (row, stored, expected) in [
            (row("@a:x", None), None, Imported::Added),
            (row("@a:x", Some(1)), Some(&stored), Imported::Unchanged),
            (row("@b:x", Some(1)), Some(&stored), Imported::NewerHere),
            (row("@b:x", Some(100)), Some(&stored), Imported::Changed),
            (row("@b:x", None), Some(&stored), Imported::Changed),
        ] {
            assert_eq!(judge_mapping(&row, stored), expected, "{row:?}");
        }
    }
}
