//! `cargo xtask demo …`: builds, then shows the device of the design at work, as root, in network namespaces.

use std::process::Command;

use anyhow::Result;

use crate::{bench, build, setup};

pub fn run(args: &[String]) -> Result<i32> {
    setup::tools(setup::NET)?;
    build::all()?;
    start(args)
}

/// Without building: what `test` uses, which has built already.
pub fn start(args: &[String]) -> Result<i32> {
    let mut demo = Command::new(build::binary("stellwerk-demo"));
    demo.args(args);
    bench::program(demo, "the demo makes network namespaces and loads eBPF programs")
}
