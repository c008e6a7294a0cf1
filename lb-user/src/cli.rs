//! The command line of stellwerk.
//!
//! Invariant: every listing command is a table for people and, with `--json`, an array of objects
//! with the same field names. Not here: what the commands do.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// The network of an edge Kubernetes node: service load balancer, NAT switch and router.
#[derive(Debug, Parser)]
#[command(name = "stellwerk", version, arg_required_else_help = true)]
pub struct Cli {
    /// Where maps and links are pinned
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys/fs/bpf/stellwerk")]
    pub pin_path: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load, attach, fill and watch; traffic goes on when it stops
    Run(Run),
    /// Read a configuration and its manifests, and say what they mean or what is wrong
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Detach and remove everything that stellwerk made
    Unload,
    /// Ports, hooks and tables at a glance
    Status(Listing),
    /// Services, their addresses and backends' number
    Services(Listing),
    /// Backends, their state and share
    Backends(Listing),
    /// Connections
    Flows(Listing),
    /// Dropped and noted packets by reason
    Drops(Listing),
}

#[derive(Args, Debug)]
pub struct Run {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Listing {
    /// Print an array of objects
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
