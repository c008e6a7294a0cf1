//! Pods' interfaces and addresses: `pods`.
//!
//! Invariant: a block is one of the cluster's pods, and nobody's twice. Not here: blocks that a Node says
//! ([`crate::source::manifests`]).

use std::time::Duration;

use ipnet::IpNet;

use super::at::{At, Log};
use super::read::{self, NODE};
use super::value::{self, ADDRESS, DURATION, PREFIX};
use super::{Config, Places};
use crate::intent::{Overlay, OverlayMode, PodNode, Translation};

const KEYS: &[&str] = &["blocks", "mtu", "cooldown", "overlay", "vxlanPort", "vni", "policy", "natOutgoing"];
const NODE_KEYS: &[&str] = &["name", "addresses", "blocks"];

/// What the configuration says of pods.
#[derive(Clone, Debug, PartialEq)]
pub struct PodNetwork {
    /// Their addresses are of these; none: of those that the node's Node has.
    pub blocks: Vec<IpNet>,
    /// None: the smallest of the ports'.
    pub mtu: Option<u32>,
    /// For how long nobody gets an address that was given back.
    pub cooldown: Duration,
    pub overlay: Overlay,
    /// What they may do is as NetworkPolicies say.
    pub policy: bool,
}

pub(super) fn pods(config: &mut Config, at: &At<'_>, log: &mut Log) -> Option<PodNetwork> {
    config.places.note(at);
    if !at.only(log, KEYS) {
        return None;
    }
    let mut pods = PodNetwork {
        blocks: blocks(&mut config.places, at, log),
        mtu: None,
        cooldown: Duration::from_secs(60),
        overlay: Overlay::default(),
        policy: false,
    };
    // IPv6 needs as much, and no interface has more.
    let right = "a number of bytes from 1280 to 65535";
    pods.mtu = at.get("mtu").and_then(|at| at.value(log, right, |s| value::integer(s, 1_280, 65_535)));
    if let Some(seconds) = at.get("cooldown").and_then(|at| at.value(log, DURATION, value::seconds)) {
        pods.cooldown = Duration::from_secs(seconds.into());
    }
    let overlay = &mut pods.overlay;
    if let Some(at) = at.get("overlay") {
        read::set(&mut overlay.mode, at.value(log, "never, always or crossSubnet", mode));
    }
    if let Some(at) = at.get("vxlanPort") {
        let port = at.value(log, "a UDP port from 1 to 65535", |s| value::integer(s, 1, 65_535));
        read::set(&mut overlay.port, port.map(|port| port as u16));
    }
    if let Some(at) = at.get("vni") {
        let right = "a VXLAN network identifier from 1 to 16777215";
        read::set(&mut overlay.vni, at.value(log, right, |s| value::integer(s, 1, 0xff_ffff)));
    }
    if let Some(at) = at.get("policy") {
        config.places.note(&at);
        read::set(&mut pods.policy, at.value(log, "on or off", switch));
    }
    if let Some(at) = at.get("natOutgoing") {
        let wished = at.value(log, "on or off", switch);
        if wished == Some(true) && config.nat.ipv6 == Translation::Prefix {
            let message = "`on` is a masquerade, but internalSwitch.ipv6 is prefix; expected one of the two";
            log.error(&at, message);
        }
        config.nat.pods = wished;
    }
    Some(pods)
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(String::new()),
    }
}

fn mode(text: &str) -> Result<OverlayMode, String> {
    match text {
        "never" => Ok(OverlayMode::Never),
        "always" => Ok(OverlayMode::Always),
        "crossSubnet" => Ok(OverlayMode::CrossSubnet),
        _ => Err(String::new()),
    }
}

fn blocks(places: &mut Places, at: &At<'_>, log: &mut Log) -> Vec<IpNet> {
    let Some(list) = at.get("blocks") else { return Vec::new() };
    let mut blocks = Vec::new();
    for at in list.list_or_one() {
        if let Some(net) = read::subnet(&at, PREFIX, value::subnet, log) {
            places.note_member(&list, &at);
            blocks.push(net);
        }
    }
    blocks
}

/// The cluster's nodes: `nodes`.
pub(super) fn nodes(places: &mut Places, list: &At<'_>, log: &mut Log) -> Vec<PodNode> {
    let right = "a list of nodes, such as [{ name: b, addresses: 192.0.2.2, blocks: 172.27.2.0/26 }]";
    let mut nodes: Vec<PodNode> = Vec::new();
    for at in list.list(log, right) {
        if !at.only(log, NODE_KEYS) {
            continue;
        }
        let Some(name) = at.require(log, "name", NODE) else { continue };
        let Some(text) = name.value(log, NODE, read::node_name) else { continue };
        if nodes.iter().any(|node| node.name == text) {
            log.error(&name, format!("`{text}` is there already; expected each node once"));
            continue;
        }
        for (key, right) in [("addresses", ADDRESS), ("blocks", PREFIX)] {
            _ = at.require(log, key, right);
        }
        places.note_member(list, &at);
        let addresses = read::addresses(places, &at, "addresses", log);
        nodes.push(PodNode { name: text, addresses, blocks: blocks(places, &at, log) });
    }
    nodes
}

/// Rules between blocks and the rest, once all is read.
pub(super) fn settle(config: &Config, log: &mut Log) {
    let Some(pods) = &config.pod_network else { return };
    let mut error = |path: &str, message: String| log.errors.push(config.error_at(path, message));
    if config.pod_subnets.is_empty() {
        error("pods", "there is no cluster.podSubnet; expected the one that pods' addresses are of".into());
    }
    let named = config.nodes.iter().any(|node| node.name == config.node);
    let known = named || config.places.members.contains_key("pods.blocks");
    if !known && config.manifests.is_none() && config.api.is_none() {
        let right = "expected `blocks` such as [172.27.1.0/26, fd00:27:1::/122], or this node among `nodes`, or \
                     cluster.manifests or cluster.kubeconfig with this node's Node, whose podCIDRs they are";
        error("pods", format!("has no blocks of addresses; {right}"));
    }
    if pods.policy && config.manifests.is_none() && config.api.is_none() {
        let right =
            "expected cluster.manifests or cluster.kubeconfig, whose NetworkPolicies, Pods and Namespaces they are";
        error("pods.policy", format!("nobody says which policies there are; {right}"));
    }
    let mut all: Vec<(String, IpNet)> = Vec::new();
    let own = pods.blocks.iter().enumerate().map(|(i, block)| (config.member("pods.blocks", i), *block));
    // What `pods.blocks` says of this node goes before.
    let others = config.nodes.iter().enumerate().filter(|(_, n)| n.name != config.node || pods.blocks.is_empty());
    let others = others.flat_map(|(i, node)| {
        let list = format!("{}.blocks", config.member("nodes", i));
        node.blocks.iter().enumerate().map(move |(j, block)| (config.member(&list, j), *block))
    });
    for (path, block) in own.chain(others) {
        if !config.pod_subnets.is_empty() && !config.pod_subnets.iter().any(|net| net.contains(&block)) {
            error(&path, format!("`{block}` is in no cluster.podSubnet; expected a part of one"));
        }
        let overlaps = |(_, other): &&(String, IpNet)| other.contains(&block) || block.contains(other);
        if let Some((first, other)) = all.iter().find(overlaps) {
            error(&path, format!("`{block}` overlaps {first} ({other}); expected blocks apart"));
        }
        all.push((path, block));
    }
}
