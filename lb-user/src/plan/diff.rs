//! The single changes from one contents to another, in an order in which every prefix is safe.
//!
//! Things come before what points to them and go after it: filter bits, tunnels, next hops, routes,
//! backends, rows, settings, hooks of links without any, source ranges, services, owned addresses, hooks that
//! change, announced addresses on the way in; announced addresses, services, source ranges, owned addresses, backends, next hops, filter bits, hooks on
//! the way out. A link gets its first programs before there are services: else one link would translate
//! what goes to a service, while the answer passes another as it came. A link that carries an older
//! agent's programs keeps them until the tables are full. Translation between inside and outside comes
//! with what it needs: exchanged prefixes, then what is on which side, then uplinks, then the setting
//! that says so; that goes first on the way out, then uplinks, connections, and what was on which side.
//! What policies allow comes before the pods that are allowed it, and these before the programs that judge; it goes
//! behind them.
//! Invariants, behind every operation: a service's row lies wholly on active backends; the filter
//! has the bits of all that is in the tables; no index leads to nothing; once a backend's state
//! says that it leaves, no row holds it; a backend's connections are ended before its entry goes,
//! so that an agent that stops in between still knows of them; so are those of an address outside,
//! once no uplink has it.
//! It relies on the plan: a changed row stands at a place that no service uses, and a number has
//! a new owner only after [`super::Ids::applied`].

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use lb_common::table::{Backend, Owned, Prefix, Settings};
use lb_common::wire::Addr;

use super::contents::{Change, Contents, Family, FamilyOp, Op};
use super::ids::{outside, same};

/// A table of routes is made anew once a part this large of it changes, since the whole costs about 0.2 µs a route
/// and a change 2 µs.
const AT_ONCE: usize = 10;

/// The operations that turn `from` into `to`; none if they are equal.
pub fn diff(from: &Contents, to: &Contents) -> Vec<Op> {
    let mut ops = Vec::new();
    widen_filter(from, to, &mut ops);
    if moves_routes(from, to) && from.settings.epoch.is_multiple_of(2) {
        ops.push(Op::Settings(Settings { epoch: from.settings.epoch | 1, ..from.settings }));
    }
    set(&from.tunnels, &to.tunnels, &mut ops, Op::Tunnel);
    set(&from.peers, &to.peers, &mut ops, Op::Peer);
    set(&from.next_hops, &to.next_hops, &mut ops, Op::NextHop);
    set(&from.groups, &to.groups, &mut ops, |c| Op::Group(Change::boxed(c)));
    arrive(&from.v4, &to.v4, &mut ops, Op::V4);
    arrive(&from.v6, &to.v6, &mut ops, Op::V6);
    set(&from.names, &to.names, &mut ops, Op::Name);
    ops.extend(changed(&from.rows, &to.rows).map(|(&first, _, row)| Op::Row { first, backends: row.clone() }));
    set(&from.links, &to.links, &mut ops, Op::Link);
    // Behind the routes: a flow that sees the new epoch also sees the new routes.
    let begins = to.settings.nat(Settings::NAT) && !from.settings.nat(Settings::NAT);
    let nat = if begins { to.settings.nat & !Settings::NAT } else { to.settings.nat };
    if from.settings != (Settings { nat, ..to.settings }) {
        ops.push(Op::Settings(Settings { nat, ..to.settings }));
    }
    end_ports(from, to, &from.v4, &mut ops, Op::V4);
    end_ports(from, to, &from.v6, &mut ops, Op::V6);
    set(&from.v4.allowed, &to.v4.allowed, &mut ops, |c| Op::V4(FamilyOp::Allowed(c)));
    set(&from.v6.allowed, &to.v6.allowed, &mut ops, |c| Op::V6(FamilyOp::Allowed(c)));
    set(&from.peer_ports, &to.peer_ports, &mut ops, Op::PeerPort);
    set(&from.pods, &to.pods, &mut ops, Op::Pod);
    let hooks = |first| {
        let set = changed(&from.hooks, &to.hooks).filter(move |(_, old, _)| old.is_none() == first);
        set.map(|(&link, _, hooks)| Op::Hooks(Change::Set(link, hooks.clone())))
    };
    ops.extend(hooks(true));
    set(&from.prefixes, &to.prefixes, &mut ops, Op::Prefix);
    switch(&from.v4, &to.v4, &mut ops, Op::V4);
    switch(&from.v6, &to.v6, &mut ops, Op::V6);
    if begins {
        ops.push(Op::Settings(to.settings));
    }
    ops.extend(hooks(false));
    set(&from.v4.announced, &to.v4.announced, &mut ops, |c| Op::V4(FamilyOp::Announced(c)));
    set(&from.v6.announced, &to.v6.announced, &mut ops, |c| Op::V6(FamilyOp::Announced(c)));

    remove(&from.v4.announced, &to.v4.announced, &mut ops, |c| Op::V4(FamilyOp::Announced(c)));
    remove(&from.v6.announced, &to.v6.announced, &mut ops, |c| Op::V6(FamilyOp::Announced(c)));
    remove(&from.links, &to.links, &mut ops, Op::Link);
    leave(&from.v4, &to.v4, &mut ops, Op::V4);
    leave(&from.v6, &to.v6, &mut ops, Op::V6);
    remove(&from.prefixes, &to.prefixes, &mut ops, Op::Prefix);
    end_flows(from, to, &mut ops);
    remove(&from.v4.backends, &to.v4.backends, &mut ops, |c| Op::V4(FamilyOp::Backend(c)));
    remove(&from.v6.backends, &to.v6.backends, &mut ops, |c| Op::V6(FamilyOp::Backend(c)));
    remove(&from.groups, &to.groups, &mut ops, |c| Op::Group(Change::boxed(c)));
    remove(&from.next_hops, &to.next_hops, &mut ops, Op::NextHop);
    remove(&from.tunnels, &to.tunnels, &mut ops, Op::Tunnel);
    remove(&from.peers, &to.peers, &mut ops, Op::Peer);
    remove(&from.names, &to.names, &mut ops, Op::Name);
    narrow_filter(from, to, &mut ops);
    remove(&from.hooks, &to.hooks, &mut ops, Op::Hooks);
    remove(&from.pods, &to.pods, &mut ops, Op::Pod);
    remove(&from.peer_ports, &to.peer_ports, &mut ops, Op::PeerPort);
    remove(&from.v4.allowed, &to.v4.allowed, &mut ops, |c| Op::V4(FamilyOp::Allowed(c)));
    remove(&from.v6.allowed, &to.v6.allowed, &mut ops, |c| Op::V6(FamilyOp::Allowed(c)));
    ops
}

