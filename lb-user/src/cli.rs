//! The command line of stellwerk.
//!
//! Invariant: every listing command is a table for people and, with `--json`, an array of objects
//! with the same field names. Not here: what the commands do.

mod hcs;
mod monitor;
mod trace;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use self::monitor::Monitor;
pub use self::trace::Trace;
use crate::log::Form;
use crate::route::form;

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
    /// Look at this node, and say what stands against running here; exit status 1 where something does
    Doctor(Doctor),
    /// Detach and remove everything that stellwerk made
    Unload,
    /// Ports, hooks and tables at a glance
    Status(Listing),
    /// What passes now, by services, backends, clients, reasons of drops and ports, on a terminal
    Top(Live),
    /// Ports and interfaces inside, and what they carry
    Ports(Listing),
    /// Services, their addresses and backends' number
    Services(Listing),
    /// Pools of addresses, and which services have which, or wait for one, and why
    Addresses(Listing),
    /// Which node announces which load balancer's address, and why
    Announce(Listing),
    /// Backends, their state and share
    Backends(Listing),
    /// Connections
    Flows(Flows),
    /// Translation between inside and outside
    #[command(subcommand)]
    Nat(Nat),
    /// Routes behind ports
    #[command(subcommand)]
    Route(Route),
    /// Names of services and pods
    #[command(subcommand)]
    Dns(Dns),
    /// Pods' addresses
    #[command(subcommand)]
    Ipam(Ipam),
    /// The plugin by which container runtimes ask for pods' interfaces
    #[command(subcommand)]
    Cni(Cni),
    /// Write one archive for a report: tables, counters, versions, and a configuration without its secrets
    Bundle {
        /// Where to
        #[arg(value_name = "FILE", default_value = "stellwerk-bundle.tar")]
        file: PathBuf,
        /// The configuration file, to be in it [default: the agent's]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Completion for a shell: `source <(stellwerk completions bash)`
    Completions { shell: Shell },
    /// What would become of a packet, and why: the engine says it over the live tables, and nothing is sent
    Trace(Trace),
    /// What happens, as it happens: packets that are dropped and why, connections that begin and end
    Monitor(Monitor),
    /// Write the manual's pages, one a command
    #[command(hide = true)]
    Manual {
        /// A folder that is there
        dir: PathBuf,
    },
    /// Dropped and noted packets by reason
    Drops(Listing),
    /// The versions of agent, programs and tables that are in force
    Version(Listing),
}

#[derive(Args, Debug)]
pub struct Run {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The form of log lines
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub log: Form,
    #[command(flatten)]
    pub store: Store,
}

#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// The configuration file [default: the agent's, or /etc/stellwerk/stellwerk.yaml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub listing: Listing,
}

#[derive(Args, Clone, Debug)]
pub struct Store {
    /// Where routes added by command are kept [default: the agent's, or /var/lib/stellwerk/routes.json]
    #[arg(long = "routes", value_name = "FILE")]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Route {
    /// Add a route, at once and for good: it survives restarts and reboots
    Add(Add),
    /// The routes that were added here, and what each is for at the moment
    Get(Get),
    /// Remove a route that was added by command
    Remove(Remove),
}

/// What a route is known by.
#[derive(Args, Clone, Debug)]
pub struct Identity {
    /// The port's name, as the configuration has it
    #[arg(short, long, value_name = "PORT")]
    pub interface: String,
    /// A prefix, or an address
    #[arg(short, long, value_name = "PREFIX")]
    pub destination: String,
    /// Clear bits behind the prefix instead of refusing them
    #[arg(long)]
    pub force_mask: bool,
    /// Print an array of objects
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub store: Store,
}

#[derive(Args, Clone, Debug)]
pub struct Add {
    #[command(flatten)]
    pub identity: Identity,
    /// The router's address, in the port's network
    #[arg(short, long, value_name = "ADDRESS")]
    pub next_hop: Option<String>,
    /// The lower wins; equal ones share by flow [default: 100]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub metric: Option<String>,
    /// Its share among equal metrics, 1 to 256 [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub weight: Option<String>,
    /// In place of a next hop: blackhole, unreachable or prohibit
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct Get {
    /// Only those of a port
    #[arg(short, long, value_name = "PORT")]
    pub interface: Option<String>,
    #[command(flatten)]
    pub listing: Listing,
    #[command(flatten)]
    pub store: Store,
}

#[derive(Args, Clone, Debug)]
pub struct Remove {
    #[command(flatten)]
    pub identity: Identity,
}

impl Identity {
    pub fn words(&self) -> form::Words<'_> {
        let (interface, destination) = (self.interface.as_str(), self.destination.as_str());
        form::Words { interface, destination, mask: self.force_mask, ..form::Words::default() }
    }
}

