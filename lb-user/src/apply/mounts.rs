//! File systems: which is where, and ones of our own.
//!
//! Not here: what may be mounted where ([`super::pin`], [`super::cgroup`]).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// What is mounted now, as [`all`] reads it.
pub fn read() -> Result<String> {
    fs::read_to_string(MOUNTINFO).context(MOUNTINFO)
}

/// A file system that is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount<'m> {
    pub point: &'m Path,
    /// The part of it that is there; `/`: the whole.
    pub root: &'m str,
    /// `bpf`, `cgroup2`, …
    pub kind: &'m str,
}

pub fn all(mountinfo: &str) -> impl DoubleEndedIterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        Some(Mount { point: Path::new(point), root, kind: right.split(' ').next()? })
    })
}

/// The one that a folder is in.
pub fn over<'m>(mountinfo: &'m str, dir: &Path) -> Option<Mount<'m>> {
    // Of several at one point the last is on top.
    all(mountinfo).filter(|mount| dir.starts_with(mount.point)).max_by_key(|mount| mount.point.as_os_str().len())
}

/// Mounts a file system that has no device.
pub fn mount(kind: &str, at: &Path) -> Result<()> {
    Ok(rustix::mount::mount(kind, at, kind, MountFlags::empty(), None)?)
}

pub fn unmount(at: &Path) -> Result<()> {
    Ok(rustix::mount::unmount(at, UnmountFlags::empty())?)
}
