//! The cluster's nodes, and how packets go to their pods.
//!
//! Not here: which way there is at the moment ([`crate::nodes`]).

use std::net::IpAddr;

use ipnet::IpNet;

use super::Intent;

/// A node of the cluster, and which of [`Intent::pod_subnets`] are its pods'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNode {
    pub name: String,
    /// By which others reach it.
    pub addresses: Vec<IpAddr>,
    pub blocks: Vec<IpNet>,
}

/// How packets go to other nodes' pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    pub mode: OverlayMode,
    /// The UDP port of VXLAN, at all nodes (RFC 7348).
    pub port: u16,
    /// Its network identifier.
    pub vni: u32,
}

impl Default for Overlay {
    fn default() -> Self {
        Overlay { mode: OverlayMode::default(), port: 4_789, vni: 4_096 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverlayMode {
    /// As they are: whatever is between the nodes knows pods' addresses.
    Never,
    Always,
    /// To nodes that a router leads to.
    #[default]
    CrossSubnet,
}

impl Intent {
    /// The nodes of [`Intent::pod_nodes`] but for this one.
    pub fn other_nodes(&self) -> impl Iterator<Item = &PodNode> {
        self.pod_nodes.iter().filter(|node| node.name != self.node)
    }

    /// Whether packets may go to other nodes in the overlay.
    pub fn has_overlay(&self) -> bool {
        self.overlay.mode != OverlayMode::Never && self.other_nodes().next().is_some()
    }
}
