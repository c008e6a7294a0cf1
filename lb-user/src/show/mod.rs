//! What is in the kernel, for people and programs.
//!
//! Invariant: read from pinned maps and stores alone, so that every listing works while no agent runs, and
//! nothing is changed by looking. `docs/json.md` describes the fields.

mod addresses;
mod announce;
mod cell;
mod flows;
mod ipam;
mod nat;
mod parallel;
mod ports;
mod routes;
mod services;
mod status;
mod table;
mod version;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use lb_common::drop::{Drop as Reason, Note};
use lb_common::table::NextHop;

pub use addresses::addresses;
pub use announce::announce;
pub(crate) use cell::Cell;
pub(crate) use flows::endpoint;
pub use flows::{flow_counts, flows};
pub use ipam::{ipam, ipam_check, ipam_release};
pub use nat::{nat_flows, nat_status, nat_top};
pub use ports::ports;
pub use routes::{route, routes};
pub use services::{backends, services};
pub use status::status;
pub use table::{Row, Table};
pub use version::version;

use crate::apply::{Maps, Paths, State, load, namespace};
use crate::source::netlink::Mirror;

/// Opens what is pinned, or says why it can't.
pub(crate) fn open(paths: &Paths) -> Result<Maps> {
    let dir = paths.maps();
    match dir.metadata() {
        Ok(_) => Maps::open(&dir),
        Err(_) if load::other_layouts(paths).is_ok_and(|others| !others.is_empty()) => {
            bail!("what is loaded at {} is of another version of stellwerk", paths.pin.display())
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            bail!("nothing is loaded at {}: `stellwerk run --config FILE` loads it", paths.pin.display())
        }
        Err(error) => Err(error).with_context(|| dir.display().to_string()),
    }
}

/// Dropped packets, and what else was worth counting, by reason.
pub fn drops(paths: &Paths) -> Result<Table> {
    let maps = open(paths)?;
    let mut table = Table::new(&["kind", "reason", "count", "text"]);
    for (index, reason) in Reason::ALL.iter().enumerate() {
        let count = maps.drops.sum(index as u32)?;
        table.push(["drop".into(), reason.label().into(), count.into(), text(reason.text())]);
    }
    for (index, note) in Note::ALL.iter().enumerate() {
        let count = maps.notes.sum(index as u32)?;
        table.push(["note".into(), note.label().into(), count.into(), text(note.text())]);
    }
    Ok(table)
}

/// A variant's comment: the space behind its slashes is part of it.
fn text(comment: &'static str) -> Cell<'static> {
    comment.trim_start().into()
}

pub(crate) fn protocol(number: u8) -> Cow<'static, str> {
    use lb_common::wire::header::{ICMP, ICMP6, SCTP, TCP, UDP};
    match number {
        ICMP => "ICMP".into(),
        ICMP6 => "ICMPv6".into(),
        TCP => "TCP".into(),
        UDP => "UDP".into(),
        SCTP => "SCTP".into(),
        other => other.to_string().into(),
    }
}

/// What may happen to a connection of a state where room is short.
fn set(state: u8) -> &'static str {
    if lb_common::tcp::answered(state) { "established" } else { "half-open" }
}

/// The links that the pinned state is about; None in another network namespace, whose links have
/// the same numbers.
pub(crate) fn mirror(state: &State) -> Result<Option<Mirror>> {
    let here = state.namespace == 0 || state.namespace == namespace()?;
    here.then(Mirror::without_routes).transpose()
}

/// Names of links by index.
pub(crate) fn interfaces(mirror: Option<&Mirror>) -> BTreeMap<u32, String> {
    let links = mirror.into_iter().flat_map(|mirror| &mirror.network().links);
    links.map(|link| (link.index, link.name.clone())).collect()
}

/// A link's name, or its number where it has none here.
pub(crate) fn interface(link: u32, names: &BTreeMap<u32, String>) -> String {
    names.get(&link).cloned().unwrap_or_else(|| format!("link {link}"))
}

/// Names of services by id.
pub(crate) fn names(maps: &Maps) -> Result<BTreeMap<u32, String>> {
    let all = maps.names.entries()?.into_iter();
    Ok(all.map(|(id, name)| (id, name.as_str().to_owned())).filter(|(_, name)| !name.is_empty()).collect())
}

pub(crate) fn next_hop(hop: &NextHop, interfaces: &BTreeMap<u32, String>) -> String {
    match hop.kind {
        NextHop::LOCAL => "this node".into(),
        NextHop::LINK => {
            let [a, b, c, d, e, f] = hop.dst.0;
            let name = interface(hop.ifindex, interfaces);
            format!("{name} {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
        }
        NextHop::DROP => "blackhole".into(),
        _ => "kernel".into(),
    }
}
