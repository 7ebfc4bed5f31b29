//! The api's command line.

use clap::{Parser, Subcommand};
use matrix2acrobits_shared::{
    clock::Clock,
    process::{health, output::print, settings::SharedArgs},
};
use matrix2acrobits_store::{Database, Import, Role, Store};

pub(crate) use matrix2acrobits_shared::process::failure::Failure;

use crate::{
    operator::{copy_database, import, mappings, phones, push_test_command},
    settings::{AdminArgs, ServeArgs},
};

/// Matrix push gateway for Acrobits softphones: takes token reports, delivers notifications to PNM.
///
/// Every setting is an environment variable and a flag. Commands other than serve need only the settings
/// that they use.
#[derive(Debug, Parser)]
#[command(name = "matrix2acrobits-api", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) shared: SharedArgs,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Serve until stopped (the default)
    Serve,
    /// Exit 0 if the api that listens on ADMIN_LISTEN_ADDR is ready
    Healthcheck,
    /// Print the application service registration for the homeserver, with fresh random tokens
    Registration,
    /// Print the description of the HTTP endpoints (OpenAPI 3.1, JSON)
    Openapi,
    /// Copy everything into an empty database, from SQLite to PostgreSQL or back
    CopyDatabase(copy_database::Args),
    /// Take over the push tokens of the Go proxy that this bridge replaces
    Import(import::Args),
    /// Send a test push to somebody's phones through the running api, and show what PNM says
    PushTest(push_test_command::Args),
    /// List phones: their last report, pusher, push and receipt, and in words how each stands
    Phones(phones::Args),
    /// Import or export mappings of selectors to users, many at once
    #[command(subcommand)]
    Mappings(mappings::Command),
}

pub(crate) async fn healthcheck(cli: &Cli) -> Result<(), Failure> {
    health::check(cli.admin.addr()?)
        .await
        .map_err(Failure::other)
}

/// Opens the database to import into, and creates it if needed. A dry run only looks.
pub(crate) async fn open_import(cli: &Cli, dry_run: bool) -> Result<Import, Failure> {
    let database = Database::of(&cli.shared)?;
    print(format_args!("into {database}"));
    if dry_run {
        return Ok(Import::dry_run(&database).await?);
    }
    let store = Store::open(&database, Role::Behind, Clock::system()).await?;
    Ok(Import::Into(store))
}
