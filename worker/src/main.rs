//! Sets, renews and deletes pushers at the Matrix homeserver, from a durable queue.

mod admin;
mod beat;
mod commands;
mod doctor;
mod feeder;
mod gate;
mod heartbeat;
mod job;
mod marks;
mod metrics;
mod prober;
mod run;
mod settings;
mod startup;
mod upkeep;

use commands::{Cli, Command};
use matrix2acrobits_shared::process::{net, settings::parse_cli};

#[tokio::main]
async fn main() {
    net::install_tls();
    let (cli, exposed) = parse_cli::<Cli>();
    let result = match cli.command.clone().unwrap_or(Command::Run) {
        Command::Run => startup::run(&cli, &exposed).await,
        Command::Jobs(jobs) => commands::jobs::run(&cli, &jobs).await,
        Command::Replay(replay) => commands::replay::run(&cli, &replay).await,
        Command::Marks(marks) => commands::marks::run(&cli, &marks).await,
        Command::Doctor(doctor) => doctor::run(&cli, &doctor).await,
        Command::Healthcheck => commands::healthcheck(&cli).await,
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
