//! What is ours in the kernel's routing, by its protocol number: read, set and removed.
//!
//! Invariant: nothing of another protocol is touched. A route is added only where none of its prefix
//! and metric is, and replaced only where ours is; removal names the protocol.

use std::collections::BTreeMap;
use std::io;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::message::{Attrs, CREATE, Connection, EXCLUSIVE, Message, REPLACE, u32_at};
use super::news::{DEL_ROUTE, DEL_RULE, NEW_ROUTE, NEW_RULE};
use super::read::{self, ip, next_hops, rules};
use super::routes::GET_ROUTE;
use super::write::{family, octets};
use crate::nodes::gateway;
use crate::route::reply::PRIORITY;
use crate::route::{Hop, Key, Kind, Own, PROTOCOL, Rule, Target};

const SCOPE_LINK: u8 = 253;
const SCOPE_ANY: u8 = 255;
const ON_LINK: u32 = 4;
/// RTA_PREFSRC, RTA_METRICS, RTAX_MTU
const PREFERRED_SOURCE: u16 = 7;
const METRICS: u16 = 8;
const MTU: u16 = 2;
/// FR_ACT_TO_TBL
const TO_TABLE: u8 = 1;

/// `RTN_*`
fn number(kind: Kind) -> u8 {
    match kind {
        Kind::Unicast => 1,
        Kind::Blackhole => 6,
        Kind::Unreachable => 7,
        Kind::Prohibit => 8,
        Kind::Throw => 9,
    }
}

/// A connection whose dumps the kernel filters.
pub fn open() -> Result<Connection> {
    let connection = Connection::open(libc::NETLINK_ROUTE)?;
    connection.strict().context("a netlink socket that filters")?;
    Ok(connection)
}

/// All that is ours.
pub fn read(connection: &mut Connection) -> Result<Own> {
    Ok(Own { routes: routes(connection)?, rules: rules(connection)?.own })
}

/// Our routes alone.
pub fn routes(connection: &mut Connection) -> Result<BTreeMap<Key, Target>> {
    connection.dump(
        || Message::new(GET_ROUTE, 0, &[0, 0, 0, 0, 0, PROTOCOL, 0, 0, 0, 0, 0, 0]),
        |all: &mut BTreeMap<_, _>, payload| all.extend(route(payload)),
    )
}

/// A route, if it is ours.
pub fn route(payload: &[u8]) -> Option<(Key, Target)> {
    let &[af, bits, _, _, table, PROTOCOL, _, kind, ..] = payload else { return None };
    let cloned = u32_at(payload, 8)? & 0x200 != 0;
    let kinds = [Kind::Unicast, Kind::Blackhole, Kind::Unreachable, Kind::Prohibit, Kind::Throw];
    let kind = kinds.into_iter().find(|k| number(*k) == kind).filter(|_| !cloned)?;
    let attrs = Attrs(payload.get(12..)?);
    let any = if i32::from(af) == libc::AF_INET { [0; 4].into() } else { [0; 16].into() };
    let prefix = IpNet::new(attrs.find(1).map_or(Some(any), ip)?, bits).ok()?.trunc();
    let (table, metric) = (attrs.u32(15).unwrap_or(table.into()), attrs.u32(6).unwrap_or(0));
    let mut hops = match (kind, attrs.u32(4), attrs.find(9)) {
        (Kind::Unicast, Some(link), _) => vec![Hop { link, gateway: read::gateway(attrs), weight: 1 }],
        (Kind::Unicast, None, Some(hops)) => next_hops(hops)
            .map(|hop| Hop { link: hop.link, gateway: read::gateway(hop.attrs), weight: hop.weight })
            .collect(),
        _ => Vec::new(),
    };
    hops.sort_unstable();
    let mtu = attrs.find(METRICS).and_then(|metrics| Attrs(metrics).u32(MTU)).unwrap_or(0);
    let source = attrs.find(PREFERRED_SOURCE).and_then(ip);
    Some((Key { table, prefix, metric }, Target { kind, hops, mtu, source }))
}

