//! The `control` section: who but root may ask at the agent's own sockets.

use anyhow::{Context, Result, anyhow};

use super::at::{At, Log};
use super::error::Error;
use super::{Config, Places};
use crate::peers::group;

const RIGHT: &str = "a group of this node by its name or number, such as netops";
const PATH: &str = "control.readers";

pub(super) fn readers(places: &mut Places, at: &At<'_>, log: &mut Log) -> Option<String> {
    if !at.only(log, &["readers"]) {
        return None;
    }
    let at = at.get("readers")?;
    places.note(&at);
    let word = |text: &str| {
        let whole = !text.is_empty() && !text.contains([':', ',']) && !text.contains(char::is_whitespace);
        if whole { Ok(text.to_owned()) } else { Err(String::new()) }
    };
    at.value(log, RIGHT, word)
}

impl Config {
    /// The number of the group that may ask, as this node knows it.
    pub fn readers(&self) -> Result<Option<u32>> {
        let Some(name) = &self.readers else { return Ok(None) };
        let number = group(name).context("/etc/group")?;
        let wrong = || self.error_at(PATH, format!("`{name}` is no group of this node; expected {RIGHT}"));
        number.map(Some).ok_or_else(|| anyhow!(wrong()))
    }

    /// What this node says against it.
    pub fn wrong_readers(&self) -> Option<Error> {
        let error = self.readers().err()?;
        Some(match error.downcast::<Error>() {
            Ok(error) => error,
            Err(other) => self.error_at(PATH, format!("{other:#}")),
        })
    }
}
