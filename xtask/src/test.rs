//! `cargo xtask test`: the ladder. Each rung runs what the rungs below can't; a failing rung doesn't stop the next.
//!
//! Tests of the tests crate that need root are files named `tests/tests/kernel_*.rs` (packet cases and loading in the
//! kernel) and `tests/tests/netns_*.rs` (network namespaces). They are found by name, so that a new one joins by itself.
//! Invariant: what is left out is named, with the reason.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{build, cmd, demo, kernel, rungs, setup};

#[derive(clap::Args)]
pub struct Args {
    /// Run only what needs no root, and name what that leaves out.
    #[arg(long)]
    no_root: bool,
    /// Boot this Debian kernel (6.1, 6.12) in QEMU and run the kernel rung there, instead of the ladder here.
    #[arg(long, value_name = "VERSION", value_parser = kernel::VERSIONS)]
    kernel: Vec<String>,
    /// Run only this rung (may be given several times).
    #[arg(long, value_name = "RUNG", value_parser = RUNGS.map(|rung| rung.name))]
    only: Vec<String>,
}

struct Rung {
    name: &'static str,
    root: bool,
    run: fn(&mut Tally) -> Result<Outcome>,
}

const RUNGS: [Rung; 11] = [
    Rung { name: "fmt", root: false, run: rungs::fmt },
    Rung { name: "clippy", root: false, run: rungs::clippy },
    Rung { name: "deps", root: false, run: rungs::deps },
    Rung { name: "unit", root: false, run: rungs::unit },
    Rung { name: "miri", root: false, run: rungs::miri },
    Rung { name: "fuzz", root: false, run: rungs::fuzz },
    Rung { name: "build", root: false, run: rungs::product },
    Rung { name: "release", root: false, run: rungs::release },
    Rung { name: "kernel", root: true, run: rungs::in_kernel },
    Rung { name: "netns", root: true, run: rungs::in_namespaces },
    Rung { name: "demo", root: true, run: rungs::demo },
];

pub enum Outcome {
    Passed,
    LeftOut(String),
}

struct Line {
    name: String,
    time: Duration,
    tests: Tally,
    result: Result<Outcome>,
}

/// Single tests, as libtest's own summary lines count them.
#[derive(Default)]
pub struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Tally {
    /// Adds a line of the form `test result: ok. 3 passed; 0 failed; 1 ignored; …`; others mean nothing here.
    pub fn read(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else {
            return;
        };
        let words: Vec<&str> = counts.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let count = pair[0].parse().unwrap_or(0);
            match pair[1] {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }

    fn describe(&self) -> Option<String> {
        let Tally { passed, failed, ignored } = self;
        let rest = [(failed, "failed"), (ignored, "ignored")].into_iter().filter(|(count, _)| **count > 0);
        let rest: String = rest.map(|(count, word)| format!(", {count} {word}")).collect();
        (passed + failed + ignored > 0).then(|| format!("{passed} passed{rest}"))
    }
}

pub fn run(args: &Args) -> Result<i32> {
    if args.no_root {
        cmd::forbid_root();
    }
    if !args.kernel.is_empty() {
        return in_machines(&args.kernel);
    }
    let chosen = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let rungs: Vec<&Rung> = RUNGS.iter().filter(|rung| chosen(rung.name)).collect();
    let mut built = true;
    if rungs.iter().any(|rung| rung.root) && !args.no_root {
        setup::tools(setup::NET)?;
        setup::tools(setup::CONTAINERS)?;
        setup::tools(setup::BROWSER)?;
        if !chosen("build") {
            build::product_and(&[demo::PROGRAM])?;
        }
    }
    let mut lines = Vec::new();
    for rung in rungs {
        let reason = match rung.root {
            true if args.no_root => Some("it needs root, and --no-root was given"),
            true if !built => Some("the build failed"),
            _ => None,
        };
        let line = climb(rung.name, |tests| match reason {
            Some(reason) => Ok(Outcome::LeftOut(reason.into())),
            None => (rung.run)(tests),
        });
        built &= rung.name != "build" || line.result.is_ok();
        lines.push(line);
    }
    let machines = args.only.is_empty().then_some("other kernels aren't part of this: `cargo xtask test --kernel 6.1`");
    Ok(summary(&lines, machines))
}

/// The kernel rung on other kernels.
fn in_machines(versions: &[String]) -> Result<i32> {
    setup::tools(setup::VM)?;
    build::product_and(&[])?;
    let tests = rungs::root_tests("kernel_")?;
    if tests.is_empty() {
        bail!("there is no tests/tests/kernel_*.rs to run in another kernel");
    }
    let boot = |version: &String| climb(&format!("kernel {version}"), |tally| kernel::run(version, &tests, tally));
    let lines: Vec<Line> = versions.iter().map(boot).collect();
    Ok(summary(&lines, None))
}

fn climb(name: &str, run: impl FnOnce(&mut Tally) -> Result<Outcome>) -> Line {
    say!("\n── {name} ──");
    let start = Instant::now();
    let mut tests = Tally::default();
    let result = run(&mut tests);
    if let Err(error) = &result {
        say!("{name} failed: {error:#}");
    }
    Line { name: name.to_owned(), time: start.elapsed(), tests, result }
}

/// The table of rungs, and the exit code.
fn summary(lines: &[Line], note: Option<&str>) -> i32 {
    say!("\n{:<12} {:<8} {:>7}  tests", "rung", "result", "time");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for line in lines {
        let (result, why) = match &line.result {
            Ok(Outcome::Passed) => ("pass", None),
            Ok(Outcome::LeftOut(why)) => ("left out", Some(why.clone())),
            Err(error) => ("FAIL", Some(format!("{error:#}"))),
        };
        match result {
            "pass" => passed += 1,
            "FAIL" => failed += 1,
            _ => skipped += 1,
        }
        let notes: Vec<String> = line.tests.describe().into_iter().chain(why).collect();
        let time = format!("{:.1} s", line.time.as_secs_f64());
        say!("{:<12} {:<8} {:>7}  {}", line.name, result, time, notes.join("; "));
    }
    if let Some(note) = note {
        say!("({note})");
    }
    say!("{passed} passed, {failed} failed, {skipped} skipped");
    i32::from(failed > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_summaries_are_added_up() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s");
        tally.read("test a::b ... ok");
        tally.read("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        assert_eq!((tally.passed, tally.failed, tally.ignored), (13, 2, 1));
        assert_eq!(tally.describe().as_deref(), Some("13 passed, 2 failed, 1 ignored"));
        assert_eq!(Tally::default().describe(), None);
    }
}
