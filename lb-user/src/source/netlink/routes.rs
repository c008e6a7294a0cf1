//! The main table's routes, followed change by change: a full Internet table is read once.
//!
//! Invariant: what is followed is what a whole read would give. Notifications say all that is needed for that
//! but in a few cases, which are found out ([`Effect::Unclear`]) and cost a whole read. Not here: what the kernel does
//! to routes without a word, when links and addresses go ([`super::Mirror`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use super::message::{Attrs, Connection, EXCLUSIVE, Message, REPLACE, u32_at};
use super::own;
use super::read::{gateway, ip, next_hops};
use crate::intent::{Path, RouteKind, RouteTable};
use crate::route::{Key, MAIN, Target};

pub(super) const GET_ROUTE: u16 = 26;
pub(super) const NEW_ROUTE: u16 = 24;
pub(super) const DEL_ROUTE: u16 = 25;
const APPEND: u16 = 0x800;
const UNICAST: u8 = 1;
const BLACKHOLE: u8 = 6;
/// Unreachable, prohibit, throw.
const REFUSING: [u8; 3] = [7, 8, 9];
/// `RTNH_F_DEAD`: its link was set down.
const DEAD: u32 = 1;
/// A cache entry (`RTM_F_CLONED`).
const CLONED: u32 = 0x200;
/// `RTA_NH_ID`
const NEXT_HOP_OBJECT: u16 = 30;

/// Routes of the main table, and those of all tables that are ours.
#[derive(Default)]
pub struct Routes {
    pub table: RouteTable,
    pub own: BTreeMap<Key, Target>,
    /// Some route has next hops that are dead, and come to life without a word.
    pub dead: bool,
    /// Some route leads by a next hop that is an object of its own.
    pub objects: bool,
}

/// A route of the main table, as one message has it.
#[derive(Debug, PartialEq)]
pub struct Entry {
    pub prefix: IpNet,
    metric: u32,
    /// Several, if it has several next hops; none that are dead.
    pub paths: Vec<Path>,
    dead: bool,
    object: bool,
}

/// What came of a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    Nothing,
    Changed,
    /// It can't be told what the table is now.
    Unclear,
}

/// Reads all.
pub fn read(connection: &mut Connection) -> Result<Routes> {
    connection.dump(
        || Message::new(GET_ROUTE, 0, &[0; 12]),
        |all: &mut Routes, payload| {
            all.own.extend(own::route(payload));
            let Some(entry) = entry(payload) else { return };
            all.dead |= entry.dead;
            all.objects |= entry.object;
            all.table.add(entry.prefix, &entry.paths);
        },
    )
}

pub fn entry(payload: &[u8]) -> Option<Entry> {
    let &[family, bits, source_bits, tos, table, _, _, kind, ..] = payload else { return None };
    let attrs = Attrs(payload.get(12..)?);
    let flags = u32_at(payload, 8)?;
    if attrs.u32(15).unwrap_or(table.into()) != MAIN || flags & CLONED != 0 {
        return None;
    }
    let kind = match kind {
        // By more than the destination.
        _ if source_bits != 0 || tos != 0 => RouteKind::Refusing,
        UNICAST => RouteKind::Unicast,
        BLACKHOLE => RouteKind::Blackhole,
        kind if REFUSING.contains(&kind) => RouteKind::Refusing,
        _ => return None,
    };
    let dst = match (attrs.find(1), i32::from(family)) {
        (Some(dst), _) => ip(dst)?,
        (None, libc::AF_INET) => IpAddr::from([0; 4]),
        (None, libc::AF_INET6) => IpAddr::from([0; 16]),
        _ => return None,
    };
    let prefix = IpNet::new(dst, bits).ok()?.trunc();
    let metric = attrs.u32(6).unwrap_or(0);
    let object = attrs.find(NEXT_HOP_OBJECT).is_some();
    let mut entry = Entry { prefix, metric, paths: Vec::new(), dead: false, object };
    let mut push = |link, attrs, weight, flags: u32| {
        let path = Path { metric, link, gateway: gateway(attrs), source: None, kind, weight };
        if flags & DEAD == 0 { entry.paths.push(path) } else { entry.dead = true }
    };
    match (attrs.u32(4), attrs.find(9)) {
        _ if kind != RouteKind::Unicast => entry.paths.push(Path { metric, kind, ..Path::default() }),
        (Some(link), _) => push(link, attrs, 0, flags),
        (None, Some(hops)) => next_hops(hops).for_each(|hop| push(hop.link, hop.attrs, hop.weight, hop.flags)),
        (None, None) => return None,
    }
    let source = attrs.find(7).and_then(ip);
    entry.paths.iter_mut().filter(|path| path.kind == RouteKind::Unicast).for_each(|path| path.source = source);
    Some(entry)
}

