//! The log of mappings between inside and outside: who had which port when (RFC 6888 REQ-12).
//!
//! Invariant: it has a thread of its own, so that a slow disk delays nothing but the log; what does not
//! fit into the kernel's buffer meanwhile is counted there ([`lb_common::drop::Note::NatLogLost`]), and
//! what can't be written is counted here. The buffer is pinned: what happens while no agent runs is
//! written by the next one, with the time at which it reads it. Its lines are described in `docs/json.md`.

mod file;

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, RingBuf};
use lb_common::table::MappingEvent;
use lb_common::wire::{Addr, Ip4, Ip6};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use zerocopy::FromBytes;

pub(crate) use self::file::utc;
use self::file::{Line, LogFile};
use crate::apply::Paths;
use crate::apply::maps;
use crate::apply::ports::Ended;
use crate::source::readiness::readable;

/// Mappings that the agent itself ends in one go, at the most, before they are written: more than an
/// address outside has.
const ENDS: usize = 1 << 18;
/// Entries that the kernel's buffer has room for, at the most.
const BUFFER: usize = (1 << 20) / (8 + size_of::<MappingEvent<Ip4>>());
/// How often the file is looked for where it should be.
const LOOK: Duration = Duration::from_secs(1);
/// How long the agent's own end waits for the last lines.
const LAST: Duration = Duration::from_secs(1);
/// Lines that are written at once, and how often before anything else is looked after.
const BATCH: usize = 512;
const BATCHES: usize = 16;

/// The log, as long as it is held.
#[derive(Debug)]
pub struct NatLog {
    path: Option<watch::Sender<Option<PathBuf>>>,
    ends: Ends,
    done: std_mpsc::Receiver<()>,
}

/// Where mappings go that the agent ends.
#[derive(Clone, Debug)]
pub struct Ends {
    lines: mpsc::Sender<Ended>,
    lost: Arc<AtomicU64>,
}

