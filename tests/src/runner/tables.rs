//! The operations from one set of tables to another, for cases that change them on the way.

use std::collections::BTreeMap;

use lb_common::wire::Addr;
use lb_user::plan::{Change, Contents, Family, FamilyOp, Op};

fn sets<K: Ord + Clone, V: Clone + PartialEq>(
    from: &BTreeMap<K, V>,
    to: &BTreeMap<K, V>,
    op: impl Fn(Change<K, V>) -> Op,
) -> Vec<Op> {
    let new = to.iter().filter(|(k, v)| from.get(k) != Some(v));
    new.map(|(k, v)| op(Change::Set(k.clone(), v.clone()))).collect()
}

fn removals<K: Ord + Clone, V>(from: &BTreeMap<K, V>, to: &BTreeMap<K, V>, op: impl Fn(Change<K, V>) -> Op) -> Vec<Op> {
    from.keys().filter(|k| !to.contains_key(k)).map(|k| op(Change::Remove(k.clone()))).collect()
}

fn family<A: Addr>(from: &Family<A>, to: &Family<A>, op: impl Fn(FamilyOp<A>) -> Op) -> (Vec<Op>, Vec<Op>) {
    let mut added = sets(&from.backends, &to.backends, |c| op(FamilyOp::Backend(c)));
    added.extend(sets(&from.sources, &to.sources, |c| op(FamilyOp::Source(c))));
    added.extend(sets(&from.services, &to.services, |c| op(FamilyOp::Service(c))));
    added.extend(sets(&from.owned, &to.owned, |c| op(FamilyOp::Owned(c))));
    if from.routes != to.routes {
        added.push(op(FamilyOp::Routes(to.routes.clone())));
    }
    added.extend(sets(&from.announced, &to.announced, |c| op(FamilyOp::Announced(c))));
    added.extend(sets(&from.uplinks, &to.uplinks, |c| op(FamilyOp::Uplink(c))));
    added.extend(sets(&from.allowed, &to.allowed, |c| op(FamilyOp::Allowed(c))));
    let mut removed = removals(&from.services, &to.services, |c| op(FamilyOp::Service(c)));
    removed.extend(removals(&from.sources, &to.sources, |c| op(FamilyOp::Source(c))));
    removed.extend(removals(&from.backends, &to.backends, |c| op(FamilyOp::Backend(c))));
    removed.extend(removals(&from.owned, &to.owned, |c| op(FamilyOp::Owned(c))));
    removed.extend(removals(&from.announced, &to.announced, |c| op(FamilyOp::Announced(c))));
    removed.extend(removals(&from.uplinks, &to.uplinks, |c| op(FamilyOp::Uplink(c))));
    removed.extend(removals(&from.allowed, &to.allowed, |c| op(FamilyOp::Allowed(c))));
    (added, removed)
}

/// From the empty tables or `from` to `to`.
pub fn ops(from: Option<&Contents>, to: &Contents) -> Vec<Op> {
    let empty = Contents::empty(to.settings);
    let from = from.unwrap_or(&empty);
    let mut ops = vec![Op::Settings(to.settings)];
    ops.extend(to.filter.iter().map(|(index, value)| Op::FilterWord { index: *index, value: *value }));
    ops.extend(sets(&from.tunnels, &to.tunnels, Op::Tunnel));
    ops.extend(sets(&from.peers, &to.peers, Op::Peer));
    ops.extend(sets(&from.next_hops, &to.next_hops, Op::NextHop));
    ops.extend(sets(&from.groups, &to.groups, |c| Op::Group(Change::boxed(c))));
    ops.extend(sets(&from.links, &to.links, Op::Link));
    ops.extend(sets(&from.names, &to.names, Op::Name));
    ops.extend(sets(&from.prefixes, &to.prefixes, Op::Prefix));
    ops.extend(sets(&from.peer_ports, &to.peer_ports, Op::PeerPort));
    ops.extend(sets(&from.pods, &to.pods, Op::Pod));
    ops.extend(removals(&from.pods, &to.pods, Op::Pod));
    ops.extend(removals(&from.peer_ports, &to.peer_ports, Op::PeerPort));
    let (added4, removed4) = family(&from.v4, &to.v4, Op::V4);
    let (added6, removed6) = family(&from.v6, &to.v6, Op::V6);
    ops.extend(to.rows.iter().map(|(first, row)| Op::Row { first: *first, backends: row.clone() }));
    ops.extend([added4, added6, removed4, removed6].concat());
    ops.extend(removals(&from.links, &to.links, Op::Link));
    ops.extend(removals(&from.groups, &to.groups, |c| Op::Group(Change::boxed(c))));
    ops.extend(removals(&from.next_hops, &to.next_hops, Op::NextHop));
    ops.extend(removals(&from.tunnels, &to.tunnels, Op::Tunnel));
    ops.extend(removals(&from.peers, &to.peers, Op::Peer));
    let gone = from.filter.keys().filter(|index| !to.filter.contains_key(index));
    ops.extend(gone.map(|index| Op::FilterWord { index: *index, value: 0 }));
    ops
}
