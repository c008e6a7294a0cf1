//! From policies and pods to what each pod of this node is allowed.
//!
//! Invariant: a pod that no policy selects in a direction is allowed everything in it, and one that some policy selects
//! what these allow together. Of a pod whose object isn't known yet every policy of its namespace is taken to select it,
//! and those alone allow something that select all pods.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::allowed::{Allowed, Entry, Ports, Range, SETS};
use super::{Cluster, LeasedPod, Peer, Policy, Port, Rule, Which};
use crate::source::endpoints::{Labels, Pod};
use crate::source::manifests::ServiceName;

/// Entries of the tables of peers and of ports: half of what they hold, so that new ones have room beside old ones.
const PEERS: usize = 1 << 17;
const PORTS: usize = 1 << 15;

/// What pods are allowed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// By number.
    pub allowed: BTreeMap<u32, Allowed>,
    /// Of each lease, to the pod and from it: a number; 0: everything.
    pub pods: Vec<[u32; 2]>,
    /// What allows nothing since it doesn't fit.
    pub troubles: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn rules(self, policy: &Policy) -> Option<&[Rule]> {
        let rules = if self == Direction::Ingress { &policy.ingress } else { &policy.egress };
        rules.as_deref()
    }
}

/// A pod that may be somebody's peer.
struct Known<'a> {
    namespace: &'a str,
    labels: &'a Labels,
    pod: &'a Pod,
    addresses: BTreeSet<IpAddr>,
}

/// What tells pods apart in a direction: the policies that select them, those of them that allow them something, and
/// the ports by whose names these do.
type Selected = (Direction, Vec<usize>, Vec<usize>, Ports);

struct Compiler<'a> {
    cluster: &'a Cluster,
    known: Vec<Known<'a>>,
    numbers: HashMap<Selected, u32>,
    compiled: Compiled,
    /// Entries so far.
    peers: usize,
    ports: usize,
}

pub fn compile(cluster: &Cluster, leases: &[LeasedPod]) -> Compiled {
    let known = known(cluster, leases);
    let mut compiler =
        Compiler { cluster, known, numbers: HashMap::new(), compiled: Compiled::default(), peers: 0, ports: 0 };
    for lease in leases {
        let pair = [compiler.number(lease, Direction::Ingress), compiler.number(lease, Direction::Egress)];
        compiler.compiled.pods.push(pair);
    }
    compiler.compiled
}

fn known<'a>(cluster: &'a Cluster, leases: &'a [LeasedPod]) -> Vec<Known<'a>> {
    let mut leased: HashMap<(&str, &str), Vec<IpAddr>> = HashMap::new();
    for lease in leases {
        leased.entry((&lease.namespace, &lease.name)).or_default().extend(&lease.addresses);
    }
    let peers = cluster.pods.iter().filter(|(_, pod)| !pod.ended && !pod.host_network);
    peers
        .map(|(name, pod)| {
            let here = leased.get(&(name.namespace.as_str(), name.name.as_str()));
            let addresses = pod.addresses.iter().chain(here.into_iter().flatten()).copied().collect();
            Known { namespace: &name.namespace, labels: &pod.labels, pod, addresses }
        })
        .collect()
}

