//! Pins in place of those that somebody removed while the agent runs: it has what they named.
//!
//! Invariant: a pin that is there is left alone, whatever it names. Links are no part of it: a link whose pin is
//! removed is gone with its program, and [`super::hooks`] makes another.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::links::FdLink;

use super::clock;
use super::maps::{Paths, SPECS};

/// Pins again what is no longer pinned; the names of that.
pub fn repin(ebpf: &mut Ebpf, paths: &Paths) -> Result<Vec<&'static str>> {
    let mut gone = Vec::new();
    let dir = paths.maps();
    for name in SPECS.iter().map(|spec| spec.name) {
        let path = dir.join(name);
        if !path.try_exists().with_context(|| path.display().to_string())? {
            folder(&path)?;
            let map = ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
            map.pin(&path).with_context(|| format!("pinning {}", path.display()))?;
            gone.push(name);
        }
    }
    let path = paths.programs().join(clock::PROGRAM);
    if !path.try_exists().with_context(|| path.display().to_string())? {
        folder(&path)?;
        let program = ebpf.program_mut(clock::PROGRAM).context("the object has no clock")?;
        program.pin(&path).with_context(|| format!("pinning {}", path.display()))?;
        gone.push(clock::PROGRAM);
    }
    Ok(gone)
}

/// Pins a link; without that it would be gone with the agent.
pub(super) fn link(link: FdLink, path: &Path) -> Result<()> {
    folder(path)?;
    link.pin(path).map(drop).with_context(|| format!("pinning {}", path.display()))
}

/// The folder of a pin may have gone with it.
fn folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}
