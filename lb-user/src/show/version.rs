//! What is in force: this program's version, the programs that hang on links and sockets, and the maps they read.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result};
use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, loaded_programs};

use super::{Cell, Table};
use crate::agent::nat_log::utc;
use crate::apply::maps::SPECS;
use crate::apply::{Paths, State, attached, clock, sockets};

const COLUMNS: &[&str] = &["what", "name", "type", "id", "tag", "loaded_at", "key_size", "value_size", "max_entries"];

/// Where nothing is loaded, the first row is all.
pub fn version(paths: &Paths) -> Result<Table> {
    let mut table = Table::new(COLUMNS);
    let none = || Cell::None;
    let version = env!("CARGO_PKG_VERSION").into();
    table.push(["stellwerk".into(), version, none(), none(), none(), none(), none(), none(), none()]);
    for program in programs(paths)? {
        let at = program.loaded_at().map_or(Cell::None, |at| {
            let text = utc(at);
            format!("{}Z", text.split('.').next().unwrap_or(&text)).into()
        });
        let name = program.name_as_str().unwrap_or_default().to_owned();
        let kind = kind(program.program_type());
        let tag = format!("{:016x}", program.tag());
        let id = program.id().into();
        table.push(["program".into(), name.into(), kind.into(), id, tag.into(), at, none(), none(), none()]);
    }
    for spec in SPECS {
        let path = paths.maps().join(spec.name);
        if !path.exists() {
            continue;
        }
        let map = MapInfo::from_pin(&path).with_context(|| format!("the pinned map {}", path.display()))?;
        let kind = kind(map.map_type()?);
        let sizes = [map.key_size(), map.value_size(), map.max_entries()].map(Cell::from);
        let [key, value, entries] = sizes;
        table.push(["map".into(), spec.name.into(), kind.into(), map.id().into(), none(), none(), key, value, entries]);
    }
    Ok(table)
}

/// Those that pins and filters lead to, each once, by their ids.
fn programs(paths: &Paths) -> Result<Vec<ProgramInfo>> {
    let mut ids = BTreeSet::new();
    if paths.links().exists() {
        ids.extend(attached(paths, &State::read(paths)?)?.into_values());
        ids.extend(sockets::programs(paths)?);
    }
    let mut all = Vec::new();
    let clock = paths.programs().join(clock::PROGRAM);
    if clock.exists() {
        all.push(ProgramInfo::from_pin(&clock).with_context(|| clock.display().to_string())?);
    }
    if !ids.is_empty() {
        for program in loaded_programs() {
            // One that is unloaded meanwhile is none of ours.
            all.extend(program.ok().filter(|program| ids.contains(&program.id())));
        }
    }
    all.sort_by_key(ProgramInfo::id);
    Ok(all)
}

/// `BPF_PROG_TYPE_SCHED_CLS` is `sched_cls`, `PerCpuArray` `per_cpu_array`.
fn kind(of: impl fmt::Debug) -> String {
    let text = format!("{of:?}");
    if let Some(name) = text.strip_prefix("BPF_PROG_TYPE_") {
        return name.to_lowercase();
    }
    let mut out = String::new();
    for (at, letter) in text.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use aya::maps::MapType;

    #[test]
    fn kinds() {
        assert_eq!(super::kind(MapType::PerCpuArray), "per_cpu_array");
        assert_eq!(super::kind(MapType::LpmTrie), "lpm_trie");
    }
}
