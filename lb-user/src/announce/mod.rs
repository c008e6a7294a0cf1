//! Which node announces which load balancer's address on the network of its compute port.
//!
//! All nodes come to the same answer from the same state, without asking each other: of those that may announce an
//! address the one does that [`own::choose`] names. What they tell each other is only that they are there
//! ([`peers`], [`talk`]). Not here: how requests are answered (`lb_common::path::announce`), when the table that says
//! so is written ([`crate::plan`]), and when any of this is looked at again (the agent).

pub mod demand;
pub mod gratuitous;
pub mod own;
pub mod peers;
pub mod report;
pub mod talk;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::table::Announced;
use lb_common::wire::Mac;

use crate::intent::{Intent, Network};

/// The UDP port at which nodes tell each other that they are there.
pub const PORT: u16 = 7_948;

/// What the configuration says of announcements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub enabled: bool,
    /// Addresses of other nodes, by name: beside, or in place of, those that their Node objects have.
    pub peers: BTreeMap<String, Vec<IpAddr>>,
    pub port: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { enabled: true, peers: BTreeMap::new(), port: PORT }
    }
}

/// A compute port that is up, and its networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub interface: String,
    pub by: Announced,
    pub nets: Vec<IpNet>,
}

/// Where addresses are announced.
pub fn places(intent: &Intent, network: &Network) -> Vec<Place> {
    let mut places = Vec::new();
    for port in intent.ports.iter().filter(|port| port.compute) {
        let Some(link) = network.links.iter().find(|link| link.name == port.interface && link.up) else { continue };
        let Some(mac) = link.mac else { continue };
        let nets = network.addresses.iter().filter(|addr| addr.link == link.index).map(|addr| addr.net).collect();
        let by = Announced { link: link.index, mac: Mac(mac), pad: 0 };
        places.push(Place { interface: port.interface.clone(), by, nets });
    }
    places
}

/// The one's complement sum of bytes, an even number of them, not yet folded to 16 bits.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|word| u64::from(u16::from_ne_bytes([word[0], word[1]]))).sum()
}

/// The place in whose network an address is.
pub fn place(places: &[Place], addr: IpAddr) -> Option<&Place> {
    places
        .iter()
        .find(|place| place.nets.iter().any(|net| net.contains(&addr) && net.prefix_len() < net.max_prefix_len()))
}
