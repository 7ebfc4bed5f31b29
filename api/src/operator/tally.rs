//! The output of an import: progress, a line for each row that was skipped, and totals at the end.

use std::{collections::BTreeMap, fmt};

use matrix2acrobits_shared::{
    process::{
        output::Lines,
        progress::{ProgressBar, bar},
    },
    rules::import::Imported,
};

/// How often to print a line of progress without a terminal, in rows.
const SAY_EVERY: u64 = 10_000;

/// Counts rows and prints progress.
#[derive(Debug)]
pub(crate) struct Tally {
    what: &'static str,
    bar: ProgressBar,
    rows: u64,
    added: u64,
    changed: u64,
    unchanged: u64,
    skipped: BTreeMap<String, u64>,
    lines: Lines,
}

impl Tally {
    /// For this many rows of `what`, such as "mappings".
    pub(crate) fn new(what: &'static str, rows: u64) -> Self {
        Self {
            what,
            bar: bar(rows),
            rows: 0,
            added: 0,
            changed: 0,
            unchanged: 0,
            skipped: BTreeMap::new(),
            lines: Lines::default(),
        }
    }

    /// Counts a row, at a place such as "line 7", by its result.
    pub(crate) fn row(&mut self, place: impl fmt::Display, result: Imported) {
        match result {
            Imported::Added => self.added += 1,
            Imported::Changed => self.changed += 1,
            Imported::Unchanged => self.unchanged += 1,
            Imported::NewerHere => return self.skip(place, "what is here is newer"),
            Imported::NeedsAppId => return self.skip(place, "has a token but no app id"),
        }
        self.step();
    }

    /// Counts and prints a skipped row. The reason must not show a token.
    pub(crate) fn skip(&mut self, place: impl fmt::Display, reason: &str) {
        let line = format!("{place}: skipped: {reason}");
        // Print above the bar, if there is one.
        let lines = &mut self.lines;
        self.bar.suspend(|| lines.print(line));
        *self.skipped.entry(reason.to_owned()).or_default() += 1;
        self.step();
    }

    fn step(&mut self) {
        self.rows += 1;
        self.bar.inc(1);
        if self.bar.is_hidden() && self.rows.is_multiple_of(SAY_EVERY) {
            self.lines
                .print(format_args!("{}: {} so far", self.what, self.rows));
        }
    }

    /// Prints the totals. The caller finishes its work and then checks that all lines were written.
    pub(crate) fn finish(mut self) -> Lines {
        self.bar.finish_and_clear();
        let skipped: u64 = self.skipped.values().sum();
        self.lines.print(format_args!(
            "{}: {} added, {} changed, {} unchanged, {skipped} skipped",
            self.what, self.added, self.changed, self.unchanged
        ));
        for (reason, count) in self.skipped {
            self.lines
                .print(format_args!("  {count} skipped: {reason}"));
        }
        self.lines
    }
}
