//! What a part has found: tables, figures with what they were to reach, charts; for the terminal and as Markdown.

use std::fmt::Write as _;

/// A table; the first column is text, the others are figures.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) header: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, header: &[&'static str]) -> Self {
        Self {
            title: title.into(),
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, row: [String; N]) {
        self.rows.push(row.into());
    }

    /// Aligned with blanks, for the terminal.
    pub(crate) fn text(&self) -> String {
        let mut lines: Vec<Vec<&str>> = vec![self.header.clone()];
        lines.extend(
            self.rows
                .iter()
                .map(|row| row.iter().map(String::as_str).collect()),
        );
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.header.len()).map(width).collect();
        let mut text = format!("{}\n", self.title);
        for line in lines {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Writing into a String cannot fail.
                let _ = if column == 0 {
                    write!(text, "  {cell:<width$}")
                } else {
                    write!(text, "  {cell:>width$}")
                };
            }
            text.push('\n');
        }
        text
    }

    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("**{}**\n\n{}", self.title, line(&self.header));
        let _ = writeln!(text, "|---|{}", "--:|".repeat(self.header.len() - 1));
        for row in &self.rows {
            text.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        text
    }
}

/// A figure and what it was to reach. Timings are reported, never asserted.
#[derive(Debug)]
pub(crate) struct Goal {
    what: String,
    wanted: String,
    measured: String,
    reached: bool,
}

impl Goal {
    pub(crate) fn at_least(what: impl Into<String>, goal: f64, measured: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            wanted: format!("≥ {}{unit}", short(goal)),
            measured: format!("{}{unit}", short(measured)),
            reached: measured >= goal,
        }
    }

    pub(crate) fn at_most(what: impl Into<String>, goal: f64, measured: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            wanted: format!("≤ {}{unit}", short(goal)),
            measured: format!("{}{unit}", short(measured)),
            reached: measured <= goal,
        }
    }
}

/// A chart, as a file beside the document.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) file: &'static str,
    pub(crate) about: &'static str,
    pub(crate) svg: String,
}

/// All that one part has found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) tables: Vec<Table>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) charts: Vec<Chart>,
}

impl Report {
    fn tables(&self) -> Vec<Table> {
        let mut goals = Table::new("To be reached", &["figure", "goal", "measured", "reached"]);
        for goal in &self.goals {
            let reached = if goal.reached { "yes" } else { "NO" };
            let cells = [&goal.what, &goal.wanted, &goal.measured].map(Clone::clone);
            let [what, wanted, measured] = cells;
            goals.row([what, wanted, measured, reached.to_owned()]);
        }
        vec![goals]
    }

    pub(crate) fn text(&self) -> String {
        let goals = self.tables();
        let tables = self.tables.iter().chain(&goals).map(Table::text);
        tables.collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn markdown(&self) -> String {
        let goals = self.tables();
        let tables = self.tables.iter().chain(&goals).map(Table::markdown);
        let charts = self
            .charts
            .iter()
            .map(|chart| format!("![{}](performance/{})\n", chart.about, chart.file));
        tables.chain(charts).collect::<Vec<_>>().join("\n")
    }
}

/// A figure with as many digits as it deserves, and commas between thousands.
pub(crate) fn short(figure: f64) -> String {
    let whole = (figure - figure.round()).abs() < 1e-9;
    match figure.abs() {
        size if size >= 1000.0 => {
            let digits = format!("{figure:.0}");
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
        size if size >= 100.0 || whole => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 0.1 => format!("{figure:.2}"),
        _ => format!("{figure:.4}"),
    }
}
