//! Renews the generated parts of docs/performance.md, and the charts beside it. What stands outside the
//! markers is written by hand and stays.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bench::{Bench, Error};
use crate::report::Report;
use crate::system;

/// Puts `text` between the markers of `name`; at the end of the document if it has none yet.
fn put(document: &str, name: &str, text: &str) -> String {
    let (begin, end) = (
        format!("<!-- begin {name}: written by cargo bench-all -->"),
        format!("<!-- end {name} -->"),
    );
    let block = format!("{begin}\n\n{}\n\n{end}", text.trim_end());
    match (document.find(&begin), document.find(&end)) {
        (Some(from), Some(to)) if from < to => {
            let (before, after) = (&document[..from], &document[to + end.len()..]);
            format!("{before}{block}{after}")
        }
        _ => format!("{}\n\n{block}\n", document.trim_end()),
    }
}

/// Writes what the parts that have run have found.
pub(crate) fn renew(bench: &Bench, reports: &[(String, Report)]) -> Result<(), Error> {
    let docs = folder();
    let mut document = fs::read_to_string(file()).unwrap_or_else(|_| "# Performance\n".into());
    document = put(&document, "machine", &machine(bench));
    fs::create_dir_all(docs.join("performance"))?;
    for (name, report) in reports {
        document = put(&document, name, &report.markdown());
        for chart in &report.charts {
            fs::write(docs.join("performance").join(chart.file), &chart.svg)?;
        }
    }
    fs::write(file(), document)?;
    Ok(())
}

/// The figures of the row that begins with `name` in the committed table of `part`, as far as there are any.
pub(crate) fn row(part: &str, name: &str) -> Vec<f64> {
    let document = fs::read_to_string(file()).unwrap_or_default();
    let begin = format!("<!-- begin {part}:");
    let part = document.split_once(&begin).map_or("", |(_, rest)| rest);
    let row = part
        .lines()
        .find_map(|line| line.strip_prefix(&format!("| {name} |")));
    let cells = row.unwrap_or_default().split('|');
    cells
        .filter_map(|cell| cell.trim().replace(',', "").parse().ok())
        .collect()
}

fn file() -> PathBuf {
    folder().join("performance.md")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// In general words: which machine it was is nobody's business.
pub(crate) fn machine(bench: &Bench) -> String {
    let bound = if bench.cores.split {
        "the program under test alone on one, load and stand-ins on the rest"
    } else {
        "shared by the program under test, load and stand-ins"
    };
    format!(
        "{} cores ({}), {bound}; {} rounds of {:?}{}. Other work ran on the machine at times: compare only \
         within a table.",
        bench.cores.count,
        system::processor(),
        bench.rounds,
        bench.time,
        if bench.quick { " (a quick run)" } else { "" },
    )
}
