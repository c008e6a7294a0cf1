//! The lab: makes namespaces and wires, and removes them.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Ns, clean};

/// One run's namespaces, temporary folder, pin folder and control group; removed when dropped.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: PathBuf,
}

impl Lab {
    /// An empty lab. Needs root.
    pub fn new() -> Result<Lab> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        clean::on_signals(|| eprintln!("\nstopped; everything was removed"));
        clean::check()?;
        clean::leftovers();
        let random = RandomState::new().build_hasher().finish() as u16;
        let id = format!("sw-{}-{random:04x}", std::process::id());
        let lab = Lab { dir: std::env::temp_dir().join(&id), id };
        std::fs::create_dir(&lab.dir).context("the temporary folder")?;
        mount_bpffs()?;
        Ok(lab)
    }

    /// `sw-PID-RANDOM`
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The run's temporary folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A pin folder of the run's own. Not made here: the agent makes it.
    pub fn pins(&self) -> PathBuf {
        Path::new(clean::BPFFS).join(&self.id)
    }

    /// A control group of the run's own, where the system has the second version.
    pub fn cgroup(&self) -> Option<PathBuf> {
        let path = cgroups()?.join(&self.id);
        std::fs::create_dir_all(&path).ok()?;
        Some(path)
    }

    /// A new namespace, named `sw-PID-RANDOM-NAME` outside.
    pub fn ns(&self, name: &str) -> Result<Ns> {
        clean::check()?;
        Ns::make(&format!("{}-{name}", self.id))
    }

    /// A wire between two namespaces, both ends up. Two queues, so that two cores can use it.
    pub fn wire(&self, (a, link_a): (&Ns, &str), (b, link_b): (&Ns, &str)) -> Result<()> {
        clean::check()?;
        let queues = "numrxqueues 2 numtxqueues 2";
        a.ip(&format!(
            "link add {link_a} {queues} type veth peer name {link_b} {queues} netns {}\nlink set {link_a} up",
            b.full_name()
        ))?;
        b.ip(&format!("link set {link_b} up"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        clean::run(&self.id);
    }
}

/// Where the second version of control groups is mounted.
pub fn cgroups() -> Option<PathBuf> {
    mounts_of(&["cgroup2"]).into_iter().next()
}

/// Where control groups of either version are.
pub fn all_cgroups() -> Vec<PathBuf> {
    mounts_of(&["cgroup", "cgroup2"])
}

fn mounts_of(kinds: &[&str]) -> Vec<PathBuf> {
    let all = mounts().unwrap_or_default().into_iter();
    all.filter(|(_, kind)| kinds.contains(&kind.as_str())).map(|(point, _)| point).collect()
}

/// What is mounted: where, and of which kind.
pub fn mounts() -> Result<Vec<(PathBuf, String)>> {
    let text = std::fs::read_to_string("/proc/self/mounts")?;
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(fields.filter(|f| f.len() > 2).map(|f| (f[1].into(), f[2].into())).collect())
}

fn mount_bpffs() -> Result<()> {
    use nix::mount::{MsFlags, mount};
    if mounts()?.iter().any(|(point, _)| point == Path::new(clean::BPFFS)) {
        return Ok(());
    }
    mount(Some("bpf"), clean::BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).context("mounting bpffs")
}
