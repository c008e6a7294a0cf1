//! The internal switch: a bridge with its addresses, made where there is none.
//!
//! Invariant: what was there is used as it is; what is made is recorded, so that `unload` removes it.

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::apply::{Paths, State};
use crate::intent::{InternalSwitch, Link, Network};
use crate::source::netlink::message::Connection;
use crate::source::netlink::{Mirror, write};

/// The network as it will be once the switch is there.
pub fn pretend(switch: &InternalSwitch, network: &mut Network) {
    if network.links.iter().all(|link| link.name != switch.interface) {
        network.links.push(Link {
            index: u32::MAX,
            name: switch.interface.clone(),
            mac: None,
            mtu: 1500,
            up: true,
            master: None,
            kind: Some("bridge".into()),
            master_kind: None,
            xdp_transmit: false,
            queued: false,
        });
    }
}

/// Makes what is missing of it.
pub fn ensure(paths: &Paths, switch: &InternalSwitch) -> Result<()> {
    let name = &switch.interface;
    let mut state = State::read(paths)?;
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    let there = |mirror: &Mirror| mirror.network().links.iter().any(|l| l.name == *name);
    let mut mirror = Mirror::without_routes()?;
    if !there(&mirror) {
        state.change(paths, |state| state.bridges.extend([name.clone()]))?;
        write::create_bridge(&mut connection, name)?;
        tracing::info!("created the internal switch {name}");
        mirror = Mirror::without_routes()?;
    }
    let network = mirror.network();
    let link = network.links.iter().find(|l| l.name == *name).with_context(|| format!("{name} has vanished"))?.index;
    let missing = |net: &&IpNet| !network.addresses.iter().any(|a| a.link == link && a.net == **net);
    for &net in switch.addresses.iter().filter(missing) {
        state.change(paths, |state| state.addresses.extend([(name.clone(), net)]))?;
        write::add_address(&mut connection, link, net).with_context(|| format!("adding {net} to {name}"))?;
        tracing::info!("added {net} to {name}");
    }
    Ok(())
}
