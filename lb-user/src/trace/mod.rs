//! `stellwerk trace`: what would become of a packet, and why.
//!
//! Invariant: the engine itself says it, over the live maps ([`view`]): nothing is written, nothing is sent. Not here: what
//! the kernel makes of a packet that the engine leaves to it.

pub mod buffer;
pub mod packet;
mod routes;
mod told;
pub mod view;
mod why;

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use lb_common::drop::Drop;
use lb_common::flow_table::{self, Hit};
use lb_common::path;
use lb_common::path::network_policy::{self, Judgement, Meeting, PolicyTables};
use lb_common::table::FlowKey;
use lb_common::tables::Tables;
use lb_common::verdict::{Action, Arrival, Hook, Outcome, Verdict};
use lb_common::wire::{Be16, Ip4, Ip6};
use serde::Serialize;
use zerocopy::FromZeros;

use self::buffer::{Buffer, Refuses};
use self::packet::Words;
use self::told::Step;
pub use self::told::{Names, hook_name};
use self::view::{Family, View};
use crate::agent::running;
use crate::apply::{Maps, Paths, Point, State, attached, clock};
use crate::show;
use crate::source::netlink::Mirror;

/// Packets to ask about.
#[derive(Clone, Debug)]
pub enum Packets {
    Words(Words),
    Frames(Vec<Vec<u8>>),
}

/// Where they are met.
#[derive(Clone, Debug)]
pub enum Place {
    /// They come in by this port or interface.
    In(String),
    /// This node's own stack sends them by it.
    Out(String),
}

#[derive(Clone, Debug)]
pub struct Question {
    pub packets: Packets,
    pub place: Place,
    /// Why it isn't this backend: an address, or one with a port.
    pub why_not: Option<why::Backend>,
}

pub use why::Backend;

/// Where packets are met, and whether policies are judged there.
#[derive(Clone, Copy, Debug)]
pub struct Met {
    pub arrival: Arrival,
    pub judged: bool,
}

/// What becomes of one packet.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    pub packet: String,
    pub arrives: String,
    pub steps: Vec<Step>,
    pub verdict: String,
    /// The packet as it then is, if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub becomes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

thread_local! {
    /// As in the kernel, with whatever the last packet left in it.
    static SCRATCH: RefCell<path::Scratch> = RefCell::default();
    static JUDGEMENT: RefCell<Judgement> = RefCell::default();
}

/// All tables, of both families.
pub trait All: Tables<Ip4> + Tables<Ip6> + PolicyTables<Ip4> + PolicyTables<Ip6> {}
impl<T: Tables<Ip4> + Tables<Ip6> + PolicyTables<Ip4> + PolicyTables<Ip6>> All for T {}

/// The engine as the hooks run it (`lb-ebpf/src/main.rs`), also in the overlay; `judged`: at a pod's link where policies are
/// judged; `dropped` counts.
pub fn whole<T: All>(
    tables: &T,
    arrival: &Arrival,
    judged: bool,
    packet: &mut Buffer,
    dropped: impl Fn(Drop),
) -> Outcome {
    if !judged {
        return engine(tables, arrival, packet, &dropped, |_, outcome| outcome);
    }
    if arrival.hook == Hook::Egress {
        if let Some(reason) = inward(tables, arrival, packet, &dropped) {
            return Outcome::drop(reason);
        }
        return engine(tables, arrival, packet, &dropped, |_, outcome| outcome);
    }
    JUDGEMENT.with_borrow_mut(|room| {
        let at = meeting(arrival);
        let asked = network_policy::outward(packet, &at, tables, room);
        if let Some(reason) = refused(asked, &dropped) {
            return Outcome::drop(reason);
        }
        engine(tables, arrival, packet, &dropped, |packet, outcome| {
            let gone = matches!(outcome.action, Action::Drop | Action::Reply | Action::Refuse);
            if asked != network_policy::JUDGE || gone {
                return outcome;
            }
            let judged = network_policy::translated(packet, &at, tables, room);
            refused(judged, &dropped).map_or(outcome, Outcome::drop)
        })
    })
}

