//! An event, in words and as an object.

use std::fmt;
use std::time::SystemTime;

use lb_common::table::monitor::Sighting;
use lb_common::table::{Admitted, Flow, FlowKey};
use lb_common::verdict::{Action, Hook, Outcome, Verdict};
use lb_common::wire::Addr;
use serde::Serialize;

use crate::agent::nat_log::utc;
use crate::show::{self, endpoint};
use crate::trace::{Names, hook_name, packet};

/// In the order of their numbers.
const ACTIONS: [Action; 9] = [
    Action::Pass,
    Action::Continue,
    Action::Transmit,
    Action::Encapsulate,
    Action::Reply,
    Action::Refuse,
    Action::Reinject,
    Action::Drop,
    Action::TransmitPeer,
];
const HOOKS: [Hook; 3] = [Hook::Xdp, Hook::Ingress, Hook::Egress];

#[derive(Clone, Debug, Serialize)]
pub struct Event {
    pub time: String,
    /// `dropped`, `refused`, `packet`, `begins`, `ends`, `allowed`
    pub event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Where a packet was met.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The packet or the connection.
    pub what: String,
    /// What became of it.
    pub outcome: String,
}

/// The part of a packet that is known.
pub fn bytes(sighting: &Sighting) -> &[u8] {
    let all = zerocopy::IntoBytes::as_bytes(sighting.bytes.as_flattened());
    &all[..(sighting.kept as usize).min(all.len())]
}

/// What became of a packet, where its numbers mean something.
pub fn verdict(sighting: &Sighting) -> Verdict {
    let action = ACTIONS.get(usize::from(sighting.action)).copied().unwrap_or(Action::Pass);
    let reasons = lb_common::drop::Drop::ALL.len() as u32;
    let known = !matches!(action, Action::Drop | Action::Refuse) || sighting.value < reasons;
    if known { Outcome { action, value: sighting.value }.verdict() } else { Verdict::Pass }
}

impl Event {
    pub fn of_packet(sighting: &Sighting, names: &Names) -> Event {
        let verdict = verdict(sighting);
        let hook = HOOKS.get(usize::from(sighting.hook)).copied().unwrap_or(HOOKS[0]);
        let (event, reason) = match verdict {
            Verdict::Drop(reason) => ("dropped", Some(reason.label())),
            Verdict::Refuse(reason) => ("refused", Some(reason.label())),
            _ => ("packet", None),
        };
        Event {
            time: utc(SystemTime::now()),
            event,
            reason,
            at: Some(format!("{} {}", names.interface(sighting.link), hook_name(hook))),
            service: None,
            what: packet::show_part(bytes(sighting), sighting.len as usize),
            outcome: names.verdict(verdict, hook, sighting.link),
        }
    }

    pub fn of_flow<A: Addr>(event: &'static str, key: &FlowKey<A>, flow: &Flow<A>, names: &Names) -> Event {
        let (from, to) = (endpoint(key.src, key.sport), endpoint(key.dst, key.dport));
        let protocol = show::protocol(key.proto as u8);
        let translated = flow.is(Flow::<A>::NAT);
        Event {
            time: utc(SystemTime::now()),
            event,
            reason: None,
            at: None,
            service: (!translated).then(|| names.service_name(flow.service).to_owned()),
            what: format!("{protocol} {from} > {to}"),
            outcome: format!("{} > {}", endpoint(flow.src, flow.sport), endpoint(flow.dst, flow.dport)),
        }
    }

    /// A connection of a pod that a policy has allowed.
    pub fn of_allowed<A: Addr>(key: &FlowKey<A>, admitted: &Admitted<A>, names: &Names) -> Event {
        let (pod, peer) = (endpoint(key.src, key.sport), endpoint(key.dst, key.dport));
        let inward = admitted.direction == Admitted::<A>::INGRESS;
        let (from, to) = if inward { (peer, pod) } else { (pod, peer) };
        Event {
            time: utc(SystemTime::now()),
            event: "allowed",
            reason: None,
            at: Some(names.interface(admitted.link)),
            service: None,
            what: format!("{} {from} > {to}", show::protocol(key.proto as u8)),
            outcome: format!("a NetworkPolicy allows it {} the pod", if inward { "to" } else { "from" }),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { time, event, at, what, outcome, .. } = self;
        write!(f, "{time}  {event:<8}")?;
        match (at, &self.service) {
            (Some(at), _) => write!(f, "{at:<16}  {what}  {outcome}"),
            (None, service) => write!(f, "{what}  as {outcome}  {}", service.as_deref().unwrap_or("nat")),
        }
    }
}
