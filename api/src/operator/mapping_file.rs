//! Parses a file of mappings: CSV (`selector,user_id` and an optional `updated_at`, with or without a line of names) or
//! JSON (an array of such objects, or the admin endpoint's list). Pure: no I/O.

use std::collections::HashMap;

use csv::{ReaderBuilder, StringRecord, Trim};
use matrix2acrobits_shared::{
    ids::{Selector, UserId},
    rules::import::MappingRow,
};
use serde::Deserialize;

const USER: [&str; 4] = ["user_id", "user", "matrix_id", "mxid"];

/// A place such as "line 7", and the row there or why it is invalid.
pub(crate) type Placed = (String, Result<MappingRow, String>);

/// Parses the text of a file. An error means that nothing in it can be read.
pub(crate) fn parse(text: &str) -> Result<Vec<Placed>, String> {
    let text = text.trim_start_matches('\u{feff}');
    let mut rows = if text.trim_start().starts_with(['[', '{']) {
        json(text)?
    } else {
        csv_rows(text)?
    };
    refuse_repeats(&mut rows);
    Ok(rows)
}

/// Refuses a second row for the same selector, because we cannot tell which row is meant.
fn refuse_repeats(rows: &mut [Placed]) {
    let mut seen: HashMap<Selector, String> = HashMap::new();
    for (place, row) in rows {
        let Ok(mapping) = row else { continue };
        match seen.get(&mapping.selector) {
            Some(first) => *row = Err(format!("the selector is in {first} already")),
            None => {
                seen.insert(mapping.selector.clone(), place.clone());
            }
        }
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    selector: String,
    #[serde(default, alias = "user", alias = "matrix_id", alias = "mxid")]
    user_id: String,
    updated_at: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    Array(Vec<serde_json::Value>),
    Listing {
        mappings: Vec<serde_json::Value>,
        /// Where the next page begins. Null on the last page.
        next: Option<serde_json::Value>,
    },
}

fn json(text: &str) -> Result<Vec<Placed>, String> {
    let form = "is neither a JSON array of mappings nor what the admin endpoint lists";
    let file: File = serde_json::from_str(text).map_err(|_| form.to_owned())?;
    let entries = match file {
        File::Listing { next: Some(_), .. } => {
            return Err("is only the first page of a listing: use `mappings export`".to_owned());
        }
        File::Array(entries)
        | File::Listing {
            mappings: entries, ..
        } => entries,
    };
    let numbered = entries.into_iter().zip(1..);
    let rows = numbered.map(|(entry, number)| {
        let row = serde_json::from_value(entry)
            .map_err(|_| r#"is not {"selector": "…", "user_id": "@user:server"}"#.to_owned())
            .and_then(|entry: Entry| mapping(&entry.selector, &entry.user_id, entry.updated_at));
        (format!("entry {number}"), row)
    });
    Ok(rows.collect())
}

/// The places of the columns.
struct Columns {
    selector: usize,
    user: usize,
    updated_at: Option<usize>,
}

impl Columns {
    /// Reads the column names in the first line, if it has any.
    fn named(line: &StringRecord) -> Option<Self> {
        let find = |names: &[&str]| {
            let is = |cell: &str| names.iter().any(|name| cell.eq_ignore_ascii_case(name));
            line.iter().position(is)
        };
        Some(Self {
            selector: find(&["selector"])?,
            user: find(&USER)?,
            updated_at: find(&["updated_at"]),
        })
    }

    const USUAL: Self = Self {
        selector: 0,
        user: 1,
        updated_at: Some(2),
    };
}

/// What separates the columns of the first line, if commas do not. A spreadsheet may write either.
fn wrong_separator(text: &str) -> Option<&'static str> {
    let first = text.lines().find(|line| !line.trim().is_empty())?;
    match first {
        _ if first.contains(',') => None,
        _ if first.contains(';') => Some("semicolons"),
        _ if first.contains('\t') => Some("tabs"),
        _ => None,
    }
}

fn csv_rows(text: &str) -> Result<Vec<Placed>, String> {
    if let Some(found) = wrong_separator(text) {
        return Err(format!(
            "columns must be separated by commas, not by {found}"
        ));
    }
    // The reader would count the line feed of a CR LF as part of the next line.
    let text = text.replace("\r\n", "\n");
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(Trim::All)
        .from_reader(text.as_bytes());
    let mut rows = Vec::new();
    let mut columns = None;
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                rows.push((format!("line {line}"), Err("is not CSV".to_owned())));
                continue;
            }
        };
        if record.iter().any(|cell| cell.contains('\n')) {
            // It would hide all rows up to the next quotation mark.
            let line = record.position().map_or(0, csv::Position::line);
            return Err(format!("line {line}: a quotation mark is not closed"));
        }
        if columns.is_none() {
            columns = Some(Columns::named(&record));
            if matches!(columns, Some(Some(_))) {
                continue;
            }
        }
        let columns = columns
            .as_ref()
            .and_then(Option::as_ref)
            .unwrap_or(&Columns::USUAL);
        let cell = |index: usize| record.get(index).unwrap_or_default();
        let updated_at = columns.updated_at.map(cell).filter(|text| !text.is_empty());
        let row = match updated_at.map(str::parse).transpose() {
            Ok(updated_at) => mapping(cell(columns.selector), cell(columns.user), updated_at),
            Err(_) => Err("updated_at must be seconds since 1970".to_owned()),
        };
        let line = record.position().map_or(0, csv::Position::line);
        rows.push((format!("line {line}"), row));
    }
    Ok(rows)
}

