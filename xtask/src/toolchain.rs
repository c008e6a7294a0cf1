//! The eBPF compiler and the linker that fits it.
//!
//! Two compilers are known: a rustup nightly with `rust-src`, and Debian's packaged rustc with its source package.
//! bpf-linker must be linked to the very LLVM of the chosen compiler: another one can't read its bitcode, or reads it
//! wrongly. So it is built here, once per compiler version, into a cache outside of the checkout.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{cmd, setup};

const BPF_LINKER: &str = "0.13.0";
/// The LLVM majors that this bpf-linker has a feature for.
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;
/// As `rust-version` in the workspace: cargo refuses an older compiler anyway, but only after minutes.
const OLDEST_RUSTC: (u32, u32) = (1, 95);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compiler {
    Nightly,
    Debian,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compiler::Nightly => "nightly",
            Compiler::Debian => "debian",
        })
    }
}

/// A compiler that can build eBPF, and its linker.
pub struct Toolchain {
    pub compiler: Compiler,
    pub linker: PathBuf,
    rustc: PathBuf,
}

impl Toolchain {
    /// cargo of this compiler, set up for the eBPF target.
    pub fn cargo(&self) -> Command {
        let mut cmd = self.compiler.cargo();
        cmd.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        // Else cargo takes the first rustc on PATH, which may be another one than rustup's.
        cmd.env("RUSTC", &self.rustc);
        cmd
    }
}

impl Compiler {
    /// cargo of this compiler, free of what the outer `cargo xtask` and its user set for the host build.
    pub fn cargo(self) -> Command {
        let mut cmd = match self {
            Compiler::Nightly => rustup_run("cargo"),
            Compiler::Debian => {
                let mut cmd = Command::new("/usr/bin/cargo");
                // A release compiler accepts `-Z build-std` only so.
                cmd.env("RUSTC_BOOTSTRAP", "1");
                cmd
            }
        };
        // RUSTFLAGS would replace the flags of lb-ebpf/.cargo/config.toml, LD_LIBRARY_PATH names the other compiler's libraries.
        for outer in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO", "LD_LIBRARY_PATH"] {
            cmd.env_remove(outer);
        }
        cmd
    }

    fn ask(self, args: &[&str]) -> Result<String> {
        let mut rustc = match self {
            Compiler::Nightly => rustup_run("rustc"),
            Compiler::Debian => Command::new("/usr/bin/rustc"),
        };
        rustc.args(args).env_remove("LD_LIBRARY_PATH");
        cmd::output(rustc)
    }

    /// What there is of this compiler; an error says what is missing.
    fn probe(self) -> Result<Probe> {
        let answer = self.ask(&["-vV"]).with_context(|| format!("{self}: no such rustc"))?;
        let field = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        let release = field("release: ");
        let number = |part: Option<&str>| part.and_then(|part| part.parse::<u32>().ok()).unwrap_or(0);
        let mut parts = release.split('.');
        if (number(parts.next()), number(parts.next())) < OLDEST_RUSTC {
            bail!("{self}: rustc {release} is too old, {}.{} or newer is needed", OLDEST_RUSTC.0, OLDEST_RUSTC.1);
        }
        let sysroot = PathBuf::from(self.ask(&["--print", "sysroot"])?.trim());
        if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
            bail!("{self}: rustc {release} is there, but not the sources of its core library");
        }
        let commit = field("commit-hash: ");
        let llvm = field("LLVM version: ");
        Ok(Probe { key: format!("{self}-{release}-{}", commit.get(..9).unwrap_or("unknown")), sysroot, llvm })
    }

    fn acquire(self) -> Result<()> {
        match self {
            Compiler::Nightly => acquire_nightly(),
            Compiler::Debian => {
                setup::apt_install(&["rustc-web", "cargo-web", "rust-web-src"], "to install Debian's Rust compiler")
            }
        }
    }
}

struct Probe {
    /// Names compiler and version; a folder name.
    key: String,
    sysroot: PathBuf,
    llvm: String,
}

fn rustup_run(program: &str) -> Command {
    let mut cmd = Command::new("rustup");
    // Asking for a toolchain must not install it: that is `acquire`'s work, and it says so.
    cmd.args(["run", "nightly", program]).env("RUSTUP_AUTO_INSTALL", "0").env_remove("RUSTUP_TOOLCHAIN");
    cmd
}

fn acquire_nightly() -> Result<()> {
    if cmd::find("rustup").is_none() {
        bail!("nightly: rustup isn't installed");
    }
    let mut rustup = Command::new("rustup");
    if Compiler::Nightly.ask(&["-V"]).is_ok() {
        rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
    } else {
        // Without the option this would also replace the user's rustup, even by an older one.
        rustup.args(["toolchain", "install", "nightly", "--no-self-update"]);
        rustup.args(["--profile", "minimal", "--component", "rust-src"]);
    }
    cmd::run(rustup)
}

