//! `stellwerk-bench`: how fast, side by side with what could be and with what others do.
//!
//! Needs root. Everything runs in namespaces of its own, which are removed at the end, also on Ctrl-C.

#[path = "../bench/mod.rs"]
mod bench;

use std::path::PathBuf;
use std::process::ExitCode;

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
    /// Frames, connections, requests and bytes a second through network namespaces
    Wire(Output),
    /// How long a change takes from its file into the kernel
    Update(Output),
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

fn main() -> ExitCode {
    let (output, done) = match Arguments::parse().what {
        What::Packet { output, svg, only } => {
            let done = bench::packet::run(output.quick, only.as_deref());
            let drawn = done.and_then(|report| {
                svg.map_or(Ok(()), |file| bench::plot::write(&report, &file))?;
                Ok(report)
            });
            (output, drawn)
        }
        What::Wire(output) => {
            let done = bench::wire::run(output.quick);
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