/// What judges packets to a pod, ahead of the engine: why one is dropped.
pub fn inward<T: All>(tables: &T, arrival: &Arrival, packet: &mut Buffer, dropped: impl Fn(Drop)) -> Option<Drop> {
    let judged = JUDGEMENT.with_borrow_mut(|room| network_policy::inward(packet, &meeting(arrival), tables, room));
    refused(judged, &dropped)
}

/// Where a packet came in doesn't matter, as long as it is not here.
fn meeting(arrival: &Arrival) -> Meeting {
    Meeting { link: arrival.ifindex, from: if arrival.own != 0 { 0 } else { u32::MAX }, now: arrival.now }
}

fn refused(judged: u32, dropped: &impl Fn(Drop)) -> Option<Drop> {
    let reason = Drop::ALL[network_policy::reason(judged)? as usize];
    dropped(reason);
    Some(reason)
}

fn engine<T: All>(
    tables: &T,
    arrival: &Arrival,
    packet: &mut Buffer,
    dropped: &impl Fn(Drop),
    judge: impl FnOnce(&mut Buffer, Outcome) -> Outcome,
) -> Outcome {
    let counted = |outcome: Outcome| {
        if let Verdict::Drop(reason) | Verdict::Refuse(reason) = outcome.verdict() {
            dropped(reason);
        }
        outcome
    };
    let overlay = tables.settings().overlay();
    let mut arrival = *arrival;
    if overlay && arrival.hook != Hook::Egress && arrival.tagged == 0 {
        match path::overlay::enter(packet, arrival.ifindex, tables) {
            Ok(tunneled) => arrival.tunneled = tunneled as u8,
            Err(reason) => return counted(Outcome::drop(reason)),
        }
    }
    let arrival = &arrival;
    let outcome = counted(SCRATCH.with_borrow_mut(|scratch| path::run(packet, arrival, tables, || Some(scratch))));
    let outcome = judge(packet, outcome);
    let next_hop = path::overlay::asks(outcome, arrival.hook);
    if next_hop == 0 || (next_hop == path::overlay::LOOK && !overlay) {
        return outcome;
    }
    let left = counted(path::overlay::leave(packet, next_hop, arrival.hook, arrival.now, tables));
    if left.action == Action::Pass { outcome } else { left }
}

/// Of all packets, one after the other.
pub fn trace(paths: &Paths, question: &Question) -> Result<Vec<Answer>> {
    let maps = show::open(paths)?;
    let state = State::read(paths)?;
    let mirror =
        show::mirror(&state)?.context("the programs are in another network namespace; expected to be in theirs")?;
    let names = Names::read(&maps, show::interfaces(Some(&mirror)))?;
    let met = met(paths, &maps, &state, &mirror, &question.place)?;
    let frames = match &question.packets {
        Packets::Frames(frames) => frames.clone(),
        Packets::Words(words) => {
            let link = mirror.network().links.iter().find(|link| link.index == met.arrival.ifindex);
            vec![words.build(link.and_then(|link| link.mac).unwrap_or_default())?]
        }
    };
    let view = View::new(&maps, &paths.maps(), &names)?;
    frames.into_iter().map(|frame| one(&view, &met, frame, question.why_not.as_ref(), &maps)).collect()
}

/// What becomes of a frame: the engine's verdict, and what is left of it.
pub fn run(view: &View<'_>, met: &Met, frame: Vec<u8>) -> (Verdict, Vec<u8>) {
    let mut packet = Buffer::new(frame, Refuses::Nothing);
    let verdict = whole(view, &met.arrival, met.judged, &mut packet, |_| {}).verdict();
    (verdict, packet.into_bytes())
}

