//! Another version's maps become this one's, while packets go on (`docs/decisions/0016-other-layouts.md`).
//!
//! What lies the same is shared by both versions' programs; the rest is copied field by field, then this version's
//! programs take the others' places, and what came meanwhile is added. Where tables of connections are copied, no new
//! connection begins for that moment, and the clients' next try does.
//! Invariant: until the first program is replaced nothing has changed for packets, and whatever fails before leaves
//! all as it was. Not here: which bytes of an entry go where ([`super::layout`]).

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::{MapData, MapType};
use lb_common::flow_table::{HINTS, is_hints};
use lb_common::table::{Plain, Settings};

use super::clock;
use super::grow;
use super::hooks::Attacher;
use super::layout::{Change, Layout, carry};
use super::load::{self, Constants};
use super::maps::{Maps, Paths, SPECS};
use super::pin::MOVING;
use super::sockets;
use super::state::State;
use super::sys::{Cursor, Mapping, RawMap};
use super::table::{Table, parse, set_many, walk};
use crate::intent::Capacity;

/// Packets that are on their way through a program have left it after this time.
const GRACE: Duration = Duration::from_millis(20);
/// New connections stay outside for so long at the most, should this agent die meanwhile. It takes some 0.1 s.
const HELD: Duration = Duration::from_secs(6);
/// The tables that are copied while no new connection begins.
const CONNECTIONS: [&str; 6] = ["FLOWS4", "FLOWS6", "OWNERS4", "OWNERS6", "HOLDERS4", "HOLDERS6"];
/// How often an entry is read that packets write at the moment.
const TRIES: usize = 4;

/// The maps that an agent before has left, of whichever version.
pub struct Former {
    dir: PathBuf,
    layout: Layout,
}

impl Former {
    /// None: there are none.
    pub fn of(paths: &Paths) -> Result<Option<Self>> {
        if paths.maps().exists() {
            return Ok(Some(Former { dir: paths.maps(), layout: Layout::own() }));
        }
        let Some(folder) = other(paths)? else { return Ok(None) };
        Ok(Some(Former { dir: paths.pin.join(&folder), layout: Layout::read(paths, &folder)? }))
    }

    /// All entries of a hash or an array, as this version has them.
    pub fn entries<K: Plain, V: Plain>(&self, name: &'static str) -> Result<Vec<(K, V)>> {
        let change = match self.layout.change(&Layout::own(), name) {
            Some(Ok(None)) => return Table::open(&self.dir, name)?.entries(),
            Some(Ok(Some(change))) => change,
            Some(Err(why)) => bail!("{name}: {why}"),
            None => return Ok(Vec::new()),
        };
        let raw = RawMap::from_pin(&self.dir.join(name))?;
        let mut all = Vec::new();
        let mut cursor = Cursor::default();
        let each = &mut |key: &[u8], value: &[u8]| {
            let (mut new_key, mut new_value) = (vec![0; size_of::<K>()], vec![0; size_of::<V>()]);
            carry(&change.key, key, &mut new_key);
            carry(&change.value, value, &mut new_value);
            all.push((parse(&new_key), parse(&new_value)));
        };
        while !walk(name, &raw, &mut cursor, &mut *each)? {}
        Ok(all)
    }
}

/// The folder of another version's maps; of several the one that was made last.
fn other(paths: &Paths) -> Result<Option<String>> {
    if !paths.pin.exists() {
        return Ok(None);
    }
    let made = |name: &String| fs::metadata(paths.pin.join(name)).and_then(|data| data.modified()).ok();
    Ok(load::other_layouts(paths)?.into_iter().max_by_key(made))
}

/// Takes over another version's maps and the places of its programs, where there are any and none of this version.
pub fn migrate(paths: &Paths, state: &mut State, wanted: &Capacity, policies: bool) -> Result<()> {
    if paths.maps().exists() {
        return Ok(());
    }
    let Some(folder) = other(paths)? else { return Ok(()) };
    let begin = Instant::now();
    let moving = paths.pin.join(MOVING);
    forget(&moving)?;
    let prepared = Move::prepare(paths, &folder, &moving, wanted, policies);
    let mut moved = prepared.or_else(|error| forget(&moving).and(Err(error))).with_context(|| {
        format!(
            "{folder}, the tables of another version, are not taken over, and what is in force stays: start that \
             version, or `stellwerk unload` first, which ends all connections"
        )
    })?;
    let held = moved.carry_out(paths, &moving, state)?;
    let tables: Vec<&str> = moved.copies.iter().map(|copy| copy.name).collect();
    tracing::info!(
        "took over {folder}, the tables of another version, in {} ms; {}{}",
        begin.elapsed().as_millis(),
        if tables.is_empty() { "all are shared".to_owned() } else { format!("copied: {}", tables.join(", ")) },
        held.map_or(String::new(), |held| format!("; no connection began for {} ms", held.as_millis())),
    );
    Ok(())
}

