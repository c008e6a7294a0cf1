//! Larger flow tables in place of smaller ones, while packets use both (docs/decisions/0005-flow-table.md).
//!
//! Programs that look into both tables take the places of those that know the old one alone; then new entries go
//! into the new one, then the old one's are moved, then it is forgotten. What is not done when the agent dies is
//! done by the next one: the pins here say how far it was.
//! Invariant: a connection stays where every attached program finds it. Not here: how one entry moves
//! ([`lb_common::flow_table::grow`]).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::Ebpf;
use lb_common::flow_table::grow::{Moved, transfer};
use lb_common::flow_table::{Entry, FlowTable, MULTIPLIERS, NONE, WAYS, walk};
use lb_common::table::Settings;
use lb_common::tables::Configured;
use lb_common::wire::{Addr, Ip4, Ip6};

use super::clock;
use super::flows::{Flows, slots};
use super::hooks::Attacher;
use super::load::{self, Constants, Placed};
use super::maps::{Maps, Paths};
use super::state::State;
use super::sys::RawMap;
use super::table::Table;
use crate::intent::Capacity;

/// Whether new entries go into the new tables: pinned as long as any table grows.
const MOVED_IN: &str = "FLOW_MOVED_IN";
/// Packets that are on their way through a program have left it after this time.
const GRACE: Duration = Duration::from_millis(20);
/// How often the old table is walked: what somebody else was about at the moment is moved by the next walk.
const WALKS: usize = 8;

/// The two tables of a family, by their pins.
struct Pair {
    old: &'static str,
    new: &'static str,
    elder: &'static str,
}

const PAIRS: [Pair; 2] = [
    Pair { old: "FLOWS4", new: "FLOWS4_GROWN", elder: "FLOW_ELDER4" },
    Pair { old: "FLOWS6", new: "FLOWS6_GROWN", elder: "FLOW_ELDER6" },
];

impl Pair {
    /// Whether it grows: into a table that is there already, or a larger one that is wanted.
    fn grows(&self, dir: &Path, wanted: u32) -> Result<bool> {
        Ok(dir.join(self.new).exists() || entries(&dir.join(self.old))? < wanted)
    }
}

fn entries(pin: &Path) -> Result<u32> {
    Ok(RawMap::from_pin(pin)?.max_entries())
}

/// Whether tables in a folder are half way.
pub fn is_underway(dir: &Path) -> bool {
    PAIRS.iter().any(|pair| dir.join(pair.new).exists())
}

/// Lets tables that are there, and smaller than wanted, grow. Where that can't even begin they stay as they are,
/// which is told.
pub fn grow(paths: &Paths, state: &mut State, wanted: &Capacity, multipliers: &[u64; MULTIPLIERS]) -> Result<()> {
    let dir = paths.maps();
    if !dir.join(PAIRS[0].old).exists() {
        return Ok(());
    }
    let mut growing = [false; 2];
    for (pair, grows) in PAIRS.iter().zip(&mut growing) {
        *grows = pair.grows(&dir, slots(wanted))?;
    }
    if growing != [false; 2] {
        let begun = is_underway(&dir);
        match prepare(&dir, wanted, multipliers, growing) {
            Ok(ebpf) => both(paths, state, ebpf, growing)?,
            Err(error) if !begun => {
                tracing::warn!("the flow tables keep their room, since larger ones can't be made: {error:#}");
                forget(&dir, PAIRS.map(|pair| pair.new))?;
            }
            Err(error) => return Err(error).context("the flow tables were growing, and have to go on"),
        }
    }
    forget(&dir, [MOVED_IN])
}

