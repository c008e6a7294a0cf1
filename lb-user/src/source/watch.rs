//! Tells when the configuration file or the manifests changed, at once.
//!
//! A change is what ends a write or moves a name: a file that is still being written is not read.
//! There is no waiting for more: changes gather only while the agent is busy with the ones before.
//! Invariant: nothing is lost. Whatever can't be named (the kernel's queue ran over, a folder or a
//! link was exchanged) asks for a look at the whole folder. Not here: reading anything.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::manifests::{Scope, is_manifest};

/// What may have changed since the last time somebody asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The configuration file.
    pub config: bool,
    pub manifests: Option<Scope>,
}

impl Changed {
    fn all_manifests(&mut self) {
        self.manifests = Some(Scope::All);
    }

    fn manifest(&mut self, path: PathBuf) {
        match self.manifests.get_or_insert_with(|| Scope::Files(BTreeSet::new())) {
            Scope::All | Scope::Objects(_) => {}
            Scope::Files(files) => _ = files.insert(path),
        }
    }
}

/// Watches until it is dropped.
pub struct Watch {
    watcher: RecommendedWatcher,
    shared: Arc<Shared>,
    hangup: Signal,
}

struct Shared {
    paths: Paths,
    changed: Mutex<Gathered>,
    wake: Notify,
}

#[derive(Default)]
struct Gathered {
    changed: Changed,
    /// The manifests folder itself was exchanged: watch the new one.
    rewatch: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Paths {
    config: PathBuf,
    /// Where the configuration really is, if it is a link.
    config_target: PathBuf,
    manifests: Option<PathBuf>,
    /// The manifests as the caller names them, which is how changes are told.
    manifests_said: PathBuf,
}

impl Watch {
    /// Starts watching; call within a tokio runtime. Load after this, so that nothing falls
    /// between. A change of the configuration asks for a new one: paths and links may be others.
    pub fn new(config: &Path, manifests: Option<&Path>) -> notify::Result<Watch> {
        let paths = Paths {
            config: std::path::absolute(config)?,
            // A file that isn't there yet is none.
            config_target: std::fs::canonicalize(config).or_else(|_| std::path::absolute(config))?,
            manifests: manifests.map(std::path::absolute).transpose()?,
            manifests_said: manifests.unwrap_or(Path::new("")).to_owned(),
        };
        let shared = Arc::new(Shared { paths, changed: Mutex::default(), wake: Notify::new() });
        let handler = shared.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| handler.handle(event))?;
        let hangup = signal(SignalKind::hangup())?;
        let mut watch = Watch { watcher, shared, hangup };
        watch.watch_all()?;
        Ok(watch)
    }

    /// A watch in place of this one, if other files are named by now. What changed before it began is told as a change,
    /// since nobody watched: whoever goes on with this one misses nothing.
    pub fn again(&self, config: &Path, manifests: Option<&Path>) -> notify::Result<Option<Watch>> {
        let new = Watch::new(config, manifests)?;
        if new.shared.paths == self.shared.paths {
            return Ok(None);
        }
        new.shared.lock().changed = new.everything();
        Ok(Some(new))
    }

    fn everything(&self) -> Changed {
        Changed { config: true, manifests: self.shared.paths.manifests.is_some().then_some(Scope::All) }
    }

    /// Waits for a change and takes all there are. May be dropped while it waits.
    pub async fn changed(&mut self) -> Changed {
        loop {
            let gathered = std::mem::take(&mut *self.shared.lock());
            if gathered.rewatch {
                self.rewatch();
            }
            if gathered.changed != Changed::default() {
                return gathered.changed;
            }
            tokio::select! {
                () = self.shared.wake.notified() => {}
                _ = self.hangup.recv() => return self.everything(),
            }
        }
    }

