//! `stellwerk monitor`: what happens on the node, as it happens: packets that are dropped and why, others by their number,
//! connections that begin and end, and those that a policy allows.
//!
//! Invariant: the programs tell of packets only while somebody asks again every second, so that one that is killed leaves
//! nothing on; what finds no room is counted and said. Connections are looked for in their tables: they cost packets
//! nothing. One watches at a time: a packet is told once.

mod event;
mod filter;

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use aya::maps::{Map, MapData, RingBuf};
use lb_common::drop::Note;
use lb_common::table::monitor::{Sighting, Watch};
use lb_common::table::{Admitted, Flow, FlowKey};
use lb_common::wire::{Addr, Ip4, Ip6};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use zerocopy::FromBytes;

use self::event::Event;
pub use self::filter::{Filter, reason};
use crate::apply::maps::FamilyMaps;
use crate::apply::{Maps, Paths, State, clock, maps};
use crate::show;
use crate::trace::Names;

/// How often packets are asked for: the buffer holds a few thousand.
const LOOK: Duration = Duration::from_millis(50);
/// Looks of a second, after each of which the programs are told to go on for as long as
const SECOND: u32 = 20;
/// so many seconds.
const HOLD: u32 = 3;

/// What somebody wants to see.
#[derive(Clone, Debug)]
pub struct Asked {
    pub filter: Filter,
    /// Beside what is dropped one packet in so many of each CPU's; 0: none.
    pub every: u32,
    pub flows: bool,
    pub json: bool,
    pub pcap: Option<PathBuf>,
    /// Events, and seconds, after which it ends.
    pub count: Option<u64>,
    pub seconds: Option<u64>,
}

/// Says when it is over how much there was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub events: u64,
    pub lost: u64,
}

/// What there was of a family when it was looked for.
struct Known<A: Addr> {
    flows: HashMap<FlowKey<A>, Flow<A>>,
    allowed: HashMap<FlowKey<A>, Admitted<A>>,
}

impl<A: Addr> Known<A> {
    /// Connections by the direction in which they were opened, and those that a policy was asked about.
    fn read(maps: &FamilyMaps<A>) -> Result<Self> {
        let opened = |flow: &Flow<A>| !flow.is(Flow::<A>::REPLY | Flow::<A>::MEMORY);
        let flows = maps.flows.entries().into_iter().filter(|(_, hit)| opened(&hit.flow));
        let judged = |admitted: &Admitted<A>| ![0, Admitted::<A>::OWN].contains(&admitted.policy);
        let allowed = maps.admitted.entries()?.into_iter().filter(|(_, admitted)| judged(admitted));
        Ok(Known { flows: flows.map(|(key, hit)| (key, hit.flow)).collect(), allowed: allowed.collect() })
    }
}

struct Monitor<'a, W: Write> {
    asked: &'a Asked,
    paths: &'a Paths,
    maps: Maps,
    names: Names,
    filter: filter::Ready<'a>,
    known4: Known<Ip4>,
    known6: Known<Ip6>,
    capture: Option<PcapWriter<File>>,
    lost_before: u64,
    summary: Summary,
    out: W,
}

/// Until it is interrupted, or has seen as much as was asked for. `begun` is called once nothing is missed any more.
pub fn run(paths: &Paths, asked: &Asked, out: impl Write, begun: impl FnOnce()) -> Result<Summary> {
    let maps = show::open(paths)?;
    let _alone = alone(&paths.run)?;
    let mirror = show::mirror(&State::read(paths)?)?;
    let names = Names::read(&maps, show::interfaces(mirror.as_ref()))?;
    let pin = paths.maps().join(maps::SIGHTINGS);
    let map = MapData::from_pin(&pin).with_context(|| format!("the pinned map {}", pin.display()))?;
    let mut ring = RingBuf::try_from(Map::from_map_data(map)?).context("the buffer of packets")?;
    // What is left of one that was killed.
    while ring.next().is_some() {}
    let capture = |path: &PathBuf| -> Result<PcapWriter<File>> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        PcapWriter::new(file).with_context(|| path.display().to_string())
    };
    let mut monitor = Monitor {
        asked,
        paths,
        filter: asked.filter.ready(&maps, &names)?,
        known4: Known::read(&maps.v4)?,
        known6: Known::read(&maps.v6)?,
        capture: asked.pcap.as_ref().map(capture).transpose()?,
        lost_before: maps.notes.sum(Note::MonitorLost as u32)?,
        summary: Summary::default(),
        maps,
        names,
        out,
    };
    // One before may have left a long way to the next packet.
    monitor.maps.watch_left.zero(0)?;
    monitor.watch(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let watched = runtime.block_on(monitor.go(&mut ring, begun));
    monitor.watch(false)?;
    monitor.summary.lost = monitor.maps.notes.sum(Note::MonitorLost as u32)? - monitor.lost_before;
    match watched {
        // A reader that has seen enough (`| head`) is no error.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {}
        watched => watched?,
    }
    Ok(monitor.summary)
}

