//! All SQL of this crate, by subject, with one function for each statement.
//!
//! Many values go into one statement as arrays, and the rows come back with the place of their value in the array
//! (`WITH ORDINALITY`). Joins with such a list are lateral, with `OFFSET 0`. PostgreSQL caches a plan after a few
//! executions, and a plan that was made while a table was empty kept reading the whole table.

pub(crate) mod accounts;
pub(crate) mod arrivals;
pub(crate) mod copy;
pub(crate) mod gate;
pub(crate) mod jobs;
pub(crate) mod listing;
pub(crate) mod locks;
pub(crate) mod mappings;
pub(crate) mod marks;
pub(crate) mod meta;
pub(crate) mod pushers;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod tokens;
pub(crate) mod workers;

use matrix2acrobits_shared::{
    flow::Result,
    rules::{
        jobs::{Job, Status},
        pushers::{State, Wanted},
    },
};

use crate::errors::from_sqlx;

/// Groups found rows by the place in the list that was asked for, counted from 1.
fn by_place<T>(places: usize, found: impl IntoIterator<Item = (i64, T)>) -> Vec<Vec<T>> {
    let mut lists: Vec<Vec<T>> = std::iter::repeat_with(Vec::new).take(places).collect();
    for (place, row) in found {
        let place = usize::try_from(place - 1).ok();
        if let Some(list) = place.and_then(|place| lists.get_mut(place)) {
            list.push(row);
        }
    }
    lists
}

/// A job's columns, as statements name them.
struct JobRow {
    pusher_id: i64,
    state: String,
    attempts: i64,
    run_at: i64,
    not_before: Option<i64>,
    lost: Option<i64>,
    recalled: bool,
    lock_by: Option<String>,
    last_error: Option<String>,
    done_at: Option<i64>,
}

impl From<JobRow> for Job {
    fn from(row: JobRow) -> Self {
        Self {
            key: row.pusher_id,
            status: status(&row.state),
            attempts: row.attempts,
            run_at: row.run_at,
            not_before: row.not_before,
            lost: row.lost,
            recalled: row.recalled,
            lock_by: row.lock_by,
            error: row.last_error,
            done_at: row.done_at,
        }
    }
}

fn status(word: &str) -> Status {
    let all = [
        Status::Pending,
        Status::Queued,
        Status::Running,
        Status::Failed,
        Status::Killed,
    ];
    let found = all.into_iter().find(|status| status.as_str() == word);
    found.unwrap_or(Status::Foreign)
}

fn state(word: &str) -> Result<State> {
    let found = State::ALL.into_iter().find(|state| state.as_str() == word);
    found.ok_or_else(|| not_ours(word))
}

fn wanted(word: &str) -> Result<Wanted> {
    match word {
        "present" => Ok(Wanted::Present),
        "absent" => Ok(Wanted::Absent),
        _ => Err(not_ours(word)),
    }
}

fn wanted_word(wanted: Wanted) -> &'static str {
    match wanted {
        Wanted::Present => "present",
        Wanted::Absent => "absent",
    }
}

fn not_ours(word: &str) -> matrix2acrobits_shared::flow::StoreError {
    from_sqlx(sqlx::Error::Decode(
        format!("{word:?} is no word of ours").into(),
    ))
}
