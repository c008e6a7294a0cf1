//! How the tables lie in memory, in words that other versions understand, and how one version's become another's.
//!
//! Invariant: the name of the maps' folder is a hash of these words, so that no table is ever read as one that lies
//! otherwise. A field goes where a field of its name and size is; what has none is left, and what is new is zero. What
//! can't be told so is refused ([`Shape::to`]). Not here: the maps themselves ([`super::migrate`]).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use lb_common::hash;
use lb_common::table::Field;
use serde::{Deserialize, Serialize};

use super::maps::{Paths, SPECS, Spec};
use crate::disk;

/// Rises when tables change in a way that their fields' names don't show: then they can't become each other.
const NUMBER: u32 = 5;

/// The tables of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    number: u32,
    pub tables: BTreeMap<String, Shape>,
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub key: Vec<Part>,
    pub value: Vec<Part>,
    /// What each index stands for, where that is a list of this program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<String>,
    /// How many entries there are, where places are computed from that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<u32>,
}

/// A field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub at: usize,
    pub size: usize,
}

/// Bytes that go from one place to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    from: usize,
    to: usize,
    size: usize,
}

/// How entries of a table become another version's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: Vec<Span>,
    pub value: Vec<Span>,
    /// Where each index goes; empty: it stays.
    rows: Vec<Option<u32>>,
}

impl Layout {
    /// This version's.
    pub fn own() -> Self {
        let shape = |spec: &Spec| Shape {
            key: parts(spec.key),
            value: parts(spec.value),
            rows: spec.rows.map_or(Vec::new(), |rows| rows().into_iter().map(str::to_owned).collect()),
            places: spec.places,
        };
        Layout { number: NUMBER, tables: SPECS.iter().map(|spec| (spec.name.to_owned(), shape(spec))).collect() }
    }

    /// The name of its folder, by its words.
    pub fn name(&self) -> String {
        format!("maps-{:016x}", hash::bytes(serde_json::to_vec(self).unwrap_or_default()))
    }

    /// What a version wrote down of the maps in a folder of that name.
    pub fn read(paths: &Paths, folder: &str) -> Result<Self> {
        let path = paths.layout(folder);
        let text = fs::read(&path).with_context(|| format!("how they lie: {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Written down before maps are made.
    pub fn write(&self, paths: &Paths) -> Result<()> {
        let path = paths.layout(&self.name());
        fs::create_dir_all(&paths.run)
            .and_then(|()| disk::exchange(&path, &serde_json::to_vec(self)?))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// How a table of this layout becomes that of another; None: it lies the same. A table that isn't in both is
    /// nobody's.
    pub fn change(&self, other: &Layout, table: &str) -> Option<Result<Option<Change>, String>> {
        let (from, to) = (self.tables.get(table)?, other.tables.get(table)?);
        if self.number != other.number {
            let (from, to) = (self.number, other.number);
            return Some(Err(format!("its meaning is that of number {from}, this version's of number {to}")));
        }
        Some(if from == to { Ok(None) } else { from.to(to).map(Some) })
    }
}

fn parts(fields: &[Field]) -> Vec<Part> {
    fields.iter().map(|field| Part { name: field.name.to_owned(), at: field.at, size: field.size }).collect()
}

impl Shape {
    /// How its entries become another shape's, or why they can't.
    pub fn to(&self, other: &Shape) -> Result<Change, String> {
        if self.places != other.places {
            return Err(format!("it has {:?} places, and {:?} in this version", self.places, other.places));
        }
        let names = |parts: &[Part]| -> Vec<(String, usize)> {
            let mut names: Vec<_> = parts.iter().map(|part| (part.name.clone(), part.size)).collect();
            names.sort();
            names
        };
        if names(&self.key) != names(&other.key) {
            return Err("its keys are of other fields in this version".to_owned());
        }
        let rows = if self.rows == other.rows {
            Vec::new()
        } else {
            let place = |row: &String| other.rows.iter().position(|other| other == row).map(|at| at as u32);
            self.rows.iter().map(place).collect()
        };
        Ok(Change { key: spans(&self.key, &other.key)?, value: spans(&self.value, &other.value)?, rows })
    }

    /// Where a field of its values lies.
    pub fn field(&self, name: &str) -> Option<&Part> {
        self.value.iter().find(|part| part.name == name)
    }
}

fn spans(from: &[Part], to: &[Part]) -> Result<Vec<Span>, String> {
    let mut spans: Vec<Span> = Vec::new();
    for old in from {
        let Some(new) = to.iter().find(|new| new.name == old.name) else { continue };
        if new.size != old.size {
            let (name, was, is) = (&old.name, old.size, new.size);
            return Err(format!("its field `{name}` has {was} bytes, and {is} in this version"));
        }
        spans.push(Span { from: old.at, to: new.at, size: old.size });
    }
    Ok(spans)
}

/// Moves fields into a value that is zero.
pub fn carry(spans: &[Span], from: &[u8], to: &mut [u8]) {
    for &Span { from: at, to: new, size } in spans {
        to[new..new + size].copy_from_slice(&from[at..at + size]);
    }
}

impl Change {
    /// Where an index of this table goes; None: nowhere.
    pub fn row(&self, index: u32) -> Option<u32> {
        if self.rows.is_empty() { Some(index) } else { self.rows.get(index as usize).copied().flatten() }
    }
}
