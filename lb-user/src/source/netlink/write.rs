//! What is asked of the kernel by rtnetlink: neighbours to resolve, the internal switch, and the hooks of traffic
//! control.
//!
//! Invariant: each is idempotent, and none touches what it was not given.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::message::{Attrs, CREATE, Connection, EXCLUSIVE, Message, REPLACE, u32_at};
use super::news::{DEL_ADDRESS, DEL_LINK, DEL_NEIGHBOUR, NEW_ADDRESS, NEW_LINK, NEW_NEIGHBOUR};

pub const NEW_QDISC: u16 = 36;
const DEL_QDISC: u16 = 37;
const NEW_FILTER: u16 = 44;
const DEL_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
/// NUD_PROBE, NUD_PERMANENT
const PROBE: u8 = 0x10;
const PERMANENT: u8 = 0x80;
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

pub fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

pub fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn exists_is_fine(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A neighbour whose link-layer address is given for good: nobody asks for it.
pub fn know(connection: &mut Connection, link: u32, addr: IpAddr, mac: [u8; 6]) -> io::Result<()> {
    let message = Message::new(NEW_NEIGHBOUR, CREATE | REPLACE, &neighbour(link, addr, PERMANENT));
    connection.change(message.attr(1, &octets(addr)).attr(2, &mac))
}

/// Removes a neighbour; one that is gone is no error.
pub fn forget(connection: &mut Connection, link: u32, addr: IpAddr) -> io::Result<()> {
    let message = Message::new(DEL_NEIGHBOUR, 0, &neighbour(link, addr, 0)).attr(1, &octets(addr));
    match connection.change(message) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        result => result,
    }
}

fn neighbour(link: u32, addr: IpAddr, state: u8) -> Vec<u8> {
    let mut header = vec![family(addr), 0, 0, 0];
    header.extend_from_slice(&link.to_ne_bytes());
    header.extend_from_slice(&[state, 0, 0, 0]);
    header
}

/// Asks the kernel to resolve a neighbour and, on 5.16 and later, to keep it resolved. Must not be
/// asked for permanent ones: their state would be lost.
pub fn resolve(connection: &mut Connection, link: u32, addr: IpAddr, keep: bool) -> io::Result<()> {
    let mut header = vec![family(addr), 0, 0, 0];
    header.extend_from_slice(&link.to_ne_bytes());
    // State none; NTF_USE: as if a packet had asked for it.
    header.extend_from_slice(&[0, 0, 1, 0]);
    let message = Message::new(NEW_NEIGHBOUR, CREATE | REPLACE, &header).attr(1, &octets(addr));
    if !keep {
        return connection.change(message);
    }
    let managed = 1u32; // NTF_EXT_MANAGED in NDA_FLAGS_EXT
    match connection.change(message.attr(15, &managed.to_ne_bytes())) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => resolve(connection, link, addr, false),
        result => result,
    }
}

/// Has the kernel ask a resolved neighbour whether it is still there, in unicast; one that is not
/// resolved is asked for anew. Must not be asked for permanent ones: their state would be lost.
pub fn probe(connection: &mut Connection, link: u32, addr: IpAddr) -> io::Result<()> {
    let mut header = vec![family(addr), 0, 0, 0];
    header.extend_from_slice(&link.to_ne_bytes());
    header.extend_from_slice(&[PROBE, 0, 0, 0]);
    let message = Message::new(NEW_NEIGHBOUR, REPLACE, &header).attr(1, &octets(addr));
    match connection.change(message) {
        // Without a link-layer address, or not there.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            resolve(connection, link, addr, false)
        }
        result => result,
    }
}

/// Creates a bridge that is up; false: there was one.
pub fn create_bridge(connection: &mut Connection, name: &str) -> Result<bool> {
    let mut header = [0; 16];
    // ifi_flags and ifi_change: IFF_UP
    header[8..12].copy_from_slice(&1u32.to_ne_bytes());
    header[12..16].copy_from_slice(&1u32.to_ne_bytes());
    let message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &header)
        .attr(3, &[name.as_bytes(), &[0]].concat())
        .nest(18, |info| info.attr(1, b"bridge\0"));
    exists_is_fine(connection.change(message)).with_context(|| format!("creating the bridge {name}"))
}

pub fn delete_link(connection: &mut Connection, link: u32) -> io::Result<()> {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    connection.change(Message::new(DEL_LINK, 0, &header))
}

