//! The files of a manifests folder, or the objects of a live cluster, parsed, and which of them changed.
//!
//! Invariant: a file's documents are those of the stamp beside them. Files that were refused keep the
//! documents that they had, stay on a list, and are read again with every load until they are taken. An
//! object is a file whose text was told instead of written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::document::{self, Documents};
use super::{Objects, Scope};
use crate::config::{self, Error, Errors};

/// From so many files on, they are parsed on all cores.
const MANY: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// Nothing is on disk.
    told: bool,
    known: BTreeMap<PathBuf, Known>,
    refused: BTreeSet<PathBuf>,
    /// What was told and isn't taken yet.
    waiting: Objects,
}

#[derive(Clone, Debug)]
struct Known {
    /// None: it was told.
    stamp: Option<Stamp>,
    documents: Arc<Documents>,
}

/// Differs whenever a file was replaced or written, as far as the file system can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A file that was read again; without documents it is gone.
#[derive(Debug)]
pub(super) struct Fresh {
    pub path: PathBuf,
    pub documents: Option<Arc<Documents>>,
    stamp: Option<Stamp>,
}

impl Files {
    pub fn new(path: PathBuf) -> Self {
        Files { path, told: false, known: BTreeMap::new(), refused: BTreeSet::new(), waiting: Objects::new() }
    }

    /// Of objects that are told, by the name of who tells them.
    pub fn told(name: PathBuf) -> Self {
        Files { told: true, ..Files::new(name) }
    }

    pub fn are_told(&self) -> bool {
        self.told
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn documents(&self, path: &Path) -> Option<Arc<Documents>> {
        self.known.get(path).map(|known| known.documents.clone())
    }

    /// Reads and parses what may have changed; beside it, what is wrong with files that can't be read.
    pub fn read(&mut self, scope: &Scope) -> Result<(Vec<Fresh>, Vec<Error>), Errors> {
        let mut paths = match scope {
            Scope::All | Scope::Files(_) if self.told => BTreeSet::new(),
            Scope::All => self.changed()?,
            Scope::Files(paths) => paths.iter().filter(|p| self.is_ours(p)).cloned().collect(),
            Scope::Objects(objects) => {
                self.waiting.extend(objects.iter().map(|(path, object)| (path.clone(), object.clone())));
                objects.keys().cloned().collect()
            }
        };
        paths.extend(std::mem::take(&mut self.refused));
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        let mut fresh = Vec::with_capacity(paths.len());
        let mut errors = Vec::new();
        for (path, result) in paths.iter().zip(read_all(&paths, &self.waiting)) {
            match result {
                Ok(file) => fresh.push(file),
                Err(e) => {
                    errors.extend(e.0);
                    self.refuse([path.clone()]);
                }
            }
        }
        Ok((fresh, errors))
    }

    pub fn refuse(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        self.refused.extend(paths);
    }

    pub fn any_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    #[cfg(test)]
    pub fn refused(&self) -> impl Iterator<Item = &PathBuf> {
        self.refused.iter()
    }

    /// Takes what was read.
    pub fn commit(&mut self, fresh: Vec<Fresh>) {
        for Fresh { path, documents, stamp } in fresh {
            self.waiting.remove(&path);
            match documents {
                Some(documents) => _ = self.known.insert(path, Known { stamp, documents }),
                None => _ = self.known.remove(&path),
            }
        }
    }

    fn is_ours(&self, path: &Path) -> bool {
        path == self.path || path.parent() == Some(&self.path) && is_manifest(path)
    }

    /// Files whose stamp differs, and known ones that are gone.
    fn changed(&self) -> Result<BTreeSet<PathBuf>, Errors> {
        let file: Arc<str> = self.path.display().to_string().into();
        let failed = |e: std::io::Error| {
            let message = match e.kind() {
                ErrorKind::NotFound => "there is no such folder or file".to_owned(),
                _ => config::cannot_read(&e),
            };
            Errors::of_file(&file, message)
        };
        let mut there = BTreeMap::new();
        let meta = std::fs::metadata(&self.path).map_err(failed)?;
        if meta.is_dir() {
            for entry in std::fs::read_dir(&self.path).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                // What is gone again, or leads nowhere, is not there.
                if is_manifest(&path)
                    && let Ok(meta) = std::fs::metadata(&path)
                    && meta.is_file()
                {
                    there.insert(path, Stamp::of(&meta));
                }
            }
        } else {
            there.insert(self.path.clone(), Stamp::of(&meta));
        }
        let mut changed: BTreeSet<PathBuf> =
            self.known.keys().filter(|path| !there.contains_key(*path)).cloned().collect();
        changed.extend(
            there
                .into_iter()
                .filter(|(path, stamp)| self.known.get(path).and_then(|k| k.stamp) != Some(*stamp))
                .map(|(path, _)| path),
        );
        Ok(changed)
    }
}

/// YAML and JSON files that are not hidden (editors and ConfigMaps keep hidden ones).
pub(crate) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
    let known = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    known && !hidden
}

fn read_all(paths: &[PathBuf], told: &Objects) -> Vec<Result<Fresh, Errors>> {
    let read = |path: &PathBuf| match told.get(path) {
        Some(object) => read_object(path, object.as_deref()),
        None => read(path),
    };
    if paths.len() < MANY {
        return paths.iter().map(read).collect();
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let chunk = paths.len().div_ceil(cores);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            paths.chunks(chunk).map(|part| scope.spawn(move || part.iter().map(read).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn read_object(path: &Path, object: Option<&Value>) -> Result<Fresh, Errors> {
    let file: Arc<str> = path.display().to_string().into();
    let documents = object.map(|object| document::of_object(&file, object)).transpose()?.map(Arc::new);
    Ok(Fresh { path: path.to_owned(), documents, stamp: None })
}

fn read(path: &Path) -> Result<Fresh, Errors> {
    let file: Arc<str> = path.display().to_string().into();
    let failed = |e: std::io::Error| Errors::of_file(&file, config::cannot_read(&e));
    let open = match std::fs::File::open(path) {
        Ok(open) => open,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Ok(Fresh { path: path.to_owned(), documents: None, stamp: None });
        }
        Err(e) => return Err(failed(e)),
    };
    // The stamp first: what is written later then differs from it.
    let stamp = Stamp::of(&open.metadata().map_err(failed)?);
    let text = std::io::read_to_string(open).map_err(failed)?;
    let documents = document::parse(&file, &text)?;
    Ok(Fresh { path: path.to_owned(), documents: Some(Arc::new(documents)), stamp: Some(stamp) })
}
