//! What the engine asked for, in words.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use lb_common::drop::Drop;
use lb_common::table::{Backend, Flow, Link, NextHop, Owned, Service, ServiceKey};
use lb_common::tcp;
use lb_common::verdict::{Hook, Verdict};
use lb_common::wire::{Addr, Ip6};
use serde::Serialize;

use crate::apply::Maps;
use crate::show::{self, endpoint};

/// One question of the engine, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub stage: &'static str,
    pub text: String,
}

/// Services by id, and interfaces by index.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub services: BTreeMap<u32, String>,
    pub interfaces: BTreeMap<u32, String>,
}

impl Names {
    pub fn read(maps: &Maps, interfaces: BTreeMap<u32, String>) -> Result<Names> {
        Ok(Names { services: show::names(maps)?, interfaces })
    }

    pub fn interface(&self, link: u32) -> String {
        show::interface(link, &self.interfaces)
    }

    pub fn next_hop(&self, hop: &NextHop) -> String {
        show::next_hop(hop, &self.interfaces)
    }

    pub fn service_name(&self, id: u32) -> &str {
        self.services.get(&id).map_or("?", String::as_str)
    }

    pub fn service<A: Addr>(&self, key: &ServiceKey<A>, service: &Service) -> String {
        let at = endpoint(key.addr, key.port);
        let mut text = format!("{} at {at}/{}", self.service_name(service.id), show::protocol(key.proto));
        for (bit, words) in [
            (Service::LOCAL, "endpoints of this node alone"),
            (Service::EVERYBODY, "for everybody"),
            (Service::MASQUERADE, "masquerades"),
            (Service::RANGES, "source ranges"),
            (Service::DIRECT, "direct return"),
        ] {
            if service.flags & bit != 0 {
                text = format!("{text}, {words}");
            }
        }
        if service.count == 0 { text + ", without a backend" } else { text }
    }

    /// What becomes of the packet.
    pub fn verdict(&self, verdict: Verdict, hook: Hook, ifindex: u32) -> String {
        let drop = |reason: Drop| format!("{}: {}", reason.label(), reason.text().trim_start());
        match verdict {
            Verdict::Pass => "passed: not ours, the kernel goes on with it as it is".into(),
            Verdict::Continue => "changed: the kernel delivers or forwards it".into(),
            Verdict::Transmit { ifindex } => format!("sent by {}", self.interface(ifindex)),
            Verdict::TransmitPeer { ifindex } => format!("handed to the other end of {}", self.interface(ifindex)),
            Verdict::Encapsulate { .. } => "sent in the overlay".into(),
            Verdict::Reply | Verdict::Refuse(_) if hook == Hook::Egress => "answered to this node's own stack".into(),
            Verdict::Reply => format!("answered by {}", self.interface(ifindex)),
            Verdict::Refuse(reason) => format!("refused by {}: {}", self.interface(ifindex), drop(reason)),
            Verdict::Reinject => "received again by this node, and routed anew".into(),
            Verdict::Drop(reason) => format!("dropped: {}", drop(reason)),
        }
    }
}

pub fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Xdp => "XDP",
        Hook::Ingress => "TC ingress",
        Hook::Egress => "TC egress",
    }
}

/// As it is, where it is IPv4's.
pub fn plain(addr: Ip6) -> IpAddr {
    addr.to_ip().to_canonical()
}

pub fn role(link: &Link) -> String {
    let mut text = if link.flags & Link::INSIDE != 0 { "is inside" } else { "is a port" }.to_owned();
    if link.flags & (Link::FORWARDS4 | Link::FORWARDS6) == 0 {
        text += ", from which nothing is forwarded";
    }
    text
}

pub fn backend<A: Addr>(id: u32, backend: &Backend<A>) -> String {
    let at = endpoint(backend.addr, backend.port);
    let state = match backend.state {
        Backend::<A>::ACTIVE => "",
        Backend::<A>::DRAINING => ", draining",
        _ => ", which is gone",
    };
    let place = if backend.flags & Backend::<A>::REMOTE != 0 { ", not on this node" } else { "" };
    format!("{at} (id {id}){state}{place}")
}

pub fn owned(owned: &Owned) -> String {
    let kinds = [
        (Owned::VIP, "a service's address"),
        (Owned::UNUSED, "an address of the service range that no service has"),
        (Owned::INSIDE, "inside"),
        (Owned::DIRECT, "reached untranslated"),
        (Owned::OUTSIDE, "an uplink's address"),
        (Owned::PREFIX_INSIDE, "in a prefix that has another one outside"),
        (Owned::PREFIX_OUTSIDE, "in the prefix that one of the inside has outside"),
        (Owned::PODS, "a pod's"),
    ];
    let all: Vec<&str> = kinds.iter().filter(|(kind, _)| owned.is(*kind)).map(|(_, text)| *text).collect();
    format!("is {}", all.join(", "))
}

/// A connection that is known.
pub fn flow<A: Addr>(flow: &Flow<A>, names: &Names) -> String {
    let (from, to) = (endpoint(flow.src, flow.sport), endpoint(flow.dst, flow.dport));
    let of = match (flow.is(Flow::<A>::NAT), flow.is(Flow::<A>::REPLY)) {
        (true, _) => "translated".to_owned(),
        (false, true) => format!("answers of {}", names.service_name(flow.service)),
        (false, false) => format!("of {}", names.service_name(flow.service)),
    };
    format!("known, {of}, {}: becomes {from} > {to}", tcp::label(flow.state))
}
