//! The kernel's tables as [`Network`]'s facts: links, addresses, neighbours, rules, settings. Routes: [`super::routes`].
//!
//! Invariant: facts, no decisions. A message that lacks what every message of its kind has is left
//! out; the whole is never refused for one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use super::message::{Attrs, Connection, Message, text, u16_at, u32_at};
use super::own;
use crate::intent::{Address, Forwarding, Link, Neighbour};
use crate::route::{PROTOCOL, Rule};

const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const GET_NEIGHBOUR: u16 = 30;
const ETHERNET: u16 = 1;
pub(super) const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;
const UNICAST: u8 = 1;
const GET_RULE: u16 = 34;
const GET_NETCONF: u16 = 82;
/// The rules that the kernel makes itself: tables local, main and default.
const STANDARD_RULES: [u32; 3] = [0, 32_766, 32_767];
/// Reachable, stale, delay, probe, or set for good: states in which the link-layer address is known.
const RESOLVED: u16 = 0x02 | 0x04 | 0x08 | 0x10 | PERMANENT;
/// `NUD_NOARP`, `NUD_PERMANENT`: nobody asks whether it is there.
const PERMANENT: u16 = 0x40 | 0x80;
const PROXY: u8 = 0x08;

/// Links, and what XDP program is attached to each: 1 native, 2 generic.
#[derive(Default)]
pub struct Links {
    pub links: Vec<Link>,
    /// Those that were set up, whether they have a carrier or not.
    pub set_up: BTreeSet<u32>,
    pub xdp: BTreeMap<u32, u8>,
}

/// Neighbours, and those that somebody set for good.
#[derive(Default)]
pub struct Neighbours {
    pub neighbours: Vec<Neighbour>,
    pub permanent: BTreeSet<(u32, IpAddr)>,
}

/// Without what links have counted, which nobody reads here (IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS, Linux 4.4).
pub fn without_statistics(message: Message) -> Message {
    message.attr(29, &8u32.to_ne_bytes())
}

pub fn links(connection: &mut Connection) -> Result<Links> {
    let mut all: Links = connection.dump(
        || without_statistics(Message::new(GET_LINK, 0, &[0; 16])),
        |all, payload| {
            link(all, payload);
        },
    )?;
    let kinds: BTreeMap<u32, Option<String>> = all.links.iter().map(|l| (l.index, l.kind.clone())).collect();
    for link in &mut all.links {
        link.master_kind = link.master.and_then(|master| kinds.get(&master).cloned().flatten());
    }
    all.links.sort_by_key(|l| l.index);
    Ok(all)
}

fn link(all: &mut Links, payload: &[u8]) -> Option<()> {
    let (hardware, index, flags) = (u16_at(payload, 2)?, u32_at(payload, 4)?, u32_at(payload, 8)?);
    let attrs = Attrs(payload.get(16..)?);
    let mac = attrs.find(1).and_then(|a| <[u8; 6]>::try_from(a).ok()).filter(|_| hardware == ETHERNET);
    if let Some(mode) = attrs.find(43).and_then(|xdp| Attrs(xdp).find(2)?.first().copied()).filter(|&m| m != 0) {
        all.xdp.insert(index, mode);
    }
    let kind = attrs.find(18).and_then(|info| Attrs(info).find(1)).map(text);
    let queued = kind.is_some() && attrs.find(6).map(text).is_some_and(|queue| queue != "noqueue");
    if flags & IFF_UP != 0 {
        all.set_up.insert(index);
    }
    all.links.push(Link {
        index,
        name: text(attrs.find(3)?),
        mac,
        mtu: attrs.u32(4)?,
        up: flags & IFF_UP != 0 && flags & IFF_LOWER_UP != 0,
        master: attrs.u32(10),
        kind,
        master_kind: None,
        xdp_transmit: false,
        queued,
    });
    Some(())
}

pub fn addresses(connection: &mut Connection) -> Result<Vec<Address>> {
    let mut all: Vec<Address> = connection.dump(
        || Message::new(GET_ADDRESS, 0, &[0; 8]),
        |all: &mut Vec<_>, payload| {
            all.extend(address(payload));
        },
    )?;
    all.sort_by_key(|a| (a.link, a.net));
    Ok(all)
}

fn address(payload: &[u8]) -> Option<Address> {
    let (bits, link) = (*payload.get(1)?, u32_at(payload, 4)?);
    let attrs = Attrs(payload.get(8..)?);
    let addr = ip(attrs.find(2).or(attrs.find(1))?)?;
    let lifetime = attrs.find(6).and_then(|info| u32_at(info, 4));
    let temporary = lifetime.is_some_and(|seconds| seconds != u32::MAX);
    Some(Address { link, net: IpNet::new(addr, bits).ok()?, temporary })
}

pub fn neighbours(connection: &mut Connection) -> Result<Neighbours> {
    let mut all: Neighbours = connection.dump(
        || Message::new(GET_NEIGHBOUR, 0, &[0; 12]),
        |all, payload| {
            neighbour(all, payload);
        },
    )?;
    all.neighbours.sort_by_key(|n| (n.link, n.addr));
    Ok(all)
}

