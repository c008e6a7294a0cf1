//! Runs packet cases: on the host ([`Host`]) and, in step with it, in the kernel (`kernel`).
//!
//! What is expected is built from the case's own words (`packet::build`), never by the engine.

pub mod bless;
mod files;
pub mod host;
pub mod kernel;
pub mod tables;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use lb_common::verdict::{Arrival, Hook, Verdict};
use lb_common::wire::{Ip4, Ip6};
use lb_user::plan::{Apply, Contents, Op};

use crate::case::{Arriving, Case, Expected, Step, TICKS, What, World};
use crate::fake::ports::Mapped;
use crate::fake::show::{self, named_flow};
use crate::fake::{Fake, InFake};
use crate::packet::{self, Names, Spec};
pub use files::{cases, texts};

/// The tick that a case starts at: far from both ends, so that clocks may be turned back.
pub const START: u32 = 1_000_000;

/// What became of a step, in the words of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The lines that would expect just this.
    pub lines: Vec<String>,
    /// Why the case's own lines don't, if so.
    pub wrong: Option<String>,
}

/// A case under way on the host.
pub struct Host<'a> {
    pub case: &'a Case,
    pub fake: Fake,
    contents: Option<Contents>,
}

/// A packet's fate: what the hook was told and the bytes that left.
#[derive(Clone, Debug, PartialEq)]
pub struct Fate {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
    pub notes: Vec<String>,
}

impl<'a> Host<'a> {
    pub fn new(case: &'a Case) -> Self {
        Host { case, fake: Fake::new(case.world.capacity, TICKS), contents: None }
    }

    /// The operations that a change of tables means.
    pub fn ops(&mut self, to: &Contents) -> Vec<Op> {
        let ops = tables::ops(self.contents.as_ref(), to);
        self.contents = Some(to.clone());
        ops
    }

