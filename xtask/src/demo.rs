//! `cargo xtask demo …`: builds, then shows the device of the design at work, as root, in network namespaces.

use anyhow::Result;

use crate::{bench, build, setup};

pub const PROGRAM: &str = "stellwerk-demo";

pub fn run(args: &[String]) -> Result<i32> {
    setup::tools(setup::NET)?;
    build::product_and(&[PROGRAM])?;
    start(args, None)
}

/// Without building: what `test` uses, which has built already.
pub fn start(args: &[String], patience: Option<u32>) -> Result<i32> {
    bench::program(PROGRAM, args, "the demo makes network namespaces and loads eBPF programs", patience)
}
