//! `mappings import|export`: imports or exports many mappings. Both work alongside a running api, and repeating an
//! import changes nothing.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::{Subcommand, ValueEnum};
use matrix2acrobits_shared::{
    process::{
        output::{Lines, write, written},
        settings::SettingError,
    },
    rules::import::IMPORT_CHUNK,
};
use matrix2acrobits_store::{Import, Store};

use super::{
    mapping_file::{self, Placed},
    servers::Servers,
    tally::Tally,
};
use crate::cli::{Cli, Failure, open_import};

const PAGE: u32 = 500;

/// Which way.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Take mappings from a CSV (selector,user_id) or JSON file; a selector that is mapped already gets the file's user
    Import(ImportArgs),
    /// Write all mappings to standard output
    Export(ExportArgs),
}

/// What to take.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ImportArgs {
    /// CSV or JSON file; -: standard input
    file: PathBuf,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// How to write.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ExportArgs {
    /// Form of the output
    #[arg(long, value_enum, default_value = "csv")]
    format: Format,
}

/// The form of an export.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Lines of selector,user_id,updated_at
    Csv,
    /// One array
    Json,
}

pub(crate) async fn run(cli: &Cli, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Import(args) => {
            let rows = read("FILE", &args.file, &Servers::new(&cli.shared)?)?;
            let mut import = open_import(cli, args.dry_run).await?;
            let mut lines = take(&mut import, rows).await?;
            if args.dry_run {
                lines.print("dry run: nothing was changed");
            }
            lines.complete()
        }
        Command::Export(args) => export(cli, args.format).await,
    }
}

/// Reads a file of mappings. `name` is the argument that names the file. A row with a user of another server is
/// refused.
pub(super) fn read(
    name: &'static str,
    file: &Path,
    servers: &Servers,
) -> Result<Vec<Placed>, Failure> {
    let mut text = String::new();
    let result = if file == Path::new("-") {
        std::io::stdin()
            .lock()
            .read_to_string(&mut text)
            .map(|_| ())
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    let problem =
        |problem: String| SettingError::new(name, format!("{}: {problem}", file.display()));
    result.map_err(|error| problem(format!("cannot be read: {error}")))?;
    let mut rows = mapping_file::parse(&text).map_err(problem)?;
    for (_, row) in &mut rows {
        let refused = row.as_ref().ok().and_then(|row| servers.refuse(&row.user));
        if let Some(reason) = refused {
            *row = Err(reason);
        }
    }
    Ok(rows)
}

/// Imports the rows of a file.
pub(super) async fn take(import: &mut Import, rows: Vec<Placed>) -> Result<Lines, Failure> {
    let mut tally = Tally::new("mappings", rows.len() as u64);
    let mut rows = rows.into_iter();
    loop {
        let (mut places, mut chunk) = (Vec::new(), Vec::new());
        let mut any = false;
        for (place, row) in rows.by_ref().take(IMPORT_CHUNK) {
            any = true;
            match row {
                Ok(row) => {
                    places.push(place);
                    chunk.push(row);
                }
                Err(reason) => tally.skip(place, &reason),
            }
        }
        if !any {
            break;
        }
        let results = import.mappings(chunk).await.map_err(Failure::of)?;
        for (place, result) in places.into_iter().zip(results) {
            tally.row(place, result);
        }
    }
    Ok(tally.finish())
}

async fn export(cli: &Cli, format: Format) -> Result<(), Failure> {
    let store = Store::open_existing(&cli.shared).await?;
    let mut output = csv::Writer::from_writer(std::io::stdout().lock());
    let mut all = Vec::new();
    let mut after = String::new();
    if matches!(format, Format::Csv) && !put(&mut output, ["selector", "user_id", "updated_at"])? {
        return Ok(());
    }
    loop {
        let page = store.mappings(&after, PAGE).await.map_err(Failure::of)?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.selector);
        match format {
            Format::Json => all.extend(page),
            Format::Csv => {
                for row in &page {
                    let time = row.updated_at.to_string();
                    if !put(&mut output, [&row.selector, &row.user_id, &time])? {
                        return Ok(());
                    }
                }
            }
        }
    }
    written(output.flush())?;
    if matches!(format, Format::Json) {
        drop(output);
        write(serde_json::to_string_pretty(&all).map_err(Failure::of)?)?;
    }
    Ok(())
}

/// Writes a row. False when the reader has gone away.
fn put(output: &mut csv::Writer<impl io::Write>, row: [&str; 3]) -> Result<bool, Failure> {
    let result = output
        .write_record(row)
        .map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(error) => error,
            // Rows have as many cells as the first.
            other => io::Error::other(format!("{other:?}")),
        });
    written(result)
}