/// Held as long as somebody watches.
fn alone(run: &Path) -> Result<File> {
    let path = run.join("monitor.lock");
    let shown = || path.display().to_string();
    fs::create_dir_all(run).with_context(shown)?;
    let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(shown)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another `stellwerk monitor` runs; expected one at a time"),
        Err(TryLockError::Error(error)) => Err(error).with_context(shown),
    }
}

impl<W: Write> Monitor<'_, W> {
    /// Tells the programs to go on, or that it is over.
    fn watch(&self, on: bool) -> Result<()> {
        let ticks = self.maps.settings.get(&0)?.unwrap_or_default().ticks_per_second;
        let now = clock::read_pinned(self.paths, &self.maps)?.tick();
        let until = if on { now.wrapping_add(HOLD * ticks).max(1) } else { 0 };
        self.maps.watch.set(&0, &Watch { until, every: self.asked.every })
    }

    async fn go(&mut self, ring: &mut RingBuf<MapData>, begun: impl FnOnce()) -> Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        begun();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = self.asked.seconds.map(|seconds| tokio::time::Instant::now() + Duration::from_secs(seconds));
        for look in 0u32.. {
            let over = tokio::select! {
                _ = looks.tick() => end.is_some_and(|end| tokio::time::Instant::now() >= end),
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
            };
            self.packets(ring)?;
            if over || look % SECOND == SECOND - 1 {
                self.watch(true)?;
                self.flows()?;
            }
            if over || self.has_enough() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Those that wait.
    fn packets(&mut self, ring: &mut RingBuf<MapData>) -> Result<()> {
        while !self.has_enough()
            && let Some(bytes) = ring.next()
        {
            if let Ok((sighting, _)) = Sighting::read_from_prefix(&bytes) {
                self.packet(&sighting)?;
            }
        }
        Ok(())
    }

    fn has_enough(&self) -> bool {
        self.asked.count.is_some_and(|count| self.summary.events >= count)
    }

    fn packet(&mut self, sighting: &Sighting) -> Result<()> {
        if !self.filter.packet(sighting, event::bytes(sighting)) {
            return Ok(());
        }
        if let Some(capture) = &mut self.capture {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let packet = PcapPacket::new(since, sighting.len.max(sighting.kept), event::bytes(sighting));
            capture.write_packet(&packet).context("writing the capture")?;
        }
        self.say(&Event::of_packet(sighting, &self.names))
    }

    fn flows(&mut self) -> Result<()> {
        if !self.asked.flows || self.has_enough() {
            return Ok(());
        }
        let (now4, now6) = (Known::read(&self.maps.v4)?, Known::read(&self.maps.v6)?);
        let (before4, before6) = (mem::replace(&mut self.known4, now4), mem::replace(&mut self.known6, now6));
        let events = [self.differences(&before4, &self.known4), self.differences(&before6, &self.known6)].concat();
        for event in events {
            if self.has_enough() {
                break;
            }
            self.say(&event)?;
        }
        Ok(())
    }

    fn differences<A: Addr>(&self, before: &Known<A>, now: &Known<A>) -> Vec<Event> {
        let gone = before.flows.iter().filter(|(key, _)| !now.flows.contains_key(key));
        let new = now.flows.iter().filter(|(key, _)| !before.flows.contains_key(key));
        let all = gone.map(|(key, flow)| ("ends", key, flow)).chain(new.map(|(key, flow)| ("begins", key, flow)));
        let mut all: Vec<_> = all.filter(|(_, key, flow)| self.filter.flow(key, flow)).collect();
        all.sort_unstable_by_key(|(what, key, _)| (*what, **key));
        let mut allowed: Vec<_> = now.allowed.iter().filter(|(key, _)| !before.allowed.contains_key(key)).collect();
        allowed.retain(|(key, _)| self.filter.allowed(key));
        allowed.sort_unstable_by_key(|(key, _)| **key);
        let allowed = allowed.into_iter().map(|(key, admitted)| Event::of_allowed(key, admitted, &self.names));
        all.into_iter().map(|(what, key, flow)| Event::of_flow(what, key, flow, &self.names)).chain(allowed).collect()
    }

    fn say(&mut self, event: &Event) -> Result<()> {
        self.summary.events += 1;
        if self.asked.json {
            serde_json::to_writer(&mut self.out, event).map_err(io::Error::from)?;
            writeln!(self.out)?;
        } else {
            writeln!(self.out, "{event}")?;
        }
        Ok(self.out.flush()?)
    }
}
