//! The configuration's words as names.
//!
//! Invariant: made once for each configuration; nothing is parsed for a query.

use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::name;
use crate::config::Dns;

#[derive(Clone, Debug)]
pub struct Settings {
    pub config: Dns,
    pub domain: Name,
    pub external: Option<Name>,
    /// Networks whose addresses are the cluster's, and their zones.
    pub reverse: Vec<(IpNet, Name)>,
    pub hosts: Vec<(Name, Vec<std::net::IpAddr>)>,
}

impl Settings {
    pub fn new(config: Dns) -> Self {
        Settings {
            domain: name::domain(&config.domain),
            external: config.external_zone.as_deref().map(name::domain),
            reverse: config.own.iter().map(|net| (*net, name::reverse_zone(net))).collect(),
            hosts: config.hosts.iter().map(|(name, all)| (name::domain(name), all.clone())).collect(),
            config,
        }
    }
}