    fn watch_all(&mut self) -> notify::Result<()> {
        let paths = self.shared.paths.clone();
        let mut folders = BTreeSet::new();
        folders.extend(paths.config.parent().map(Path::to_owned));
        folders.extend(paths.config_target.parent().map(Path::to_owned));
        if let Some(manifests) = &paths.manifests {
            folders.extend(manifests.parent().map(Path::to_owned));
        }
        for folder in folders.iter().filter(|f| Some(*f) != paths.manifests.as_ref()) {
            self.watcher.watch(folder, RecursiveMode::NonRecursive)?;
        }
        match &paths.manifests {
            Some(manifests) if manifests.is_dir() => self.watcher.watch(manifests, RecursiveMode::NonRecursive),
            _ => Ok(()),
        }
    }

    /// An exchanged folder has another inode, which the old watch doesn't follow. What can't be
    /// watched now will be when it is there: its parent tells.
    fn rewatch(&mut self) {
        if let Some(manifests) = self.shared.paths.manifests.clone() {
            let _ = self.watcher.unwatch(&manifests);
            if manifests.is_dir()
                && let Err(e) = self.watcher.watch(&manifests, RecursiveMode::NonRecursive)
            {
                tracing::error!("cannot watch {}: {e}", manifests.display());
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Gathered> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, event: notify::Result<Event>) {
        let mut gathered = self.lock();
        match event {
            Ok(event) if event.need_rescan() => gathered.everything(&self.paths),
            Ok(event) => {
                for path in &event.paths {
                    sort(&self.paths, &event.kind, path, &mut gathered);
                }
            }
            Err(e) => {
                tracing::warn!("watching files: {e}");
                gathered.everything(&self.paths);
            }
        }
        if gathered.rewatch || gathered.changed != Changed::default() {
            self.wake.notify_one();
        }
    }
}

impl Gathered {
    fn everything(&mut self, paths: &Paths) {
        self.changed.config = true;
        if paths.manifests.is_some() {
            self.changed.all_manifests();
        }
    }
}

/// What an event about `path` means.
fn sort(paths: &Paths, kind: &EventKind, path: &Path, gathered: &mut Gathered) {
    let complete = match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Remove(_)
        | EventKind::Modify(ModifyKind::Name(_)) => true,
        // Links are whole when they appear; so is a folder. A file is, when it is closed.
        EventKind::Create(CreateKind::Folder) => true,
        EventKind::Create(_) => {
            path.symlink_metadata().is_ok_and(|m| !m.is_file() || std::os::unix::fs::MetadataExt::nlink(&m) > 1)
        }
        _ => false,
    };
    if !complete {
        return;
    }
    // A ConfigMap's files are links through `..data`, which is exchanged.
    let through = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".."));
    if path == paths.config || path == paths.config_target || through && path.parent() == paths.config.parent() {
        gathered.changed.config = true;
    }
    let Some(manifests) = &paths.manifests else {
        return;
    };
    if path == manifests {
        gathered.rewatch = true;
        gathered.changed.all_manifests();
    } else if path.parent() == Some(manifests) {
        if is_manifest(path) {
            gathered.changed.manifest(paths.manifests_said.join(path.file_name().unwrap_or_default()));
        } else if through {
            gathered.changed.all_manifests();
        }
    } else if through && path.parent() == manifests.parent() {
        gathered.changed.all_manifests();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::source::manifests::tests::Folder;

    async fn next(watch: &mut Watch) -> Changed {
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.expect("a change within five seconds")
    }

    /// All that is told until there is silence.
    async fn drain(watch: &mut Watch) -> Changed {
        let mut all = next(watch).await;
        while let Ok(more) = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await {
            all.config |= more.config;
            match more.manifests {
                Some(Scope::All) => all.all_manifests(),
                Some(Scope::Files(files)) => files.into_iter().for_each(|f| all.manifest(f)),
                Some(Scope::Objects(_)) | None => {}
            }
        }
        all
    }

    async fn silent(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_millis(100), watch.changed()).await.is_err()
    }

    fn some(folder: &Path, name: &str) -> Option<Scope> {
        Some(Scope::Files([folder.join(name)].into()))
    }

    // One test, since a signal reaches all watches of the process.
    #[tokio::test]
    async fn changes_are_told() {
        let folder = Folder::new("watch");
        let config = folder.write("c.yaml", "x");
        let cluster = folder.0.join("cluster");
        std::fs::create_dir(&cluster).unwrap();
        let mut watch = Watch::new(&config, Some(&cluster)).unwrap();
        in_place_and_renamed(&folder, &cluster, &mut watch).await;
        links_and_folders(&folder, &cluster, &mut watch).await;
        let pid = std::process::id().to_string();
        std::process::Command::new("kill").args(["-HUP", &pid]).status().unwrap();
        assert_eq!(next(&mut watch).await, Changed { config: true, manifests: Some(Scope::All) });
    }

    async fn in_place_and_renamed(folder: &Folder, cluster: &Path, watch: &mut Watch) {
        // Half a file is not told; a closed one is, at once.
        let mut file = std::fs::File::create(cluster.join("a.yaml")).unwrap();
        std::io::Write::write_all(&mut file, b"half").unwrap();
        assert!(silent(watch).await);
        let start = Instant::now();
        drop(file);
        assert_eq!(next(watch).await.manifests, some(cluster, "a.yaml"));
        assert!(start.elapsed() < Duration::from_millis(50), "{:?}", start.elapsed());

        // Reading is no change, nor are files that are none of ours.
        std::fs::read(cluster.join("a.yaml")).unwrap();
        std::fs::write(cluster.join(".a.yaml.swp"), "x").unwrap();
        std::fs::write(cluster.join("notes.txt"), "x").unwrap();
        std::fs::write(folder.0.join("other.yaml"), "x").unwrap();
        assert!(silent(watch).await);

        std::fs::write(cluster.join("new"), "x").unwrap();
        std::fs::rename(cluster.join("new"), cluster.join("a.yaml")).unwrap();
        assert_eq!(drain(watch).await, Changed { config: false, manifests: some(cluster, "a.yaml") });
        std::fs::remove_file(cluster.join("a.yaml")).unwrap();
        assert_eq!(drain(watch).await, Changed { config: false, manifests: some(cluster, "a.yaml") });
        std::fs::write(folder.0.join("c.new"), "x").unwrap();
        std::fs::rename(folder.0.join("c.new"), folder.0.join("c.yaml")).unwrap();
        assert_eq!(drain(watch).await, Changed { config: true, manifests: None });
    }

    async fn links_and_folders(folder: &Folder, cluster: &Path, watch: &mut Watch) {
        use std::os::unix::fs::symlink;
        // As kubelet exchanges a ConfigMap.
        for version in ["..1", "..2"] {
            std::fs::create_dir(cluster.join(version)).unwrap();
            std::fs::write(cluster.join(version).join("b.yaml"), version).unwrap();
            symlink(version, cluster.join("..data_tmp")).unwrap();
            std::fs::rename(cluster.join("..data_tmp"), cluster.join("..data")).unwrap();
            if version == "..1" {
                symlink("..data/b.yaml", cluster.join("b.yaml")).unwrap();
            }
            assert_eq!(drain(watch).await, Changed { config: false, manifests: Some(Scope::All) });
        }
        // The folder is exchanged for another, which is watched from then on.
        let other = folder.0.join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::rename(cluster, folder.0.join("old")).unwrap();
        std::fs::rename(&other, cluster).unwrap();
        assert_eq!(drain(watch).await, Changed { config: false, manifests: Some(Scope::All) });
        std::fs::write(cluster.join("d.yaml"), "x").unwrap();
        assert_eq!(drain(watch).await, Changed { config: false, manifests: some(cluster, "d.yaml") });
    }
}
