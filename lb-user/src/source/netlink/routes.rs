//! The main table's routes, followed change by change: a full Internet table is read once.
//!
//! Invariant: what is followed is what a whole read would give. Notifications say all that is needed for that
//! but in a few cases, which are found out ([`Effect::Unclear`]) and cost a whole read. Not here: what the kernel does
//! to routes without a word, when links and addresses go ([`super::followed`]), and which routes are ours ([`super::own`]).

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use super::message::{Attrs, Connection, EXCLUSIVE, Message, REPLACE, u32_at};
use super::news::NEW_ROUTE;
use super::read::{gateway, ip, next_hops};
use crate::intent::{Path, RouteKind, RouteTable};
use crate::route::MAIN;

pub(super) const GET_ROUTE: u16 = 26;
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

/// Routes of the main table.
#[derive(Default)]
pub struct Routes {
    pub table: RouteTable,
    /// Some route has next hops that are dead, and come to life without a word.
    pub dead: bool,
    /// Some route leads by a next hop that is an object of its own.
    pub objects: bool,
}

/// A route of the main table, as one message has it.
#[derive(Debug, PartialEq)]
pub struct Entry {
    pub prefix: IpNet,
    pub metric: u32,
    /// Several, if it has several next hops; none that are dead.
    pub paths: Vec<Path>,
    dead: bool,
    object: bool,
}

/// What came of a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        _ if source_bits != 0 || tos != 0 => RouteKind::Narrow,
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
        _ if matches!(kind, RouteKind::Blackhole | RouteKind::Refusing) => push(0, Attrs(&[]), 0, 0),
        (Some(link), _) => push(link, attrs, 0, flags),
        (None, Some(hops)) => next_hops(hops).for_each(|hop| push(hop.link, hop.attrs, hop.weight, hop.flags)),
        (None, None) if kind == RouteKind::Narrow => push(0, attrs, 0, 0),
        (None, None) => return None,
    }
    let source = attrs.find(7).and_then(ip);
    entry.paths.iter_mut().filter(|path| path.link != 0).for_each(|path| path.source = source);
    // The kernel lists an IPv6 route's next hops in an order of the moment.
    entry.paths.sort_unstable();
    Some(entry)
}

impl Routes {
    /// Takes a notification of `entry`; `flags` are its message's. `replayed`: the table may know of it already.
    ///
    /// What flags say (`fib_table_insert`, `fib6_add_rt2node`, kernel 4.11): EXCL, that there was none of the prefix
    /// and metric; REPLACE, that one of these went; APPEND, that it stands behind these. IPv6 lists a route that
    /// became one of several next hops with all of them. Of one for some packets alone all is read again.
    pub fn note(&mut self, kind: u16, flags: u16, entry: Entry, replayed: bool) -> Effect {
        self.dead |= entry.dead;
        self.objects |= entry.object;
        let paths = self.table.get(&entry.prefix).map_or(&[][..], |paths| &paths[..]);
        let narrow = |path: &Path| path.kind == RouteKind::Narrow;
        let first = paths.partition_point(|path| narrow(path) || path.metric < entry.metric);
        let end = paths.partition_point(|path| narrow(path) || path.metric <= entry.metric);
        let there = &paths[first..end];
        let now = match kind {
            _ if entry.paths.iter().any(narrow) => None,
            NEW_ROUTE => with(there, &entry, flags, replayed),
            _ => without(there, &entry, replayed),
        };
        match now {
            None => Effect::Unclear,
            Some(now) if now == there => Effect::Nothing,
            Some(now) => {
                let now = [&paths[..first], &now, &paths[end..]].concat();
                self.table.set(entry.prefix, now);
                Effect::Changed
            }
        }
    }
}