/// Whether flows have to look up their next hops again. The epoch is odd while this is under way,
/// so that an agent that starts then knows ([`super::Ids::recover`]).
fn moves_routes(from: &Contents, to: &Contents) -> bool {
    let same = from.next_hops == to.next_hops
        && from.groups == to.groups
        && same(&from.v4.routes, &to.v4.routes)
        && same(&from.v6.routes, &to.v6.routes);
    !same && from.settings.epoch != to.settings.epoch && !from.next_hops.is_empty()
}

/// Sets what is new or different.
fn set<K: Ord + Clone, V: PartialEq + Clone>(
    from: &BTreeMap<K, V>,
    to: &BTreeMap<K, V>,
    ops: &mut Vec<Op>,
    op: impl Fn(Change<K, V>) -> Op,
) {
    ops.extend(changed(from, to).map(|(key, _, value)| op(Change::Set(key.clone(), value.clone()))));
}

/// Removes what is no more.
fn remove<K: Ord + Clone, V>(
    from: &BTreeMap<K, V>,
    to: &BTreeMap<K, V>,
    ops: &mut Vec<Op>,
    op: impl Fn(Change<K, V>) -> Op,
) {
    ops.extend(beside(from, to).filter(|(_, _, new)| new.is_none()).map(|(key, _, _)| op(Change::Remove(key.clone()))));
}

/// What is new or different, and what was there.
fn changed<'a, K: Ord, V: PartialEq>(
    from: &'a BTreeMap<K, V>,
    to: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, &'a V)> {
    beside(to, from).filter(|(_, new, old)| *old != Some(*new)).map(|(key, new, old)| (key, old, new))
}

/// The entries of a table beside those of another one; both in order, so that a look is a step.
fn beside<'a, K: Ord, V>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V, Option<&'a V>)> {
    let mut rest = other.iter().peekable();
    one.iter().map(move |(key, value)| {
        while rest.next_if(|(k, _)| *k < key).is_some() {}
        (key, value, rest.next_if(|(k, _)| *k == key).map(|(_, v)| v))
    })
}

fn word(words: &BTreeMap<u32, u64>, index: u32) -> u64 {
    words.get(&index).copied().unwrap_or(0)
}

fn widen_filter(from: &Contents, to: &Contents, ops: &mut Vec<Op>) {
    for (&index, &new) in &to.filter {
        let old = word(&from.filter, index);
        if old | new != old {
            ops.push(Op::FilterWord { index, value: old | new });
        }
    }
}

fn narrow_filter(from: &Contents, to: &Contents, ops: &mut Vec<Op>) {
    for (&index, &old) in &from.filter {
        let new = word(&to.filter, index);
        if old | new != new {
            ops.push(Op::FilterWord { index, value: new });
        }
    }
}

/// Routes and backends that come or change; those that start to leave get all but that, so that a connection that
/// they still get goes the right way.
fn arrive<A: Addr>(from: &Family<A>, to: &Family<A>, ops: &mut Vec<Op>, op: impl Fn(FamilyOp<A>) -> Op) {
    routes(&from.routes, &to.routes, ops, &op);
    for (&id, old, new) in changed(&from.backends, &to.backends) {
        let now = match old {
            Some(old) if starts_to_leave(Some(old), new) => {
                Backend { state: old.state, deadline: old.deadline, ..*new }
            }
            _ => *new,
        };
        if old != Some(&now) {
            ops.push(op(FamilyOp::Backend(Change::Set(id, now))));
        }
    }
}

