//! The cluster's names, as the tables serve them.
//!
//! Invariant: what is published here is in the kernel. Not here: what is answered ([`crate::dns`]).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;

use super::Agent;
use super::wish::Wish;
use crate::apply::{Paths, Served};
use crate::config;
use crate::dns::server::Server;
use crate::dns::{Snapshot, Zone};
use crate::intent::{Network, Protocol, ServicePort};
use crate::peers::Peers;
use crate::source::manifests::ServiceName;
use crate::source::manifests::names::{Named, Names, Port, Target};

pub struct Dns {
    server: Server,
    last: Snapshot,
}

impl Dns {
    pub fn start(paths: &Paths, peers: &Arc<Peers>) -> Result<Dns> {
        Ok(Dns { server: Server::start(paths.dns(), peers.clone())?, last: Snapshot::default() })
    }

    /// What an agent before has left in force has its names at once: the verifier takes seconds, and names don't wait
    /// for it. Where nothing is left, or nothing known of the cluster, none are known until the first plan.
    pub fn resume(&mut self, wish: &Wish, revision: u64, network: &Network, served: &Served) {
        let Some(config) = wish.dns() else { return };
        if !wish.waits() && !served.is_empty() {
            let unserved = wish.intent.services.iter().filter(|port| !served.has(port));
            let name = |s: &ServicePort| ServiceName { namespace: s.namespace.clone(), name: s.name.clone() };
            let held: BTreeSet<ServiceName> = unserved.map(name).collect();
            let mut names = wish.names.clone();
            if config.services().iter().all(|port| served.has(port)) {
                with_own(&mut names, config);
            }
            self.last = Snapshot { revision, zone: Zone::resumed(&names, held), node: Arc::new(addresses(network)) };
            self.server.publish(self.last.clone());
        }
        self.server.configure(Some(config));
    }

    fn publish(&mut self, revision: u64, names: &Names, network: &Network) {
        let node = addresses(network);
        let Snapshot { zone, node: before, revision: last } = &mut self.last;
        if revision == *last && names.is_same(zone.names()) && node == **before {
            return;
        }
        zone.follow(names);
        if node != **before {
            *before = Arc::new(node);
        }
        *last = revision;
        self.server.publish(self.last.clone());
    }
}

impl Agent {
    /// Once the tables are as the wish has them. Until the source of services has told of all, nothing is answered.
    pub(super) fn publish_names(&mut self) {
        if self.wish.waits() {
            return;
        }
        let mut names = self.wish.names.clone();
        if let Some(dns) = self.wish.dns() {
            with_own(&mut names, dns);
        }
        self.dns.publish(self.wish.intent.revision, &names, &self.network);
    }

    pub(super) fn configure_names(&mut self) {
        self.dns.server.configure(self.wish.dns());
        self.publish_names();
    }
}

fn addresses(network: &Network) -> BTreeSet<IpAddr> {
    network.addresses.iter().map(|a| a.net.addr()).collect()
}

/// The name that clusters know their DNS by, unless a service has it.
fn with_own(names: &mut Names, dns: &config::Dns) {
    let name = ServiceName { namespace: "kube-system".into(), name: "kube-dns".into() };
    if names.services.contains_key(&name) {
        return;
    }
    let port = |name: &str, protocol| Port { name: name.into(), protocol, port: 53 };
    let named = Named {
        target: Target::Addresses(dns.addresses.clone()),
        ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
        ..Named::default()
    };
    names.replace(&name, Some(&Arc::new(named)));
}
