//! `stellwerk doctor`: what of this node stands against stellwerk, before anything is loaded.
//!
//! Invariant: nothing is changed by looking. A finding that isn't `ok` says what to do. What the agent checks itself at
//! its start is checked by the same functions. Not here: the listings of what is loaded ([`crate::show`]).

mod kernel;
mod node;
mod others;
mod ports;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::agent;
use crate::apply::Paths;
use crate::check;
use crate::config::{Config, Error};
use crate::show::{Cell, Table};
use crate::source::netlink::Mirror;

/// Where the package has it.
const CONFIG: &str = "/etc/stellwerk/stellwerk.yaml";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ok,
    /// It works, but not as well, or only as long as others let it.
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub check: &'static str,
    pub name: String,
    pub state: State,
    pub found: String,
    pub advice: String,
}

impl Finding {
    fn ok(check: &'static str, name: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { check, name: name.into(), state: State::Ok, found: found.into(), advice: String::new() }
    }

    fn warn(check: &'static str, name: impl Into<String>, found: impl Into<String>, advice: &str) -> Finding {
        Finding { state: State::Warn, advice: advice.into(), ..Finding::ok(check, name, found) }
    }

    fn fail(check: &'static str, name: impl Into<String>, found: impl Into<String>, advice: &str) -> Finding {
        Finding { state: State::Fail, advice: advice.into(), ..Finding::ok(check, name, found) }
    }
}

/// Looks at the node, and at what the configuration wants of it. Whether nothing failed is the second.
pub fn doctor(paths: &Paths, file: Option<&Path>) -> Result<(Table, bool)> {
    let all = examine(paths, file)?;
    let healthy = all.iter().all(|finding| finding.state != State::Fail);
    let mut table = Table::new(&["check", "name", "state", "found", "advice"]);
    for Finding { check, name, state, found, advice } in all {
        let word = match state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
        };
        let or_none = |text: String| if text.is_empty() { Cell::None } else { text.into() };
        table.push([check.into(), or_none(name), word.into(), found.into(), or_none(advice)]);
    }
    Ok((table, healthy))
}

fn examine(paths: &Paths, file: Option<&Path>) -> Result<Vec<Finding>> {
    let (mut all, config) = configuration(paths, file)?;
    all.extend(kernel::examine(config.as_ref()));
    all.extend(node::examine(paths, config.as_ref())?);
    let mut mirror = Mirror::open()?;
    if let Some(config) = &config {
        all.extend(ports::examine(paths, config, &mut mirror)?);
    }
    all.extend(others::examine(config.as_ref(), &mirror)?);
    Ok(all)
}

/// The one that is named, else the running agent's, else the package's.
fn named(paths: &Paths, file: Option<&Path>) -> Option<PathBuf> {
    let running = || Some(agent::running(paths).0.config).filter(|path| !path.as_os_str().is_empty());
    let packaged = || Some(PathBuf::from(CONFIG)).filter(|path| path.exists());
    file.map(Path::to_owned).or_else(running).or_else(packaged)
}

fn configuration(paths: &Paths, file: Option<&Path>) -> Result<(Vec<Finding>, Option<Config>)> {
    const CHECK: &str = "configuration";
    let Some(file) = named(paths, file) else {
        let advice = "name one by --config FILE: without it no port is looked at";
        return Ok((vec![Finding::warn(CHECK, "", "none", advice)], None));
    };
    let shown = file.display().to_string();
    let wrong = |error: &Error| {
        let whole = error.to_string();
        let found = whole.strip_prefix(&format!("{shown}:")).unwrap_or(&whole).to_owned();
        Finding::fail(CHECK, shown.clone(), found, "correct it as it says; docs/configuration.md has every key")
    };
    let config = match check::check(&file).and_then(|_| Config::load(&file)) {
        Ok(config) => config,
        Err(errors) => return Ok((errors.0.iter().map(wrong).collect(), None)),
    };
    let (_, errors) = agent::wrong(&config)?;
    let mut all: Vec<Finding> = errors.iter().map(wrong).collect();
    if all.is_empty() {
        all.push(Finding::ok(CHECK, shown, format!("ports: {}", config.ports.len())));
    }
    Ok((all, Some(config)))
}
