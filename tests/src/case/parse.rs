//! From the text of a case to its steps.

use lb_common::verdict::Hook;
use lb_user::plan::Op;

use super::device::{self, seconds};
use super::{Arriving, Case, Expected, Lines, Step, What, World};
use crate::fake::SMALL;
use crate::packet::{End, Spec};
use crate::runner::host::Refuses;

type Built<T> = Result<T, String>;

/// The device that every case starts from, unless it says `world none`.
pub const WORLD: &str = include_str!("../../cases/world.inc");

/// The case for IPv4 (`v6` false) or IPv6; None when the file is not for this version.
pub fn case(name: &str, text: &str, v6: bool) -> Built<Option<Case>> {
    let other = if v6 { "family v4" } else { "family v6" };
    if text.lines().any(|line| line.trim() == other) {
        return Ok(None);
    }
    let mut reader = Reader {
        world: World { v6, capacity: SMALL, ..World::default() },
        steps: Vec::new(),
        dirty: None,
        host_only: None,
    };
    if !text.lines().any(|line| line.trim() == "world none") {
        for line in WORLD.lines() {
            reader.line(line, 0..0)?;
        }
    }
    for (at, line) in text.lines().enumerate() {
        reader.line(line, at..at + 1).map_err(|e| format!("{name}:{}: {e}", at + 1))?;
    }
    let name = format!("{name} {}", if v6 { "v6" } else { "v4" });
    Ok(Some(Case { name, world: reader.world, steps: reader.steps, host_only: reader.host_only }))
}

struct Reader {
    world: World,
    steps: Vec<Step>,
    /// Lines that changed the world since the tables were made from it.
    dirty: Option<Lines>,
    host_only: Option<String>,
}

impl Reader {
    fn line(&mut self, line: &str, at: Lines) -> Built<()> {
        let line = line.split(" # ").next().unwrap_or("").trim();
        let line = match (line.strip_prefix("v4:"), line.strip_prefix("v6:"), self.world.v6) {
            (Some(other), _, true) | (_, Some(other), false) => {
                // The other version's expectation is a line of the block all the same.
                let expectation = ["out ", "note ", "flow ", "mapping "].iter().any(|w| other.trim().starts_with(w));
                let step = self.steps.last_mut().filter(|s| expectation && s.expected_at.end == at.start);
                if let Some(step) = step {
                    step.expected_at.end = at.end;
                }
                return Ok(());
            }
            (Some(rest), _, false) | (_, Some(rest), true) => rest.trim(),
            _ => line,
        };
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match word {
            "in" | "advance" | "flows" | "mappings" | "count" | "end" => self.step(word, rest, at),
            "out" | "note" => self.expected(word, rest, at),
            "flow" => {
                let step = self.steps.last_mut().ok_or("`flow` comes behind `flows`")?;
                let What::Flows(lines) = &mut step.what else {
                    return Err("`flow` comes behind `flows`".into());
                };
                lines.push(rest.into());
                step.expected_at.end = at.end;
                Ok(())
            }
            "mapping" => {
                let step = self.steps.last_mut().ok_or("`mapping` comes behind `mappings`")?;
                let What::Mappings(lines) = &mut step.what else {
                    return Err("`mapping` comes behind `mappings`".into());
                };
                lines.push(rest.into());
                step.expected_at.end = at.end;
                Ok(())
            }
            "family" | "world" => Ok(()),
            "host-only" => {
                self.host_only = Some(rest.into());
                Ok(())
            }
            _ => {
                device::line(&mut self.world, word, rest)?;
                let start = self.dirty.as_ref().map_or(at.start, |lines| lines.start);
                self.dirty = Some(start..at.end);
                Ok(())
            }
        }
    }