impl Routes {
    /// Takes a notification of a route; `flags` are its message's. `replayed`: the table may know of it already.
    ///
    /// What flags say (`fib_table_insert`, `fib6_add_rt2node`, kernel 4.11): EXCL, that there was none of the prefix
    /// and metric; REPLACE, that one of these went; APPEND, that it stands behind these. IPv6 lists a route that
    /// became one of several next hops with all of them.
    pub fn note(&mut self, kind: u16, flags: u16, payload: &[u8], replayed: bool) -> Effect {
        let own = own::route(payload).map_or(Effect::Nothing, |(key, target)| self.note_own(kind, key, target));
        let Some(entry) = entry(payload) else { return own };
        self.dead |= entry.dead;
        self.objects |= entry.object;
        let paths = self.table.get(&entry.prefix).map_or(&[][..], |paths| &paths[..]);
        let first = paths.partition_point(|path| path.metric < entry.metric);
        let end = paths.partition_point(|path| path.metric <= entry.metric);
        let there = &paths[first..end];
        let now = match kind {
            NEW_ROUTE => with(there, &entry, flags),
            _ => without(there, &entry, replayed),
        };
        match now {
            None => Effect::Unclear,
            Some(now) if now == there => own,
            Some(now) => {
                let now = [&paths[..first], &now, &paths[end..]].concat();
                self.table.set(entry.prefix, now);
                Effect::Changed
            }
        }
    }

    fn note_own(&mut self, kind: u16, key: Key, target: Target) -> Effect {
        match (kind, self.own.get(&key)) {
            (NEW_ROUTE, Some(old)) if *old == target => return Effect::Nothing,
            (NEW_ROUTE, _) => _ = self.own.insert(key, target),
            (_, Some(old)) if *old == target => _ = self.own.remove(&key),
            (_, Some(_)) => return Effect::Unclear,
            (_, None) => return Effect::Nothing,
        }
        Effect::Changed
    }
}

/// The paths of a metric once a route has come. None: it can't be told.
fn with(there: &[Path], entry: &Entry, flags: u16) -> Option<Vec<Path>> {
    let new = &entry.paths;
    let gatewayed = |paths: &[Path]| paths.iter().all(|path| path.gateway.is_some());
    // As one message has it.
    let is_one = |paths: &[Path]| paths.len() < 2 || paths.iter().all(|path| path.weight > 0);
    if flags & EXCLUSIVE != 0 || there.is_empty() {
        return Some(new.clone());
    }
    let v6 = entry.prefix.addr().is_ipv6();
    if flags & REPLACE != 0 || (v6 && gatewayed(new) && gatewayed(there)) {
        return is_one(there).then(|| new.clone());
    }
    if contains(there, new) {
        return Some(there.to_vec());
    }
    Some(if v6 || flags & APPEND != 0 { [there, new].concat() } else { [new, there].concat() })
}

fn contains(there: &[Path], paths: &[Path]) -> bool {
    paths.iter().all(|path| there.contains(path))
}

