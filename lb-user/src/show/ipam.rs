//! Pods' addresses, and what is wrong with them.
//!
//! Invariant: leases are read from disk and interfaces from the kernel: both work while no agent runs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};

use super::{Cell, Table};
use crate::agent::running;
use crate::apply::Paths;
use crate::config::Config;
use crate::ipam::{Key, Lease, State, store};
use crate::pods::keeper::ends;
use crate::pods::talk::{self, Reply, Request};
use crate::pods::wire;
use crate::source::netlink::message::Connection;

/// Who has which addresses.
pub fn ipam(paths: &Paths) -> Result<Table> {
    let state = store::read(&paths.ipam())?;
    let mut table = Table::new(&["container", "interface", "pod", "addresses", "host_interface", "host_ports"]);
    for (key, lease) in &state.leases {
        table.push([
            key.container.clone().into(),
            key.interface.clone().into(),
            pod(lease).into(),
            list(&lease.addresses),
            wire::host_name(key).into(),
            Cell::List(lease.ports.iter().map(|port| format!("{port} -> {}", port.container_port)).collect()),
        ]);
    }
    Ok(table)
}

fn pod(lease: &Lease) -> Option<String> {
    (!lease.pod.is_empty()).then(|| format!("{}/{}", lease.namespace, lease.pod))
}

fn list(addresses: &[IpAddr]) -> Cell<'static> {
    Cell::List(addresses.iter().map(ToString::to_string).collect())
}

/// What doesn't go together, and whether there is anything of that kind.
pub fn ipam_check(paths: &Paths) -> Result<(Table, bool)> {
    let state = store::read(&paths.ipam())?;
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    let ways = state.leases.values().flat_map(|lease| &lease.addresses);
    let ways = ways.map(|addr| (*addr, wire::link_to(&mut connection, *addr))).collect();
    let found = wrong(&state, &ends()?.into_iter().collect(), &ways, &blocks(paths));
    let mut table = Table::new(&["what", "container", "interface", "pod", "addresses", "host_interface", "detail"]);
    let any = !found.is_empty();
    for Wrong { what, of, host, detail } in found {
        let (key, lease) = of.unzip();
        table.push([
            what.into(),
            key.as_ref().map(|key| key.container.clone()).into(),
            key.map(|key| key.interface).into(),
            lease.as_ref().and_then(pod).into(),
            lease.map_or(Cell::None, |lease| list(&lease.addresses)),
            host.into(),
            detail.into(),
        ]);
    }
    Ok((table, any))
}

/// The configuration's; none where they are a Node's.
fn blocks(paths: &Paths) -> Vec<ipnet::IpNet> {
    Config::load(&running(paths).0.config).map(|config| config.pod_blocks().to_vec()).unwrap_or_default()
}

#[derive(Debug, PartialEq)]
struct Wrong {
    what: &'static str,
    of: Option<(Key, Lease)>,
    host: String,
    detail: String,
}

/// `ends`: interfaces by name; `ways`: by which interface the node reaches addresses.
fn wrong(
    state: &State,
    ends: &BTreeMap<String, u32>,
    ways: &BTreeMap<IpAddr, Option<u32>>,
    blocks: &[ipnet::IpNet],
) -> Vec<Wrong> {
    let mut all = Vec::new();
    let mut owners: BTreeMap<IpAddr, &Key> = BTreeMap::new();
    let mut known = BTreeMap::new();
    for (key, lease) in &state.leases {
        let host = wire::host_name(key);
        let mut push = |what, detail: String| {
            all.push(Wrong { what, of: Some((key.clone(), lease.clone())), host: host.clone(), detail });
        };
        let link = ends.get(&host);
        if link.is_none() {
            push("leak", "its interface is gone".into());
        }
        for addr in &lease.addresses {
            if let Some(other) = owners.insert(*addr, key) {
                push("twice", format!("{addr} is that of {other}, too"));
            }
            if link.is_some() && ways.get(addr).copied().flatten() != link.copied() {
                push("unreachable", format!("{addr} is not reached by its interface"));
            }
            if !blocks.is_empty() && !blocks.iter().any(|block| block.contains(addr)) {
                push("foreign", format!("{addr} is in no block of this node"));
            }
        }
        known.insert(host, key);
    }
    for host in ends.keys().filter(|host| !known.contains_key(*host)) {
        let detail = "nobody has it".to_owned();
        all.push(Wrong { what: "stray", of: None, host: host.clone(), detail });
    }
    all
}

/// Releases all of a container or a pod; what there is to say.
pub fn ipam_release(paths: &Paths, of: &str) -> Result<String> {
    let asked = talk::ask(&paths.pods(), &Request::Release { of: of.to_owned() });
    let answer = asked.context("the agent doesn't answer, and only it releases; is it running, with `pods`?")?;
    match answer.map_err(|failure| anyhow::anyhow!("{failure}"))? {
        Reply::Done { released } if released.is_empty() => {
            bail!("nothing is known of `{of}`; expected a container's id, or a pod such as default/web-0")
        }
        Reply::Done { released } => Ok(released.iter().map(|key| format!("released {key}\n")).collect()),
        Reply::Made(_) => bail!("the agent answers another question"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong() {
        let key = |container: &str| Key { container: container.into(), interface: "eth0".into() };
        let lease = |addr: &str| Lease { addresses: vec![addr.parse().unwrap()], ..Lease::default() };
        let mut state = State::default();
        for (container, addr) in
            [("a", "172.27.1.1"), ("b", "172.27.1.2"), ("c", "172.27.1.2"), ("d", "172.27.2.1"), ("e", "172.27.1.5")]
        {
            state.leases.insert(key(container), lease(addr));
        }
        let hosts = ["a", "c", "d", "e"].map(|name| wire::host_name(&key(name)));
        let mut ends: BTreeMap<String, u32> = hosts.into_iter().zip(1..).collect();
        ends.insert("stpodx".into(), 9);
        let way = |(addr, link): (&str, u32)| (addr.parse().unwrap(), Some(link));
        let ways = [("172.27.1.1", 1), ("172.27.1.2", 2), ("172.27.2.1", 3), ("172.27.1.5", 7)].map(way).into();
        let found = wrong(&state, &ends, &ways, &["172.27.1.0/26".parse().unwrap()]);
        let said = |wrong: &Wrong| {
            let container = wrong.of.as_ref().map_or("-", |(key, _)| key.container.as_str());
            format!("{} {container}: {}", wrong.what, wrong.detail)
        };
        assert_eq!(
            found.iter().map(said).collect::<Vec<_>>(),
            [
                "leak b: its interface is gone",
                "twice c: 172.27.1.2 is that of eth0 of b, too",
                "foreign d: 172.27.2.1 is in no block of this node",
                "unreachable e: 172.27.1.5 is not reached by its interface",
                "stray -: nobody has it",
            ]
        );
    }
}