    fn step(&mut self, word: &str, rest: &str, at: Lines) -> Built<()> {
        if let Some(lines) = self.dirty.take() {
            let contents = self.world.contents()?;
            self.push(lines, What::Tables(Box::new(contents)));
        }
        let what = match word {
            "in" => What::Packet(Box::new(self.arriving(rest)?)),
            "advance" => What::Advance(seconds(rest)?),
            "flows" => What::Flows(Vec::new()),
            "mappings" => What::Mappings(Vec::new()),
            "count" => {
                let (backend, text) = rest.split_once(' ').ok_or("count BACKEND …")?;
                let id = self.world.backend_id(&backend.parse()?)?;
                let what = What::Counted { name: backend.into(), id, text: text.trim().into() };
                self.steps.push(Step { at: at.clone(), expected_at: at, what });
                return Ok(());
            }
            _ => {
                let ids = rest.split_whitespace().map(|b| self.world.backend_id(&b.parse()?));
                What::Apply(Op::EndFlows { backends: ids.collect::<Built<_>>()? })
            }
        };
        self.push(at, what);
        Ok(())
    }

    fn push(&mut self, at: Lines, what: What) {
        let expected_at = at.end..at.end;
        self.steps.push(Step { at, expected_at, what });
    }

    fn arriving(&self, rest: &str) -> Built<Arriving> {
        let mut parts = rest.splitn(3, ' ');
        let (hook, link, packet) = (parts.next(), parts.next(), parts.next());
        let hook = match hook {
            Some("xdp") => Hook::Xdp,
            Some("ingress") => Hook::Ingress,
            Some("egress") => Hook::Egress,
            _ => return Err("in xdp|ingress|egress LINK PACKET".into()),
        };
        let link = self.world.link(link.unwrap_or(""))?;
        let mut packet: Spec = packet.unwrap_or("").parse()?;
        let gso_size = packet.number("gso", 0)? as u32;
        packet.attrs.remove("gso");
        let tagged = packet.attrs.remove("offtag").is_some();
        let from = match packet.attrs.remove("forwarded") {
            Some(link) => self.world.link(&link)?.index,
            None => 0,
        };
        let refuses = match (packet.attrs.remove("noresize"), packet.attrs.remove("nowrite")) {
            (Some(_), _) => Refuses::Resizing,
            (_, Some(_)) => Refuses::Writing,
            _ => Refuses::Nothing,
        };
        // Who sends it: the neighbour that its source is or is behind; at egress, this node.
        let far = |end: &Option<End>| {
            let addr = self.world.names().resolve(&end.as_ref()?.host).ok()?;
            self.world.neighbour(addr).filter(|(l, _)| l.name == link.name).map(|(_, mac)| mac)
        };
        const STRANGER: crate::packet::Mac = [2, 0x99, 0, 0, 0, 0x99];
        let names = match hook {
            Hook::Egress => self.world.names().with_macs(link.mac, far(&packet.dst).unwrap_or(STRANGER)),
            _ => self.world.names().with_macs(far(&packet.src).unwrap_or(STRANGER), link.mac),
        };
        Ok(Arriving { hook, ifindex: link.index, gso_size, tagged, from, refuses, packet, expected: Vec::new(), names })
    }

    fn expected(&mut self, word: &str, rest: &str, at: Lines) -> Built<()> {
        let step = self.steps.last_mut().ok_or("an expectation comes behind `in`")?;
        let What::Packet(arriving) = &mut step.what else {
            return Err("an expectation comes behind `in`".into());
        };
        step.expected_at.end = at.end;
        if word == "note" {
            arriving.expected.push(Expected::Note(rest.into()));
            return Ok(());
        }
        // Words of the verdict, then the packet.
        let words = match rest.split(' ').next().unwrap_or("") {
            "transmit" | "transmit-peer" | "drop" | "refuse" => 2,
            _ => 1,
        };
        let mut parts = rest.splitn(words + 1, ' ');
        let verdict = parts.by_ref().take(words).collect::<Vec<_>>().join(" ");
        let packet = parts.next().map(str::parse).transpose()?;
        arriving.expected.push(Expected::Out { verdict, packet });
        Ok(())
    }
}