    /// Does a step that is no packet.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), String> {
        ops.iter().try_for_each(|op| self.fake.apply(op)).map_err(|e| e.to_string())
    }

    /// Runs a packet.
    pub fn packet(&self, arriving: &Arriving, bytes: Vec<u8>) -> Fate {
        let at = Arrival {
            hook: arriving.hook,
            ifindex: arriving.ifindex,
            now: START,
            gso_size: arriving.gso_size,
            tagged: arriving.tagged.into(),
            own: (arriving.hook == Hook::Egress && arriving.from == 0).into(),
            tunneled: 0,
        };
        let before = self.fake.tally.borrow().notes.clone();
        let (verdict, bytes) = host::run(&self.fake, &at, bytes, arriving.refuses);
        let notes = gained(&before, &self.fake.tally.borrow().notes);
        Fate { verdict, bytes, notes }
    }

    /// Does a step and judges it.
    pub fn step(&mut self, step: &Step) -> Result<Outcome, String> {
        match &step.what {
            What::Tables(contents) => {
                let ops = self.ops(contents);
                self.apply(&ops)?;
            }
            What::Apply(op) => self.apply(std::slice::from_ref(op))?,
            What::Advance(seconds) => self.fake.age(seconds * TICKS),
            What::Packet(arriving) => {
                let bytes = packet::build(&arriving.packet, &arriving.names)?;
                let fate = self.packet(arriving, bytes.clone());
                return self.judge(arriving, &bytes, &fate);
            }
            What::Flows(expected) => {
                let lines = flow_lines(&self.fake, &self.case.world.names());
                let wrong = (lines != *expected).then(|| format!("the flows are\n  {}", lines.join("\n  ")));
                return Ok(Outcome { lines: lines.iter().map(|l| format!("flow {l}")).collect(), wrong });
            }
            What::Mappings(expected) => {
                let lines = mapping_lines(&self.fake, &self.case.world.names());
                let wrong = (lines != *expected).then(|| format!("the mappings are\n  {}", lines.join("\n  ")));
                return Ok(Outcome { lines: lines.iter().map(|l| format!("mapping {l}")).collect(), wrong });
            }
            What::Counted { name, id, text } => {
                let c = self.fake.tally.borrow().backends.get(id).copied().unwrap_or_default();
                let is = format!(
                    "connections={} packets={} bytes={} replies={} reply_bytes={}",
                    c.connections, c.packets, c.bytes, c.reply_packets, c.reply_bytes
                );
                let wrong = (is != *text).then(|| format!("counted is {is}"));
                return Ok(Outcome { lines: vec![format!("count {name} {is}")], wrong });
            }
        }
        Ok(Outcome { lines: Vec::new(), wrong: None })
    }

    /// Holds a packet's fate against the case.
    fn judge(&self, arriving: &Arriving, sent: &[u8], fate: &Fate) -> Result<Outcome, String> {
        let world = &self.case.world;
        let verdict = verdict_text(fate.verdict, world);
        let mut lines = vec![format!("out {verdict}")];
        let leaves = !matches!(fate.verdict, Verdict::Drop(_));
        if leaves && fate.bytes != sent {
            // Which neighbour goes without saying depends on where the packet goes.
            let to = destination(&fate.bytes);
            let spec = packet::show(&fate.bytes, &names_out(world, arriving, &verdict, to));
            lines[0] += &format!(" {}", spec.text());
        }
        lines.extend(fate.notes.iter().map(|label| format!("note {label}")));
        let wrong = self.differs(arriving, sent, fate, &verdict)?;
        Ok(Outcome { lines, wrong })
    }

    fn differs(&self, arriving: &Arriving, sent: &[u8], fate: &Fate, is: &str) -> Result<Option<String>, String> {
        let mut notes = Vec::new();
        let mut out = None;
        for expected in &arriving.expected {
            match expected {
                Expected::Note(label) => notes.push(label.clone()),
                Expected::Out { verdict, packet } => out = Some((verdict, packet)),
            }
        }
        let Some((verdict, packet)) = out else {
            return Ok(Some("nothing is expected".into()));
        };
        if verdict != is {
            return Ok(Some(format!("expected {verdict}, the verdict is {is}")));
        }
        if notes != fate.notes {
            return Ok(Some(format!("expected notes {notes:?}, noted are {:?}", fate.notes)));
        }
        let expected = match packet {
            Some(spec) => packet::build(spec, &self.names_for(spec, arriving, verdict)?)?,
            None if matches!(fate.verdict, Verdict::Drop(_)) => return Ok(None),
            None => sent.to_vec(),
        };
        if expected == fate.bytes {
            return Ok(None);
        }
        let names = &arriving.names;
        Ok(Some(format!(
            "the packet differs\n  expected {}\n  is       {}\n{}",
            packet::show::headers(&expected, names),
            packet::show::headers(&fate.bytes, names),
            byte_diff(&expected, &fate.bytes)
        )))
    }

    fn names_for(&self, spec: &Spec, arriving: &Arriving, verdict: &str) -> Result<Names, String> {
        let world = &self.case.world;
        let to = spec.dst.as_ref().map(|end| world.names().resolve(&end.host)).transpose()?;
        Ok(names_out(world, arriving, verdict, to))
    }
}

/// The link-layer addresses that a packet of this verdict has unless the case says others.
fn names_out(world: &World, arriving: &Arriving, verdict: &str, to: Option<IpAddr>) -> Names {
    let (src, dst) = arriving.names.macs;
    let names = world.names();
    match verdict.split(' ').next() {
        Some("transmit" | "transmit-peer") => match to.and_then(|to| world.neighbour(to)) {
            Some((link, mac)) => names.with_macs(link.mac, mac),
            None => names,
        },
        Some("reply" | "refuse") => names.with_macs(dst, src),
        Some("reinject") => names.with_macs(src, src),
        _ => names.with_macs(src, dst),
    }
}

fn destination(frame: &[u8]) -> Option<IpAddr> {
    let at = if frame.get(12..14)? == [0x81, 0] { 18 } else { 14 };
    match frame.get(at)? >> 4 {
        4 => Some(<[u8; 4]>::try_from(frame.get(at + 16..at + 20)?).ok()?.into()),
        _ => Some(<[u8; 16]>::try_from(frame.get(at + 24..at + 40)?).ok()?.into()),
    }
}

