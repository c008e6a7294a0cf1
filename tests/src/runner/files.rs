//! Where cases are: in the folder that `STELLWERK_CASES` names, else in the source tree, else
//! compiled in (a test binary alone in another kernel has no tree).

use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};

use crate::case::{Case, parse};

static BUILT_IN: Dir = include_dir!("$CARGO_MANIFEST_DIR/cases");

/// The folder of cases, if there is one.
pub fn folder() -> Option<PathBuf> {
    let named = std::env::var_os("STELLWERK_CASES").map(PathBuf::from);
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    named.or(Some(tree)).filter(|folder| folder.is_dir())
}

/// Every case file's name and text, in order.
pub fn texts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    match folder() {
        Some(folder) => walk(&folder, &folder, &mut found),
        None => built_in(&BUILT_IN, &mut found),
    }
    found.sort();
    found
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(root, &path, found);
        } else if path.extension().is_some_and(|e| e == "case") {
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            found.push((name, std::fs::read_to_string(&path).unwrap_or_default()));
        }
    }
}

fn built_in(dir: &Dir, found: &mut Vec<(String, String)>) {
    for file in dir.files().filter(|f| f.path().extension().is_some_and(|e| e == "case")) {
        found.push((file.path().display().to_string(), file.contents_utf8().unwrap_or("").into()));
    }
    dir.dirs().for_each(|dir| built_in(dir, found));
}

/// Every case, for each IP version that it is written for. `STELLWERK_CASE` picks those whose name holds it.
pub fn cases() -> Vec<Result<Case, String>> {
    let only = std::env::var("STELLWERK_CASE").unwrap_or_default();
    let mut cases = Vec::new();
    for (name, text) in texts() {
        let versions = [false, true].map(|v6| parse::case(&name, &text, v6).transpose());
        cases.extend(versions.into_iter().flatten());
    }
    cases.retain(|case| case.as_ref().map_or(true, |case| case.name.contains(&only)));
    cases
}
