//! Which events somebody wants to see.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_common::drop::Drop as Reason;
use lb_common::table::monitor::Sighting;
use lb_common::table::{Flow, FlowKey};
use lb_common::verdict::Verdict;
use lb_common::wire::Addr;

use super::event::verdict;
use crate::apply::Maps;
use crate::apply::maps::FamilyMaps;
use crate::show::endpoint;
use crate::trace::{Names, packet};

/// All of what is said has to hold; nothing said: everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Either end's.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    /// `namespace/name`, or with `:port`.
    pub service: Option<String>,
    pub reason: Option<Reason>,
}

/// A reason by its label.
pub fn reason(text: &str) -> Result<Reason, String> {
    let known = Reason::ALL.iter().find(|reason| reason.label() == text).copied();
    let labels = || Reason::ALL.iter().map(|reason| reason.label()).collect::<Vec<_>>().join(", ");
    known.ok_or_else(|| format!("expected one of {}", labels()))
}

/// With what the names stand for at the moment.
pub struct Ready<'a> {
    filter: &'a Filter,
    services: BTreeSet<u32>,
    /// Where the service is reached, and its backends.
    ends: BTreeSet<SocketAddr>,
}

fn ends<A: Addr>(maps: &FamilyMaps<A>, services: &BTreeSet<u32>, all: &mut BTreeSet<SocketAddr>) -> Result<()> {
    let reached = maps.services.entries()?.into_iter().filter(|(_, service)| services.contains(&service.id));
    all.extend(reached.map(|(key, _)| endpoint(key.addr, key.port)));
    let backends = maps.backends.entries()?.into_iter().filter(|(_, b)| b.state != 0 && services.contains(&b.service));
    all.extend(backends.map(|(_, b)| endpoint(b.addr, b.port)));
    Ok(())
}

impl Filter {
    pub(super) fn ready(&self, maps: &Maps, names: &Names) -> Result<Ready<'_>> {
        let mut ready = Ready { filter: self, services: BTreeSet::new(), ends: BTreeSet::new() };
        if let Some(wanted) = &self.service {
            let is = |name: &str| name == wanted || name.rsplit_once(':').is_some_and(|(service, _)| service == wanted);
            ready.services = names.services.iter().filter(|(_, name)| is(name)).map(|(id, _)| *id).collect();
            ensure!(!ready.services.is_empty(), "there is no service `{wanted}`; see `stellwerk services`");
            ends(&maps.v4, &ready.services, &mut ready.ends)?;
            ends(&maps.v6, &ready.services, &mut ready.ends)?;
        }
        Ok(ready)
    }
}

impl Ready<'_> {
    fn ends(&self, source: SocketAddr, target: SocketAddr) -> bool {
        let Filter { address, port, .. } = self.filter;
        let both = [source, target];
        address.is_none_or(|addr| both.iter().any(|end| end.ip() == addr))
            && port.is_none_or(|port| both.iter().any(|end| end.port() == port))
    }

    pub fn packet(&self, sighting: &Sighting, bytes: &[u8]) -> bool {
        let told = match verdict(sighting) {
            Verdict::Drop(reason) | Verdict::Refuse(reason) => Some(reason),
            _ => None,
        };
        if self.filter.reason.is_some_and(|wanted| told != Some(wanted)) {
            return false;
        }
        let Filter { address, port, service, .. } = self.filter;
        if address.is_none() && port.is_none() && service.is_none() {
            return true;
        }
        let Some((source, target)) = packet::ends(bytes) else { return false };
        let of_service = service.is_none() || [source, target].iter().any(|end| self.ends.contains(end));
        of_service && self.ends(source, target)
    }

    pub fn flow<A: Addr>(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        if self.filter.reason.is_some() {
            return false;
        }
        let translated = flow.is(Flow::<A>::NAT);
        let of_service = self.filter.service.is_none() || (!translated && self.services.contains(&flow.service));
        let (from, to) = (endpoint(key.src, key.sport), endpoint(key.dst, key.dport));
        let becomes = (endpoint(flow.src, flow.sport), endpoint(flow.dst, flow.dport));
        of_service && (self.ends(from, to) || self.ends(becomes.0, becomes.1))
    }

    /// A connection that a policy has allowed, by the pod's own words.
    pub fn allowed<A: Addr>(&self, key: &FlowKey<A>) -> bool {
        let ends = (endpoint(key.src, key.sport), endpoint(key.dst, key.dport));
        self.filter.reason.is_none() && self.filter.service.is_none() && self.ends(ends.0, ends.1)
    }
}