/// The paths of a metric once a route has come. None: it can't be told.
fn with(there: &[Path], entry: &Entry, flags: u16, replayed: bool) -> Option<Vec<Path>> {
    let new = &entry.paths;
    if flags & EXCLUSIVE != 0 || there.is_empty() {
        return Some(new.clone());
    }
    let gatewayed = |paths: &[Path]| paths.iter().filter(|path| path.gateway.is_some()).count();
    let v6 = entry.prefix.addr().is_ipv6();
    if flags & REPLACE != 0 || (v6 && gatewayed(new) > 0 && gatewayed(there) > 0) {
        // Which of several goes, and, for IPv6, one that never shares with others of its metric.
        let is_one = there.len() < 2 || there.iter().all(|path| path.weight > 0);
        let alike = !v6 || gatewayed(there) == if gatewayed(new) > 0 { there.len() } else { 0 };
        return (is_one && alike).then(|| new.clone());
    }
    if replayed && new.iter().any(|path| there.contains(path)) {
        return None;
    }
    Some(if v6 || flags & APPEND != 0 { [there, new].concat() } else { [new, there].concat() })
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
    let mut shared = left.iter_mut().filter(|path| path.weight > 0);
    // An IPv6 route that is left alone is none of several any more.
    if let (Some(only), None, true) = (shared.next(), shared.next(), entry.prefix.addr().is_ipv6()) {
        only.weight = 0;
    }
    Some(left)
}

#[cfg(test)]
mod tests {
    use super::super::news::DEL_ROUTE;
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

    /// What a daemon does all day is followed, and never read again.
    #[test]
    fn the_usual_changes_are_clear() {
        let mut routes = Routes::default();
        let main = |family| [family, 24, 0, 0, 254, 12, 0, UNICAST, 0, 0, 0, 0];
        let link = |n: u32| attr(4, &n.to_ne_bytes());
        let v4 =
            |gateway: u8| [&main(2)[..], &attr(1, &[10, 1, 2, 0]), &attr(5, &[10, 0, 0, gateway]), &link(2)].concat();
        let dst6 = attr(1, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let gateway6 = |last: u8| attr(5, &[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let v6 = |last: u8| [&main(10)[..], &dst6, &gateway6(last), &link(2)].concat();
        let hop6 = |last: u8| [&[28, 0, 0, 0, 2, 0, 0, 0][..], &gateway6(last)].concat();
        let both6 = [&main(10)[..], &dst6, &attr(9, &[hop6(1), hop6(2)].concat())].concat();
        const CREATE: u16 = 0x400;
        use Effect::{Changed, Nothing, Unclear};
        for (kind, flags, message, replayed, effect, left) in [
            (NEW_ROUTE, CREATE | EXCLUSIVE, v4(1), false, Changed, 1),
            // It came before the whole was read.
            (NEW_ROUTE, CREATE | EXCLUSIVE, v4(1), true, Nothing, 1),
            (NEW_ROUTE, REPLACE, v4(2), false, Changed, 1),
            (NEW_ROUTE, CREATE | APPEND, v4(3), false, Changed, 2),
            // Which of the two?
            (NEW_ROUTE, REPLACE, v4(4), false, Unclear, 2),
            (DEL_ROUTE, 0, v4(9), false, Unclear, 2),
            (DEL_ROUTE, 0, v4(9), true, Nothing, 2),
            (DEL_ROUTE, 0, v4(2), false, Changed, 1),
            (DEL_ROUTE, 0, v4(3), false, Changed, 0),
            (DEL_ROUTE, 0, v4(3), false, Nothing, 0),
            // The second brings the first one along, and leaves it alone.
            (NEW_ROUTE, CREATE | EXCLUSIVE, v6(1), false, Changed, 1),
            (NEW_ROUTE, CREATE, both6, false, Changed, 2),
            (DEL_ROUTE, 0, v6(2), false, Changed, 1),
            (NEW_ROUTE, REPLACE, v6(1), false, Nothing, 1),
        ] {
            let happens = routes.note(kind, flags, entry(&message).expect("a route"), replayed);
            let prefix = entry(&message).expect("a route").prefix;
            let there = routes.table.get(&prefix).map_or(0, |paths| paths.len());
            assert_eq!((happens, there), (effect, left), "{kind} {flags:x} {:?}", entry(&message));
        }
    }
}
