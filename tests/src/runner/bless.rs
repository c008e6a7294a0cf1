//! Blessing: writes into the case files what the engine really did, for a human to read in the diff.
//!
//! Even a blessed packet is judged: its line is built anew with full checksums when the case runs.

use std::collections::BTreeMap;

use super::{Host, files, texts};
use crate::case::{Case, Lines, parse};

/// A block of expectations and, by IP version, what really happened and whether the case says so.
type Blocks = BTreeMap<usize, (Lines, [Option<(Vec<String>, bool)>; 2])>;

/// Rewrites every case whose expectations don't hold; returns their names.
pub fn all() -> Result<Vec<String>, String> {
    let folder = files::folder().ok_or("there is no folder of cases to write to")?;
    let mut changed = Vec::new();
    for (name, text) in texts() {
        let new = blessed(&name, &text)?;
        if new != text {
            std::fs::write(folder.join(&name), new).map_err(|e| format!("{name}: {e}"))?;
            changed.push(name);
        }
    }
    Ok(changed)
}

fn blessed(name: &str, text: &str) -> Result<String, String> {
    let mut blocks = Blocks::new();
    let mut versions = 0;
    for v6 in [false, true] {
        if let Some(case) = parse::case(name, text, v6)? {
            versions += 1;
            run(&case, v6, &mut blocks)?;
        }
    }
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    for (at, ran) in blocks.into_values().rev() {
        if ran.iter().flatten().any(|(_, right)| !right) {
            lines.splice(at, block(ran, versions == 2));
        }
    }
    Ok(lines.join("\n") + "\n")
}

fn run(case: &Case, v6: bool, blocks: &mut Blocks) -> Result<(), String> {
    let mut host = Host::new(case);
    for step in &case.steps {
        let outcome = host.step(step).map_err(|e| format!("{}:{}: {e}", case.name, step.at.start + 1))?;
        let block = blocks.entry(step.at.start).or_insert((step.expected_at.clone(), [None, None]));
        block.0.end = block.0.end.max(step.expected_at.end);
        block.1[usize::from(v6)] = Some((outcome.lines, outcome.wrong.is_none()));
    }
    Ok(())
}

fn block(ran: [Option<(Vec<String>, bool)>; 2], both: bool) -> Vec<String> {
    let indent = |line: &String| {
        if line.starts_with("count") { line.clone() } else { format!("  {line}") }
    };
    match ran.map(|r| r.map(|(lines, _)| lines)) {
        [Some(four), Some(six)] if four == six => four.iter().map(indent).collect(),
        [Some(one), None] | [None, Some(one)] if !both => one.iter().map(indent).collect(),
        [four, six] => {
            let prefixed = |prefix: &str, lines: Option<Vec<String>>| -> Vec<String> {
                lines.iter().flatten().map(|line| format!("  {prefix}: {line}")).collect()
            };
            [prefixed("v4", four), prefixed("v6", six)].concat()
        }
    }
}
