//! `cargo xtask test --kernel VERSION`: the kernel rung on another kernel, in a virtual machine.
//!
//! QEMU emulates (no KVM needed) and boots Debian's cloud kernel of that version with an initramfs that holds nothing
//! but busybox, iproute2, the test binaries with their libraries, and the objects. Speed says nothing there.
//! Kernels come from Debian's archive through a private apt root in the cache: the system's apt is asked for its mirror
//! and its keyring, and never changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    build, cmd,
    rungs::{self, PATIENCE},
    setup,
    test::{Outcome, Tally},
};

pub const VERSIONS: [&str; 3] = ["5.10", "6.1", "6.12"];

/// Modules that tests may need, as far as the kernel has them. Dependencies are found by themselves.
const MODULES: [&str; 13] = [
    "veth",
    "dummy",
    "bridge",
    "8021q",
    "sch_ingress",
    "cls_bpf",
    "act_gact",
    "sctp",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
];

const INIT: &str = include_str!("guest-init.sh");

pub fn run(version: &str, tests: &[(String, PathBuf)], tally: &mut Tally) -> Result<Outcome> {
    let kernel = kernel(version)?;
    let home = build::target().join("vm").join(version);
    let initrd = initramfs(&kernel, &home, tests)?;
    let mut qemu = Command::new("timeout");
    qemu.args([
        "--foreground",
        "--kill-after=5",
        &PATIENCE.to_string(),
        "qemu-system-x86_64",
    ]);
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-machine",
        "q35",
        "-m",
        "2048",
        "-smp",
        "2",
    ]);
    qemu.arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd);
    qemu.args([
        "-append",
        "console=ttyS0 panic=-1 quiet",
        "-nographic",
        "-no-reboot",
        "-nic",
        "none",
    ]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .stdin(std::process::Stdio::null());
    let status = cmd::tee(qemu, |line| tally.read(line))?;
    // isa-debug-exit ends QEMU with twice what the guest wrote, plus one. 0 is a reboot: the guest's kernel panicked.
    match status.code() {
        Some(1) => Ok(Outcome::Passed),
        Some(0) => bail!("the guest crashed or never reached its tests: see its console above"),
        Some(124 | 137) => bail!("the guest was stopped after {PATIENCE} s"),
        Some(code) if code % 2 == 1 => bail!("{} test binaries failed in the guest", code / 2),
        _ => bail!("qemu ended with {status}"),
    }
}

struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

/// The newest package of that version, unpacked in the cache.
fn kernel(version: &str) -> Result<Kernel> {
    let home = setup::cache()?.join("kernels").join(version);
    let unpacked = home.join("unpacked");
    if !unpacked.exists() {
        download(version, &home, &unpacked)?;
    }
    let find = |dir: &str, prefix: &str| -> Result<PathBuf> {
        let entries = fs::read_dir(unpacked.join(dir))
            .into_iter()
            .flatten()
            .flatten();
        let mut paths = entries.map(|entry| entry.path());
        let fits = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        };
        paths.find(fits).with_context(|| {
            format!(
                "{} holds no kernel: remove it and try again",
                unpacked.display()
            )
        })
    };
    let modules = find("lib/modules", version).or_else(|_| find("usr/lib/modules", version))?;
    Ok(Kernel {
        image: find("boot", "vmlinuz-")?,
        modules,
    })
}

fn download(version: &str, home: &Path, unpacked: &Path) -> Result<()> {
    println!(
        "Getting Debian's kernel {version} (once, kept in {})",
        home.display()
    );
    let apt = PrivateApt::new(home)?;
    apt.write_sources(version)?;
    cmd::run(apt.command("apt-get", &["update", "-q"]))?;
    let pattern = format!(
        "^linux-image-{}\\.[0-9.]+.*-cloud-amd64$",
        version.replace('.', "\\.")
    );
    let found = cmd::output(apt.command("apt-cache", &["search", "--names-only", &pattern]))?;
    let names = found
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let newest = names
        .max_by_key(|name| numbers(name))
        .with_context(|| format!("Debian offers no kernel {version} now"))?;
    let mut get = apt.command("apt-get", &["download", "-q", newest]);
    get.current_dir(home);
    cmd::run(get)?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let package = fs::read_dir(home)?
        .flatten()
        .map(|entry| entry.path())
        .find(is_package);
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
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// apt with its own lists and sources, and no view of the system's.
struct PrivateApt {
    root: PathBuf,
}

impl PrivateApt {
    fn new(home: &Path) -> Result<Self> {
        let root = home.join("apt");
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(root.join(dir))
                .with_context(|| format!("cannot make {}", root.display()))?;
        }
        fs::write(root.join("status"), "")?;
        Ok(PrivateApt { root })
    }

    /// The Debian release that has this kernel, from the mirror that this machine's apt uses already.
    fn write_sources(&self, version: &str) -> Result<()> {
        let release = if version == "5.10" {
            "bullseye"
        } else {
            "bookworm"
        };
        let mut ask = Command::new("apt-get");
        ask.args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(SUITE) $(REPO_URI) $(CODENAME)",
            "Created-By: Packages",
        ]);
        let targets = cmd::output(ask).context("kernels come by apt")?;
        let security = targets
            .lines()
            .filter(|line| line.starts_with("Debian ") && line.contains("-security"));
        let mirror = security.filter_map(|line| line.split(' ').nth(2)).next();
        let mirror = mirror.context(
            "kernels come from Debian's security archive, which this machine's apt doesn't have",
        )?;
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let line = format!("deb [arch=amd64 signed-by={keys}] {mirror} {release}-security main\n");
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

