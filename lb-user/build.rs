//! Embeds the eBPF object where it has been built. Without it the crate builds, too, and `run`
//! says what is missing.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".."));
    let object = root.join("target/bpf/stellwerk.o");
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = match fs::read(&object) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result?,
    };
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    fs::write(Path::new(&out).join("stellwerk.o"), bytes)
}