/// A verdict in the words of a case.
pub fn verdict_text(verdict: Verdict, world: &World) -> String {
    match verdict {
        Verdict::Pass => "pass".into(),
        Verdict::Continue => "continue".into(),
        Verdict::Reply => "reply".into(),
        Verdict::Reinject => "reinject".into(),
        Verdict::Refuse(reason) => format!("refuse {}", reason.label()),
        Verdict::Drop(reason) => format!("drop {}", reason.label()),
        // Nothing leaves the hooks so.
        Verdict::Encapsulate { next_hop } => format!("encapsulate {next_hop}"),
        Verdict::Transmit { ifindex } => format!("transmit {}", link_name(world, ifindex)),
        Verdict::TransmitPeer { ifindex } => format!("transmit-peer {}", link_name(world, ifindex)),
    }
}

fn link_name(world: &World, ifindex: u32) -> String {
    let link = world.links.iter().find(|link| link.index == ifindex);
    link.map_or_else(|| format!("link-{ifindex}"), |link| link.name.clone())
}

/// Labels counted since `before`, each as often as it was counted.
pub fn gained(before: &BTreeMap<&'static str, u64>, after: &BTreeMap<&'static str, u64>) -> Vec<String> {
    let more = |(label, count): (&&'static str, &u64)| {
        vec![label.to_string(); (count - before.get(label).unwrap_or(&0)) as usize]
    };
    after.iter().flat_map(more).collect()
}

/// All flows, a line each, with names for addresses.
pub fn flow_lines(fake: &Fake, names: &Names) -> Vec<String> {
    let end = |addr: IpAddr, port: u16| packet::End { host: names.name(addr), port: Some(port) }.text();
    fn of<A: InFake>(fake: &Fake, end: &dyn Fn(IpAddr, u16) -> String) -> Vec<String> {
        A::flows(fake).all().iter().map(|(key, flow)| named_flow(key, flow, end)).collect()
    }
    let mut lines = [of::<Ip4>(fake, &end), of::<Ip6>(fake, &end)].concat();
    lines.sort();
    lines
}

/// All mappings between inside and outside, a line each, with names for addresses.
pub fn mapping_lines(fake: &Fake, names: &Names) -> Vec<String> {
    fn of<A: InFake>(fake: &Fake, names: &Names) -> Vec<String> {
        let line = |m: &Mapped<A>| {
            let inside = packet::End { host: names.name(m.inside.0.to_ip()), port: Some(m.inside.1) }.text();
            let more = [(m.shared, " shared"), (m.away, " away")].map(|(is, word)| if is { word } else { "" }).concat();
            let state = lb_common::tcp::label(m.state);
            format!("{} {inside} = {} plane={} {state}{more}", show::proto(m.proto.into()), m.outside, m.plane)
        };
        A::ports(fake).all().iter().map(line).collect()
    }
    [of::<Ip4>(fake, names), of::<Ip6>(fake, names)].concat()
}

/// Where two packets differ, in rows of 16 bytes.
pub fn byte_diff(expected: &[u8], is: &[u8]) -> String {
    let mut out = String::new();
    for at in (0..expected.len().max(is.len())).step_by(16) {
        let row = |bytes: &[u8]| bytes.iter().skip(at).take(16).map(|b| format!("{b:02x} ")).collect::<String>();
        let (a, b) = (row(expected), row(is));
        if a != b {
            let _ = writeln!(out, "  {at:4} expected {a}\n       is       {b}");
        }
    }
    out
}

/// Runs a whole case on the host; the error says everything that a reader needs.
pub fn on_host(case: &Case) -> Result<(), String> {
    let mut host = Host::new(case);
    for step in &case.steps {
        let line = step.at.start + 1;
        let outcome = host.step(step).map_err(|e| format!("{}:{line}: {e}", case.name))?;
        if let Some(wrong) = outcome.wrong {
            let input = match &step.what {
                What::Packet(arriving) => {
                    format!("\nin {:?} {}", arriving.hook, arriving.packet.text())
                }
                _ => String::new(),
            };
            return Err(format!("{}:{line}: {wrong}{input}\ntables:\n{}", case.name, host.fake));
        }
    }
    Ok(())
}
