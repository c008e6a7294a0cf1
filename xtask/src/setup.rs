//! `cargo xtask setup`: everything that the other commands need, installed where it is missing. Idempotent.
//!
//! Invariant: a warm check costs well under a second and prints nothing, since every command runs it first.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{cmd, toolchain};

/// A program that we call, and the Debian package that has it.
type Tool = (&'static str, &'static str);

/// What namespaces tests, the demo and the benchmarks call.
pub const NET: &[Tool] = &[
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("iperf3", "iperf3"),
    ("wrk", "wrk"),
    ("tcpdump", "tcpdump"),
    ("sysctl", "procps"),
    ("bird", "bird2"),
    ("dig", "bind9-dnsutils"),
    ("arping", "iputils-arping"),
    ("ndisc6", "ndisc6"),
    ("dnsmasq", "dnsmasq-base"),
    ("setpriv", "util-linux"),
    ("strace", "strace"),
    ("faketime", "faketime"),
    ("systemctl", "systemd"),
];

/// A container runtime, and what its containers run, for tests of the CNI plugin.
pub const CONTAINERS: &[Tool] =
    &[("containerd", "containerd"), ("runc", "runc"), ("nsenter", "util-linux"), ("busybox", "busybox-static")];

/// What `bench pods` holds our plugin against.
pub const PLUGINS: &[Tool] = &[("/usr/lib/cni/ptp", "containernetworking-plugins")];

/// What opens the page that nodes are watched by, for its tests.
pub const BROWSER: &[Tool] = &[("chromium", "chromium")];
/// What makes packages. cargo-deb would be 73 crates and liblzma to build, for what dpkg's own programs do in seconds.
pub const PACKAGE: &[Tool] = &[
    ("dpkg-deb", "dpkg"),
    ("dpkg-shlibdeps", "dpkg-dev"),
    ("strip", "binutils"),
    ("gzip", "gzip"),
    ("md5sum", "coreutils"),
];

/// What `test --kernel` boots other kernels with.
pub const VM: &[Tool] = &[
    ("ip", "iproute2"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
];

/// Everything but the virtual machines, which only `test --kernel` needs.
pub fn all() -> Result<()> {
    let toolchain = toolchain::get()?;
    say!("eBPF compiler: {}, linker: {}", toolchain.compiler, toolchain.linker.display());
    lints()?;
    say!("rustfmt and clippy: there");
    match miri()? {
        None => say!("miri: there"),
        Some(why) => say!("miri: left out, {why}"),
    }
    tools(NET)?;
    tools(CONTAINERS)?;
    tools(BROWSER)?;
    tools(PACKAGE)?;
    say!("system packages for tests, packages, demo and benchmarks: there");
    say!("Ready. Next: `cargo xtask test` or `cargo xtask demo`.");
    Ok(())
}

/// The folder for what is costly to make and doesn't belong to one checkout.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache")
        }
    };
    let dir = base.join("stellwerk");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Installs the packages of those tools that are missing.
pub fn tools(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&str> =
        tools.iter().filter(|(program, _)| cmd::find(program).is_none()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing, "to install system packages that are missing")
}

pub fn apt_install(packages: &[&str], why: &str) -> Result<()> {
    if cmd::find("apt-get").is_none() {
        bail!("install these with your package manager, there is no apt here: {}", packages.join(" "));
    }
    say!("Installing {}", packages.join(" "));
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    // Stale lists name versions that the mirror has no more. A broken foreign source must not stop us: apt's next step tells.
    if let Err(error) = cmd::run(cmd::as_root(apt(&["update", "-q"]), why)?) {
        say!("apt-get update didn't work ({error:#}), trying with the lists as they are");
    }
    let mut install = apt(&["install", "-y", "-q", "--no-install-recommends"]);
    install.args(packages);
    cmd::run(cmd::as_root(install, why)?)
        .with_context(|| format!("cannot install: install these by hand: {}", packages.join(" ")))
}

/// rustfmt and clippy of the stable compiler.
pub fn lints() -> Result<()> {
    let mut missing = Vec::new();
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        // rustup leaves a proxy of that name even where the component is missing, so the program has to answer.
        let mut ask = Command::new(program);
        ask.arg("--version");
        if cmd::output(ask).is_err() {
            missing.push(component);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    if cmd::find("rustup").is_none() {
        bail!("install {} (there is no rustup here that could)", missing.join(" and "));
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add"]).args(missing);
    cmd::run(rustup)
}

/// miri is a component that some nightlies lack: then its rung is left out, for the reason returned.
pub fn miri() -> Result<Option<String>> {
    if cmd::find("rustup").is_none() {
        return Ok(Some("there is no rustup, and miri comes with a rustup nightly only".into()));
    }
    let ask = || {
        let mut ask = toolchain::Compiler::Nightly.cargo();
        ask.args(["miri", "--version"]);
        cmd::output(ask)
    };
    if ask().is_ok() {
        return Ok(None);
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "miri", "rust-src", "--toolchain", "nightly"]);
    if cmd::run(rustup).is_err() || ask().is_err() {
        return Ok(Some("the nightly's miri component can't be installed".into()));
    }
    Ok(None)
}
