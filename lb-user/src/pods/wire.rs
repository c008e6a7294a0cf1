//! The wire between a pod and the node: a veth pair, one end of it in the pod, with addresses and routes.
//!
//! Invariant: the node's end is named by what the lease is known by, so that whoever comes after a crash finds it, and
//! with one end the other goes. The routes of the node come last: where they are, all else is. Each end knows the
//! other's link-layer address for good: nothing has to be resolved, and the gateway needs no address of its own.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::resume_unwind;
use std::thread;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::aggregate::aggregate;
use super::limit::limit;
use crate::apply::sysctl;
use crate::ipam::{Key, Lease};
use crate::source::netlink::message::{Attrs, CREATE, Connection, EXCLUSIVE, Message, REPLACE, u32_at};
use crate::source::netlink::{Mirror, without_statistics, write};

/// What all of the node's ends are called, and only they.
pub const PREFIX: &str = "stpod";
/// As [`crate::intent::Intent`]'s patterns have it.
pub const PATTERN: &str = "stpod*";

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
const MAIN: u8 = 254;
/// RTPROT_STATIC: [`crate::route::PROTOCOL`] is that of routes that operators add.
const STATIC: u8 = 4;
const SCOPE_LINK: u8 = 253;
const ON_LINK: u32 = 4;
const NO_DAD: u8 = 2;

/// A wire that is there.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Of the node's end.
    pub link: u32,
    pub host_mac: [u8; 6],
    pub mac: [u8; 6],
}

/// FNV-1a: the same in all versions, which a hasher of the library need not be.
fn hash(key: &Key, salt: u8) -> u64 {
    let bytes = key.container.bytes().chain([0]).chain(key.interface.bytes()).chain([salt]);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The name of the node's end.
pub fn host_name(key: &Key) -> String {
    format!("{PREFIX}{:010x}", hash(key, 0) & 0xff_ffff_ffff)
}

/// Given, not made by chance: what manages links by rules of its own leaves such alone.
fn mac(key: &Key, salt: u8) -> [u8; 6] {
    let [_, _, _, b, c, d, e, f] = hash(key, salt).to_be_bytes();
    [0x0a, b, c, d, e, f]
}

pub fn gateway(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::new(169, 254, 1, 1).into() } else { Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into() }
}