/// Of routes a table of another one, where that is less work than its changes: those that come before those that go.
fn routes<A: Addr>(
    from: &OrdMap<Prefix<A>, u32>,
    to: &OrdMap<Prefix<A>, u32>,
    ops: &mut Vec<Op>,
    op: impl Fn(FamilyOp<A>) -> Op,
) {
    let few = to.len().max(from.len()) / AT_ONCE;
    let (mut sets, mut removes) = (Vec::new(), Vec::new());
    for item in from.diff(to) {
        match item {
            DiffItem::Add(prefix, index) | DiffItem::Update { new: (prefix, index), .. } => {
                sets.push(op(FamilyOp::Route(Change::Set(*prefix, *index))));
            }
            DiffItem::Remove(prefix, _) => removes.push(op(FamilyOp::Route(Change::Remove(*prefix)))),
        }
        if from.is_empty() || sets.len() + removes.len() > few.max(AT_ONCE) {
            return ops.push(op(FamilyOp::Routes(to.clone())));
        }
    }
    ops.append(&mut sets);
    ops.append(&mut removes);
}

fn starts_to_leave<A: Addr>(old: Option<&Backend<A>>, new: &Backend<A>) -> bool {
    let active = Backend::<A>::ACTIVE;
    new.state != active && old.is_some_and(|old| old.state == active)
}

/// Source ranges, services, owned addresses and uplinks that come or change.
fn switch<A: Addr>(from: &Family<A>, to: &Family<A>, ops: &mut Vec<Op>, op: impl Fn(FamilyOp<A>) -> Op) {
    set(&from.sources, &to.sources, ops, |c| op(FamilyOp::Source(c)));
    set(&from.services, &to.services, ops, |c| op(FamilyOp::Service(c)));
    for (prefix, old, new) in changed(&from.owned, &to.owned) {
        if !old.is_some_and(|old| ends(old, Some(new))) {
            ops.push(op(FamilyOp::Owned(Change::Set(*prefix, *new))));
        }
    }
    set(&from.uplinks, &to.uplinks, ops, |c| op(FamilyOp::Uplink(c)));
}

/// Whether an entry stood for connections that end with it: those of an address outside or of an exchanged
/// prefix, which is no such thing any more, or is it by another number.
fn ends(old: &Owned, new: Option<&Owned>) -> bool {
    let kinds = old.kind & (Owned::OUTSIDE | Owned::PREFIX_OUTSIDE);
    kinds != 0 && !new.is_some_and(|new| new.is(kinds) && new.index == old.index)
}

/// Services, source ranges, owned addresses and uplinks that go; backends that drain; those that go get nothing new from
/// here on.
fn leave<A: Addr>(from: &Family<A>, to: &Family<A>, ops: &mut Vec<Op>, op: impl Fn(FamilyOp<A>) -> Op) {
    remove(&from.services, &to.services, ops, |c| op(FamilyOp::Service(c)));
    remove(&from.sources, &to.sources, ops, |c| op(FamilyOp::Source(c)));
    remove(&from.uplinks, &to.uplinks, ops, |c| op(FamilyOp::Uplink(c)));
    for (&prefix, old, new) in beside(&from.owned, &to.owned).filter(|(_, old, new)| ends(old, *new)) {
        ops.push(op(if old.is(Owned::OUTSIDE) {
            FamilyOp::EndOutside { addr: prefix.addr, plane: old.index.into() }
        } else {
            FamilyOp::EndPrefix(prefix)
        }));
        ops.extend(new.map(|new| op(FamilyOp::Owned(Change::Set(prefix, *new)))));
    }
    remove(&from.owned, &to.owned, ops, |c| op(FamilyOp::Owned(c)));
    for (&id, old, new) in beside(&from.backends, &to.backends) {
        let new = match new {
            Some(new) if starts_to_leave(Some(old), new) => *new,
            None if old.state == Backend::<A>::ACTIVE => Backend { state: Backend::<A>::DRAINING, ..*old },
            _ => continue,
        };
        ops.push(op(FamilyOp::Backend(Change::Set(id, new))));
    }
}

/// Translated connections whose ports are not those of translated connections any more.
fn end_ports<A: Addr>(
    from: &Contents,
    to: &Contents,
    family: &Family<A>,
    ops: &mut Vec<Op>,
    op: impl Fn(FamilyOp<A>) -> Op,
) {
    let (first, last) = (to.settings.snat_first, to.settings.snat_last);
    let planes: BTreeMap<A, u32> = outside(family).collect();
    if (from.settings.snat_first, from.settings.snat_last) != (first, last) && !planes.is_empty() {
        ops.push(op(FamilyOp::EndPorts { planes, first, last }));
    }
}

fn end_flows(from: &Contents, to: &Contents, ops: &mut Vec<Op>) {
    let gone4 = beside(&from.v4.backends, &to.v4.backends).filter(|(_, _, new)| new.is_none()).map(|(&id, _, _)| id);
    let gone6 = beside(&from.v6.backends, &to.v6.backends).filter(|(_, _, new)| new.is_none()).map(|(&id, _, _)| id);
    let backends: BTreeSet<u32> = gone4.chain(gone6).collect();
    if !backends.is_empty() {
        ops.push(Op::EndFlows { backends });
    }
}
