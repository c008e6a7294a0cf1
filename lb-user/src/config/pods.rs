//! Pods' interfaces and addresses: `pods`.
//!
//! Invariant: a block is one of the cluster's pods, and nobody's twice. Not here: blocks that a Node says
//! ([`crate::source::manifests`]).

use std::time::Duration;

use ipnet::IpNet;

use super::Config;
use super::at::{At, Log};
use super::read;
use super::value::{self, DURATION, PREFIX};

const KEYS: &[&str] = &["blocks", "mtu", "cooldown"];

/// What the configuration says of pods.
#[derive(Clone, Debug, PartialEq)]
pub struct PodNetwork {
    /// Their addresses are of these; none: of those that the node's Node has.
    pub blocks: Vec<IpNet>,
    /// None: the smallest of the ports'.
    pub mtu: Option<u32>,
    /// For how long nobody gets an address that was given back.
    pub cooldown: Duration,
}

pub(super) fn pods(config: &mut Config, at: &At<'_>, log: &mut Log) -> Option<PodNetwork> {
    config.places.note(at);
    if !at.only(log, KEYS) {
        return None;
    }
    let mut pods = PodNetwork { blocks: Vec::new(), mtu: None, cooldown: Duration::from_secs(60) };
    if let Some(list) = at.get("blocks") {
        for at in list.list_or_one() {
            if let Some(net) = read::subnet(&at, PREFIX, value::subnet, log) {
                config.places.note_member(&list, &at);
                pods.blocks.push(net);
            }
        }
    }
    // IPv6 needs as much, and no interface has more.
    let right = "a number of bytes from 1280 to 65535";
    pods.mtu = at.get("mtu").and_then(|at| at.value(log, right, |s| value::integer(s, 1_280, 65_535)));
    if let Some(seconds) = at.get("cooldown").and_then(|at| at.value(log, DURATION, value::seconds)) {
        pods.cooldown = Duration::from_secs(seconds.into());
    }
    Some(pods)
}

/// Rules between blocks and the rest, once all is read.
pub(super) fn settle(config: &Config, log: &mut Log) {
    let Some(pods) = &config.pod_network else { return };
    let mut error = |path: &str, message: String| log.errors.push(config.error_at(path, message));
    if config.pod_subnets.is_empty() {
        error("pods", "there is no cluster.podSubnet; expected the one that pods' addresses are of".into());
    }
    let known = config.places.members.contains_key("pods.blocks");
    if !known && config.manifests.is_none() && config.api.is_none() {
        let right = "expected `blocks` such as [172.27.1.0/26, fd00:27:1::/122], or cluster.manifests or \
                     cluster.kubeconfig with this node's Node, whose podCIDRs they are";
        error("pods", format!("has no blocks of addresses; {right}"));
    }
    for (i, block) in pods.blocks.iter().enumerate() {
        let path = config.member("pods.blocks", i);
        if !config.pod_subnets.is_empty() && !config.pod_subnets.iter().any(|net| net.contains(block)) {
            error(&path, format!("`{block}` is in no cluster.podSubnet; expected a part of one"));
        }
        let overlaps = |other: &IpNet| other.contains(block) || block.contains(other);
        if let Some(j) = pods.blocks[..i].iter().position(overlaps) {
            let first = config.member("pods.blocks", j);
            error(&path, format!("`{block}` overlaps {first} ({}); expected blocks apart", pods.blocks[j]));
        }
    }
}
