//! `cargo xtask bench NAME …`: builds, then measures as root. What is measured lives in the tests crate.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{build, cmd, next, package, setup};

/// Known here as well, so that a wrong name is told before everything is built.
pub const NAMES: [&str; 9] = ["packet", "nat", "route", "flow-table", "wire", "update", "connect", "dns", "pods"];

pub fn run(name: &str, args: &[String]) -> Result<i32> {
    setup::tools(setup::NET)?;
    if name == "pods" {
        setup::tools(setup::PLUGINS)?;
    }
    build::product_and(&["stellwerk-bench"])?;
    let args: Vec<String> = std::iter::once(name.to_owned()).chain(args.iter().cloned()).collect();
    program("stellwerk-bench", &args, "the benchmarks load eBPF programs and make network namespaces", None)
}

/// Runs a program of ours that needs root and cleans up after itself, for at most so many seconds.
pub fn program(name: &str, args: &[String], why: &str, patience: Option<u32>) -> Result<i32> {
    let path = build::binary(name);
    if !path.exists() {
        bail!("there is no {}: does the tests crate still have this bin?", path.display());
    }
    let mut cmd = match patience {
        None => Command::new(path),
        Some(seconds) => {
            let mut timeout = Command::new("timeout");
            timeout.args(["--foreground", "--signal=INT", "--kill-after=60", &seconds.to_string()]).arg(path);
            timeout
        }
    };
    cmd.args(args);
    environment(&mut cmd);
    Ok(cmd::code(cmd::foreground(cmd::as_root(cmd, why)?)?))
}

/// Tells programs and tests where what xtask built lies. What the caller set stays.
pub fn environment(cmd: &mut Command) {
    let object = build::object("stellwerk");
    let values = [
        ("STELLWERK_BPF_DIR", object.with_file_name("")),
        ("STELLWERK_EBPF_OBJECT", object),
        ("STELLWERK_BIN", build::binary("stellwerk")),
        ("STELLWERK_PACKAGES", package::folder()),
        ("STELLWERK_NEXT", next::program()),
    ];
    for (key, value) in values {
        cmd.env(key, std::env::var_os(key).unwrap_or_else(|| value.into()));
    }
}