/// The paths of a metric once a route has gone.
fn without(there: &[Path], entry: &Entry, replayed: bool) -> Option<Vec<Path>> {
    let gone = &entry.paths;
    if there == gone || there.is_empty() {
        return Some(Vec::new());
    }
    let mut left = there.to_vec();
    for path in gone {
        // One of several next hops goes as if it had been alone.
        let is = |p: &Path| p == path || (p.weight > 0 && Path { weight: path.weight, ..*p } == *path);
        match left.iter().position(is) {
            Some(at) => _ = left.remove(at),
            None if replayed => {}
            None => return None,
        }
    }
    if let [only] = &mut left[..] {
        only.weight = 0;
    }
    Some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = [(value.len() as u16 + 4).to_ne_bytes(), kind.to_ne_bytes()].concat();
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn hop(link: u32, flags: u8, gateway: [u8; 4]) -> Vec<u8> {
        let gateway = attr(5, &gateway);
        let mut out = (gateway.len() as u16 + 8).to_ne_bytes().to_vec();
        out.extend_from_slice(&[flags, 0]);
        out.extend_from_slice(&link.to_ne_bytes());
        out.extend_from_slice(&gateway);
        out
    }

    fn parse(header: [u8; 12], attrs: &[Vec<u8>]) -> Vec<String> {
        let Some(Entry { prefix, paths, .. }) = entry(&[&header[..], &attrs.concat()].concat()) else { return vec![] };
        let text = |p: &Path| {
            let kind = if p.kind == RouteKind::Unicast { String::new() } else { format!(" {:?}", p.kind) };
            let share = if p.weight == 0 { String::new() } else { format!(" weight {}", p.weight) };
            format!("{prefix} via {:?} link {} metric {}{kind}{share}", p.gateway, p.link, p.metric)
        };
        paths.iter().map(text).collect()
    }

    #[test]
    fn routes_of_all_forms() {
        let main = |bits| [2, bits, 0, 0, 254, 0, 0, UNICAST, 0, 0, 0, 0];
        let link = |n: u32| attr(4, &n.to_ne_bytes());
        let default = parse(main(0), &[attr(5, &[10, 0, 0, 1]), link(2), attr(6, &7u32.to_ne_bytes())]);
        assert_eq!(default, ["0.0.0.0/0 via Some(10.0.0.1) link 2 metric 7"]);
        // Several next hops, of which one is dead.
        let hops = [hop(2, 0, [10, 0, 0, 1]), hop(3, 1, [10, 0, 0, 2]), hop(4, 0, [10, 0, 0, 3])].concat();
        assert_eq!(
            parse(main(24), &[attr(1, &[10, 1, 2, 0]), attr(9, &hops)]),
            [
                "10.1.2.0/24 via Some(10.0.0.1) link 2 metric 0 weight 1",
                "10.1.2.0/24 via Some(10.0.0.3) link 4 metric 0 weight 1"
            ]
        );
        // An IPv4 route through an IPv6 gateway.
        let via = [&[10, 0][..], &[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]].concat();
        assert_eq!(
            parse(main(8), &[attr(1, &[10, 0, 0, 0]), attr(18, &via), link(2)]),
            ["10.0.0.0/8 via Some(fe80::1) link 2 metric 0"]
        );
        // Another table, by its attribute; a blackhole; nonsense.
        let other = attr(15, &100u32.to_ne_bytes());
        assert!(parse(main(8), &[attr(1, &[10, 0, 0, 0]), link(2), other]).is_empty());
        let nowhere = |kind| parse([2, 8, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0], &[attr(1, &[10, 0, 0, 0]), link(2)]);
        assert_eq!(nowhere(BLACKHOLE), ["10.0.0.0/8 via None link 0 metric 0 Blackhole"]);
        assert_eq!(nowhere(7), ["10.0.0.0/8 via None link 0 metric 0 Refusing"]);
        assert!(nowhere(3).is_empty(), "broadcast");
        assert!(parse(main(33), &[attr(1, &[10, 0, 0, 0]), link(2)]).is_empty());
        assert!(parse(main(8), &[vec![0xff, 0xff, 1, 0, 10]]).is_empty());
    }
}
