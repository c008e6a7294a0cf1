//! `docs/nat-rfc.md` names a test for every requirement that is met: each name is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Names of packet cases (`nat/` goes without saying) and of test functions.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let mut names = BTreeSet::new();
    for dir in read(&root.join("cases")).into_iter().filter(|path| path.is_dir()) {
        let folder = dir.file_name().unwrap().to_string_lossy().into_owned();
        for case in read(&dir).into_iter().filter(|path| path.extension().is_some_and(|e| e == "case")) {
            let case = case.file_stem().unwrap().to_string_lossy().into_owned();
            names.insert(if folder == "nat" { case } else { format!("{folder}/{case}") });
        }
    }
    for file in read(&root.join("tests")).into_iter().filter(|path| path.is_file()) {
        let text = fs::read_to_string(&file).unwrap();
        names.extend(text.lines().filter_map(|line| {
            let name = line.trim().strip_prefix("fn ")?;
            Some(name.split(['(', '<']).next()?.to_owned())
        }));
    }
    names
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let doc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nat-rfc.md");
    let text = fs::read_to_string(doc).unwrap();
    let tests = tests();
    let (mut named, mut missing, mut bare) = (0, Vec::new(), Vec::new());
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim().trim_matches('|').split(" | ").map(str::trim).collect();
        let &[_, _, met, _, last] = &cells[..] else { continue };
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        named += names.len();
        missing.extend(names.iter().filter(|name| !tests.contains(**name)).map(|name| format!("{name}: {line}")));
        if met == "yes" && names.is_empty() {
            bare.push(line);
        }
    }
    assert!(named > 100, "the table was not understood: {named} names");
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
    assert!(bare.is_empty(), "met, but by no test:\n{}", bare.join("\n"));
}