fn forget(moving: &Path) -> Result<()> {
    match fs::remove_dir_all(moving) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(moving.display().to_string()),
        _ => Ok(()),
    }
}

/// A table that lies otherwise.
struct Copy {
    name: &'static str,
    change: Change,
    from: RawMap,
    to: RawMap,
    /// Their memory, where it can be mapped.
    mapped: Option<(Mapping<AtomicU32>, Mapping<AtomicU32>)>,
    /// The word of an entry that is 0 as long as it was never used.
    sign: Option<usize>,
}

impl Copy {
    fn new(moving: &Path, layout: &Layout, name: &'static str, change: Change, from: RawMap) -> Result<Self> {
        let to = RawMap::from_pin(&moving.join(name))?;
        let shape = layout.tables.get(name).context("it is in the layout")?;
        let (was, is) = (from.max_entries(), to.max_entries());
        ensure!(
            was <= is || !shape.rows.is_empty(),
            "the table {name} has room for {was} entries, and for {is} in this version"
        );
        let mapped = from.mapping()?.zip(to.mapping()?);
        Ok(Copy { name, change, from, to, mapped, sign: shape.field("meta").map(|meta| meta.at / 4) })
    }
}

/// This version's programs and maps beside another's.
struct Move {
    from: PathBuf,
    layout: Layout,
    ebpf: Ebpf,
    copies: Vec<Copy>,
}

impl Move {
    /// Loads the programs on maps that are shared or new.
    fn prepare(paths: &Paths, folder: &str, moving: &Path, wanted: &Capacity, policies: bool) -> Result<Self> {
        let (from, layout, own) = (paths.pin.join(folder), Layout::read(paths, folder)?, Layout::own());
        ensure!(!grow::is_underway(&from), "its tables of connections are growing, which that version has to end");
        fs::create_dir(moving).with_context(|| format!("creating {}", moving.display()))?;
        let mut changes = Vec::new();
        for spec in SPECS {
            let (name, old) = (spec.name, from.join(spec.name));
            let Some(change) = layout.change(&own, name) else { continue };
            if change == Ok(None) {
                let map = MapData::from_pin(&old).with_context(|| old.display().to_string())?;
                map.pin(moving.join(name)).with_context(|| format!("sharing {name}"))?;
                continue;
            }
            let raw = RawMap::from_pin(&old)?;
            match change {
                // What nobody has read is lost with it.
                _ if raw.kind() == MapType::RingBuf => {}
                Ok(_) if raw.kind() == MapType::ArrayOfMaps => bail!("the table {name} has other parts"),
                Ok(change) => changes.extend(change.map(|change| (name, change, raw))),
                Err(why) => bail!("the table {name}: {why}"),
            }
        }
        let capacity = load::in_force(&from, wanted)?;
        let constants = Constants::new(load::multipliers(&from)?, &capacity, false);
        let ebpf = load::programs(moving, &constants, &capacity, &[], policies)?;
        let open = |(name, change, from)| Copy::new(moving, &layout, name, change, from);
        let copies = changes.into_iter().map(open).collect::<Result<_>>()?;
        Ok(Move { from, layout, ebpf, copies })
    }

    /// Copies, and replaces the programs; how long no connection began, if any was kept outside.
    fn carry_out(&mut self, paths: &Paths, moving: &Path, state: &mut State) -> Result<Option<Duration>> {
        Layout::own().write(paths)?;
        let of_connections = |copy: &&Copy| CONNECTIONS.contains(&copy.name);
        // Those of connections, too: the second time most is there.
        self.copies.iter().try_for_each(|copy| copy.all(false))?;
        let held = self.copies.iter().any(|copy| of_connections(&copy)).then(Instant::now);
        if held.is_some() {
            self.hold(moving)?;
            sleep(GRACE);
            self.copies.iter().filter(of_connections).try_for_each(|copy| copy.all(false))?;
        }
        fs::rename(moving, paths.maps()).context("pinning the tables")?;
        Attacher::new(&self.ebpf)?.take_over(&mut self.ebpf, paths, state)?;
        if held.is_some() {
            let settings = Table::<u32, Settings>::open(&paths.maps(), "SETTINGS")?;
            let now = settings.get(&0)?.unwrap_or_default();
            settings.set(&0, &Settings { held_until: 0, ..now })?;
        }
        let held = held.map(|since| since.elapsed());
        sockets::take_over(&mut self.ebpf, paths)?;
        self.copies.iter().filter(|copy| !copy.from.is_array()).try_for_each(|copy| copy.all(true))?;
        Ok(held)
    }

