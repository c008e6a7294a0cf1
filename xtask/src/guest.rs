//! What a virtual machine boots with: an initramfs of busybox, iproute2, modules, and the tests with their libraries.
//!
//! Not here: the kernel and the machine (`kernel.rs`). What runs inside is `guest-init.sh`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{build, cmd, kernel::Kernel, rungs};

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

/// Lays out the guest's root below `home` and packs it.
pub fn initramfs(kernel: &Kernel, home: &Path, tests: &[(String, PathBuf)]) -> Result<PathBuf> {
    let root = Root { dir: home.join("root") };
    if root.dir.exists() {
        fs::remove_dir_all(&root.dir).with_context(|| format!("cannot empty {}", root.dir.display()))?;
    }
    root.skeleton()?;
    for program in ["busybox", "ip", "tc", "ethtool"] {
        if let Some(path) = cmd::find(program) {
            root.program(&path, &Path::new("/usr/bin").join(program))?;
        }
    }
    for program in build::PRODUCT {
        root.program(&build::binary(program), &Path::new("/").join(program))?;
    }
    for (name, path) in tests {
        root.program(path, &Path::new("/tests").join(name))?;
    }
    root.tree(&build::object("stellwerk").with_file_name(""), Path::new("/bpf"))?;
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
    let mut pack = shell("find . | cpio --quiet -o -H newc --owner=0:0 > ../initrd", &root.dir);
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
        for dir in
            ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "proc", "sys", "dev", "run", "tmp", "busybox", "modules"]
        {
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
        fs::copy(from, &to).with_context(|| format!("cannot copy {} into the guest", from.display()))?;
        Ok(())
    }

    /// A program and the libraries that the dynamic linker would load for it. Without what debuggers want, which is most
    /// of it: the guest has all of this in its memory, twice while it starts.
    fn program(&self, from: &Path, to: &Path) -> Result<()> {
        self.file(from, to)?;
        if cmd::find("strip").is_some() {
            let mut strip = Command::new("strip");
            strip.arg("--strip-debug").arg(self.dir.join(to.strip_prefix("/").unwrap_or(to)));
            cmd::output(strip)?;
        }
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
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
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
        fs::copy(&found, to.with_extension(if ends_with(&found, ".xz") { "ko.xz" } else { "ko" }))?;
        if ends_with(&found, ".xz") {
            cmd::output(shell(&format!("xz -d {file}.xz"), &self.dir.join("modules")))?;
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
        if file.strip_prefix(name).is_some_and(|rest| rest == ".ko" || rest == ".ko.xz") {
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
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
