//! Matrix push gateway for Acrobits softphones: takes token reports, delivers notifications to PNM.

mod app;
mod appservice;
mod arrivals;
mod cli;
#[cfg(test)]
mod hostile_input_tests;
mod http;
mod identity;
mod keyed_hash;
mod limiter;
mod metrics;
mod notify;
mod openapi;
mod operator;
mod repeats;
mod reports;
mod settings;
mod startup;

use cli::{Cli, Command};
use matrix2acrobits_shared::process::{net, settings::parse_cli};

#[tokio::main]
async fn main() {
    net::install_tls();
    let (cli, exposed) = parse_cli::<Cli>();
    let result = match cli.command.clone().unwrap_or(Command::Serve) {
        Command::Serve => startup::run(&cli, &exposed).await,
        Command::Healthcheck => cli::healthcheck(&cli).await,
        Command::Registration => operator::registration::run(&cli),
        Command::Openapi => openapi::run(),
        Command::CopyDatabase(args) => operator::copy_database::run(&cli, &args).await,
        Command::Import(args) => operator::import::run(&cli, &args).await,
        Command::PushTest(args) => operator::push_test_command::run(&cli, &args).await,
        Command::Phones(args) => operator::phones::run(&cli, &args).await,
        Command::Mappings(command) => operator::mappings::run(&cli, &command).await,
    };
    if let Err(failure) = result {
        failure.exit();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        super::Cli::command().debug_assert();
    }
}
