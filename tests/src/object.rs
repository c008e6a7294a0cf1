//! The eBPF objects: where they are, and single programs of theirs run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::{TestRun, TestRunOptions, Xdp};

/// The object of an eBPF bin.
pub fn object(name: &str) -> Result<Vec<u8>> {
    let beside = |dir: &Path| dir.join(format!("{name}.o"));
    let path = match std::env::var_os("STELLWERK_BPF_DIR") {
        Some(dir) => beside(&PathBuf::from(dir)),
        None => beside(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf")),
    };
    std::fs::read(&path).with_context(|| format!("{}: `cargo xtask build` makes it", path.display()))
}

/// Runs an XDP program so often on a packet that it doesn't look at; it must let it pass.
pub fn run(ebpf: &Ebpf, program: &str, repeat: u32) -> Result<()> {
    const PASS: u32 = 2;
    let xdp: &Xdp = ebpf.program(program).with_context(|| program.to_owned())?.try_into()?;
    let options = TestRunOptions { data_in: Some(&[0; 64]), repeat, ..TestRunOptions::default() };
    let ran = xdp.test_run(options)?;
    ensure!(ran.return_value == PASS, "{program} returned {}", ran.return_value);
    Ok(())
}
