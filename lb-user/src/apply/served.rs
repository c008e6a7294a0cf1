//! Which services the pinned tables serve, as an agent before has left them, while nothing is loaded yet.
//!
//! Invariant: only read; also of another version's tables, which this one is about to take over.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::Result;
use lb_common::table::{Name, Service, ServiceKey};
use lb_common::wire::{Addr, Ip4, Ip6};

use super::maps::Paths;
use super::migrate::Former;
use crate::intent::ServicePort;

/// Whose each place is where a service is reached: an address, a port and a protocol's number.
#[derive(Debug, Default)]
pub struct Served(HashMap<(IpAddr, u16, u8), String>);

impl Served {
    pub fn read(paths: &Paths) -> Result<Self> {
        let mut served = Served::default();
        if let Some(former) = Former::of(paths)? {
            let names: HashMap<u32, Name> = former.entries("NAMES")?.into_iter().collect();
            served.family::<Ip4>(&former, "SERVICES4", &names)?;
            served.family::<Ip6>(&former, "SERVICES6", &names)?;
        }
        Ok(served)
    }

    fn family<A: Addr>(&mut self, former: &Former, map: &'static str, names: &HashMap<u32, Name>) -> Result<()> {
        for (key, service) in former.entries::<ServiceKey<A>, Service>(map)? {
            if let Some(name) = names.get(&service.id) {
                self.0.insert((key.addr.to_ip(), key.port.get(), key.proto), name.as_str().to_owned());
            }
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a port of a service is reached at each of its addresses.
    pub fn has(&self, port: &ServicePort) -> bool {
        let name = Name::new(&port.full_name());
        let at = |addr: &IpAddr| self.0.get(&(*addr, port.port, port.protocol.number()));
        port.addresses.iter().all(|addr| at(addr).is_some_and(|owner| owner == name.as_str()))
    }
}