/// Lays out the guest's root below `home` and packs it.
fn initramfs(kernel: &Kernel, home: &Path, tests: &[(String, PathBuf)]) -> Result<PathBuf> {
    let root = Root {
        dir: home.join("root"),
    };
    if root.dir.exists() {
        fs::remove_dir_all(&root.dir)
            .with_context(|| format!("cannot empty {}", root.dir.display()))?;
    }
    root.skeleton()?;
    for program in ["busybox", "ip", "tc", "ethtool"] {
        if let Some(path) = cmd::find(program) {
            root.program(&path, &Path::new("/usr/bin").join(program))?;
        }
    }
    root.program(&build::binary("stellwerk"), Path::new("/stellwerk"))?;
    for (name, path) in tests {
        root.program(path, &Path::new("/tests").join(name))?;
    }
    root.tree(
        &build::object("stellwerk").with_file_name(""),
        Path::new("/bpf"),
    )?;
    root.file(&build::object("stellwerk"), Path::new("/stellwerk.o"))?;
    // The same place as here: the path of the cases may be compiled into the tests.
    root.tree(&rungs::package(), &rungs::package())?;
    let mut load = Vec::new();
    for module in MODULES {
        root.module(kernel, module, &mut load)?;
    }
    fs::write(root.dir.join("modules/order"), load.join("\n") + "\n")?;
    let init = INIT.replace("@PACKAGE@", &rungs::package().display().to_string());
    fs::write(root.dir.join("init"), init)?;
    cmd::output(shell("chmod +x init", &root.dir))?;
    let image = home.join("initrd");
    let mut pack = shell(
        "find . | cpio --quiet -o -H newc --owner=0:0 > ../initrd",
        &root.dir,
    );
    pack.env("LC_ALL", "C");
    cmd::output(pack).context("cannot pack the initramfs")?;
    Ok(image)
}

fn shell(script: &str, dir: &Path) -> Command {
    let mut sh = Command::new("sh");
    sh.args(["-c", script]).current_dir(dir);
    sh
}

/// The guest's root file system, below a folder. Paths given to it are those of the guest.
struct Root {
    dir: PathBuf,
}

impl Root {
    fn skeleton(&self) -> Result<()> {
        for dir in [
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
            "proc",
            "sys",
            "dev",
            "run",
            "tmp",
            "busybox",
            "modules",
        ] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        for dir in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{dir}"), self.dir.join(dir))?;
        }
        Ok(())
    }

    fn file(&self, from: &Path, to: &Path) -> Result<()> {
        let to = self.dir.join(to.strip_prefix("/").unwrap_or(to));
        if to.exists() {
            return Ok(());
        }
        let dir = to.parent().context("a file lies in a folder")?;
        fs::create_dir_all(dir)?;
        fs::copy(from, &to)
            .with_context(|| format!("cannot copy {} into the guest", from.display()))?;
        Ok(())
    }

    /// A program and the libraries that the dynamic linker would load for it.
    fn program(&self, from: &Path, to: &Path) -> Result<()> {
        self.file(from, to)?;
        let mut ldd = Command::new("ldd");
        ldd.arg(from).env_remove("LD_LIBRARY_PATH");
        // ldd fails for a static program, which needs nothing.
        for line in cmd::output(ldd).unwrap_or_default().lines() {
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.file(Path::new(library), Path::new(library))?;
            }
        }
        Ok(())
    }

    /// A folder, without what building left in it.
    fn tree(&self, from: &Path, to: &Path) -> Result<()> {
        for entry in
            fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?
        {
            let entry = entry?;
            let path = entry.path();
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.file_name() != "target" && entry.file_name() != "artifacts" {
                self.tree(&path, &to.join(entry.file_name()))?;
            } else if kind.is_file() {
                self.file(&path, &to.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// A module after those it depends on, unless the kernel has it built in or not at all.
    fn module(&self, kernel: &Kernel, name: &str, load: &mut Vec<String>) -> Result<()> {
        let file = format!("{name}.ko");
        let Some(found) = find_module(&kernel.modules.join("kernel"), name) else {
            return Ok(());
        };
        if load.contains(&file) {
            return Ok(());
        }
        let to = self.dir.join("modules").join(&file);
        fs::copy(
            &found,
            to.with_extension(if ends_with(&found, ".xz") {
                "ko.xz"
            } else {
                "ko"
            }),
        )?;
        if ends_with(&found, ".xz") {
            cmd::output(shell(
                &format!("xz -d {file}.xz"),
                &self.dir.join("modules"),
            ))?;
        }
        for needed in depends(&fs::read(&to)?) {
            self.module(kernel, &needed, load)?;
        }
        load.push(file);
        Ok(())
    }
}

fn ends_with(path: &Path, end: &str) -> bool {
    path.to_string_lossy().ends_with(end)
}

/// Module names have underscores where their files may have dashes.
fn find_module(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_module(&path, name) {
                return Some(found);
            }
            continue;
        }
        let file = path.file_name()?.to_string_lossy().replace('-', "_");
        if file
            .strip_prefix(name)
            .is_some_and(|rest| rest == ".ko" || rest == ".ko.xz")
        {
            return Some(path);
        }
    }
    None
}

/// What a module's `.modinfo` says it depends on. (No depmod: the machine may lack it, and this is all that it reads.)
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}
