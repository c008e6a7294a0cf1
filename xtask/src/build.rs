//! `cargo xtask build`: the eBPF objects, then the workspace in release.
//!
//! Every bin of lb-ebpf becomes `target/bpf/<bin>.o`. lb-user embeds `stellwerk.o` from there, so it is written only
//! when its bytes changed, or everything that depends on lb-user would be built again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{cmd, toolchain};

const AGENT: &str = "stellwerk";
pub const PLUGIN: &str = "stellwerk-cni";
/// What is installed on nodes.
pub const PRODUCT: &[&str] = &[AGENT, PLUGIN];

pub fn all() -> Result<()> {
    release(&[])
}

/// The product and these of the other programs.
pub fn product_and(others: &[&str]) -> Result<()> {
    release(&[&[AGENT], others].concat())
}

/// The plugin, and these programs or all there is. With the features of the whole, or all would be built twice.
fn release(programs: &[&str]) -> Result<()> {
    ebpf()?;
    let mut cargo = cmd::cargo();
    cargo.args(["build", "--release", "--workspace"]);
    for name in programs {
        cargo.args(["--bin", name]);
    }
    cmd::run(cargo)?;
    plugin()
}

/// Linked statically: it runs on whatever a host has for a libc, and starts in half the time. Cargo has flags for one
/// program alone only where it builds nothing else.
fn plugin() -> Result<()> {
    let mut cargo = cmd::cargo();
    cargo.args(["rustc", "--release", "--package", "lb-user", "--bin", PLUGIN, "--"]);
    cargo.args(["-C", "target-feature=+crt-static", "-C", "relocation-model=static"]);
    cmd::run(cargo)
}

pub fn ebpf() -> Result<()> {
    objects(&cmd::repo().join("lb-ebpf"))?.iter().try_for_each(|(name, path)| place(path, &object(name)))
}

/// The eBPF programs of a source, as (bin, object).
pub fn objects(source: &Path) -> Result<Vec<(String, PathBuf)>> {
    let toolchain = toolchain::get()?;
    let mut cargo = toolchain.cargo();
    // One folder a compiler: switching between the two then rebuilds nothing.
    let target = cmd::repo().join("target/ebpf").join(toolchain.compiler.to_string());
    cargo.current_dir(source).args(["build", "--release", "--bins"]);
    cargo.env("CARGO_TARGET_DIR", &target);
    // In many units, what is to be inlined isn't, and verifiers refuse it.
    cargo.env("CARGO_INCREMENTAL", "0");
    let objects = cmd::executables(cargo).context("cannot build the eBPF programs")?;
    if !objects.iter().any(|(name, _)| name == "stellwerk") {
        bail!("lb-ebpf has no bin `stellwerk`: its Cargo.toml should name one");
    }
    Ok(objects)
}

/// Where a bin of lb-ebpf ends up.
pub fn object(bin: &str) -> PathBuf {
    cmd::repo().join(format!("target/bpf/{bin}.o"))
}

/// A release binary of the workspace.
pub fn binary(name: &str) -> PathBuf {
    target().join("release").join(name)
}

pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => cmd::repo().join(dir),
        None => cmd::repo().join("target"),
    }
}

/// Puts a built file somewhere, whole, if it isn't there.
pub fn place(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    say!("{}: {} bytes", to.strip_prefix(cmd::repo()).unwrap_or(to).display(), bytes.len());
    let dir = to.parent().context("an object lies in a folder")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // By rename, so that nobody who builds or loads at this moment reads half an object.
    let new = to.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&new, bytes)
        .and_then(|()| std::fs::rename(&new, to))
        .with_context(|| format!("cannot write {}", to.display()))
}