fn neighbour(all: &mut Neighbours, payload: &[u8]) -> Option<()> {
    let (link, state) = (u32_at(payload, 4)?, u16_at(payload, 8)?);
    let (flags, kind) = (*payload.get(10)?, *payload.get(11)?);
    if flags & PROXY != 0 || kind != UNICAST {
        return None;
    }
    let attrs = Attrs(payload.get(12..)?);
    let addr = ip(attrs.find(1)?)?;
    let mac = attrs.find(2).and_then(|a| <[u8; 6]>::try_from(a).ok()).filter(|_| state & RESOLVED != 0);
    if state & PERMANENT != 0 {
        all.permanent.insert((link, addr));
    }
    all.neighbours.push(Neighbour { link, addr, mac });
    Some(())
}

/// One of several next hops.
pub(super) struct NextHop<'a> {
    pub flags: u32,
    pub weight: u32,
    pub link: u32,
    pub attrs: Attrs<'a>,
}

/// Each a struct rtnexthop (length, flags, weight less one, interface) and attributes.
pub(super) fn next_hops(mut bytes: &[u8]) -> impl Iterator<Item = NextHop<'_>> {
    std::iter::from_fn(move || {
        let (len, link) = (u16_at(bytes, 0)? as usize, u32_at(bytes, 4)?);
        let attrs = Attrs(bytes.get(8..len)?);
        let hop = NextHop { flags: bytes[2].into(), weight: u32::from(bytes[3]) + 1, link, attrs };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(hop)
    })
}

/// What is forwarded, by the link that it comes in by.
pub fn forwarding(connection: &mut Connection) -> Result<BTreeMap<u32, Forwarding>> {
    let v4 = netconf(connection, libc::AF_INET as u8)?;
    let v6 = netconf(connection, libc::AF_INET6 as u8)?;
    let all4 = v4.get(&ALL_LINKS).copied().unwrap_or_default();
    let all6 = v6.get(&ALL_LINKS).is_some_and(|(forwarding, _)| *forwarding);
    let links = v4.iter().filter(|(link, _)| **link < DEFAULT_LINKS);
    Ok(links
        .map(|(&link, &(forwarding, rp_filter))| {
            (link, Forwarding { v4: forwarding, v6: all6, rp_filter: rp_filter.max(all4.1) })
        })
        .collect())
}

/// In place of a link's index (`NETCONFA_IFINDEX_ALL`, `NETCONFA_IFINDEX_DEFAULT`).
const ALL_LINKS: u32 = u32::MAX;
const DEFAULT_LINKS: u32 = u32::MAX - 1;

/// By link: whether it forwards, and its `rp_filter`.
fn netconf(connection: &mut Connection, family: u8) -> Result<BTreeMap<u32, (bool, u32)>> {
    connection.dump(
        || Message::new(GET_NETCONF, 0, &[family, 0, 0, 0]),
        |all: &mut BTreeMap<_, _>, payload| {
            let attrs = Attrs(payload.get(4..).unwrap_or_default());
            if let Some(link) = attrs.u32(1) {
                all.insert(link, (attrs.u32(2) == Some(1), attrs.u32(3).unwrap_or(0)));
            }
        },
    )
}

/// Policy rules of ours, and whether those of others choose among routing tables, for IPv4 and for IPv6.
#[derive(Default)]
pub struct Rules {
    pub own: BTreeSet<Rule>,
    pub policy: [bool; 2],
}

pub fn rules(connection: &mut Connection) -> Result<Rules> {
    connection.dump(
        || Message::new(GET_RULE, 0, &[0; 12]),
        |all: &mut Rules, payload| {
            all.own.extend(own::rule(payload));
            let family = i32::from(payload.first().copied().unwrap_or_default());
            let attrs = Attrs(payload.get(12..).unwrap_or_default());
            let standard = STANDARD_RULES.contains(&attrs.u32(6).unwrap_or(0));
            let ours = attrs.find(21).is_some_and(|protocol| protocol == [PROTOCOL]);
            if !standard && !ours && matches!(family, libc::AF_INET | libc::AF_INET6) {
                all.policy[usize::from(family == libc::AF_INET6)] = true;
            }
        },
    )
}

/// A gateway of the route's family, or (`RTA_VIA`) of another.
pub(super) fn gateway(attrs: Attrs) -> Option<IpAddr> {
    attrs.find(5).and_then(ip).or_else(|| ip(attrs.find(18)?.get(2..)?))
}

pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// The kernel's "netdev" family (6.3+), which says what a device's XDP can do.
pub struct Features {
    connection: Connection,
    family: u16,
}

impl Features {
    /// None: a kernel without it.
    pub fn open() -> Option<Self> {
        let mut connection = Connection::open(libc::NETLINK_GENERIC).ok()?;
        let family = connection.generic("netdev").ok()??;
        Some(Features { connection, family })
    }

    /// Links that XDP can transmit on: NETDEV_XDP_ACT_NDO_XMIT.
    pub fn transmit(&mut self) -> Result<BTreeSet<u32>> {
        self.having(4)
    }

    /// Links whose drivers run XDP programs themselves: NETDEV_XDP_ACT_BASIC.
    pub fn native(&mut self) -> Result<BTreeSet<u32>> {
        self.having(1)
    }

    fn having(&mut self, bit: u8) -> Result<BTreeSet<u32>> {
        let family = self.family;
        self.connection.dump(
            || Message::new(family, 0, &[1, 1, 0, 0]),
            |all: &mut BTreeSet<u32>, payload| {
                let attrs = Attrs(payload.get(4..).unwrap_or_default());
                if let (Some(index), Some(features)) = (attrs.u32(1), attrs.find(3))
                    && features.first().is_some_and(|bits| bits & bit != 0)
                {
                    all.insert(index);
                }
            },
        )
    }
}
