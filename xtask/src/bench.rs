//! `cargo xtask bench NAME …`: builds, then measures as root. What is measured lives in the tests crate.

use std::process::Command;

use anyhow::Result;

use crate::{build, cmd, setup};

pub fn run(name: &str, args: &[String]) -> Result<i32> {
    setup::tools(setup::NET)?;
    build::all()?;
    let mut bench = Command::new(build::binary("stellwerk-bench"));
    bench.arg(name).args(args);
    program(bench, "the benchmarks load eBPF programs and make network namespaces")
}

/// A program of ours that needs root and cleans up after itself.
pub fn program(mut cmd: Command, why: &str) -> Result<i32> {
    let path = std::path::PathBuf::from(cmd.get_program());
    if !path.exists() {
        anyhow::bail!("there is no {}: does the tests crate still have this bin?", path.display());
    }
    environment(&mut cmd);
    Ok(cmd::code(cmd::foreground(cmd::as_root(cmd, why)?)?))
}

/// Tells programs and tests where what xtask built lies. What the caller set stays.
pub fn environment(cmd: &mut Command) {
    let values = [
        ("STELLWERK_EBPF_OBJECT", build::object("stellwerk")),
        ("STELLWERK_BPF_DIR", build::object("stellwerk").with_file_name("")),
        ("STELLWERK_BIN", build::binary("stellwerk")),
    ];
    for (key, value) in values {
        cmd.env(key, std::env::var_os(key).unwrap_or_else(|| value.into()));
    }
}
