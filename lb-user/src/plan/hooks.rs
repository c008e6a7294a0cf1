//! Which programs each link carries.
//!
//! Invariant: a link has programs only if the wish names it (a port, an inside interface) or it is
//! the loopback. Not here: how programs are attached, and whether a port may be used at all.

use std::collections::BTreeMap;

use lb_common::table;
use lb_common::wire::Mac;

use super::contents::Hooks;
use crate::intent::{HookChoice, Intent, Link, Network, Port};
use crate::pods::wire::PREFIX;

/// What a link is to this node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role<'a> {
    Port(&'a Port),
    /// The internal switch or an interface that a pattern names.
    Inside,
    Loopback,
    Other,
}

pub(super) fn role<'a>(intent: &'a Intent, link: &Link) -> Role<'a> {
    if let Some(port) = intent.ports.iter().find(|p| p.interface == link.name) {
        return Role::Port(port);
    }
    if link.name == "lo" {
        return Role::Loopback;
    }
    let switch = intent.internal_switch.as_ref().is_some_and(|s| s.interface == link.name);
    if switch || intent.inside.iter().any(|pattern| matches(pattern, &link.name)) { Role::Inside } else { Role::Other }
}

pub(super) fn hooks(intent: &Intent, network: &Network) -> BTreeMap<u32, Hooks> {
    let of = |link: &Link| {
        let none = Hooks { interface: link.name.clone(), ..Hooks::default() };
        match role(intent, link) {
            Role::Port(port) if by_xdp(port.hook, link) => Some(Hooks { xdp: true, tc_egress: true, ..none }),
            Role::Port(_) => Some(Hooks { tc_ingress: true, tc_egress: true, ..none }),
            // What a backend on the host answers to a pod; a bridge sends it for its ports.
            Role::Inside => Some(Hooks {
                tc_ingress: true,
                tc_egress: link.master.is_none(),
                policy: is_judged(intent, link),
                ..none
            }),
            // What a client on the host sends to a service whose backend is the host itself.
            Role::Loopback => Some(Hooks { tc_egress: true, ..none }),
            Role::Other => None,
        }
    };
    network.links.iter().filter_map(|link| Some((link.index, of(link)?))).collect()
}

/// Whether it is the node's end of a pod's link, and policies are in force.
pub(super) fn is_judged(intent: &Intent, link: &Link) -> bool {
    intent.policies.is_some() && link.name.starts_with(PREFIX)
}

/// Links that lead to other hosts, and those that lead to the inside; whether packets are forwarded from there.
pub(super) fn links(intent: &Intent, network: &Network) -> BTreeMap<u32, table::Link> {
    let of = |link: &Link| {
        let role = role(intent, link);
        let inside = if role == Role::Inside { table::Link::INSIDE } else { 0 };
        let forwards = if matches!(role, Role::Port(_) | Role::Inside) { forwards(intent, network, link) } else { 0 };
        let port = if matches!(role, Role::Port(_)) && link.mac.is_some() { table::Link::PORT } else { 0 };
        let flags = inside | port | forwards;
        (flags != 0).then_some(table::Link { mac: Mac(link.mac.unwrap_or_default()), flags })
    };
    network.links.iter().filter_map(|link| Some((link.index, of(link)?))).collect()
}

/// What is forwarded from a link: where the kernel forwards, and its main table is all that it asks.
fn forwards(intent: &Intent, network: &Network, link: &Link) -> u16 {
    let [policy4, policy6] = network.policy;
    let kernels = network.forwarding.get(&link.index).filter(|_| intent.tuning.fast_forwarding && link.mac.is_some());
    kernels.map_or(0, |kernels| {
        let v4 = match (kernels.v4 && !policy4, kernels.rp_filter) {
            (false, _) => 0,
            (true, 0) => table::Link::FORWARDS4,
            (true, 1) => table::Link::FORWARDS4 | table::Link::STRICT4,
            (true, _) => table::Link::FORWARDS4 | table::Link::LOOSE4,
        };
        let v6 = if kernels.v6 && !policy6 { table::Link::FORWARDS6 } else { 0 };
        v4 | v6
    })
}

/// Virtual links carry segmentation-offloaded packets, and XDP would turn that off.
pub fn by_xdp(choice: HookChoice, link: &Link) -> bool {
    match choice {
        HookChoice::Auto => link.kind.is_none(),
        HookChoice::Xdp => true,
        HookChoice::Tc => false,
    }
}

/// Whether `name` matches `pattern`, in which `*` stands for any text.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    while let Some((part, more)) = rest.split_once('*') {
        let Some(at) = name.find(part) else { return false };
        (name, rest) = (&name[at + part.len()..], more);
    }
    name.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, name, yes) in [
            ("veth0", "veth0", true),
            ("veth", "veth0", false),
            ("veth*", "veth0", true),
            ("*", "anything", true),
            ("cali*-*x", "cali1-2-3x", true),
            ("cali*-*x", "cali1-2-3y", false),
            ("a*a", "a", false),
            ("*.10", "eth0.10", true),
        ] {
            assert_eq!(matches(pattern, name), yes, "{pattern} {name}");
        }
    }
}
