//! Another version of stellwerk: this one's source with lines exchanged, so that its tables lie otherwise. Tests have
//! each take over from the other.
//!
//! Invariant: an exchange whose line isn't there exactly once is an error, so that none is ever without effect. It is
//! built beside the tests, with what these are built of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{build, cmd};

/// In a file, what stands instead of what.
type Exchange = (&'static str, &'static str, &'static str);

const EXCHANGES: &[Exchange] = &[
    ("Cargo.toml", "version = \"0.1.0\"", "version = \"0.1.1\""),
    // Where cargo puts it, it isn't to take this one's place.
    ("lb-user/Cargo.toml", "default-run = \"stellwerk\"", "default-run = \"stellwerk-next\""),
    ("lb-user/Cargo.toml", "name = \"stellwerk\"\npath", "name = \"stellwerk-next\"\npath"),
    // A new reason to drop before all others, and a new setting.
    (
        "lb-common/src/drop.rs",
        "    Drop {\n",
        "    Drop {\n        /// nothing drops for it\n        Another = \"another\",\n",
    ),
    (
        "lb-common/src/table/settings.rs",
        "        pub ticks_per_second: u32,\n",
        "        pub another: u32,\n        pub ticks_per_second: u32,\n",
    ),
    ("lb-common/src/table/settings.rs", "} size = 72", "} size = 76"),
    (
        "lb-common/src/table/settings.rs",
        "            ticks_per_second: t,\n",
        "            another: 0,\n            ticks_per_second: t,\n",
    ),
    // Values and keys of hashes and arrays, of all CPUs and of each.
    (
        "lb-common/src/table/service.rs",
        "        pub addr: A,\n        pub port: Be16,\n        pub proto: u8,\n        pub pad: u8,\n    } v4 = 8",
        "        pub port: Be16,\n        pub proto: u8,\n        pub pad: u8,\n        pub addr: A,\n    } v4 = 8",
    ),
    (
        "lb-common/src/table/service.rs",
        "        pub connections: u64,\n        pub packets: u64,\n",
        "        pub packets: u64,\n        pub connections: u64,\n",
    ),
    (
        "lb-common/src/table/service.rs",
        "        pub backend: u32,\n        /// Tick of the client's last new connection.\n        pub last: u32,\n",
        "        pub last: u32,\n        pub backend: u32,\n",
    ),
    (
        "lb-common/src/table/service.rs",
        "        /// Relative share of new connections.\n        pub weight: u32,\n        /// Draining: the tick at which its remaining connections are ended; 0 = none.\n        pub deadline: u32,\n",
        "        pub deadline: u32,\n        pub weight: u32,\n",
    ),
    (
        "lb-common/src/table/socket.rs",
        "        pub addr: A,\n        pub port: Be16,\n        pub pad: u16,\n",
        "        pub port: Be16,\n        pub pad: u16,\n        pub addr: A,\n",
    ),
    // Connections, and who has which port.
    (
        "lb-common/src/flow_table/entry.rs",
        "        /// Service and backend.\n        owner: Cell64,\n        route: Cell64,\n",
        "        route: Cell64,\n        owner: Cell64,\n",
    ),
    (
        "lb-common/src/port_table/mod.rs",
        "        meta: Cell32,\n        last: Cell32,\n        /// The endpoint's",
        "        last: Cell32,\n        meta: Cell32,\n        /// The endpoint's",
    ),
];

fn folder() -> PathBuf {
    build::target().join("next")
}

/// The agent; its eBPF programs are inside.
pub fn program() -> PathBuf {
    folder().join("stellwerk")
}

/// Builds it.
pub fn build() -> Result<()> {
    let source = folder().join("source");
    fs::create_dir_all(&source).with_context(|| source.display().to_string())?;
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "lb-common",
        "lb-ebpf",
        "lb-user",
        "tests",
        "xtask",
        "docs",
        "examples",
        "packaging",
    ] {
        copy(&cmd::repo().join(part), &source.join(part), Path::new(part))?;
    }
    for (file, from, _) in EXCHANGES {
        let text = fs::read_to_string(cmd::repo().join(file)).with_context(|| (*file).to_owned())?;
        let count = text.matches(from).count();
        ensure!(count == 1, "xtask/src/next.rs exchanges a line of {file} that is there {count} times:\n{from}");
    }
    let object = build::objects(&source.join("lb-ebpf"))?.into_iter().find(|(name, _)| name == "stellwerk");
    let (_, object) = object.context("lb-ebpf has no bin `stellwerk`")?;
    build::place(&object, &source.join("target/bpf/stellwerk.o"))?;
    let mut cargo = cmd::cargo();
    cargo.args(["build", "--workspace", "--bin", "stellwerk-next"]).current_dir(&source);
    cargo.env("CARGO_TARGET_DIR", build::target());
    let built = cmd::executables(cargo).context("building another version")?;
    let (_, built) = built.first().context("cargo built no stellwerk-next")?;
    let there = program();
    build::place(built, &there)?;
    fs::set_permissions(&there, fs::metadata(built)?.permissions()).with_context(|| there.display().to_string())
}

/// Copies what differs: what is as it was isn't built again.
fn copy(from: &Path, to: &Path, name: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to).with_context(|| to.display().to_string())?;
        for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
            let part = entry?.file_name();
            if part != "target" {
                copy(&from.join(&part), &to.join(&part), &name.join(&part))?;
            }
        }
        return Ok(());
    }
    let mut bytes = fs::read(from).with_context(|| from.display().to_string())?;
    for (_, old, new) in EXCHANGES.iter().filter(|(file, ..)| Path::new(file) == name) {
        bytes = String::from_utf8(bytes).with_context(|| name.display().to_string())?.replace(old, new).into_bytes();
    }
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    fs::write(to, bytes).with_context(|| to.display().to_string())
}