    /// Keeps new connections out of the other version's tables, if it knows how.
    fn hold(&self, moving: &Path) -> Result<()> {
        let Some(field) = self.layout.tables.get("SETTINGS").and_then(|shape| shape.field("held_until")) else {
            tracing::warn!("connections that begin while the tables are copied are lost: that version can't wait");
            return Ok(());
        };
        let clock = self.ebpf.program(clock::PROGRAM).context("the object has no clock")?;
        let now = clock::read(clock.try_into()?, &Maps::open(moving)?)?.tick();
        let until = now.wrapping_add((HELD.as_secs_f32() * clock::rate()? as f32) as u32).max(1);
        let settings = RawMap::from_pin(&self.from.join("SETTINGS"))?;
        let (key, mut value) = (0u32.to_ne_bytes(), vec![0; settings.stride()]);
        settings.lookup(&key, &mut value).context("SETTINGS")?;
        value[field.at..field.at + field.size].copy_from_slice(&until.to_ne_bytes());
        settings.update(&key, &value).context("SETTINGS")
    }
}

impl Copy {
    /// Copies all entries, or those whose keys aren't there.
    fn all(&self, missing: bool) -> Result<()> {
        match &self.mapped {
            Some((from, to)) => self.words(from.get(), to.get()),
            None => self.walked(missing).with_context(|| format!("copying the table {}", self.name))?,
        }
        Ok(())
    }

    fn words(&self, from: &[AtomicU32], to: &[AtomicU32]) {
        let (old, new) = (self.from.stride(), self.to.stride());
        let (mut words, mut entry) = (vec![0u8; old], vec![0u8; new]);
        let flows = self.name.starts_with("FLOWS");
        for (place, cells) in from.chunks_exact(old / 4).enumerate() {
            let hints = flows && is_hints(place as u32);
            if !hints && self.sign.is_some_and(|at| cells[at].load(Ordering::Relaxed) == 0) {
                continue;
            }
            let Some(row) = self.change.row(place as u32) else { continue };
            steady(cells, &mut words);
            entry.fill(0);
            if hints {
                entry[..HINTS].copy_from_slice(&words[..HINTS]);
            } else {
                carry(&self.change.value, &words, &mut entry);
            }
            let at = row as usize * new / 4;
            for (cell, word) in to[at..at + new / 4].iter().zip(entry.chunks_exact(4)) {
                cell.store(parse(word), Ordering::Relaxed);
            }
        }
    }

    fn walked(&self, missing: bool) -> Result<()> {
        let slices = self.from.slices()?;
        let (old, new) = (self.from.stride() / slices, self.to.stride() / slices);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut cursor = Cursor::default();
        let each = &mut |key: &[u8], value: &[u8]| {
            if self.from.is_array() {
                let row = self.change.row(parse(key)).filter(|_| value.iter().any(|&byte| byte != 0));
                let Some(row) = row else { return };
                keys.extend(row.to_ne_bytes());
            } else {
                let at = keys.len();
                keys.resize(at + self.to.key_size(), 0);
                carry(&self.change.key, key, &mut keys[at..]);
            }
            for slice in value.chunks_exact(old) {
                let at = values.len();
                values.resize(at + new, 0);
                carry(&self.change.value, slice, &mut values[at..]);
            }
        };
        while !walk(self.name, &self.from, &mut cursor, &mut *each)? {}
        if !missing {
            return set_many(self.name, &self.to, &keys, &values);
        }
        let keys = keys.chunks_exact(self.to.key_size());
        keys.zip(values.chunks_exact(self.to.stride()))
            .try_for_each(|(key, value)| Ok(self.to.add(key, value).map(drop)?))
    }
}

/// Reads an entry as it stands between two changes.
fn steady(cells: &[AtomicU32], words: &mut [u8]) {
    let read = |cell: &AtomicU32| cell.load(Ordering::Acquire);
    for _ in 0..TRIES {
        for (cell, word) in cells.iter().zip(words.chunks_exact_mut(4)) {
            word.copy_from_slice(&read(cell).to_ne_bytes());
        }
        if cells.iter().zip(words.chunks_exact(4)).all(|(cell, word)| read(cell).to_ne_bytes() == word) {
            return;
        }
    }
}