fn one(view: &View<'_>, met: &Met, frame: Vec<u8>, why_not: Option<&why::Backend>, maps: &Maps) -> Result<Answer> {
    let packet = packet::show(&frame);
    let known = known(view, &frame);
    let (verdict, after) = run(view, met, frame.clone());
    let arrival = &met.arrival;
    let (mut steps, asked) = view.take()?;
    steps.insert(0, Step { stage: "connection", text: known.clone().unwrap_or_else(|| "not known".into()) });
    let own = if arrival.own != 0 { ", from this node's own stack" } else { "" };
    Ok(Answer {
        packet,
        arrives: format!("{}, {}{own}", view.names.interface(arrival.ifindex), hook_name(arrival.hook)),
        steps,
        verdict: view.names.verdict(verdict, arrival.hook, arrival.ifindex),
        becomes: (after != frame && !matches!(verdict, Verdict::Drop(_))).then(|| packet::show(&after)),
        why_not: why_not.map(|wanted| why::not(wanted, &asked, known.as_deref(), view.names, maps)).transpose()?,
    })
}

/// The connection that a packet is of, in words.
fn known(view: &View<'_>, frame: &[u8]) -> Option<String> {
    fn of<A: Family>(view: &View<'_>, proto: u8, source: SocketAddr, target: SocketAddr) -> Option<String> {
        let key = FlowKey {
            src: A::from_ip(source.ip())?,
            dst: A::from_ip(target.ip())?,
            sport: Be16::new(source.port()),
            dport: Be16::new(target.port()),
            proto: proto.into(),
        };
        let mut hit = Hit::new_zeroed();
        flow_table::find_into(view, &key, &mut hit).then(|| told::flow(&hit.flow, view.names))
    }
    let (proto, source, target) = packet::tuple(frame)?;
    if source.is_ipv4() { of::<Ip4>(view, proto, source, target) } else { of::<Ip6>(view, proto, source, target) }
}

/// Where packets are met: by the programs that hang there.
fn met(paths: &Paths, maps: &Maps, state: &State, mirror: &Mirror, place: &Place) -> Result<Met> {
    let (name, out) = match place {
        Place::In(name) => (name, false),
        Place::Out(name) => (name, true),
    };
    let (about, _) = running(paths);
    let interface = about.ports.iter().find(|port| port.name == *name).map_or(name, |port| &port.interface);
    let link = mirror.network().links.iter().find(|link| link.name == *interface);
    let there = attached(paths, state)?;
    let interfaces = show::interfaces(Some(mirror));
    let points = if out { &[Point::Egress][..] } else { &[Point::Xdp, Point::Ingress] };
    let links = there.keys().filter(|(_, point)| points.contains(point));
    let all: Vec<String> = links.map(|(link, _)| show::interface(*link, &interfaces)).collect();
    let way = if out { "leaves by" } else { "comes in by" };
    let right = || format!("`{name}` has no program for what {way} it; expected one of {}", all.join(", "));
    let index = link.map(|link| link.index).with_context(right)?;
    let point = points.iter().find(|point| there.contains_key(&(index, **point))).with_context(right)?;
    let hook = match point {
        Point::Xdp => Hook::Xdp,
        Point::Ingress => Hook::Ingress,
        Point::Egress | Point::Policy => Hook::Egress,
    };
    let now = clock::read_pinned(paths, maps)?.tick();
    let arrival = Arrival { hook, ifindex: index, now, gso_size: 0, tagged: 0, own: u8::from(out), tunneled: 0 };
    Ok(Met { arrival, judged: there.contains_key(&(index, Point::Policy)) })
}

/// For people, a block a packet; or an array of objects.
pub fn write(answers: &[Answer], json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, answers)?;
        return writeln!(out);
    }
    for (i, answer) in answers.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        let mut line = |stage: &str, text: &str| writeln!(out, "{stage:<12}{text}");
        line("packet", &answer.packet)?;
        line("arrives", &answer.arrives)?;
        answer.steps.iter().try_for_each(|step| line(step.stage, &step.text))?;
        line("verdict", &answer.verdict)?;
        answer.becomes.iter().try_for_each(|text| line("becomes", text))?;
        answer.why_not.iter().try_for_each(|text| line("why not", text))?;
    }
    Ok(())
}
