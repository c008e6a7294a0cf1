//! Where pins lie: a folder of our own in a BPF file system.
//!
//! Invariant: a BPF file system is mounted on an empty folder or not at all, since a mount hides what
//! is below it; and what is removed here has a name that stellwerk gives.

use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::maps::Paths;
use super::mounts::{self, Mount};
use super::state::State;

/// What the kernel itself puts into a BPF file system's root (`CONFIG_BPF_PRELOAD`).
const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];
const RIGHT: &str = "expected a folder of its own in a BPF file system, such as /sys/fs/bpf/stellwerk";

/// The folder in which maps are made that take another version's place ([`super::migrate`]).
pub const MOVING: &str = "moving";

/// What a folder is to BPF file systems.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Missing,
    /// Its root, or a folder in it.
    Root,
    Inside,
    /// Of another file system: with and without something in it.
    Used,
    Empty,
}

impl Place {
    fn of(dir: &Path) -> Result<Place> {
        let entries = match fs::read_dir(dir) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Place::Missing);
            }
            Err(error) => return Err(error).context(dir.display().to_string()),
        };
        let mounts = mounts::read()?;
        Ok(match mounts::over(&mounts, dir) {
            Some(Mount { point, kind: "bpf", .. }) if point == dir => Place::Root,
            Some(Mount { kind: "bpf", .. }) => Place::Inside,
            _ if entries => Place::Used,
            _ => Place::Empty,
        })
    }
}

/// Why a folder of this name can't hold pins.
fn name(pin: &Path) -> Result<()> {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let (Some(name), true) = (pin.file_name(), pin.components().all(plain)) else { bail!("{RIGHT}") };
    ensure!(!name.to_string_lossy().contains('.'), "a BPF file system takes no name with a dot; {RIGHT}");
    Ok(())
}

/// Why a folder at this place can't; whether a file system is to be mounted at its parent first.
fn place(above: &Path, own: Place, parent: Place) -> Result<bool> {
    ensure!(own != Place::Root, "it is the root of a BPF file system; expected a folder of its own in it");
    match parent {
        Place::Root | Place::Inside => Ok(false),
        Place::Empty => Ok(true),
        Place::Missing => bail!("there is no folder {}; {RIGHT}", above.display()),
        Place::Used => bail!(
            "{} is no BPF file system, and none is mounted over a folder that holds something; {RIGHT}",
            above.display()
        ),
    }
}

/// Refuses a path that can't hold pins, before anything is made. True: its parent wants a BPF file system.
pub fn check(paths: &Paths) -> Result<bool> {
    let pin = &paths.pin;
    let above = pin.parent().unwrap_or(pin);
    let judge = || place(above, name(pin).and_then(|()| Place::of(pin))?, Place::of(above)?);
    judge().with_context(|| format!("--pin-path {}", pin.display()))
}

/// Checks the path, and mounts a BPF file system where one is missing.
pub fn prepare(paths: &Paths, state: &mut State) -> Result<()> {
    if !check(paths)? {
        return Ok(());
    }
    let at = paths.pin.parent().unwrap_or(&paths.pin).display().to_string();
    mounts::mount("bpf", Path::new(&at)).with_context(|| format!("mounting a BPF file system at {at}"))?;
    tracing::info!("mounted a BPF file system at {at}");
    state.change(paths, |state| state.mounted = Some(at))
}

/// Unmounts what was mounted, unless somebody else keeps pins there.
pub fn unmount(state: &State) -> Result<usize> {
    let Some(at) = &state.mounted else { return Ok(0) };
    if Place::of(Path::new(at))? != Place::Root {
        return Ok(0);
    }
    let foreign = |entry: fs::DirEntry| !PRELOADED.iter().any(|name| entry.file_name() == *name);
    if fs::read_dir(at).with_context(|| at.clone())?.flatten().any(foreign) {
        return Ok(0);
    }
    mounts::unmount(Path::new(at))?;
    Ok(1)
}

