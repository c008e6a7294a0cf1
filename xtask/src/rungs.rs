//! The rungs of `cargo xtask test`, one function each.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    bench, build, cmd, demo, deps, next, package, setup,
    test::{
        Outcome::{self, LeftOut, Passed},
        Tally,
    },
    toolchain::Compiler,
};

/// Seconds. Longer than a test binary takes on a slow, shared machine; one that hangs must not hang CI.
const PATIENCE: u32 = 20 * 60;
const FUZZ_SECONDS: u32 = 30;

/// Tests that do ten times as much in a release build, and are only then worth their name.
const LARGE: [&str; 3] = ["cluster_churn", "fib", "flow_table"];

/// Test binaries that need root run so many at a time: they mostly wait, and each has its own namespaces.
const AT_ONCE: usize = 2;

/// Files of the tests crate whose tests need root begin so.
const ROOT_PREFIXES: [&str; 2] = ["kernel_", "netns_"];

pub fn fmt(_: &mut Tally) -> Result<Outcome> {
    check_format()?;
    Ok(Passed)
}

pub fn check_format() -> Result<()> {
    setup::lints()?;
    for manifest in ["Cargo.toml", "lb-ebpf/Cargo.toml"] {
        let mut fmt = cmd::cargo();
        fmt.args(["fmt", "--all", "--manifest-path", manifest, "--", "--check"]);
        cmd::run(fmt).context("some files aren't formatted: run `cargo fmt --all`, in lb-ebpf too")?;
    }
    Ok(())
}

pub fn clippy(_: &mut Tally) -> Result<Outcome> {
    check_clippy()?;
    Ok(Passed)
}

pub fn check_clippy() -> Result<()> {
    setup::lints()?;
    let mut clippy = cmd::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    cmd::run(clippy)
}

pub fn deps(_: &mut Tally) -> Result<Outcome> {
    // What is checked has passed; what isn't is told.
    if let Some(left_out) = deps::check()? {
        say!("{left_out}");
    }
    Ok(Passed)
}

/// Everything in the workspace that needs no root. The fuzz corpus is replayed here, by an ordinary test.
pub fn unit(tests: &mut Tally) -> Result<Outcome> {
    // One selection of packages for this and for the root tests: another one would mean other features, and so
    // a second build of everything.
    let mut cargo = cmd::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]);
    for name in integration_tests()?.iter().filter(|name| !ROOT_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
    {
        cargo.args(["--test", name]);
    }
    let mut doc = cmd::cargo();
    doc.args(["test", "--workspace", "--no-fail-fast", "--doc"]);
    let results = [run_tests(cargo, tests), run_tests(doc, tests)];
    results.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(Passed)
}

pub fn miri(tests: &mut Tally) -> Result<Outcome> {
    if let Some(why) = setup::miri()? {
        return Ok(LeftOut(why));
    }
    let mut miri = Compiler::Nightly.cargo();
    miri.args(["miri", "test", "-p", "lb-common"]).current_dir(cmd::repo());
    if std::env::var_os("MIRIFLAGS").is_none() {
        // Tests may look at the clock and at files of cases: what miri is here for is memory.
        miri.env("MIRIFLAGS", "-Zmiri-disable-isolation");
    }
    run_tests(miri, tests)?;
    Ok(Passed)
}

/// A short run of every fuzz target, to know that they build and hold. Real fuzzing takes hours and is no rung.
pub fn fuzz(_: &mut Tally) -> Result<Outcome> {
    let home = cmd::repo().join("tests/fuzz");
    if !home.join("Cargo.toml").exists() {
        return Ok(LeftOut("there is no tests/fuzz".into()));
    }
    let fuzz = |args: &[&str]| {
        let mut cargo = Compiler::Nightly.cargo();
        cargo.arg("fuzz").args(args).current_dir(cmd::repo().join("tests"));
        cargo
    };
    if cmd::output(fuzz(&["--version"])).is_err() {
        return Ok(LeftOut("cargo-fuzz or a nightly isn't installed; the unit rung replays the corpus".into()));
    }
    for target in cmd::output(fuzz(&["list"]))?.lines() {
        let mut run = fuzz(&["run", target, "--"]);
        run.arg(format!("-max_total_time={FUZZ_SECONDS}"));
        cmd::run(run)?;
    }
    Ok(Passed)
}

