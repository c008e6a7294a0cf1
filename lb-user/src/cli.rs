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
    Flows(Flows),
    /// Translation between inside and outside
    #[command(subcommand)]
    Nat(Nat),
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

#[derive(Args, Clone, Copy, Debug)]
pub struct Flows {
    #[command(flatten)]
    pub listing: Listing,
    /// Only those that are translated between inside and outside
    #[arg(long)]
    pub nat: bool,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Nat {
    /// Uplinks, their addresses, how many ports are in use, and what was dropped
    Status(Listing),
    /// Translated connections
    Flows(Listing),
    /// The hosts inside that have the most ports
    Top(Top),
}

#[derive(Args, Clone, Copy, Debug)]
pub struct Top {
    #[command(flatten)]
    pub listing: Listing,
    /// How many hosts
    #[arg(short, value_name = "N", default_value_t = 10)]
    pub n: usize,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    /// What is refused, and in which words; a usage line and the way to the help follow each.
    #[test]
    fn wrong_words() {
        for (line, want) in [
            ("--pin-path x", "'stellwerk' requires a subcommand but one was not provided"),
            ("stats", "unrecognized subcommand 'stats'"),
            ("run", "the following required arguments were not provided: --config <FILE>"),
            ("run stellwerk.yaml", "unexpected argument 'stellwerk.yaml' found"),
            ("run --config", "a value is required for '--config <FILE>' but none was supplied"),
            ("run --config a --config b", "the argument '--config <FILE>' cannot be used multiple times"),
            ("run --config a --json", "unexpected argument '--json' found"),
            ("check", "the following required arguments were not provided: <FILE>"),
            ("check a b", "unexpected argument 'b' found"),
            ("unload --json", "unexpected argument '--json' found"),
            ("status --jsn", "unexpected argument '--jsn' found"),
            ("status all", "unexpected argument 'all' found"),
            ("services web", "unexpected argument 'web' found"),
            ("backends --json=yes", "unexpected value 'yes' for '--json' found; no more were expected"),
            ("flows --json --json", "the argument '--json' cannot be used multiple times"),
            ("flows nat", "unexpected argument 'nat' found"),
            ("nat --json", "unexpected argument '--json' found"),
            ("nat --pin-path x", "'stellwerk nat' requires a subcommand but one was not provided"),
            ("nat show", "unrecognized subcommand 'show'"),
            ("nat status -n 3", "unexpected argument '-n' found"),
            ("nat top -n", "a value is required for '-n <N>' but none was supplied"),
            ("nat top -n -3", "unexpected argument '-3' found"),
            ("nat top -n all", "invalid value 'all' for '-n <N>': invalid digit found in string"),
            ("drops -j", "unexpected argument '-j' found"),
            ("status --pin-path", "a value is required for '--pin-path <DIR>' but none was supplied"),
            ("status --pin-path=", "a value is required for '--pin-path <DIR>' but none was supplied"),
        ] {
            let words = std::iter::once("stellwerk").chain(line.split_whitespace());
            let error = super::Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            let text = error.to_string();
            let said = text.split("\n\n").next().unwrap_or_default();
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            let said = said.split(" [subcommands:").next().unwrap_or_default();
            assert_eq!(said.strip_prefix("error: "), Some(want), "{line}");
        }
    }
}
