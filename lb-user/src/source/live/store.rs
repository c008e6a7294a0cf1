//! What the API said last, kept for the next agent: an agent that starts while the API is away knows what the tables
//! were made of.
//!
//! Invariant: each line is one object's last state or its end, so that reading the file from its start gives what is
//! known; a line that was cut off is the last one, and left out. It lives as long as the pinned tables do. Where it
//! can't be written there is none, rather than an old one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use super::Access;
use crate::source::manifests::Objects;

/// The file is written anew when it is so much longer than it need be.
const SLACK: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    of: String,
    /// None: it can't be written.
    file: Option<File>,
    length: u64,
    /// When it was last written anew.
    whole: u64,
}

#[derive(Serialize, Deserialize)]
struct First {
    of: String,
}

#[derive(Serialize, Deserialize)]
struct Line<V> {
    said: PathBuf,
    object: Option<V>,
}

impl Store {
    /// What is kept of this API, and where more is.
    pub fn open(path: &Path, access: &Access) -> (Store, Objects) {
        let pods = if access.pods { ", with pods" } else { "" };
        let policies = if access.policies { ", with policies" } else { "" };
        let of = format!("{access}{pods}{policies}");
        let mut store = Store { path: path.to_owned(), of, file: None, length: 0, whole: 0 };
        let kept = store.read().unwrap_or_default();
        store.write(&kept);
        (store, kept)
    }

    pub fn append(&mut self, objects: &Objects) {
        let Some(file) = &mut self.file else { return };
        match lines(objects).and_then(|text| file.write_all(&text).map(|()| text.len() as u64)) {
            Ok(length) => self.length += length,
            Err(error) => return self.give_up(&error),
        }
        if self.length > 2 * self.whole + SLACK {
            match self.read() {
                Ok(kept) => self.write(&kept),
                Err(error) => self.give_up(&error),
            }
        }
    }

    fn give_up(&mut self, error: &io::Error) {
        warn!("{}: {error}; an agent that starts while the API is away will not know the cluster", self.path.display());
        self.file = None;
        _ = fs::remove_file(&self.path);
    }

    fn read(&self) -> io::Result<Objects> {
        let mut lines = BufReader::new(File::open(&self.path)?).lines();
        let mut kept = Objects::new();
        let first: Option<First> = lines.next().transpose()?.and_then(|line| serde_json::from_str(&line).ok());
        if first.is_none_or(|first| first.of != self.of) {
            return Ok(kept);
        }
        for line in lines {
            let Ok(line) = serde_json::from_str::<Line<Value>>(&line?) else { break };
            match line.object {
                Some(object) => _ = kept.insert(line.said, Some(Arc::new(object))),
                None => _ = kept.remove(&line.said),
            }
        }
        Ok(kept)
    }

    /// Anew: whole or not at all.
    fn write(&mut self, kept: &Objects) {
        let beside = self.path.with_extension("new");
        let write = || {
            let mut text = serde_json::to_vec(&First { of: self.of.clone() })?;
            text.push(b'\n');
            text.extend(lines(kept)?);
            _ = fs::remove_file(&beside);
            let mut file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&beside)?;
            file.write_all(&text)?;
            fs::rename(&beside, &self.path)?;
            Ok((file, text.len() as u64))
        };
        match write() {
            Ok((file, length)) => (self.file, self.length, self.whole) = (Some(file), length, length),
            Err(error) => self.give_up(&error),
        }
    }
}

fn lines(objects: &Objects) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for (said, object) in objects {
        serde_json::to_writer(&mut text, &Line { said: said.clone(), object: object.as_deref() })?;
        text.push(b'\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps() {
        let folder = std::env::temp_dir().join(format!("stellwerk-store-{}", std::process::id()));
        _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let path = folder.join("cluster.json");
        let access = Access { kubeconfig: None, context: None, pods: false, policies: false };
        let object = |n: usize| Some(Arc::new(json!({ "n": n, "pad": "x".repeat(1_000) })));
        let named = |list: &[(&str, Option<Arc<Value>>)]| -> Objects {
            list.iter().map(|(said, object)| (said.into(), object.clone())).collect()
        };
        let (mut store, kept) = Store::open(&path, &access);
        assert_eq!(kept, Objects::new());
        store.append(&named(&[("a", object(1)), ("b", object(2))]));
        store.append(&named(&[("a", None), ("c", object(3))]));
        let want = named(&[("b", object(2)), ("c", object(3))]);
        let (mut store, kept) = Store::open(&path, &access);
        assert_eq!(kept, want);
        // It doesn't grow without end.
        for _ in 0..20_000 {
            store.append(&named(&[("b", object(2))]));
        }
        assert!(fs::metadata(&path).unwrap().len() < SLACK + 10_000);
        // A line that was cut off.
        let mut text = fs::read(&path).unwrap();
        text.extend(br#"{"said":"d","obj"#);
        fs::write(&path, text).unwrap();
        assert_eq!(Store::open(&path, &access).1, want);
        // Another API's.
        let other = Access { pods: true, ..access.clone() };
        assert_eq!(Store::open(&path, &other).1, Objects::new());
        assert_eq!(Store::open(&path, &access).1, Objects::new());
        // It can't be written: there is none.
        fs::remove_dir_all(&folder).unwrap();
        let (mut store, _) = Store::open(&path, &access);
        store.append(&want);
        assert_eq!(Store::open(&path, &access).1, Objects::new());
    }
}
