//! `cargo xtask tidy`: what outgrows a screen or a sitting, where `unsafe` lives, and what rustfmt and clippy say.
//!
//! Only rustfmt and clippy decide the exit code. The rest is a look, not a law: lengths come from a plain reading of
//! rustfmt's layout (a function ends where a brace stands at its own indentation), not from a parser.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{cmd, rungs, setup};

const SCREEN: usize = 70;
const SITTING: usize = 400;

pub fn run() -> Result<i32> {
    setup::lints()?;
    let mut files = Vec::new();
    for part in ["lb-common", "lb-ebpf", "lb-user", "tests", "xtask"] {
        collect(&cmd::repo().join(part), &mut files)?;
    }
    files.sort();
    let mut functions = Vec::new();
    let mut long = Vec::new();
    let mut unsafes = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(cmd::repo()).unwrap_or(file).display().to_string();
        let lines: Vec<&str> = text.lines().collect();
        let count = lines.iter().filter(|line| has_unsafe(line)).count();
        functions
            .extend(long_functions(&lines).into_iter().map(|(at, len, head)| (len, format!("{name}:{at}  {head}"))));
        if lines.len() > SITTING {
            long.push((lines.len(), name.clone()));
        }
        if count > 0 {
            unsafes.push((count, name));
        }
    }
    show(&format!("functions over {SCREEN} lines"), functions);
    show(&format!("files over {SITTING} lines"), long);
    show("files with `unsafe`, and how often", unsafes);
    let results = [rungs::check_format(), rungs::check_clippy()];
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        say!("error: {error:#}");
    }
    Ok(i32::from(results.iter().any(Result::is_err)))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn show(title: &str, mut rows: Vec<(usize, String)>) {
    say!("{title}: {}", if rows.is_empty() { "none" } else { "" });
    rows.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (count, text) in rows {
        say!("  {count:>5}  {text}");
    }
    say!();
}

/// Functions longer than a screen as (line, length, head).
fn long_functions<'a>(lines: &[&'a str]) -> Vec<(usize, usize, &'a str)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        if !is_function(code) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        // A trait's method without a body, or a body on one line, has no closing brace of its own.
        let body = lines[start..].iter().position(|line| line.ends_with(['{', ';', '}'])).unwrap_or(0);
        if !lines[start + body].ends_with('{') {
            continue;
        }
        let length = lines[start..].iter().position(|line| *line == end).map_or(0, |last| last + 1);
        if length > SCREEN {
            found.push((start + 1, length, code.trim_end_matches([' ', '{'])));
        }
    }
    found
}

fn is_function(code: &str) -> bool {
    let head = code.split('(').next().unwrap_or_default();
    let mut words = head.split_whitespace();
    let qualifier = |word: &str| {
        word.starts_with("pub")
            || ["const", "async", "unsafe", "extern", "\"C\"", "in", "crate)", "super)"].contains(&word)
    };
    // `pub(crate) fn` is cut at its parenthesis: look at the whole line for that one.
    words.by_ref().find(|word| !qualifier(word)) == Some("fn")
        || code.strip_prefix("pub(").and_then(|rest| rest.split_once(") ")).is_some_and(|(_, rest)| is_function(rest))
}

/// `unsafe` as code: not in a comment, not as part of a lint's name.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_by_their_head() {
        for head in ["fn a() {", "pub fn a<T>() {", "pub(crate) const unsafe fn a(", "pub extern \"C\" fn a() {"] {
            assert!(is_function(head), "{head}");
        }
        for head in ["let f = fn_of(x);", "// fn a()", "pub struct Fn(u8);", "run: fn(u8),"] {
            assert!(!is_function(head), "{head}");
        }
    }

    #[test]
    fn a_long_function_is_measured_to_its_own_brace() {
        let mut text = vec!["    fn long() {"];
        text.extend(["        x();"; 80]);
        text.extend(["    }", "    fn short() {}"]);
        assert_eq!(long_functions(&text), [(1, 82, "fn long()")]);
    }

    #[test]
    fn unsafe_in_comments_and_lints_does_not_count() {
        assert!(has_unsafe("    unsafe { x() }"));
        assert!(has_unsafe("#[unsafe(no_mangle)]"));
        assert!(!has_unsafe("// unsafe is elsewhere"));
        assert!(!has_unsafe("#![deny(unsafe_code)]"));
    }
}
