//! `cargo xtask test --kernel VERSION`: the kernel rung on another kernel, in a virtual machine.
//!
//! QEMU emulates (no KVM needed) and boots Debian's cloud kernel of that version with an initramfs that holds nothing
//! but busybox, iproute2, the test binaries with their libraries, and the objects. Speed says nothing there.
//! Kernels come from Debian's archive through a private apt root in the cache: the system's apt is asked for its mirror
//! and its keyring, and never changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    build, cmd, guest, setup,
    test::{Outcome, Tally},
};

pub const VERSIONS: [&str; 2] = ["6.1", "6.12"];
/// Seconds: emulated, the verifier takes minutes for what it takes seconds for.
const PATIENCE: u32 = 40 * 60;

pub fn run(version: &str, tests: &[(String, PathBuf)], tally: &mut Tally) -> Result<Outcome> {
    let kernel = kernel(version)?;
    let home = build::target().join("vm").join(version);
    let initrd = guest::initramfs(&kernel, &home, tests)?;
    // The verdict has a serial port of its own: cloud kernels lack /dev/port, by which a guest could set QEMU's exit
    // status, and the console belongs to the tests.
    let verdict = home.join("verdict");
    let _ = fs::remove_file(&verdict);
    let mut qemu = Command::new("timeout");
    qemu.args(["--foreground", "--kill-after=5", &PATIENCE.to_string(), "qemu-system-x86_64"]);
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-m", "2048", "-smp", "2"]);
    qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    qemu.arg("-serial").arg(format!("file:{}", verdict.display()));
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initrd);
    qemu.args(["-append", "console=ttyS0 panic=-1 quiet"]).stdin(Stdio::null());
    let status = cmd::tee(qemu, |line| tally.read(line))?;
    if matches!(status.code(), Some(124 | 137)) {
        bail!("the guest was stopped after {PATIENCE} s");
    }
    let verdict = fs::read_to_string(&verdict).unwrap_or_default();
    match verdict.trim().strip_prefix("failed ") {
        Some("0") => Ok(Outcome::Passed),
        Some(count) => bail!("{count} of {} test binaries failed in the guest", tests.len()),
        None => bail!("the guest ended without a verdict: see its console above"),
    }
}

pub struct Kernel {
    image: PathBuf,
    pub modules: PathBuf,
}

/// The newest package of that version, unpacked in the cache.
fn kernel(version: &str) -> Result<Kernel> {
    let home = setup::cache()?.join("kernels").join(version);
    let unpacked = home.join("unpacked");
    if !unpacked.exists() {
        download(version, &home, &unpacked)?;
    }
    let find = |dir: &str, prefix: &str| -> Result<PathBuf> {
        let entries = fs::read_dir(unpacked.join(dir)).into_iter().flatten().flatten();
        let mut paths = entries.map(|entry| entry.path());
        let fits = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        paths.find(fits).with_context(|| format!("{} holds no kernel: remove it and try again", unpacked.display()))
    };
    let modules = find("lib/modules", version).or_else(|_| find("usr/lib/modules", version))?;
    Ok(Kernel { image: find("boot", "vmlinuz-")?, modules })
}

fn download(version: &str, home: &Path, unpacked: &Path) -> Result<()> {
    say!("Getting Debian's kernel {version} (once, kept in {})", home.display());
    let apt = PrivateApt::new(home)?;
    apt.write_sources()?;
    cmd::run(apt.command("apt-get", &["update", "-q"]))?;
    let pattern = format!("^linux-image-{}\\.[0-9.]+.*-cloud-amd64$", version.replace('.', "\\."));
    let found = cmd::output(apt.command("apt-cache", &["search", "--names-only", &pattern]))?;
    let names = found.lines().filter_map(|line| line.split_whitespace().next());
    let newest =
        names.max_by_key(|name| numbers(name)).with_context(|| format!("Debian offers no kernel {version} now"))?;
    let mut get = apt.command("apt-get", &["download", "-q", newest]);
    get.current_dir(home);
    cmd::run(get)?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let package = fs::read_dir(home)?.flatten().map(|entry| entry.path()).find(is_package);
    let package = package.context("apt-get download brought no package")?;
    // Unpacked beside and renamed, so that an interrupted run leaves nothing that looks complete.
    let new = home.join("unpacked.new");
    let mut dpkg = Command::new("dpkg");
    dpkg.arg("-x").arg(&package).arg(&new);
    cmd::run(dpkg)?;
    fs::remove_file(&package)?;
    fs::rename(&new, unpacked).with_context(|| format!("cannot make {}", unpacked.display()))
}

/// The numbers in a package name, which order its versions.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// apt with its own lists and sources, and no view of the system's.
struct PrivateApt {
    root: PathBuf,
}

impl PrivateApt {
    fn new(home: &Path) -> Result<Self> {
        let root = home.join("apt");
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(root.join(dir)).with_context(|| format!("cannot make {}", root.display()))?;
        }
        fs::write(root.join("status"), "")?;
        Ok(PrivateApt { root })
    }

    /// Debian's release that has these kernels, from the mirror that this machine's apt uses already.
    fn write_sources(&self) -> Result<()> {
        let mut ask = Command::new("apt-get");
        ask.args(["indextargets", "--format", "$(ORIGIN) $(SUITE) $(REPO_URI) $(CODENAME)", "Created-By: Packages"]);
        let targets = cmd::output(ask).context("kernels come by apt")?;
        let security = targets.lines().filter(|line| line.starts_with("Debian ") && line.contains("-security"));
        let mirror = security.filter_map(|line| line.split(' ').nth(2)).next();
        let mirror =
            mirror.context("kernels come from Debian's security archive, which this machine's apt doesn't have")?;
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let line = format!("deb [arch=amd64 signed-by={keys}] {mirror} bookworm-security main\n");
        fs::write(self.root.join("sources.list"), line).context("cannot write apt's sources")
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let at = |part: &str| self.root.join(part).display().to_string();
        let mut cmd = Command::new(program);
        for option in [
            format!("Dir::Etc::SourceList={}", at("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::State::Status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            "APT::Architecture=amd64".into(),
            // apt's own user may not enter a home folder.
            "APT::Sandbox::User=root".into(),
        ] {
            cmd.args(["-o", &option]);
        }
        cmd.args(args);
        cmd
    }
}
