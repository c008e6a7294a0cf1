//! The binary: parses the command line and hands over. Nothing else is here.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use clap::Parser;
use lb_user::apply::Paths;
use lb_user::cli::{Cli, Command, Listing, Nat};
use lb_user::show::Table;
use lb_user::{agent, apply, show};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            let hint = if is_refused(&error) && !is_root() { "; this needs root: try again by sudo" } else { "" };
            eprintln!("stellwerk: {error:#}{hint}");
            ExitCode::FAILURE
        }
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Whether the kernel said that we may not. Some libraries keep no more of that than its text.
fn is_refused(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    ["Permission denied", "Operation not permitted"].iter().any(|words| text.contains(words))
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    let paths = Paths::new(std::path::absolute(&cli.pin_path)?);
    match &cli.command {
        Command::Check { file } => Ok(check(file)),
        Command::Run(run) => {
            log();
            apply::pin::check(&paths)?;
            agent::run(&agent::Options { config: run.config.clone(), paths })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Unload => {
            log();
            if let (about, true) = agent::running(&paths) {
                // It would go on by itself, with nothing to write to.
                anyhow::bail!(
                    "the agent runs (process {}): stop it first, traffic goes on until it is unloaded",
                    about.pid
                );
            }
            apply::unload(&paths)?.iter().for_each(|line| println!("{line}"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Status(listing) => print(show::status(&paths)?, listing),
        Command::Services(listing) => print(show::services(&paths)?, listing),
        Command::Backends(listing) => print(show::backends(&paths)?, listing),
        Command::Flows(flows) => print(show::flows(&paths, flows.nat)?, &flows.listing),
        Command::Nat(Nat::Status(listing)) => print(show::nat_status(&paths)?, listing),
        Command::Nat(Nat::Flows(listing)) => print(show::nat_flows(&paths)?, listing),
        Command::Nat(Nat::Top(top)) => print(show::nat_top(&paths, top.n)?, &top.listing),
        Command::Drops(listing) => print(show::drops(&paths)?, listing),
    }
}

/// Lines of the agent and the data plane; `RUST_LOG` says which.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,aya=warn,aya_obj=warn"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(ansi)
        .init();
}

fn print(table: Table, listing: &Listing) -> anyhow::Result<ExitCode> {
    let text = if listing.json { table.json()? } else { table.text() };
    // A reader that has seen enough (`| head`) is no error.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
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