impl<'a> Compiler<'a> {
    /// What a pod is allowed in a direction.
    fn number(&mut self, lease: &LeasedPod, direction: Direction) -> u32 {
        let name = ServiceName { namespace: lease.namespace.clone(), name: lease.name.clone() };
        let pod = self.cluster.pods.get(&name).map(|pod| &**pod);
        let of_namespace = |(_, policy): &(usize, &'a Policy)| policy.namespace == lease.namespace;
        let policies = self.cluster.policies.iter().map(|policy| &**policy).enumerate().filter(of_namespace);
        let (mut selecting, mut allowing) = (Vec::new(), Vec::new());
        for (index, policy) in policies.filter(|(_, policy)| direction.rules(policy).is_some()) {
            let selected = pod.map(|pod| policy.selector.selects(&pod.labels));
            if selected.unwrap_or(true) {
                selecting.push(index);
            }
            if selected.unwrap_or(policy.selector.is_empty()) {
                allowing.push(index);
            }
        }
        if selecting.is_empty() {
            return 0;
        }
        let rules = |index: &usize| direction.rules(&self.cluster.policies[*index]).unwrap_or_default();
        let named = allowing.iter().flat_map(rules).flat_map(|rule| &rule.ports);
        let named = named.filter(|port| matches!(port.which, Which::Named(_)));
        let ports = match direction {
            Direction::Ingress => named.flat_map(|port| ports_of(port, pod)).collect(),
            Direction::Egress => Ports::new(),
        };
        let key = (direction, selecting, allowing, ports);
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        let allowed = self.allowed(&key, pod);
        let number = self.place(allowed);
        self.numbers.insert(key, number);
        number
    }

    fn allowed(&mut self, (direction, selecting, allowing, _): &Selected, pod: Option<&Pod>) -> Allowed {
        let cluster = self.cluster;
        let mut entries = Vec::new();
        for policy in allowing.iter().map(|index| &*cluster.policies[*index]) {
            for rule in direction.rules(policy).unwrap_or_default() {
                self.entries(policy, rule, *direction, pod, &mut entries);
            }
        }
        let names = || {
            let names = selecting.iter().map(|index| &cluster.policies[*index]);
            names.map(|policy| format!("{}/{}", policy.namespace, policy.name)).collect::<Vec<_>>().join(", ")
        };
        let to = if *direction == Direction::Ingress { "to" } else { "from" };
        let mut trouble = |why: String| {
            self.compiled
                .troubles
                .insert(format!("NetworkPolicy {}: {why}; nothing is allowed {to} its pods", names()));
            Allowed::default()
        };
        let Some(allowed) = Allowed::new(&entries) else {
            return trouble(format!("more than {SETS} different sets of ports in a direction of a pod"));
        };
        if self.peers + allowed.peers.len() > PEERS {
            return trouble(format!(
                "{} peers, and the table of peers has room for {PEERS} of all pods",
                allowed.peers.len()
            ));
        }
        if self.ports + allowed.ports.len() > PORTS {
            return trouble(format!(
                "{} ports, and the table of ports has room for {PORTS} of all pods",
                allowed.ports.len()
            ));
        }
        allowed
    }

    /// Finds a number for what is allowed. Two that want the same one are told apart by the next.
    fn place(&mut self, allowed: Allowed) -> u32 {
        let mut number = allowed.number();
        loop {
            // Zero is everything, and the last one this node itself.
            if number != 0 && number != u32::MAX {
                match self.compiled.allowed.get(&number) {
                    Some(same) if *same == allowed => return number,
                    Some(_) => {}
                    None => break,
                }
            }
            number = number.wrapping_add(1);
        }
        self.peers += allowed.peers.len();
        self.ports += allowed.ports.len();
        self.compiled.allowed.insert(number, allowed);
        number
    }

    /// Who is allowed what by a rule.
    fn entries<'r>(
        &self,
        policy: &Policy,
        rule: &'r Rule,
        direction: Direction,
        pod: Option<&Pod>,
        into: &mut Vec<Entry<'r>>,
    ) {
        // By name a port is that of who is connected to.
        let target = pod.filter(|_| direction == Direction::Ingress);
        let ports = set(rule, target);
        let named = direction == Direction::Egress && rule.ports.iter().any(|p| matches!(p.which, Which::Named(_)));
        let mut pods = |chosen: &dyn Fn(&Known<'_>) -> bool| {
            for known in self.known.iter().filter(|known| chosen(known)) {
                let ports = if named { set(rule, Some(known.pod)) } else { ports.clone() };
                let nets = known.addresses.iter().map(|addr| IpNet::from(*addr));
                into.extend(nets.map(|net| Entry { net, except: &[], ports: ports.clone() }));
            }
        };
        if rule.peers.is_empty() && named {
            pods(&|_| true);
        }
        for peer in &rule.peers {
            let Peer::Pods { namespaces, pods: selector } = peer else { continue };
            let none = Labels::new();
            let labels = |namespace: &str| self.cluster.namespaces.get(namespace).unwrap_or(&none);
            pods(&|known| {
                let there = match namespaces {
                    Some(selector) => selector.selects(labels(known.namespace)),
                    None => known.namespace == policy.namespace,
                };
                there && selector.selects(known.labels)
            });
        }
        if rule.peers.is_empty() {
            let everybody = [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|addr| IpNet::new(addr, 0).ok());
            into.extend(everybody.into_iter().flatten().map(|net| Entry { net, except: &[], ports: ports.clone() }));
        }
        for peer in &rule.peers {
            if let Peer::Block { net, except } = peer {
                into.push(Entry { net: *net, except, ports: ports.clone() });
            }
        }
    }
}

/// The ports of a rule; those by name are `target`'s.
fn set(rule: &Rule, target: Option<&Pod>) -> Ports {
    if rule.ports.is_empty() {
        return [Range::ALL].into();
    }
    rule.ports.iter().flat_map(|port| ports_of(port, target)).collect()
}

fn ports_of(port: &Port, target: Option<&Pod>) -> Vec<Range> {
    let proto = Some(port.protocol.number());
    match &port.which {
        Which::All => vec![Range { proto, first: 0, last: u16::MAX }],
        Which::Range(first, last) => vec![Range { proto, first: *first, last: *last }],
        Which::Named(name) => {
            let is = |p: &&crate::source::endpoints::ContainerPort| p.name == *name && p.protocol == port.protocol;
            let ports = target.into_iter().flat_map(|pod| &pod.ports).filter(is);
            ports.map(|p| Range { proto, first: p.port, last: p.port }).collect()
        }
    }
}
