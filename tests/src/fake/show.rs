//! The tables for people: what a failing test prints.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};

use lb_common::table::{Flow, FlowKey, NextHop, Owned};
use lb_common::tcp;
use lb_common::wire::{Addr, Be16, Ip4, Ip6, Mac};

use super::{Fake, InFake};

fn socket<A: Addr>(addr: A, port: Be16) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port.get())
}

pub fn proto(number: u32) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmp6".into(),
        132 => "sctp".into(),
        other => format!("proto-{other}"),
    }
}

fn mac(Mac(m): Mac) -> String {
    m.map(|b| format!("{b:02x}")).join(":")
}

/// One flow as a line: what arrives, what it becomes, and in which state it is.
pub fn flow_line<A: Addr>(key: &FlowKey<A>, flow: &Flow<A>) -> String {
    named_flow(key, flow, &|addr, port| SocketAddr::new(addr, port).to_string())
}

/// The same, with names for addresses.
pub fn named_flow<A: Addr>(key: &FlowKey<A>, flow: &Flow<A>, name: &dyn Fn(IpAddr, u16) -> String) -> String {
    let mut flags = String::new();
    for (bit, name) in [
        (Flow::<A>::REPLY, " reply"),
        (Flow::<A>::SNAT, " snat"),
        (Flow::<A>::NAT, " nat"),
        (Flow::<A>::OUT, " out"),
        (Flow::<A>::MEMORY, " memory"),
    ] {
        if flow.flags & bit != 0 {
            flags += name;
        }
    }
    let end = |addr: A, port: Be16| name(addr.to_ip(), port.get());
    let (from, to) = (end(key.src, key.sport), end(key.dst, key.dport));
    let (becomes_from, becomes_to) = (end(flow.src, flow.sport), end(flow.dst, flow.dport));
    let set = if tcp::answered(flow.state) { "established" } else { "half-open" };
    let (proto, state) = (proto(key.proto & 0xff), tcp::label(flow.state));
    format!("{set} {proto} {from} > {to} becomes {becomes_from} > {becomes_to} {state}{flags}")
}

impl Fake {
    /// All flows, a line each, in a stable order.
    pub fn flow_lines(&self) -> Vec<String> {
        fn of<A: InFake>(fake: &Fake) -> Vec<String> {
            A::flows(fake).all().iter().map(|(key, flow)| flow_line(key, flow)).collect()
        }
        [of::<Ip4>(self), of::<Ip6>(self)].concat()
    }

    fn show_family<A: InFake>(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let family = A::family(self);
        for (key, service) in &family.services {
            let (at, proto) = (socket(key.addr, key.port), proto(key.proto.into()));
            writeln!(
                f,
                "service {proto} {at} id={} first={} count={} affinity={} local={}+{} flags={}",
                service.id,
                service.first,
                service.count,
                service.affinity,
                service.local_first,
                service.local_count,
                service.flags
            )?;
        }
        for source in family.sources.keys() {
            writeln!(f, "source service={} {}/{}", source.service, source.addr.to_ip(), source.len - u32::BITS)?;
        }
        for (id, b) in &family.backends {
            writeln!(
                f,
                "backend {id} {} snat={} state={} flags={} service={} via={} weight={} deadline={}",
                socket(b.addr, b.port),
                b.snat.to_ip(),
                b.state,
                b.flags,
                b.service,
                b.next_hop,
                b.weight,
                b.deadline
            )?;
        }
        for (prefix, owned) in &family.owned {
            let kind = if owned.kind == Owned::VIP { "vip" } else { "unused" };
            writeln!(f, "owned {}/{} {kind}", prefix.addr.to_ip(), prefix.len)?;
        }
        for (prefix, via) in &family.routes {
            writeln!(f, "route {}/{} via {via}", prefix.addr.to_ip(), prefix.len)?;
        }
        for (key, flow) in A::flows(self).all() {
            writeln!(
                f,
                "{} service={} backend={} via={} last={} epoch={}",
                flow_line(&key, &flow),
                flow.service,
                flow.backend,
                flow.next_hop,
                flow.last,
                flow.epoch
            )?;
        }
        let state = A::state(self).borrow();
        for (key, bound) in state.affinity.iter() {
            writeln!(
                f,
                "affinity {} service={} backend={} last={}",
                key.client.to_ip(),
                key.service,
                bound.backend,
                bound.last
            )?;
        }
        for (key, ports) in state.fragments.iter() {
            writeln!(
                f,
                "fragment {} > {} id={} ports={}>{} last={}",
                key.src.to_ip(),
                key.dst.to_ip(),
                key.id,
                ports.sport.get(),
                ports.dport.get(),
                ports.last
            )?;
        }
        Ok(())
    }
}

impl Display for Fake {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.settings)?;
        for (index, hop) in &self.next_hops {
            let kind = match hop.kind {
                NextHop::LINK => "link",
                NextHop::LOCAL => "local",
                NextHop::DROP => "drop",
                _ => "kernel",
            };
            writeln!(
                f,
                "next hop {index} {kind} if={} mtu={} {} > {} flags={}",
                hop.ifindex,
                hop.mtu,
                mac(hop.src),
                mac(hop.dst),
                hop.flags
            )?;
        }
        self.show_family::<Ip4>(f)?;
        self.show_family::<Ip6>(f)?;
        let tally = self.tally.borrow();
        for (label, count) in &tally.drops {
            writeln!(f, "drops {label} {count}")?;
        }
        for (label, count) in &tally.notes {
            writeln!(f, "notes {label} {count}")?;
        }
        for (id, c) in &tally.backends {
            writeln!(
                f,
                "counted backend={id} connections={} packets={} bytes={} replies={} reply_bytes={}",
                c.connections, c.packets, c.bytes, c.reply_packets, c.reply_bytes
            )?;
        }
        Ok(())
    }
}