impl Ends {
    /// Never waits.
    pub fn send(&self, ended: Ended) {
        if self.lines.try_send(ended).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl NatLog {
    /// Writes to another file from now on; to none: what comes is thrown away.
    pub fn set_path(&self, path: Option<PathBuf>) {
        if let Some(sender) = &self.path {
            sender.send_if_modified(|old| (*old != path).then(|| *old = path).is_some());
        }
    }

    pub fn ends(&self) -> Ends {
        self.ends.clone()
    }
}

impl Drop for NatLog {
    fn drop(&mut self) {
        self.path = None;
        // Its end, or the time's: either way there is nothing more to do.
        let _ = self.done.recv_timeout(LAST);
    }
}

/// Begins, once the maps are there.
pub fn start(paths: &Paths, path: Option<PathBuf>) -> Result<NatLog> {
    let pin = paths.maps().join(maps::NAT_LOG);
    let map = MapData::from_pin(&pin).with_context(|| format!("the pinned map {}", pin.display()))?;
    let buffer = RingBuf::try_from(Map::from_map_data(map)?).context("the log of mappings")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (path, path_by) = watch::channel(path);
    let (lines, ends) = mpsc::channel(ENDS);
    let (done_by, done) = std_mpsc::channel();
    let lost = Arc::<AtomicU64>::default();
    let writer = Writer { file: LogFile::default(), ends, lost: lost.clone(), path: path_by };
    let work = move || {
        if let Err(error) = runtime.block_on(writer.run(buffer)) {
            tracing::error!("mappings are not logged any more: {error:#}");
        }
        let _ = done_by.send(());
    };
    thread::Builder::new().name("nat-log".into()).spawn(work).context("a thread that logs mappings")?;
    Ok(NatLog { path: Some(path), ends: Ends { lines, lost }, done })
}

struct Writer {
    file: LogFile,
    ends: mpsc::Receiver<Ended>,
    lost: Arc<AtomicU64>,
    path: watch::Receiver<Option<PathBuf>>,
}

impl Writer {
    async fn run(mut self, buffer: RingBuf<MapData>) -> Result<()> {
        let mut buffer = readable(buffer)?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.file.set(self.path.borrow_and_update().clone());
        loop {
            let mut changed = None;
            tokio::select! {
                read = self.file.read(&mut buffer) => read?,
                Some(ended) = self.ends.recv() => self.file.ended(&ended, buffer.get_mut()),
                result = self.path.changed() => changed = Some(result),
                _ = look.tick() => self.file.look(),
            }
            while let Ok(ended) = self.ends.try_recv() {
                self.file.ended(&ended, buffer.get_mut());
            }
            // Also what no wakeup told of: there was something before this began.
            self.file.drain(buffer.get_mut());
            self.file.lose(self.lost.swap(0, Ordering::Relaxed), "too many ended at once");
            self.file.flush();
            match changed {
                None => {}
                // What came before still went to the former file.
                Some(Ok(())) => self.file.set(self.path.borrow_and_update().clone()),
                Some(Err(_)) => {
                    self.file.say();
                    return Ok(());
                }
            }
        }
    }
}

impl LogFile {
    /// Waits for the buffer, and reads what is in it.
    async fn read(&mut self, buffer: &mut AsyncFd<RingBuf<MapData>>) -> io::Result<()> {
        let mut ready = buffer.readable_mut().await?;
        if self.drain(ready.get_inner_mut()) {
            ready.clear_ready();
        }
        Ok(())
    }

    /// Reads what is in the buffer, but not for ever; whether that was all.
    fn drain(&mut self, buffer: &mut RingBuf<MapData>) -> bool {
        for _ in 0..BATCHES * BATCH {
            let Some(entry) = buffer.next() else { return true };
            self.event(&entry);
            drop(entry);
            if self.lines() >= BATCH {
                self.flush();
            }
        }
        false
    }

    /// An entry of the kernel's buffer: its length says of which family it is.
    fn event(&mut self, entry: &[u8]) {
        const V4: usize = size_of::<MappingEvent<Ip4>>();
        const V6: usize = size_of::<MappingEvent<Ip6>>();
        match entry.len() {
            V4 => self.mapping(MappingEvent::<Ip4>::read_from_bytes(entry).ok()),
            V6 => self.mapping(MappingEvent::<Ip6>::read_from_bytes(entry).ok()),
            len => self.lose(1, &format!("the kernel told of a mapping in {len} bytes")),
        }
    }

    fn mapping<A: Addr>(&mut self, event: Option<MappingEvent<A>>) {
        let Some(event) = event else { return };
        self.line(&Line {
            time: SystemTime::now(),
            event: if event.what == MappingEvent::<A>::ENDS { "end" } else { "begin" },
            protocol: event.proto as u8,
            inside: SocketAddr::new(event.inside.to_ip(), event.inside_port.get()),
            outside: SocketAddr::new(event.outside.to_ip(), event.outside_port.get()),
        });
    }

    fn ended(&mut self, ended: &Ended, buffer: &mut RingBuf<MapData>) {
        let Ended { time, protocol, inside, outside } = *ended;
        if time.is_none() {
            // Its beginning may still wait there; the next one of its port doesn't.
            for _ in 0..BUFFER / (BATCHES * BATCH) + 1 {
                if self.drain(buffer) {
                    break;
                }
            }
        }
        let time = time.unwrap_or_else(SystemTime::now);
        self.line(&Line { time, event: "end", protocol, inside, outside });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn entries_are_told_apart_by_length() {
        let path = std::env::temp_dir().join(format!("stellwerk-nat-events-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut file = LogFile::default();
        file.set(Some(path.clone()));
        let [begins, ends] = [MappingEvent::<Ip4>::BEGINS, MappingEvent::<Ip4>::ENDS].map(u16::to_ne_bytes);
        let v4: [&[u8]; 6] =
            [&[10, 20, 0, 7], &[203, 0, 113, 2], &[0x13, 0x88], &[0x13, 0x89], &begins, &6u16.to_ne_bytes()];
        let [inside, outside] = ["fd00::7", "2001:db8::2"].map(|addr| addr.parse::<Ipv6Addr>().unwrap().octets());
        let v6: [&[u8]; 6] = [&inside, &outside, &[0, 7], &[0, 8], &ends, &58u16.to_ne_bytes()];
        file.event(&v4.concat());
        file.event(&v6.concat());
        file.event(&[0; 24]);
        file.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [a, b] = &lines[..] else { panic!("{text}") };
        assert_eq!((&a["event"], &a["protocol"]), (&"begin".into(), &"tcp".into()));
        assert_eq!((&a["inside"], &a["outside"]), (&"10.20.0.7:5000".into(), &"203.0.113.2:5001".into()));
        assert_eq!((&b["event"], &b["protocol"]), (&"end".into(), &"icmpv6".into()));
        assert_eq!((&b["inside"], &b["outside"]), (&"[fd00::7]:7".into(), &"[2001:db8::2]:8".into()));
    }
}
