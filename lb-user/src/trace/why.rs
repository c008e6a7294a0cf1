//! Why a connection goes to no certain backend.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::Result;
use lb_common::table::{Backend as Entry, Service};
use lb_common::wire::Addr;

use super::told::Names;
use super::view::Asked;
use crate::apply::Maps;
use crate::apply::maps::FamilyMaps;
use crate::show::endpoint;

/// A backend that somebody expected: by its address, and maybe its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    addr: IpAddr,
    port: Option<u16>,
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.parse() {
            return Ok(Backend { addr, port: None });
        }
        let whole: Option<SocketAddr> = text.parse().ok();
        let whole = whole.ok_or("expected a backend's address, such as 172.27.0.11 or 172.27.0.11:8080")?;
        Ok(Backend { addr: whole.ip(), port: Some(whole.port()) })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.addr, port)),
            None => write!(f, "{}", self.addr),
        }
    }
}

/// A backend of the service, of either family.
struct Known {
    id: u32,
    at: SocketAddr,
    draining: bool,
}

fn backends<A: Addr>(maps: &FamilyMaps<A>, service: u32) -> Result<Vec<Known>> {
    let mine = maps.backends.entries()?.into_iter().filter(|(_, b)| b.state != 0 && b.service == service);
    let of = |(id, b): (u32, Entry<A>)| Known {
        id,
        at: endpoint(b.addr, b.port),
        draining: b.state == Entry::<A>::DRAINING,
    };
    Ok(mine.map(of).collect())
}

/// `known`: the packet's connection, in words.
pub(super) fn not(wanted: &Backend, asked: &Asked, known: Option<&str>, names: &Names, maps: &Maps) -> Result<String> {
    let Some(service) = asked.service else {
        return Ok(match known {
            Some(known) => format!("its connection stays where it is: {known}"),
            None => format!("it asks for no service, so that {wanted} is none of its backends"),
        });
    };
    let (id, name) = (service.id, names.service_name(service.id));
    let all = if wanted.addr.is_ipv4() { backends(&maps.v4, id)? } else { backends(&maps.v6, id)? };
    let is = |b: &&Known| b.at.ip() == wanted.addr && wanted.port.is_none_or(|port| port == b.at.port());
    let Some(backend) = all.iter().find(is) else {
        let others: Vec<String> = all.iter().map(|b| b.at.to_string()).collect();
        let others = if others.is_empty() { "there is none of its family".into() } else { others.join(", ") };
        let why = "not ready, failing its probes (`stellwerk services`), or not among its endpoints";
        return Ok(format!("{wanted} is no backend of {name}: {why}; those are: {others}"));
    };
    if asked.backend == Some(backend.id) {
        return Ok(format!("{wanted} it is"));
    }
    if backend.draining {
        return Ok(format!("{wanted} is draining: it keeps its connections and gets no new ones"));
    }
    if asked.bound.is_some() && asked.bound == asked.backend {
        return Ok("the client is bound to another one by ClientIP affinity".into());
    }
    let Some(slot) = asked.slot else { return Ok("no backend was chosen: see the verdict".into()) };
    chosen(&service, slot, backend, wanted, maps)
}

/// What the row says that the choice was made from.
fn chosen(service: &Service, slot: u32, backend: &Known, wanted: &Backend, maps: &Maps) -> Result<String> {
    let row = service.rows().find(|(first, count)| (*first..first + count).contains(&slot));
    let Some((first, count)) = row else { return Ok("the service has changed meanwhile: ask again".into()) };
    let slots = maps.slots.read(first, count)?;
    let share = slots.iter().filter(|id| **id == backend.id).count();
    if share == 0 {
        let local = first == service.local_first && first != service.first;
        let why = if local {
            "only endpoints of this node are asked (a traffic policy is Local)"
        } else {
            "its weight is none"
        };
        return Ok(format!("{wanted} is in none of the {count} slots: {why}"));
    }
    let place = slot - first;
    Ok(format!(
        "the connection's hash leads to slot {place} of {count}, which is another one's; {wanted} has {share} of them ({:.1} %)",
        share as f64 * 100.0 / f64::from(count)
    ))
}
