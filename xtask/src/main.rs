//! `cargo xtask …`: the one way to build, test, measure and show stellwerk, for people and for CI alike.
//!
//! This file is the table of contents. Every command installs by itself what it needs and is missing (`setup`).
//! Not here: product code, packet logic, benchmarks, the demo's story; those are in the tests crate.

/// `println!`, but a reader that went away (`cargo xtask tidy | head`) is no reason to panic.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod bench;
mod build;
mod cmd;
mod demo;
mod deps;
mod guest;
mod kernel;
mod next;
mod package;
mod rungs;
mod setup;
mod test;
mod tidy;
mod toolchain;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, tests, measures and shows stellwerk.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Install what building and testing need and this machine lacks.
    Setup,
    /// Build the eBPF objects and the workspace, in release.
    Build {
        /// Build another version instead, which tests take over from: target/next/stellwerk.
        #[arg(long)]
        next: bool,
    },
    /// Build the agent, the command line and the plugin, and make a Debian package of them.
    Package {
        /// Where to put it, an older one there being removed [default: target/package]
        #[arg(long, value_name = "DIR")]
        out: Option<std::path::PathBuf>,
    },
    /// Run the ladder of tests, and say what passed, failed or was left out.
    Test(test::Args),
    /// Build and run a benchmark as root: `bench packet`, `bench wire`, `bench update`.
    Bench {
        #[arg(value_parser = bench::NAMES)]
        name: String,
        /// Handed to the benchmark, such as `--quick` or `--json FILE`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build and run the demo as root, in network namespaces.
    Demo {
        /// Handed to the demo, such as `--once` or `--json FILE`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Show long functions and files, `unsafe`, and what rustfmt and clippy say.
    Tidy,
}

fn main() {
    let done = match Args::parse().command {
        Sub::Setup => setup::all().map(|()| 0),
        Sub::Build { next: true } => next::build().map(|()| 0),
        Sub::Build { next: false } => build::all().map(|()| 0),
        Sub::Package { out } => package::run(out.as_deref()).map(|()| 0),
        Sub::Test(args) => test::run(&args),
        Sub::Bench { name, args } => bench::run(&name, &args),
        Sub::Demo { args } => demo::run(&args),
        Sub::Tidy => tidy::run(),
    };
    std::process::exit(exit_code(done));
}

fn exit_code(done: Result<i32>) -> i32 {
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        1
    })
}