impl Add {
    pub fn words(&self) -> form::Words<'_> {
        form::Words {
            next_hop: self.next_hop.as_deref(),
            metric: self.metric.as_deref(),
            weight: self.weight.as_deref(),
            kind: self.kind.as_deref(),
            ..self.identity.words()
        }
    }
}

impl Cli {
    /// Reads the words of a command line, also those of other devices' runbooks.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Cli, String> {
        hcs::translate(words).map(Cli::parse_from)
    }
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

#[derive(Args, Clone, Copy, Debug)]
pub struct Live {
    /// Seconds between readings
    #[arg(short = 'd', long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub every: u64,
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

#[derive(Clone, Debug, Subcommand)]
pub enum Dns {
    /// What a name stands for, as the cluster is told
    Query(Question),
    /// All records of the cluster's zone
    Dump(Listing),
    /// Queries and answers by type, code and zone, and what became of them
    Status(Listing),
}

#[derive(Clone, Debug, Subcommand)]
pub enum Ipam {
    /// Which pods' interfaces have which addresses
    Show(Listing),
    /// What doesn't go together: leases, interfaces, routes and blocks; exit status 1 where there is any
    Check(Listing),
    /// Take away the interfaces and addresses of a container or a pod
    Release {
        /// A container's id, or a pod such as default/web-0
        #[arg(value_name = "CONTAINER|NAMESPACE/POD")]
        of: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum Cni {
    /// Write plugin and network configuration where a runtime looks
    Install {
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        bin_dir: PathBuf,
        #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
        conf_dir: PathBuf,
    },
}

#[derive(Args, Clone, Debug)]
pub struct Question {
    /// A whole name, such as web.default.svc.cluster.local
    pub name: String,
    /// A type of records
    #[arg(default_value = "A")]
    pub kind: String,
    #[command(flatten)]
    pub listing: Listing,
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
    use clap_complete::Shell;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn shells_complete() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut super::Cli::command(), "stellwerk", &mut text);
            let text = String::from_utf8(text).expect("UTF-8");
            assert!(["route", "next-hop", "force-mask"].iter().all(|word| text.contains(word)), "{shell}");
        }
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
            ("run --config a --log xml", "invalid value 'xml' for '--log <FORM>' [possible values: text, json]"),
            ("check", "the following required arguments were not provided: <FILE>"),
            ("check a b", "unexpected argument 'b' found"),
            ("unload --json", "unexpected argument '--json' found"),
            ("status --jsn", "unexpected argument '--jsn' found"),
            ("status all", "unexpected argument 'all' found"),
            ("top -d 0", "invalid value '0' for '--every <SECONDS>': 0 is not in 1..=60"),
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
            ("dns query", "the following required arguments were not provided: <NAME>"),
            ("dns dump all", "unexpected argument 'all' found"),
            ("ipam release", "the following required arguments were not provided: <CONTAINER|NAMESPACE/POD>"),
            ("cni install /opt", "unexpected argument '/opt' found"),
            ("route add -i Port3", "the following required arguments were not provided: --destination <PREFIX>"),
            ("route --pin-path x", "'stellwerk route' requires a subcommand but one was not provided"),
            ("route get -d 10.0.0.0/8", "unexpected argument '-d' found"),
            ("route remove -i a -d b -n c", "unexpected argument '-n' found"),
            (
                "completions csh",
                "invalid value 'csh' for '<SHELL>' [possible values: bash, elvish, fish, powershell, zsh]",
            ),
            (
                "trace tcp 10.0.0.1:1 10.0.0.2:80",
                "the following required arguments were not provided: <--in <PORT>|--out <PORT>>",
            ),
            ("trace --in a", "the following required arguments were not provided: <WORD|--hex <DIGITS>|--pcap <FILE>>"),
            (
                "trace --hex 00 --in a --why-not web",
                "invalid value 'web' for '--why-not <BACKEND>': expected a backend's address, such as 172.27.0.11 or 172.27.0.11:8080",
            ),
            ("monitor --port all", "invalid value 'all' for '--port <PORT>': invalid digit found in string"),
            ("monitor --every", "a value is required for '--every <N>' but none was supplied"),
            ("doctor node", "unexpected argument 'node' found"),
            ("doctor --config", "a value is required for '--config <FILE>' but none was supplied"),
            ("version all", "unexpected argument 'all' found"),
            ("manual", "the following required arguments were not provided: <DIR>"),
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
