//! `stellwerk cni install`: plugin and network, where a container runtime looks for them.
//!
//! Invariant: done again it changes nothing. The plugin is there before the network that names it.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::VERSIONS;
use crate::apply::Paths;
use crate::disk;

const PLUGIN: &str = "stellwerk-cni";
/// The first by name is a runtime's default.
const NETWORK: &str = "10-stellwerk.conflist";
/// Runtimes of before 1.1.0 refuse a newer one (containerd 1.6 and 1.7 do); others choose of `cniVersions`.
const SAID: &str = "1.0.0";

/// Writes both, and says what was written or was there, a line each.
pub fn install(paths: &Paths, bin_dir: &Path, conf_dir: &Path) -> Result<Vec<String>> {
    let plugin = bin_dir.join(PLUGIN);
    let network = json!({
        "cniVersion": SAID,
        "cniVersions": VERSIONS,
        "name": "stellwerk",
        "plugins": [{ "type": PLUGIN, "capabilities": { "portMappings": true, "bandwidth": true }, "pinPath": paths.pin }],
    });
    Ok(vec![
        put(&plugin, &fs::read(beside()?).context("reading the plugin")?, 0o755)?,
        put(&conf_dir.join(NETWORK), format!("{network:#}\n").as_bytes(), 0o644)?,
    ])
}

/// The plugin lies beside this program.
fn beside() -> Result<PathBuf> {
    let me = std::env::current_exe().context("this program's path")?;
    let path = me.with_file_name(PLUGIN);
    match path.is_file() {
        true => Ok(path),
        false => anyhow::bail!("there is no {}; expected the plugin beside this program", path.display()),
    }
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<String> {
    let shown = path.display();
    let same = fs::read(path).is_ok_and(|old| old == bytes)
        && fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o7777 == mode);
    if same {
        return Ok(format!("{shown} is there already"));
    }
    replace(path, bytes, mode).with_context(|| format!("writing {shown}"))?;
    Ok(format!("{shown} written"))
}

/// A runtime may call the one or read the other at any moment: neither is ever half there.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = disk::folder(path);
    fs::create_dir_all(folder)?;
    // Not a name that runtimes read.
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let new = folder.join(format!(".{}.new", name.to_string_lossy()));
    fs::write(&new, bytes)?;
    fs::set_permissions(&new, Permissions::from_mode(mode))?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}