/// Runs something in another network namespace.
fn inside<T: Send>(netns: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Of this thread alone, which ends with its work.
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .context("entering the pod's network namespace")?;
            work()
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Makes the whole of it; what was begun is there when a step fails, and [`remove`] takes it away.
pub fn make(key: &Key, lease: &Lease, netns: &File, mtu: u32) -> Result<Wire> {
    let (host, name) = (host_name(key), key.interface.as_str());
    let (host_mac, mac) = (mac(key, 1), mac(key, 2));
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    pair(&mut connection, (&host, host_mac), (name, mac), netns, mtu)?;
    inside(netns, || {
        let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
        let own = end(&mut connection, name)?.with_context(|| format!("{name} has vanished"))?;
        pod_side(&mut connection, name, own, host_mac, lease).with_context(|| format!("setting up {name} in the pod"))
    })?;
    let link = host_side(&mut connection, key, lease)?;
    Ok(Wire { link, host_mac, mac })
}

/// One end here, the other one there.
fn pair(
    connection: &mut Connection,
    (host, host_mac): (&str, [u8; 6]),
    (name, mac): (&str, [u8; 6]),
    netns: &File,
    mtu: u32,
) -> io::Result<()> {
    let text = |name: &str| [name.as_bytes(), &[0]].concat();
    let netns = netns.as_raw_fd().to_ne_bytes();
    let one = 1u32.to_ne_bytes();
    // IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES. Without the last two the kernel makes
    // a queue for each CPU, takes all but one out of use, and waits for all CPUs to see that.
    let ends = |message: Message, name: &str, mac: [u8; 6]| {
        message.attr(1, &mac).attr(3, &text(name)).attr(4, &mtu.to_ne_bytes()).attr(31, &one).attr(32, &one)
    };
    let peer = |message: Message| ends(message.fixed(&[0; 16]), name, mac).attr(28, &netns);
    let message = ends(Message::new(NEW_LINK, CREATE | EXCLUSIVE, &[0; 16]), host, host_mac);
    let message = message.nest(18, |info| info.attr(1, b"veth\0").nest(2, |data| data.nest(1, peer)));
    connection.change(message)
}

fn pod_side(connection: &mut Connection, name: &str, own: u32, host_mac: [u8; 6], lease: &Lease) -> Result<()> {
    let v6 = lease.addresses.iter().any(IpAddr::is_ipv6);
    let off = sysctl::path(&format!("net/ipv6/conf/{name}/disable_ipv6"));
    if v6 && std::fs::read_to_string(&off).is_ok_and(|text| text.trim() == "1") {
        // Runtimes turn it off in what they make.
        std::fs::write(&off, "0").with_context(|| off.display().to_string())?;
    }
    for addr in &lease.addresses {
        add_address(connection, own, *addr).with_context(|| format!("adding {addr}"))?;
    }
    if let Some(rate) = lease.bandwidth.egress {
        limit(connection, own, rate).context("limiting what it sends")?;
    }
    aggregate(own)?;
    up(connection, own).context("setting it up")?;
    for addr in &lease.addresses {
        let gateway = gateway(addr.is_ipv4());
        write::know(connection, own, gateway, host_mac).context("naming the gateway")?;
        let any: IpNet = if addr.is_ipv4() { "0.0.0.0/0".parse()? } else { "::/0".parse()? };
        route(connection, any, own, Some(gateway)).with_context(|| format!("the route by {gateway}"))?;
    }
    Ok(())
}

/// Sets up the node's end. Done again, it mends what was lost.
pub fn host_side(connection: &mut Connection, key: &Key, lease: &Lease) -> Result<u32> {
    let host = host_name(key);
    let own = end(connection, &host)?.with_context(|| format!("{host} has vanished"))?;
    if let Some(rate) = lease.bandwidth.ingress {
        limit(connection, own, rate).with_context(|| format!("limiting what goes to {host}"))?;
    }
    sysctl::own(&host)?;
    // For the programs that will hang there. Once it is up this would stop its queues, and wait for all CPUs.
    write::create_clsact(connection, own).with_context(|| format!("adding a clsact qdisc to {host}"))?;
    up(connection, own).with_context(|| format!("setting {host} up"))?;
    for addr in &lease.addresses {
        write::know(connection, own, *addr, mac(key, 2)).with_context(|| format!("naming {addr}"))?;
        route(connection, IpNet::from(*addr), own, None).with_context(|| format!("the route to {addr}"))?;
    }
    Ok(own)
}

/// Whether the node's end is there.
pub fn is_there(key: &Key) -> Result<bool> {
    Ok(end(&mut Connection::open(libc::NETLINK_ROUTE)?, &host_name(key))?.is_some())
}

/// Removes it, if it is there.
pub fn remove(key: &Key) -> Result<bool> {
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    let host = host_name(key);
    let Some(own) = end(&mut connection, &host)? else { return Ok(false) };
    match write::delete_link(&mut connection, own) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error).context(format!("removing {host}")),
        _ => Ok(true),
    }
}

/// What is not as it was made.
pub fn verify(key: &Key, lease: &Lease, netns: &File) -> Result<()> {
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    let host = host_name(key);
    let own = end(&mut connection, &host)?.with_context(|| format!("there is no interface {host}"))?;
    for addr in &lease.addresses {
        let link = link_to(&mut connection, *addr);
        ensure!(link == Some(own), "this node has no route to {addr} by {host}");
    }
    inside(netns, || verify_pod(key, lease))
}