pub fn product(_: &mut Tally) -> Result<Outcome> {
    build::product_and(&[demo::PROGRAM])?;
    Ok(Passed)
}

pub fn release(tests: &mut Tally) -> Result<Outcome> {
    let mut cargo = cmd::cargo();
    cargo.args(["test", "--workspace", "--release", "--no-fail-fast"]);
    LARGE.iter().for_each(|name| _ = cargo.args(["--test", name]));
    run_tests(cargo, tests)?;
    Ok(Passed)
}

pub fn in_kernel(tests: &mut Tally) -> Result<Outcome> {
    as_root("kernel_", "packet cases run in the kernel", tests)
}

pub fn in_namespaces(tests: &mut Tally) -> Result<Outcome> {
    // One of the tests installs the one, another is taken over by the other.
    package::pack(&package::folder())?;
    next::build()?;
    as_root("netns_", "network namespaces are made", tests)
}

pub fn demo(_: &mut Tally) -> Result<Outcome> {
    let figures = build::target().join("demo.json");
    let args = ["--once".into(), "--json".into(), figures.display().to_string()];
    let _ = fs::remove_file(&figures);
    match demo::start(&args, Some(PATIENCE))? {
        0 if figures.exists() => Ok(Passed),
        0 => bail!("the demo wrote no {}", figures.display()),
        124 => bail!("the demo was stopped after {PATIENCE} s"),
        code => bail!("the demo's expectations aren't met (exit status {code}): see above and {}", figures.display()),
    }
}

fn as_root(prefix: &str, why: &str, tally: &mut Tally) -> Result<Outcome> {
    let tests = root_tests(prefix)?;
    if tests.is_empty() {
        return Ok(LeftOut(format!("there is no tests/tests/{prefix}*.rs")));
    }
    let command = |(name, path): &(String, PathBuf)| {
        let mut test = Command::new("timeout");
        test.args(["--foreground", "--kill-after=20", &PATIENCE.to_string()]).arg(path).arg("--test-threads=1");
        // As cargo does it: tests find their files relative to the package.
        test.current_dir(package()).env("CARGO_MANIFEST_DIR", package());
        bench::environment(&mut test);
        Ok((name.clone(), cmd::as_root(test, why)?))
    };
    let commands = tests.iter().map(command).collect::<Result<_>>()?;
    let mut failed = Vec::new();
    cmd::side_by_side(commands, AT_ONCE, |ran| {
        say!("\n{} ({:.1} s):", ran.name, ran.took.as_secs_f64());
        for line in &ran.printed {
            tally.read(line);
            say!("{line}");
        }
        match ran.status.code() {
            Some(0) => {}
            Some(124) => failed.push(format!("{} (stopped after {PATIENCE} s)", ran.name)),
            _ => failed.push(ran.name),
        }
    })?;
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(Passed)
}

/// Builds the root tests with this prefix, as (name, executable).
pub fn root_tests(prefix: &str) -> Result<Vec<(String, PathBuf)>> {
    let names = integration_tests()?;
    let names: Vec<&String> = names.iter().filter(|name| name.starts_with(prefix)).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut cargo = cmd::cargo();
    cargo.args(["test", "--workspace", "--no-run"]);
    for name in &names {
        cargo.args(["--test", name]);
    }
    let mut tests = cmd::executables(cargo)?;
    // Building an integration test builds its package's bins, too.
    tests.retain(|(name, _)| names.contains(&name));
    tests.sort();
    Ok(tests)
}

pub fn package() -> PathBuf {
    cmd::repo().join("tests")
}

/// The names of all integration tests of the workspace.
fn integration_tests() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for package in ["lb-common", "lb-user", "tests", "xtask"] {
        let dir = cmd::repo().join(package).join("tests");
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
            names.extend(test_name(&path));
        }
    }
    Ok(names)
}

/// As cargo finds them: `NAME.rs` or `NAME/main.rs`.
fn test_name(path: &Path) -> Option<String> {
    let file = path.extension().is_some_and(|extension| extension == "rs");
    (file || path.join("main.rs").exists()).then(|| path.file_stem().map(|name| name.to_string_lossy().into_owned()))?
}

fn run_tests(cargo: Command, tests: &mut Tally) -> Result<()> {
    let status = cmd::tee(cargo, |line| tests.read(line))?;
    if !status.success() {
        bail!("cargo test says so above ({status})");
    }
    Ok(())
}