/// Programs that know both tables of each family that grows.
fn prepare(dir: &Path, wanted: &Capacity, multipliers: &[u64; MULTIPLIERS], growing: [bool; 2]) -> Result<Ebpf> {
    let mut elders = [NONE; 2];
    let mut mask = slots(wanted) / WAYS - 1;
    for ((pair, elder), _) in PAIRS.iter().zip(&mut elders).zip(growing).filter(|(_, grows)| *grows) {
        *elder = entries(&dir.join(pair.old))? / WAYS - 1;
        if dir.join(pair.new).exists() {
            mask = entries(&dir.join(pair.new))? / WAYS - 1;
        }
    }
    let mut placed = vec![Placed { name: MOVED_IN, pin: dir.join(MOVED_IN), entries: 1 }];
    for ((pair, elder), _) in PAIRS.iter().zip(elders).zip(growing).filter(|(_, grows)| *grows) {
        placed.push(Placed { name: pair.old, pin: dir.join(pair.new), entries: (mask + 1) * WAYS });
        placed.push(Placed { name: pair.elder, pin: dir.join(pair.old), entries: (elder + 1) * WAYS });
    }
    load::programs(dir, &Constants { multipliers: *multipliers, mask, elders, traced: 0 }, wanted, &placed, false)
}

/// From the moment on that programs which know both are there.
fn both(paths: &Paths, state: &mut State, mut ebpf: Ebpf, growing: [bool; 2]) -> Result<()> {
    let dir = paths.maps();
    let begin = Instant::now();
    Attacher::new(&ebpf)?.take_over(&mut ebpf, paths, state)?;
    sleep(GRACE);
    Table::<u32, u32>::open(&dir, MOVED_IN)?.set(&0, &1)?;
    sleep(GRACE);
    let maps = Maps::open(&dir)?;
    let settings = maps.settings.get(&0)?.unwrap_or_default();
    let now = clock::read_pinned(paths, &maps)?.tick();
    let multipliers = maps.v4.flows.multipliers();
    if growing[0] {
        all::<Ip4>(&dir, &PAIRS[0], multipliers, settings, now)?;
    }
    if growing[1] {
        all::<Ip6>(&dir, &PAIRS[1], multipliers, settings, now)?;
    }
    tracing::info!("the flow tables have grown, in {} ms", begin.elapsed().as_millis());
    Ok(())
}

/// Moves a family's entries, and gives the new table the old one's name.
fn all<A: Addr>(dir: &Path, pair: &Pair, multipliers: [u64; MULTIPLIERS], settings: Settings, now: u32) -> Result<()> {
    let old = Flows::<A>::of_pin(&dir.join(pair.old), multipliers)?;
    let new = New { flows: Flows::<A>::of_pin(&dir.join(pair.new), multipliers)?, settings };
    let (mut moved, mut left) = (0, 0);
    for _ in 0..WALKS {
        left = 0;
        walk(&old, 0..old.buckets(), |key, hit| match transfer(&old, &new, &key, &hit, now) {
            Moved::Done => moved += 1,
            Moved::Later | Moved::NoRoom => left += 1,
        });
        if left == 0 {
            break;
        }
        sleep(GRACE);
    }
    if left > 0 {
        tracing::warn!("{left} entries of {} found no room in the larger table, and are lost", pair.old);
    }
    fs::rename(dir.join(pair.new), dir.join(pair.old)).with_context(|| format!("renaming the pin {}", pair.new))?;
    tracing::info!("{}: {moved} entries moved, room for {} instead of {}", pair.old, new.flows.slots(), old.slots());
    Ok(())
}

/// The larger table, as the mover knows it: alone.
struct New<A: Addr> {
    flows: Flows<A>,
    settings: Settings,
}

impl<A: Addr> FlowTable<A> for New<A> {
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        self.flows.line(place)
    }

    fn mask(&self) -> u32 {
        self.flows.mask()
    }

    fn multiplier(&self, index: usize) -> u64 {
        self.flows.multiplier(index)
    }
}

impl<A: Addr> Configured for New<A> {
    fn settings(&self) -> Settings {
        self.settings
    }
}

/// Removes pins, whose maps live as long as programs use them.
fn forget<const N: usize>(dir: &Path, names: [&str; N]) -> Result<()> {
    for name in names {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing the pin {name}"));
            }
            _ => {}
        }
    }
    Ok(())
}
