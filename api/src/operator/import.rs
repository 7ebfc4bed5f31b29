//! `import`: takes over the push tokens of the Go proxy that this bridge replaces. It works alongside a running api,
//! and repeating it changes nothing.

use std::path::PathBuf;

use matrix2acrobits_shared::{
    ids::{AppId, IdError, Selector},
    process::{
        output::{Lines, print},
        settings::SettingError,
    },
    rules::{
        import::{IMPORT_CHUNK, TokenRow},
        report::{Field, Report, Reporter},
    },
};
use matrix2acrobits_store::go_proxy::{GoProxyDatabase, GoProxyRow};

use super::{mappings, servers::Servers, tally::Tally};
use crate::{
    cli::{Cli, Failure, open_import},
    reports::fields::{self, is_placeholder},
};

/// From where.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The Go proxy's SQLite file
    #[arg(long, env = "PUSH_TOKEN_DB_PATH", value_name = "FILE")]
    from: PathBuf,
    /// CSV (selector,user_id) or JSON file that says which user each selector belongs to; imported first
    #[arg(long, value_name = "FILE")]
    mappings: Option<PathBuf>,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let name = args.from.display();
    let wrong = |problem: String| SettingError::new("--from", format!("{name} {problem}"));
    if !args.from.is_file() {
        return Err(wrong("is not a file".into()).into());
    }
    let mappings = match &args.mappings {
        Some(file) => Some(mappings::read(
            "--mappings",
            file,
            &Servers::new(&cli.shared)?,
        )?),
        None => None,
    };
    let mut old = GoProxyDatabase::open(&args.from)
        .await
        .map_err(|error| wrong(error.to_string()))?;
    let rows = old.count().await.map_err(Failure::of)?;
    print(format_args!("{name}: {rows} push tokens"));

    let mut import = open_import(cli, args.dry_run).await?;
    let of_mappings = match mappings {
        Some(rows) => mappings::take(&mut import, rows).await?,
        None => Lines::default(),
    };
    let mut tally = Tally::new("push tokens", rows);
    let mut after = i64::MIN;
    let limit = u32::try_from(IMPORT_CHUNK).unwrap_or(u32::MAX);
    loop {
        let page = old.page(after, limit).await.map_err(Failure::of)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        let (mut ids, mut chunk) = (Vec::new(), Vec::new());
        for row in page {
            match token(&row) {
                Ok(token) => {
                    ids.push(row.id);
                    chunk.push(token);
                }
                Err(reason) => tally.skip(format_args!("row {}", row.id), &reason),
            }
        }
        let results = import.tokens(chunk).await.map_err(Failure::of)?;
        for (id, result) in ids.into_iter().zip(results) {
            tally.row(format_args!("row {id}"), result);
        }
    }
    let mut lines = tally.finish();
    if let Some(count) = import
        .unmapped()
        .await
        .map_err(Failure::of)?
        .filter(|n| *n > 0)
    {
        lines.print(format_args!(
            "{count} push tokens are of selectors without a user: no pusher is set for them until a mapping or a login says whose they are"
        ));
    }
    if args.dry_run {
        lines.print("dry run: nothing was changed");
    }
    of_mappings.complete()?;
    lines.complete()
}

/// Checks a row in the same way as a phone's report.
fn token(row: &GoProxyRow) -> Result<TokenRow, String> {
    let selector = Selector::parse(&row.selector).map_err(|e| format!("selector {e}"))?;
    let report = Report {
        from: Reporter {
            selector,
            device: None,
            owner: None,
            strangers: true,
        },
        token_msgs: field("token_msgs", &row.token_msgs, fields::token)?,
        app_id_msgs: field("appid_msgs", &row.app_id_msgs, AppId::parse)?,
        token_calls: field("token_calls", &row.token_calls, fields::token)?,
        app_id_calls: field("appid_calls", &row.app_id_calls, AppId::parse)?,
    };
    if report.token_msgs == Field::Absent && report.token_calls == Field::Absent {
        return Err("has no token".into());
    }
    Ok(TokenRow {
        report,
        updated_at: row.updated_at,
    })
}

/// An empty field in the Go proxy's database was not reported.
fn field<T>(
    name: &str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, IdError>,
) -> Result<Field<T>, String> {
    if text.is_empty() || is_placeholder(text) {
        return Ok(Field::Absent);
    }
    parse(text)
        .map(Field::Set)
        .map_err(|e| format!("{name} {e}"))
}