fn verify_pod(key: &Key, lease: &Lease) -> Result<()> {
    let name = &key.interface;
    let mirror = Mirror::open()?;
    let network = mirror.network();
    let link = network.links.iter().find(|link| link.name == *name);
    let link = link.with_context(|| format!("the pod has no interface {name}"))?;
    ensure!(link.mac == Some(mac(key, 2)), "the pod's {name} is another one");
    ensure!(link.up, "the pod's {name} is down");
    for addr in &lease.addresses {
        let there = network.addresses.iter().any(|a| a.link == link.index && a.net.addr() == *addr);
        ensure!(there, "the pod's {name} has no address {addr}");
        let gateway = gateway(addr.is_ipv4());
        let mut ways = network.routes.covering(*addr).filter(|(prefix, _)| prefix.prefix_len() == 0);
        let by = |path: &crate::intent::Path| path.link == link.index && path.gateway == Some(gateway);
        ensure!(ways.any(|(_, paths)| paths.iter().any(by)), "the pod has no default route by {gateway} on {name}");
    }
    Ok(())
}

/// An interface's number.
fn end(connection: &mut Connection, name: &str) -> Result<Option<u32>> {
    let mut found = None;
    let message = Message::new(GET_LINK, 0, &[0; 16]).attr(3, &[name.as_bytes(), &[0]].concat());
    let message = without_statistics(message);
    let asked = connection.ask(message, |_, payload| found = u32_at(payload, 4));
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking for {name}")),
        Ok(()) => Ok(found),
    }
}

fn up(connection: &mut Connection, link: u32) -> io::Result<()> {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..12].copy_from_slice(&1u32.to_ne_bytes());
    header[12..16].copy_from_slice(&1u32.to_ne_bytes());
    connection.change(Message::new(NEW_LINK, 0, &header))
}

/// Nobody else has it: nobody need be asked before it is used.
fn add_address(connection: &mut Connection, link: u32, addr: IpAddr) -> io::Result<()> {
    let mut header = vec![write::family(addr), bits(addr), NO_DAD, 0];
    header.extend_from_slice(&link.to_ne_bytes());
    let octets = write::octets(addr);
    connection.change(Message::new(NEW_ADDRESS, CREATE | EXCLUSIVE, &header).attr(2, &octets).attr(1, &octets))
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn route(connection: &mut Connection, to: IpNet, link: u32, gateway: Option<IpAddr>) -> io::Result<()> {
    // The gateway is in no network of the pod's.
    let (scope, flags) = if gateway.is_some() { (0, ON_LINK) } else { (SCOPE_LINK, 0) };
    let mut header = vec![write::family(to.addr()), to.prefix_len(), 0, 0, MAIN, STATIC, scope, 1];
    header.extend_from_slice(&flags.to_ne_bytes());
    let mut message = Message::new(NEW_ROUTE, CREATE | REPLACE, &header);
    if to.prefix_len() > 0 {
        message = message.attr(1, &write::octets(to.addr()));
    }
    if let Some(gateway) = gateway {
        message = message.attr(5, &write::octets(gateway));
    }
    connection.change(message.attr(4, &link.to_ne_bytes()))
}

/// By which interface the node reaches an address.
pub fn link_to(connection: &mut Connection, addr: IpAddr) -> Option<u32> {
    let mut link = None;
    let header = [write::family(addr), bits(addr), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let message = Message::new(GET_ROUTE, 0, &header).attr(1, &write::octets(addr));
    let asked = connection.ask(message, |_, payload| link = payload.get(12..).and_then(|p| Attrs(p).u32(4)));
    asked.ok().and(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_stay() {
        let key = Key { container: "a".repeat(64), interface: "eth0".into() };
        assert_eq!(host_name(&key).len(), 15);
        assert_eq!(host_name(&Key { container: "c1".into(), interface: "eth0".into() }), "stpod6f19677b26");
        assert_ne!(host_name(&key), host_name(&Key { interface: "eth1".into(), ..key.clone() }));
        assert_ne!(mac(&key, 1), mac(&key, 2));
        assert_eq!(mac(&key, 1)[0] & 3, 2, "an address of a single host, given locally");
    }
}
