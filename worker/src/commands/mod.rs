//! The worker's command line.

pub(crate) mod jobs;
pub(crate) mod marks;
pub(crate) mod replay;

use clap::{Parser, Subcommand};
use matrix2acrobits_shared::process::{health, settings::SharedArgs};

pub(crate) use matrix2acrobits_shared::process::failure::Failure;

use crate::{
    doctor,
    settings::{AdminArgs, RunArgs},
};

/// Sets, renews and deletes pushers at the Matrix homeserver, from a durable queue.
///
/// Every setting is an environment variable and a flag. Commands other than run need only the settings
/// that they use.
#[derive(Debug, Parser)]
#[command(name = "matrix2acrobits-worker", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) shared: SharedArgs,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Work through the queue until stopped (the default)
    Run,
    /// List the jobs that wait, run or are dead letters
    Jobs(jobs::Args),
    /// Make the worker compare pushers with what the homeserver holds, and set or delete those that differ
    Replay(replay::Args),
    /// Change the key of the marks by which the api recognises our pushers
    #[command(subcommand)]
    Marks(marks::Command),
    /// Say why pushes do not arrive: check settings, database, homeserver, PROXY_URL and pushers
    Doctor(doctor::Args),
    /// Exit 0 if the worker that listens on ADMIN_LISTEN_ADDR is ready
    Healthcheck,
}

pub(crate) async fn healthcheck(cli: &Cli) -> Result<(), Failure> {
    health::check(cli.admin.addr()?)
        .await
        .map_err(Failure::other)
}
