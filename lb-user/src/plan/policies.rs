//! What pods of this node are allowed, in the tables by which their packets are judged.
//!
//! Invariant: what a number stands for never changes while a pod has it: what is allowed otherwise has another number,
//! and pods get that once all of it is there ([`super::diff`]). A pod's link is judged only with its entry; without one
//! nothing passes. Not here: what policies mean ([`crate::policy`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::table::{Peer, PeerPortPrefix, PeerPrefix, Pod};
use lb_common::wire::{Addr, Be16, Ip4, Ip6};

use super::contents::Contents;
use super::routing::mapped;
use crate::intent::{Intent, Network};
use crate::pods::wire::PREFIX;
use crate::policy::{Allowed, LeasedPod, Policies, compile};

/// Pods that there is room for.
const PODS: usize = 4_096;

/// What policies were planned of, and how that went.
#[derive(Clone, Debug, Default)]
pub(super) struct Planned {
    of: Option<Of>,
    pub summary: Summary,
}

/// What bears on it.
#[derive(Clone, Debug)]
struct Of {
    policies: Policies,
    links: BTreeMap<String, u32>,
    node: BTreeSet<IpAddr>,
}

/// For people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Those of the cluster.
    pub policies: usize,
    /// Of this node: all, and those that a policy selects, to them and from them.
    pub pods: usize,
    pub ingress: usize,
    pub egress: usize,
    /// What allows nothing since it doesn't fit.
    pub troubles: BTreeSet<String>,
}

impl Of {
    fn new(policies: &Policies, network: &Network) -> Of {
        let links = network.links.iter().filter(|link| link.name.starts_with(PREFIX));
        Of {
            policies: policies.clone(),
            links: links.map(|link| (link.name.clone(), link.index)).collect(),
            node: network.addresses.iter().map(|address| address.net.addr()).collect(),
        }
    }

    fn is(&self, other: &Of) -> bool {
        self.policies.is(&other.policies) && self.links == other.links && self.node == other.node
    }
}

impl Planned {
    /// Plans them into contents that have none. Where nothing that bears on them changed since, `before` has them.
    pub fn new(intent: &Intent, network: &Network, to: &mut Contents) -> Planned {
        let Some(policies) = &intent.policies else { return Planned::default() };
        let of = Of::new(policies, network);
        let summary = fill(&of, to);
        Planned { of: Some(of), summary }
    }

    /// Whether they would be planned otherwise by now.
    pub fn is_of(&self, intent: &Intent, network: &Network) -> bool {
        match (&self.of, &intent.policies) {
            (Some(of), Some(policies)) => of.is(&Of::new(policies, network)),
            (of, policies) => of.is_none() && policies.is_none(),
        }
    }
}

fn fill(of: &Of, to: &mut Contents) -> Summary {
    for addr in &of.node {
        allow(to, Peer::<Ip4>::NODE, IpNet::from(*addr), 1);
    }
    let Some(cluster) = &of.policies.cluster else { return Summary::default() };
    let compiled = compile(cluster, &of.policies.leases);
    let mut summary = Summary { policies: cluster.policies.len(), troubles: compiled.troubles, ..Summary::default() };
    for (number, allowed) in &compiled.allowed {
        rules(to, *number, allowed);
    }
    for (lease, [ingress, egress]) in of.policies.leases.iter().zip(compiled.pods) {
        let Some(&link) = of.links.get(&lease.interface) else { continue };
        if to.pods.len() == PODS {
            let why = format!("more than {PODS} pods on this node; nothing is allowed to the others, nor from them");
            summary.troubles.insert(why);
            break;
        }
        to.pods.insert(link, Pod { ingress, egress, addrs: addrs(lease) });
        summary.pods += 1;
        summary.ingress += usize::from(ingress != 0);
        summary.egress += usize::from(egress != 0);
    }
    summary
}

fn addrs(lease: &LeasedPod) -> [Ip6; 2] {
    let of = |v4: bool| lease.addresses.iter().find(|addr| addr.is_ipv4() == v4).map_or(Ip6::default(), |a| mapped(*a));
    [of(true), of(false)]
}

/// Puts what a number stands for into the tables.
pub fn rules(to: &mut Contents, policy: u32, allowed: &Allowed) {
    for (net, bits) in &allowed.peers {
        allow(to, policy, *net, *bits);
    }
    for (prefix, bits) in &allowed.ports {
        let (len, proto) = prefix.proto.map_or((0, 0), |proto| (16 + u32::from(prefix.len), proto));
        let (proto, port) = (Be16::new(u16::from(proto)), Be16::new(prefix.port));
        to.peer_ports.insert(PeerPortPrefix { len: u32::BITS + len, policy, proto, port }, *bits);
    }
}

/// Allows a peer what these bits stand for.
pub fn allow(to: &mut Contents, policy: u32, net: IpNet, bits: u64) {
    match net {
        IpNet::V4(_) => _ = prefix(policy, net).map(|prefix| to.v4.allowed.insert(prefix, bits)),
        IpNet::V6(_) => _ = prefix(policy, net).map(|prefix| to.v6.allowed.insert(prefix, bits)),
    }
}

fn prefix<A: Addr>(policy: u32, net: IpNet) -> Option<PeerPrefix<A>> {
    Some(PeerPrefix { len: u32::BITS + u32::from(net.prefix_len()), policy, addr: A::from_ip(net.network())? })
}