fn mapping(selector: &str, user: &str, updated_at: Option<i64>) -> Result<MappingRow, String> {
    Ok(MappingRow {
        selector: Selector::parse(selector.trim()).map_err(|e| format!("selector {e}"))?,
        user: UserId::parse(user.trim()).map_err(|e| format!("user_id {e}"))?,
        updated_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let show = |(place, row): Placed| match row {
            Ok(row) => format!(
                "{place}: {} {} {:?}",
                row.selector.as_str(),
                row.user,
                row.updated_at
            ),
            Err(problem) => format!("{place}: {problem}"),
        };
        parse(text).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn csv_with_and_without_names() {
        let expected = ["line 2: a:1 @b:x None", "line 3: c,d @e:x Some(7)"];
        let named = "\u{feff}Selector,User_ID,updated_at\na:1,@b:x,\n\"c,d\", @e:x ,7\n";
        assert_eq!(shown(named), expected);
        let swapped = "user,selector,updated_at\r\n@b:x,a:1\r\n@e:x,\"c,d\",7\r\n";
        assert_eq!(shown(swapped), expected);
        assert_eq!(shown("a:1,@b:x"), ["line 1: a:1 @b:x None"]);
        assert_eq!(shown(""), [""; 0]);
    }

    #[test]
    fn a_quotation_mark_that_is_not_closed_hides_no_rows() {
        let problem = parse("selector,user_id\na,@a:x\nb,\"@b:x\nc,@c:x\nd,@d:x\n");
        let problem = problem.map(|rows| rows.len());
        assert_eq!(
            problem,
            Err("line 3: a quotation mark is not closed".to_owned())
        );
    }

    #[test]
    fn json_as_an_array_and_as_listed() {
        let expected = ["entry 1: a @b:x None", "entry 2: c @d:x Some(7)"];
        let array =
            r#"[{"selector":"a","user_id":"@b:x"},{"selector":"c","user":"@d:x","updated_at":7}]"#;
        assert_eq!(shown(array), expected);
        let listed = format!(r#"{{"mappings":{array},"next":null}}"#);
        assert_eq!(shown(&listed), expected);
        assert!(parse("{}").is_err() && parse("[1").is_err());
    }

    #[test]
    fn a_page_that_is_not_the_last_is_not_taken_for_all() {
        let page = r#"{"mappings":[{"selector":"a","user_id":"@b:x"}],"next":"a"}"#;
        let problem = parse(page).map(|rows| rows.len()).unwrap_err();
        assert!(problem.starts_with("is only the first page"), "{problem}");
    }

    #[test]
    fn other_separators_than_commas_are_named() {
        for (text, found) in [
            ("selector;user_id\na;@b:x\n", "semicolons"),
            ("\na\t@b:x\n", "tabs"),
        ] {
            let problem = parse(text).map(|rows| rows.len()).unwrap_err();
            let words = format!("columns must be separated by commas, not by {found}");
            assert_eq!(problem, words);
        }
        assert_eq!(shown("a;1,@b:x"), ["line 1: a;1 @b:x None"]);
    }

    #[test]
    fn bad_rows_are_named_and_others_are_taken() {
        let text = "selector,user_id\na,bob\n,@b:x\nb\nc,@c:x,soon\nc,@c:x\nc,@d:x\n";
        let text = text.replacen("user_id", "user_id,updated_at", 1);
        assert_eq!(
            shown(&text),
            [
                "line 2: user_id must look like @localpart:server.name",
                "line 3: selector must not be empty",
                "line 4: user_id must not be empty",
                "line 5: updated_at must be seconds since 1970",
                "line 6: c @c:x None",
                "line 7: the selector is in line 6 already",
            ]
        );
        assert_eq!(
            shown(r#"[1,{"selector":"a"}]"#),
            [
                r#"entry 1: is not {"selector": "…", "user_id": "@user:server"}"#,
                "entry 2: user_id must not be empty",
            ]
        );
    }
}
