//! `stellwerk-bench`: how fast, side by side with what could be and with what others do.
//!
//! Needs root. Everything runs in namespaces of its own, which are removed at the end, also on Ctrl-C.

#[path = "../bench/mod.rs"]
mod bench;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "Measures stellwerk beside the least that is possible, and beside the kernel's own ways")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Nanoseconds a packet of the loaded programs
    Packet {
        #[command(flatten)]
        output: Output,
        /// Draw the figures into this file
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// Only rows whose name contains this
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// The same of the translation between inside and outside
    Nat {
        #[command(flatten)]
        output: Output,
        /// Only rows whose name contains this
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// Nanoseconds a lookup of a route, beside the kernel's own ways
    Route {
        #[command(flatten)]
        output: Output,
        /// Only tables (`v4 1 M routes`), figures of namespaces (`live frames`) or `failover` whose name contains this
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// Nanoseconds a lookup, an insertion and a removal of a flow, beside the kernel's own maps
    FlowTable {
        #[command(flatten)]
        output: Output,
        /// Only rows whose name contains this
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// Frames, connections, requests and bytes a second through network namespaces
    Wire(Output),
    /// How long a change takes from its file into the kernel
    Update(Output),
    /// Connections a second of a client on the node, to a service at the socket and by packets
    Connect(Output),
    /// Queries a second of the cluster's names and of others', beside dnsmasq
    Dns(Output),
    /// Traffic between pods beside a bridge, and how long their interfaces take
    Pods {
        #[command(flatten)]
        output: Output,
        /// Only parts (`one node`, `two nodes, direct`, `two nodes, overlay`, `at once`) whose name contains this
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
}

#[derive(Args, Clone)]
pub struct Output {
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The same rows from shorter runs, within a minute
    #[arg(long)]
    quick: bool,
}

/// Makes the files for the figures empty: what can't be written is told before anything is measured,
/// and no earlier run's figures are taken for this one's.
fn empty(files: &[Option<&PathBuf>]) -> Result<()> {
    files.iter().flatten().try_for_each(|file| {
        std::fs::File::create(file).map(drop).with_context(|| format!("writing {}", file.display()))
    })
}

fn main() -> ExitCode {
    let what = Arguments::parse().what;
    let made = match &what {
        What::Packet { output, svg, .. } => empty(&[output.json.as_ref(), svg.as_ref()]),
        What::Nat { output, .. }
        | What::Route { output, .. }
        | What::FlowTable { output, .. }
        | What::Wire(output)
        | What::Update(output)
        | What::Connect(output)
        | What::Dns(output)
        | What::Pods { output, .. } => empty(&[output.json.as_ref()]),
    };
    if let Err(error) = made {
        eprintln!("stellwerk-bench: {error:#}");
        return ExitCode::from(2);
    }
    let (output, done) = match what {
        What::Packet { output, svg, only } => {
            let done = bench::packet::run(output.quick, only.as_deref());
            let drawn = done.and_then(|report| {
                svg.map_or(Ok(()), |file| bench::plot::write(&report, &file))?;
                Ok(report)
            });
            (output, drawn)
        }
        What::Nat { output, only } => {
            let done = bench::nat::run(output.quick, only.as_deref());
            (output, done)
        }
        What::Route { output, only } => {
            let done = bench::route::run(output.quick, only.as_deref());
            (output, done)
        }
        What::FlowTable { output, only } => {
            let done = bench::flow_table::run(output.quick, only.as_deref());
            (output, done)
        }
        What::Wire(output) => {
            let done = bench::wire::run(output.quick);
            (output, done)
        }
        What::Connect(output) => {
            let done = bench::connect::run(output.quick);
            (output, done)
        }
        What::Dns(output) => {
            let done = bench::dns::run(output.quick);
            (output, done)
        }
        What::Pods { output, only } => {
            let done = bench::pods::run(output.quick, only.as_deref());
            (output, done)
        }
        What::Update(output) => {
            let done = bench::update::run(output.quick);
            (output, done)
        }
    };
    match done.and_then(|report| report.publish(output.json.as_deref())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("stellwerk-bench: {e:#}");
            ExitCode::from(2)
        }
    }
}
