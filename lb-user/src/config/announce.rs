//! How load balancers' addresses are announced: `cluster.announce`.
//!
//! Not here: which node announces which ([`crate::announce`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::at::{At, Log};
use super::value::{self, ADDRESS, PORT};
use super::{Announcements, read};

const KEYS: &[&str] = &["enabled", "peers", "port"];
const PEERS: &str = "a map of nodes' names to their addresses, such as edge-2: 192.168.20.11";

pub(super) fn announce(at: &At<'_>, own: &str, log: &mut Log) -> Announcements {
    let mut settings = Announcements::default();
    if !at.only(log, KEYS) {
        return settings;
    }
    if let Some(at) = at.get("enabled") {
        settings.enabled = at.value(log, "true or false", value::boolean).unwrap_or(true);
    }
    if let Some(at) = at.get("port") {
        let port = at.value(log, PORT, |text| value::integer(text, 1, 65_535));
        settings.port = port.map_or(settings.port, |port| port as u16);
    }
    if let Some(at) = at.get("peers") {
        settings.peers = peers(&at, own, log);
    }
    settings
}

fn peers(at: &At<'_>, own: &str, log: &mut Log) -> BTreeMap<String, Vec<IpAddr>> {
    let mut peers: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (key, at) in at.entries(log, PEERS) {
        let name = key.text().unwrap_or("");
        if read::node_name(name).is_err() {
            log.error(&at, format!("{} is not a node's name; expected {PEERS}", key.describe()));
            continue;
        }
        if name == own {
            log.error(&at, format!("`{name}` is this node; expected others"));
            continue;
        }
        let addresses: Vec<IpAddr> =
            at.list_or_one().iter().filter_map(|at| at.value(log, ADDRESS, value::address)).collect();
        for addr in &addresses {
            if let Some((other, _)) = peers.iter().find(|(_, theirs)| theirs.contains(addr)) {
                log.error(&at, format!("{addr} is the address of {other}, too; expected one of its own"));
            }
        }
        peers.insert(name.to_owned(), addresses);
    }
    peers
}
