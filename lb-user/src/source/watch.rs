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
            Scope::All => {}
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
    manifests: Option<PathBuf>,
}

impl Watch {
    /// Starts watching; call within a tokio runtime. Load after this, so that nothing falls between.
    pub fn new(config: &Path, manifests: Option<&Path>) -> notify::Result<Watch> {
        let paths = Paths { config: std::path::absolute(config)?, manifests: manifests.map(std::path::absolute).transpose()? };
        let shared = Arc::new(Shared { paths, changed: Mutex::default(), wake: Notify::new() });
        let handler = shared.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| handler.handle(event))?;
        let hangup = signal(SignalKind::hangup())?;
        let mut watch = Watch { watcher, shared, hangup };
        watch.watch_all()?;
        Ok(watch)
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
                _ = self.hangup.recv() => {
                    let manifests = self.shared.paths.manifests.is_some().then_some(Scope::All);
                    return Changed { config: true, manifests };
                }
            }
        }
    }

    fn watch_all(&mut self) -> notify::Result<()> {
        let paths = self.shared.paths.clone();
        let mut folders = BTreeSet::new();
        folders.extend(paths.config.parent().map(Path::to_owned));
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
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => true,
        // Links are whole when they appear; so is a folder. A file is, when it is closed.
        EventKind::Create(CreateKind::Folder) => true,
        EventKind::Create(_) => path.symlink_metadata().is_ok_and(|m| !m.is_file() || std::os::unix::fs::MetadataExt::nlink(&m) > 1),
        _ => false,
    };
    if !complete {
        return;
    }
    // A ConfigMap's files are links through `..data`, which is exchanged.
    let through = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".."));
    if path == paths.config || through && path.parent() == paths.config.parent() {
        gathered.changed.config = true;
    }
    let Some(manifests) = &paths.manifests else { return };
    if path == manifests {
        gathered.rewatch = true;
        gathered.changed.all_manifests();
    } else if path.parent() == Some(manifests) {
        if is_manifest(path) {
            gathered.changed.manifest(path.to_owned());
        } else if through {
            gathered.changed.all_manifests();
        }
    } else if through && path.parent() == manifests.parent() {
        gathered.changed.all_manifests();
    }
}
