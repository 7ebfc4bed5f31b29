//! All SQL of this crate, by subject, with one function for each statement.
//!
//! Many values go into one statement as a JSON list (`jsonb_each`), and many rows come out as a JSON list
//! (`json_group_array`). sqlx runs SQLite in a separate thread, and each row that it hands over wakes two threads.
//! Lists are read as bytes, so that a text that is not UTF-8 (somebody may write one by hand) does not hide other rows.
//!
//! `jsonb_each`, because `json_each` makes text of a row again for each of its values that is asked for. And
//! `iif(…, json('true'), json('false'))`, because SQLite evaluates a function of constants only once.

pub(crate) mod accounts;
pub(crate) mod arrivals;
pub(crate) mod copy;
pub(crate) mod gate;
pub(crate) mod jobs;
pub(crate) mod listing;
pub(crate) mod mappings;
pub(crate) mod marks;
pub(crate) mod meta;
pub(crate) mod pushers;
pub(crate) mod tokens;
pub(crate) mod workers;

use std::borrow::Cow;

use matrix2acrobits_shared::flow::Result;
use sqlx::sqlite::SqliteValueRef;

use crate::errors::from_sqlx;

/// A list for `jsonb_each`.
///
/// SQLite ends texts at a NUL character. Our ids cannot contain one (`shared::ids`), so SQLite reads what we wrote.
fn json<T: serde::Serialize>(values: impl IntoIterator<Item = T>) -> Result<String> {
    let values: Vec<T> = values.into_iter().collect();
    serde_json::to_string(&values).map_err(|e| from_sqlx(sqlx::Error::Encode(Box::new(e))))
}

/// Reads the list that `json_group_array` made of many rows.
fn from_json<T: serde::de::DeserializeOwned>(rows: &[u8]) -> Result<T> {
    // Nearly always valid, and then not gone over twice.
    let rows = match std::str::from_utf8(rows) {
        Ok(rows) => Cow::Borrowed(rows),
        Err(_) => String::from_utf8_lossy(rows),
    };
    serde_json::from_str(&rows).map_err(|e| from_sqlx(sqlx::Error::Decode(Box::new(e))))
}

/// Groups found rows by the place in the list that was asked for.
fn by_place<T>(places: usize, found: Vec<(usize, T)>) -> Vec<Vec<T>> {
    let mut lists: Vec<Vec<T>> = std::iter::repeat_with(Vec::new).take(places).collect();
    for (place, row) in found {
        if let Some(list) = lists.get_mut(place) {
            list.push(row);
        }
    }
    lists
}

/// The ids of the `count` rows that one statement has just inserted, where `last` is the last id. In a table with
/// AUTOINCREMENT, each new id is one more than the largest ever used (<https://sqlite.org/autoinc.html>), and nobody
/// else writes meanwhile. (With RETURNING, each row would wake another thread.)
fn inserted(last: i64, count: usize) -> Vec<i64> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    (last - count + 1..=last).collect()
}

/// A text for people, read from any bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(String);

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

impl sqlx::Type<sqlx::Sqlite> for Text {
    fn type_info() -> sqlx::sqlite::SqliteTypeInfo {
        <String as sqlx::Type<sqlx::Sqlite>>::type_info()
    }
}

impl<'r> sqlx::Decode<'r, sqlx::Sqlite> for Text {
    fn decode(value: SqliteValueRef<'r>) -> std::result::Result<Self, sqlx::error::BoxDynError> {
        let bytes = <&[u8] as sqlx::Decode<sqlx::Sqlite>>::decode(value)?;
        Ok(Self(String::from_utf8_lossy(bytes).into_owned()))
    }
}
