//! The api's command line.

use std::fmt;

use clap::{Parser, Subcommand};
use matrix2acrobits_shared::{
    config::{self, SettingError, SharedArgs},
    health,
    store::OpenError,
};

use crate::settings::{AdminArgs, ServeArgs};

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
}

/// Why a command ends without success: a line for standard error and an exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: i32,
}

impl Failure {
    pub(crate) fn other(error: impl fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            code: 1,
        }
    }

    pub(crate) fn exit(self) -> ! {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{}", self.message);
        std::process::exit(self.code)
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        Self {
            message: error.to_string(),
            code: config::EXIT_BAD_SETTING,
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self {
            message: error.to_string(),
            code: config::EXIT_BAD_SETTING,
        }
    }
}

pub(crate) async fn healthcheck(cli: &Cli) -> Result<(), Failure> {
    health::check(cli.admin.addr()?)
        .await
        .map_err(Failure::other)
}