fn message(kind: u16, flags: u16, scope: u8, key: &Key, target: &Target, route_flags: u32) -> Message {
    let addr = key.prefix.addr();
    let mut header = vec![family(addr), key.prefix.prefix_len(), 0, 0, 0, PROTOCOL, scope, number(target.kind)];
    header.extend_from_slice(&route_flags.to_ne_bytes());
    let message = Message::new(kind, flags, &header).attr(15, &key.table.to_ne_bytes()).attr(1, &octets(addr));
    if key.metric == 0 { message } else { message.attr(6, &key.metric.to_ne_bytes()) }
}

/// Sets a route; `replace`: ours is there.
pub fn set_route(connection: &mut Connection, key: &Key, target: &Target, replace: bool) -> io::Result<()> {
    let on_link = matches!(target.hops[..], [Hop { gateway: None, .. }]);
    let gatewayed = target.hops.iter().any(|hop| hop.gateway.is_some());
    let scope = if on_link { SCOPE_LINK } else { 0 };
    // In a table of its own a gateway's network can't be looked up while that table is being filled; the gateway
    // into the overlay has none.
    let no_network = target.hops.iter().any(|hop| hop.gateway == Some(gateway(true)));
    let route_flags = if gatewayed && (key.table != crate::route::MAIN || no_network) { ON_LINK } else { 0 };
    let flags = CREATE | if replace { REPLACE } else { EXCLUSIVE };
    let mut message = message(NEW_ROUTE, flags, scope, key, target, route_flags);
    message = match &target.hops[..] {
        [] => message,
        [Hop { link, gateway: None, .. }] => message.attr(4, &link.to_ne_bytes()),
        [Hop { link, gateway: Some(gateway), .. }] => message.attr(4, &link.to_ne_bytes()).attr(5, &octets(*gateway)),
        hops => message.attr(9, &hops.iter().flat_map(next_hop).collect::<Vec<u8>>()),
    };
    if let Some(source) = target.source {
        message = message.attr(PREFERRED_SOURCE, &octets(source));
    }
    if target.mtu > 0 {
        message = message.nest(METRICS, |metrics| metrics.attr(MTU, &target.mtu.to_ne_bytes()));
    }
    connection.change(message)
}

fn next_hop(hop: &Hop) -> Vec<u8> {
    let gateway = hop.gateway.map(octets).unwrap_or_default();
    let mut bytes = (gateway.len() as u16 + 12).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&[0, (hop.weight - 1) as u8]);
    bytes.extend_from_slice(&hop.link.to_ne_bytes());
    bytes.extend_from_slice(&(gateway.len() as u16 + 4).to_ne_bytes());
    bytes.extend_from_slice(&5u16.to_ne_bytes());
    bytes.extend_from_slice(&gateway);
    bytes
}

/// Removes a route; one that is gone is no error.
pub fn delete_route(connection: &mut Connection, key: &Key, target: &Target) -> io::Result<()> {
    gone_is_fine(connection.change(message(DEL_ROUTE, 0, SCOPE_ANY, key, target, 0)))
}

pub fn rule(payload: &[u8]) -> Option<Rule> {
    let &[_, _, bits, _, table, _, _, action, ..] = payload else { return None };
    let attrs = Attrs(payload.get(12..)?);
    let ours = attrs.find(21)? == [PROTOCOL] && attrs.u32(6)? == PRIORITY && action == TO_TABLE;
    let from = ip(attrs.find(2)?).filter(|from| ours && bits == if from.is_ipv4() { 32 } else { 128 })?;
    Some(Rule { from, table: attrs.u32(15).unwrap_or(table.into()) })
}

fn rule_message(kind: u16, flags: u16, rule: &Rule) -> Message {
    let bits = if rule.from.is_ipv4() { 32 } else { 128 };
    let header = [family(rule.from), 0, bits, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    let message = Message::new(kind, flags, &header).attr(2, &octets(rule.from));
    message.attr(6, &PRIORITY.to_ne_bytes()).attr(15, &rule.table.to_ne_bytes()).attr(21, &[PROTOCOL])
}

/// Adds a rule; one that is there is no error.
pub fn add_rule(connection: &mut Connection, rule: &Rule) -> io::Result<()> {
    match connection.change(rule_message(NEW_RULE, CREATE | EXCLUSIVE, rule)) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// Removes a rule; one that is gone is no error.
pub fn delete_rule(connection: &mut Connection, rule: &Rule) -> io::Result<()> {
    gone_is_fine(connection.change(rule_message(DEL_RULE, 0, rule)))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => Ok(()),
        result => result,
    }
}