/// The compiler to use, installed if need be, and its linker.
pub fn get() -> Result<Toolchain> {
    let wanted = std::env::var("STELLWERK_EBPF_COMPILER").ok();
    let order: &[Compiler] = match wanted.as_deref() {
        None | Some("") => &[Compiler::Nightly, Compiler::Debian],
        Some("nightly") => &[Compiler::Nightly],
        Some("debian") => &[Compiler::Debian],
        Some(other) => {
            bail!("STELLWERK_EBPF_COMPILER is `{other}`: it may be `nightly` or `debian`")
        }
    };
    // What is there beats what could be installed.
    for &compiler in order {
        if let Ok(probe) = compiler.probe() {
            return complete(compiler, &probe);
        }
    }
    let mut reasons = Vec::new();
    for &compiler in order {
        match compiler.acquire().and_then(|()| compiler.probe()) {
            Ok(probe) => {
                return complete(compiler, &probe);
            }
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    bail!(
        "there is no compiler for eBPF. Install one of: a rustup nightly with sources \
         (`rustup toolchain install nightly --component rust-src`), or Debian's packages \
         rustc-web, cargo-web and rust-web-src, {}.{} or newer. Tried: {}",
        OLDEST_RUSTC.0,
        OLDEST_RUSTC.1,
        reasons.join("; ")
    )
}

fn complete(compiler: Compiler, probe: &Probe) -> Result<Toolchain> {
    Ok(Toolchain { compiler, linker: linker(compiler, probe)?, rustc: probe.sysroot.join("bin/rustc") })
}

fn linker(compiler: Compiler, probe: &Probe) -> Result<PathBuf> {
    let home = setup::cache()?.join("bpf-linker").join(format!("{BPF_LINKER}-{}", probe.key));
    let linker = home.join("bin/bpf-linker");
    if linker.exists() {
        return Ok(linker);
    }
    say!("Building bpf-linker {BPF_LINKER} against LLVM {} of {} (once, about a minute)", probe.llvm, probe.key);
    let major = probe.llvm.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if !BPF_LINKER_LLVM.contains(&major) {
        bail!(
            "bpf-linker {BPF_LINKER} knows LLVM {} to {}, but {} has LLVM {}: set STELLWERK_EBPF_COMPILER to the other compiler",
            BPF_LINKER_LLVM.start(),
            BPF_LINKER_LLVM.end(),
            probe.key,
            probe.llvm
        );
    }
    llvm_prefix(&home, &find_llvm(compiler, probe)?)?;
    let mut install = cmd::cargo();
    install.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--no-default-features"]);
    install.arg("--features").arg(format!("llvm-{major}")).arg("--root").arg(&home);
    // bpf-linker's build script writes this prefix into the binary's rpath: it has to be the lasting place.
    install.env("LLVM_PREFIX", &home).env("CARGO_TARGET_DIR", home.join("build")).env_remove("RUSTFLAGS");
    cmd::run(install).context("cannot build bpf-linker")?;
    std::fs::remove_dir_all(home.join("build")).context("cannot remove bpf-linker's build folder")?;
    Ok(linker)
}

/// The shared LLVM that this compiler itself loads.
fn find_llvm(compiler: Compiler, probe: &Probe) -> Result<PathBuf> {
    let mut ldd = Command::new("ldd");
    ldd.arg(probe.sysroot.join("bin/rustc")).env_remove("LD_LIBRARY_PATH");
    let libraries = cmd::output(ldd)?;
    let llvm =
        libraries.lines().filter(|line| line.contains("libLLVM")).find_map(|line| line.split_whitespace().nth(2));
    let llvm = llvm.with_context(|| {
        format!("{compiler}: rustc has no shared LLVM that bpf-linker could use: set STELLWERK_EBPF_COMPILER to the other compiler")
    })?;
    Path::new(llvm).canonicalize().with_context(|| format!("cannot find {llvm}"))
}

/// A folder that looks like an LLVM installation with just the one library: by its link name and by its own.
fn llvm_prefix(home: &Path, llvm: &Path) -> Result<()> {
    let lib = home.join("lib");
    std::fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    let own = llvm.file_name().context("the LLVM library has a name")?;
    // The dynamic linker looks for the soname, which may be shorter than the file's name (libLLVM.so.22.1 -> …22.1.8).
    let mut names = vec!["libLLVM.so".into(), own.to_os_string()];
    let text = own.to_string_lossy();
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > 4 {
        names.push(parts[..4].join(".").into());
    }
    for name in names {
        let link = lib.join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(llvm, &link).with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(())
}
