//! The binary: parses the command line and hands over. Nothing else is here.

use std::process::ExitCode;

use clap::Parser;
use lb_user::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("stellwerk: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Check { file } => Ok(check(file)),
        Command::Run(_) | Command::Unload => anyhow::bail!("the agent is not in this build"),
        Command::Status(_) | Command::Services(_) | Command::Backends(_) | Command::Flows(_) | Command::Drops(_) => {
            anyhow::bail!("listings are not in this build")
        }
    }
}

fn check(file: &std::path::Path) -> ExitCode {
    match lb_user::check::check(file) {
        Ok(summary) => {
            print!("{summary}");
            ExitCode::SUCCESS
        }
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::FAILURE
        }
    }
}