/// Adds an address; false: it was there.
pub fn add_address(connection: &mut Connection, link: u32, net: IpNet) -> io::Result<bool> {
    let message = address(NEW_ADDRESS, CREATE | EXCLUSIVE, link, net);
    exists_is_fine(connection.change(message))
}

pub fn delete_address(connection: &mut Connection, link: u32, net: IpNet) -> io::Result<()> {
    connection.change(address(DEL_ADDRESS, 0, link, net))
}

fn address(kind: u16, flags: u16, link: u32, net: IpNet) -> Message {
    let mut header = vec![family(net.addr()), net.prefix_len(), 0, 0];
    header.extend_from_slice(&link.to_ne_bytes());
    let addr = octets(net.addr());
    Message::new(kind, flags, &header).attr(2, &addr).attr(1, &addr)
}

/// A tcmsg: family, index, handle, parent, info.
pub fn traffic_control(link: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    for word in [link, handle, parent, info] {
        header.extend_from_slice(&word.to_ne_bytes());
    }
    header
}

/// Adds a clsact qdisc; false: there was one.
pub fn create_clsact(connection: &mut Connection, link: u32) -> io::Result<bool> {
    exists_is_fine(connection.change(clsact(NEW_QDISC, CREATE | EXCLUSIVE, link)))
}

pub fn delete_clsact(connection: &mut Connection, link: u32) -> io::Result<()> {
    connection.change(clsact(DEL_QDISC, 0, link))
}

fn clsact(kind: u16, flags: u16, link: u32) -> Message {
    Message::new(kind, flags, &traffic_control(link, 0xffff_0000, CLSACT, 0)).attr(1, b"clsact\0")
}

/// Whether anybody's filter hangs on a link's clsact qdisc.
pub fn has_filters(connection: &mut Connection, link: u32) -> Result<bool> {
    let mut any = false;
    for parent in [INGRESS, EGRESS] {
        let make = || Message::new(GET_FILTER, 0, &traffic_control(link, 0, parent, 0));
        any |= connection.dump(make, |any: &mut bool, _| *any = true)?;
    }
    Ok(any)
}

/// Where among a link's filters a BPF filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub egress: bool,
    pub priority: u16,
    pub handle: u32,
}

/// A BPF filter on a link's ingress or egress.
pub struct Filter {
    pub place: Place,
    /// Its program's id.
    pub program: u32,
}

fn parent(egress: bool) -> u32 {
    if egress { EGRESS } else { INGRESS }
}

pub fn filters(connection: &mut Connection, link: u32, egress: bool) -> Result<Vec<Filter>> {
    connection.dump(
        || Message::new(GET_FILTER, 0, &traffic_control(link, 0, parent(egress), 0)),
        |all: &mut Vec<_>, payload| {
            all.extend(filter(payload, egress));
        },
    )
}

fn filter(payload: &[u8], egress: bool) -> Option<Filter> {
    let (handle, info) = (u32_at(payload, 8)?, u32_at(payload, 16)?);
    // TCA_OPTIONS { TCA_BPF_ID }: only a BPF filter has one.
    let options = Attrs(payload.get(20..)?).find(2)?;
    Some(Filter { place: Place { egress, priority: (info >> 16) as u16, handle }, program: Attrs(options).u32(11)? })
}

/// Makes a program a filter that decides itself, in one step with what was there before. The link has a clsact qdisc.
pub fn set_filter(
    connection: &mut Connection,
    link: u32,
    place: Place,
    name: &str,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let (name, fd) = ([name.as_bytes(), &[0]].concat(), program.as_raw_fd().to_ne_bytes());
    // TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS: TCA_BPF_FLAG_ACT_DIRECT
    let options = |message: Message| message.attr(6, &fd).attr(7, &name).attr(8, &1u32.to_ne_bytes());
    connection.change(at(NEW_FILTER, CREATE, link, place).attr(1, b"bpf\0").nest(2, options))
}

pub fn delete_filter(connection: &mut Connection, link: u32, place: Place) -> io::Result<()> {
    connection.change(at(DEL_FILTER, 0, link, place))
}

/// A change of one filter, for packets of all protocols.
fn at(kind: u16, flags: u16, link: u32, Place { egress, priority, handle }: Place) -> Message {
    let info = u32::from(priority) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
    Message::new(kind, flags, &traffic_control(link, handle, parent(egress), info))
}
