//! `copy-database`: copies the contents of a database into an empty one. Pushers stay registered, so no phone rings
//! twice or falls silent.

use matrix2acrobits_shared::{
    process::{
        output::print,
        progress::bar,
        settings::{SettingError, secret},
        words::Counted,
    },
    secret::Secret,
};
use matrix2acrobits_store::{
    Database,
    copy::{Copy, Rows, Table, dry_run, in_words},
};

use crate::cli::{Cli, Failure};

/// How often to print a line of progress without a terminal, in rows.
const SAY_EVERY: u64 = 100_000;

/// From where and to where. A URL with a password is better put into DATABASE_URL or the file of DATABASE_URL_FILE, where
/// no other user of the machine reads it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The database to copy, such as sqlite://data/matrix2acrobits.db [default: DATABASE_URL]
    #[arg(long, value_name = "URL", value_parser = secret)]
    from: Option<Secret>,
    /// The empty database to fill, such as postgres://user:password@host/database [default: DATABASE_URL]
    #[arg(long, value_name = "URL", value_parser = secret)]
    to: Option<Secret>,
    /// Say what would be copied, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    if args.from.is_none() && args.to.is_none() {
        return Err(SettingError::missing("--from or --to").into());
    }
    let from = database(cli, "--from", args.from.as_ref())?;
    let to = database(cli, "--to", args.to.as_ref())?;
    print(format_args!("from {from} to {to}"));
    if args.dry_run {
        let rows = dry_run(&from, &to).await?;
        say_rows(&rows);
        print("dry run: nothing was copied");
        return Ok(());
    }
    let copy = Copy::open(&from, &to).await?;
    let rows = copy.rows;
    say_rows(&rows);

    let total: i64 = Table::ALL.iter().map(|table| rows.of(*table)).sum();
    let bar = bar(u64::try_from(total).unwrap_or_default());
    let (mut before, mut said) = (0, 0);
    let mut current = Table::Keys;
    let mut progress = |table, done| {
        if rows.of(table) == 0 {
            return;
        }
        if table != current {
            current = table;
            before = bar.position();
        }
        bar.set_position(before + done);
        if bar.is_hidden() && before + done >= said + SAY_EVERY {
            said = before + done;
            print(format_args!("{said} of {total} rows so far"));
        }
    };
    let copied = copy.run(&mut progress).await;
    bar.finish_and_clear();
    for (table, sum) in copied? {
        print(format_args!(
            "{}: {}, sum {} on both sides",
            table.name(),
            Counted(sum.rows, "row"),
            sum.hash
        ));
    }
    print(format_args!(
        "done: start all processes on {to} now, and none on {from} any more"
    ));
    Ok(())
}

/// The database of a flag, or of DATABASE_URL.
fn database(cli: &Cli, flag: &'static str, url: Option<&Secret>) -> Result<Database, SettingError> {
    match url {
        Some(url) => Database::at(url.expose(), &cli.shared).map_err(|error| error.of(flag)),
        None => Database::of(&cli.shared),
    }
}

fn say_rows(rows: &Rows) {
    print(format_args!("to copy: {}", in_words(rows)));
    if rows.lost_jobs > 0 {
        print(format_args!(
            "left behind, because the row names no pusher: {}; the worker gives new ones to all pushers that need one",
            Counted(rows.lost_jobs, "job")
        ));
    }
}
