//! The tree of control groups (its second version) that this node's processes are in.
//!
//! Invariant: nothing is mounted where a tree is to be found already. Nodes that use the first version, or both, have
//! the second one elsewhere, or not mounted; all processes are in it all the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::maps::Paths;
use super::mounts;
use super::state::State;

/// The number of the first namespace of control groups (include/linux/proc_ns.h).
const FIRST: u64 = 0xeffffffb;

/// Where the whole tree is mounted.
fn tree(mountinfo: &str) -> Option<&Path> {
    mounts::all(mountinfo).find(|mount| mount.kind == "cgroup2" && mount.root == "/").map(|mount| mount.point)
}

/// Whether a folder is in such a tree.
fn is_group(mountinfo: &str, dir: &Path) -> bool {
    mounts::over(mountinfo, dir).is_some_and(|mount| mount.kind == "cgroup2")
}

/// Why a folder is no control group.
pub fn wrong(dir: &Path) -> Result<Option<&'static str>> {
    let mountinfo = mounts::read()?;
    Ok(match dir.canonicalize() {
        Ok(real) if !real.is_dir() => Some("is no folder"),
        Ok(real) if is_group(&mountinfo, &real) => None,
        Ok(_) => Some("is not in a cgroup2 file system"),
        Err(_) => Some("is not there"),
    })
}

/// The root of the tree; mounted for us alone where it isn't yet.
pub fn root(paths: &Paths, state: &mut State) -> Result<PathBuf> {
    let mountinfo = mounts::read()?;
    if let Some(tree) = tree(&mountinfo) {
        return Ok(tree.to_owned());
    }
    let own = paths.cgroups();
    fs::create_dir_all(&own).with_context(|| format!("creating {}", own.display()))?;
    state.change(paths, |state| state.cgroups_mounted = true)?;
    mounts::mount("cgroup2", &own).with_context(|| format!("mounting cgroup2 at {}", own.display()))?;
    tracing::info!("mounted cgroup2 at {}: it was mounted nowhere", own.display());
    Ok(own)
}

/// Unmounts what was mounted.
pub fn unmount(paths: &Paths, state: &State) -> Result<usize> {
    if !state.cgroups_mounted {
        return Ok(0);
    }
    let own = paths.cgroups();
    let mountinfo = mounts::read()?;
    let there = mounts::all(&mountinfo).any(|mount| mount.point == own);
    if there {
        mounts::unmount(&own)?;
    }
    if own.exists() {
        fs::remove_dir(&own).with_context(|| own.display().to_string())?;
    }
    Ok(usize::from(there))
}

/// The kernel's number of a group.
pub fn id(dir: &Path) -> Result<u64> {
    Ok(fs::metadata(dir).with_context(|| dir.display().to_string())?.ino())
}

/// Whether the tree that we see may be a part of the node's.
pub fn is_part() -> bool {
    fs::metadata("/proc/self/ns/cgroup").is_ok_and(|namespace| namespace.ino() != FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        40 31 0:38 /pods/a /other rw - cgroup2 cgroup2 rw\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const UNIFIED: &str = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const FIRST_VERSION: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn the_tree_is_where_the_node_has_it() {
        let hybrid = Some("/sys/fs/cgroup/unified");
        for (mounts, want) in [(HYBRID, hybrid), (UNIFIED, Some("/sys/fs/cgroup")), (FIRST_VERSION, None), ("", None)] {
            assert_eq!(tree(mounts), want.map(Path::new), "{mounts}");
        }
        for (mounts, dir, want) in [
            (HYBRID, "/sys/fs/cgroup/unified/system.slice", true),
            (HYBRID, "/other", true),
            (HYBRID, "/sys/fs/cgroup/memory", false),
            (HYBRID, "/sys/fs/cgroup", false),
            (UNIFIED, "/sys/fs/cgroup/a", true),
            (UNIFIED, "/tmp", false),
        ] {
            assert_eq!(is_group(mounts, Path::new(dir)), want, "{dir} in {mounts}");
        }
    }
}
