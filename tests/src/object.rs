//! Where the eBPF objects are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The object of an eBPF bin.
pub fn object(name: &str) -> Result<Vec<u8>> {
    let beside = |dir: &Path| dir.join(format!("{name}.o"));
    let path = match std::env::var_os("STELLWERK_BPF_DIR") {
        Some(dir) => beside(&PathBuf::from(dir)),
        None => beside(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf")),
    };
    std::fs::read(&path).with_context(|| format!("{}: `cargo xtask build` makes it", path.display()))
}
