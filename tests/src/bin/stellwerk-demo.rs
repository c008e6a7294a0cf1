//! `stellwerk-demo`: the device of the design in network namespaces, under load, live.
//!
//! The same program is also each replica of the app, as a process of its own (`replica`).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use stellwerk_tests::demo::{Options, run};
use stellwerk_tests::load::name::Name;
use stellwerk_tests::load::replica::Replica;

/// Shows an edge device with its load balancer in network namespaces, under real load: replicas
/// share it, one is drained, one added, one killed, and the agent is killed and started again.
/// Needs root; removes all it made at the end, also on Ctrl-C.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// All steps once, without a live view, within two minutes; exit status 1 if an expectation fails
    #[arg(long)]
    once: bool,
    /// Write every step's figures and verdict to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// One replica of the app
    #[command(hide = true)]
    Replica {
        #[arg(long)]
        name: String,
        #[arg(long)]
        listen: Vec<SocketAddr>,
        #[arg(long)]
        database: Option<String>,
        #[arg(long)]
        name_server: Vec<IpAddr>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.role {
        Some(Role::Replica { name, listen, database, name_server }) => {
            let database = database.and_then(|text| Name::parse(&text, &name_server));
            replica(Replica { name, listen, database }).map(|()| true)
        }
        None => run(&Options { once: arguments.once, json: arguments.json }),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("stellwerk-demo: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// Serves until SIGTERM, then finishes what it has.
fn replica(replica: Replica) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let serving = replica.listen().await?;
        let leave = async move {
            terminate.recv().await;
        };
        serving.serve_until(leave, Duration::from_secs(1), Duration::from_secs(20)).await;
        Ok(())
    })
}
