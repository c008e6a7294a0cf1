//! `docs/service-semantics.md` and `docs/dns.md` name a test for every rule that is met: each name is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn list(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Every file below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let (folders, mut files): (Vec<_>, Vec<_>) = list(dir).into_iter().partition(|path| path.is_dir());
    files.extend(folders.iter().flat_map(|folder| self::files(folder)));
    files
}

/// Packet cases as `folder/case`, and the functions that are marked as tests.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    for case in files(&root.join("cases")).iter().filter(|path| path.extension().is_some_and(|e| e == "case")) {
        let name = case.strip_prefix(root.join("cases")).unwrap().with_extension("");
        names.insert(name.to_string_lossy().into_owned());
    }
    let sources = [root.join("tests"), root.join("../lb-user/src")];
    for file in sources.iter().flat_map(|dir| files(dir)).filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let text = fs::read_to_string(&file).unwrap();
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if line != "#[test]" && line != "#[tokio::test]" {
                continue;
            }
            let function = lines.find(|line| line.contains("fn ")).unwrap_or_default();
            let name = function.split_once("fn ").and_then(|(_, rest)| rest.split(['(', '<']).next());
            names.extend(name.map(str::to_owned));
        }
    }
    names
}

#[test]
fn every_test_that_the_list_of_semantics_names_is_there() {
    all_are_there("service-semantics.md");
}

#[test]
fn every_test_that_the_list_of_names_rules_names_is_there() {
    all_are_there("dns.md");
}

fn all_are_there(doc: &str) {
    let doc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(doc);
    let text = fs::read_to_string(doc).unwrap();
    let tests = tests();
    let (mut rules, mut wrong) = (0, Vec::new());
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let inner = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap_or_default();
        let cells: Vec<&str> = inner.split('|').map(str::trim).collect();
        let &[_, _, met, how, last] = &cells[..] else { continue };
        if met == "met" {
            continue;
        }
        rules += 1;
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        wrong.extend(names.iter().filter(|name| !tests.contains(**name)).map(|name| format!("no test {name}: {line}")));
        let needs_test = match met {
            "yes" => true,
            "partly" | "no" => false,
            _ => {
                wrong.push(format!("neither yes, partly nor no: {line}"));
                false
            }
        };
        if needs_test && names.is_empty() {
            wrong.push(format!("met, but by no test: {line}"));
        }
        if !needs_test && how.is_empty() {
            wrong.push(format!("doesn't say what is missing: {line}"));
        }
    }
    assert!(rules > 40, "the table was not understood: {rules} rules");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