/// The folders in it that stellwerk makes.
pub fn folders(paths: &Paths) -> Result<Vec<PathBuf>> {
    if Place::of(&paths.pin)? != Place::Inside {
        return Ok(Vec::new());
    }
    let ours = |name: &str| ["links", "programs", MOVING].contains(&name) || name.starts_with("maps-");
    let entries = fs::read_dir(&paths.pin).with_context(|| paths.pin.display().to_string())?;
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let all = entries.iter().filter(|entry| ours(&entry.file_name().to_string_lossy()));
    Ok(all.map(fs::DirEntry::path).collect())
}

/// Removes the folders that stellwerk makes, and the one they are in unless it holds more.
pub fn remove(paths: &Paths) -> Result<usize> {
    let mut count = 0;
    for folder in folders(paths)? {
        count += fs::read_dir(&folder).map_or(0, Iterator::count);
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    if Place::of(&paths.pin)? == Place::Inside && fs::read_dir(&paths.pin)?.next().is_none() {
        fs::remove_dir(&paths.pin).with_context(|| paths.pin.display().to_string())?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_own_folder_in_a_bpf_file_system_will_do() {
        let cases = [
            ("/sys/fs/bpf/stellwerk", Place::Missing, Place::Root, "taken"),
            ("/sys/fs/bpf/stellwerk", Place::Inside, Place::Root, "taken"),
            ("/sys/fs/bpf/a/b", Place::Missing, Place::Inside, "taken"),
            ("/sys/fs/bpf/stellwerk", Place::Missing, Place::Empty, "mounted"),
            (
                "/sys/fs/bpf",
                Place::Root,
                Place::Used,
                "it is the root of a BPF file system; expected a folder of its own in it",
            ),
            (
                "/proc/x",
                Place::Missing,
                Place::Used,
                "/proc is no BPF file system, and none is mounted over a folder that holds something; expected a folder of its own in a BPF file system, such as /sys/fs/bpf/stellwerk",
            ),
            (
                "/no/x",
                Place::Missing,
                Place::Missing,
                "there is no folder /no; expected a folder of its own in a BPF file system, such as /sys/fs/bpf/stellwerk",
            ),
            (
                "/sys/fs/bpf/a.b",
                Place::Missing,
                Place::Root,
                "a BPF file system takes no name with a dot; expected a folder of its own in a BPF file system, such as /sys/fs/bpf/stellwerk",
            ),
            (
                "/sys/fs/bpf/../x",
                Place::Missing,
                Place::Used,
                "expected a folder of its own in a BPF file system, such as /sys/fs/bpf/stellwerk",
            ),
            (
                "/",
                Place::Used,
                Place::Used,
                "expected a folder of its own in a BPF file system, such as /sys/fs/bpf/stellwerk",
            ),
        ];
        for (pin, own, parent, want) in cases {
            let pin = Path::new(pin);
            let got = match name(pin).and_then(|()| place(pin.parent().unwrap(), own, parent)) {
                Ok(false) => "taken".to_owned(),
                Ok(true) => "mounted".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, want, "{}", pin.display());
        }
    }

    #[test]
    fn the_deepest_and_last_mount_counts() {
        let mounts = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /sys rw shared:7 - sysfs s rw\n3 2 0:3 / /sys/fs/bpf rw - bpf b rw\n4 1 0:4 / /over rw - bpf b rw\n5 1 0:5 / /over rw - tmpfs t rw\n";
        for (dir, want) in [
            ("/sys/fs/bpf", Some(("/sys/fs/bpf", true))),
            ("/sys/fs/bpf/a", Some(("/sys/fs/bpf", true))),
            ("/sys/fs/bpfs", Some(("/sys", false))),
            ("/over/a", Some(("/over", false))),
            ("/home", Some(("/", false))),
        ] {
            let over = mounts::over(mounts, Path::new(dir)).map(|mount| (mount.point, mount.kind == "bpf"));
            assert_eq!(over, want.map(|(p, bpf)| (Path::new(p), bpf)), "{dir}");
        }
    }
}
