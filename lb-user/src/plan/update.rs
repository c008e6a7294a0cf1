//! The plan kept, so that a change of a few services costs these few.
//!
//! Contents are the sum of what each service has (its keys, backends, rows, name), of what the
//! ranges and the translation hold and of the network's part. A change plans the changed services alone, cuts their
//! part out of the contents, and [`diff()`]s part against part: the order of operations is the same.
//! Invariant: contents, ids and operations are those of [`super::plan()`] and [`diff()`] over the
//! whole; only the deadlines of services that stay are not corrected where the clocks drift.
//! Other routes alone cost what they change, too ([`Planned::routes`]).
//! Not here: other changes of the network or of anything else that is wished for. They need a new plan.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::replace;
use std::net::IpAddr;

use lb_common::table::filter::BITS;
use lb_common::table::{Announced, Owned, Prefix, Service, ServiceKey, SourcePrefix};
use lb_common::wire::{Addr, Be16, Ip4, Ip6};

use super::contents::{Change, Contents, Family, FamilyOp, Op};
use super::diff::diff;
use super::error::PlanError;
use super::ids::Ids;
use super::nat;
use super::owned;
use super::plan::{Clock, Sizes, fits, whole};
use super::policies::{self, Summary};
use super::services::{World, is_here, number_key, services};
use crate::intent::{Capacity, Endpoint, Intent, Network, RouteTable, ServicePort, ServiceRange};
use crate::moment::Moment;

/// A plan, and what it takes to change it service by service.
#[derive(Clone, Debug)]
pub struct Planned {
    contents: Contents,
    world: World,
    capacity: Capacity,
    /// How many need each bit of the filter.
    needed: Vec<u32>,
    v4: Parts<Ip4>,
    v6: Parts<Ip6>,
    leaving: Leaving,
    /// Where backends are; None: to be looked up again.
    reached: Option<BTreeSet<IpAddr>>,
}

/// Which entries of a family are whose.
#[derive(Clone, Debug)]
struct Parts<A: Addr> {
    /// By service id.
    of: HashMap<u32, Part<A>>,
    /// What is owned where no service has it.
    rest: BTreeMap<Prefix<A>, Owned>,
}

#[derive(Clone, Debug)]
struct Part<A: Addr> {
    keys: Vec<ServiceKey<A>>,
    sources: Vec<SourcePrefix<A>>,
    backends: Vec<u32>,
}

/// Ends of draining, each with its service's namespace and name.
#[derive(Clone, Debug, Default)]
struct Leaving(BTreeSet<(Moment, String, String)>);

impl Planned {
    /// Plans everything, as [`super::plan()`] does. A plan `before` makes it cheaper, and nothing else.
    pub fn new(
        intent: &Intent,
        network: &Network,
        ids: &mut Ids,
        clock: Clock,
        before: Option<&Planned>,
    ) -> Result<Self, PlanError> {
        let (contents, world) = whole(intent, network, ids, clock, before.map(|before| &before.world.routing))?;
        let v4 = Parts::new(&contents.v4, &intent.service_ranges, &world, &world.sides.v4)?;
        let v6 = Parts::new(&contents.v6, &intent.service_ranges, &world, &world.sides.v6)?;
        let mut needed = vec![0; BITS as usize];
        let mut bits = owned::bits(&contents.v4, &contents.v6);
        owned::ranges_bits(&intent.service_ranges, &mut bits);
        bits.extend(world.sides.bits());
        bits.into_iter().for_each(|bit| needed[bit as usize] += 1);
        let mut leaving = Leaving::default();
        leaving.add(&intent.services, clock.now);
        Ok(Planned { contents, world, capacity: intent.tuning.capacity, needed, v4, v6, leaving, reached: None })
    }

    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Whether there are more groups of next hops than there is room for.
    pub fn is_cramped(&self) -> bool {
        self.world.routing.cramped
    }

    /// Whether an endpoint is on this node.
    pub fn is_here(&self, endpoint: &Endpoint) -> bool {
        is_here(endpoint, &self.world)
    }

    /// When the next leaving endpoint's time is up, if any leaves.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.leaving.0.first().map(|(until, ..)| *until)
    }

    /// Namespaces and names of the services with endpoints whose time is up.
    pub fn due(&self, now: Moment) -> BTreeSet<(String, String)> {
        let due = self.leaving.0.iter().take_while(|(until, ..)| *until <= now);
        due.map(|(_, namespace, name)| (namespace.clone(), name.clone())).collect()
    }

    /// The operations that lead to the same plan with the ports `now` in place of `was`; each the
    /// ports of whole services, in the wish's order, those that are [`Planned::due`] among both.
    /// An error leaves everything as it was.
    pub fn update(
        &mut self,
        was: &[&ServicePort],
        now: &[&ServicePort],
        ids: &mut Ids,
        clock: Clock,
    ) -> Result<Vec<Op>, PlanError> {
        self.world.clock = clock;
        let mut before = self.part(was, ids);
        ids.begin_part(&before);
        let mut after = match self.draft(now, &mut before, ids) {
            Ok(after) => after,
            Err(error) => {
                ids.rollback();
                return Err(error);
            }
        };
        ids.commit_part(&before, &after);
        self.count_bits(&mut before, &mut after);
        let ops = diff(&before, &after);
        self.leaving.remove(was.iter().copied());
        self.leaving.add(now.iter().copied(), clock.now);
        self.exchange(before, after);
        self.reached = None;
        Ok(ops)
    }

    /// The operations that lead to the same plan with other routes. None: they bear on more than routes, and a new
    /// plan is needed.
    pub fn routes(&mut self, routes: &RouteTable, ids: &mut Ids) -> Option<Vec<Op>> {
        let Contents { v4, v6, peers, .. } = &self.contents;
        let addrs = || {
            let v4 = v4.backends.values().map(|b| b.addr.to_ip());
            let nodes = peers.keys().map(|addr| addr.to_ip().to_canonical());
            v4.chain(v6.backends.values().map(|b| b.addr.to_ip())).chain(nodes).collect()
        };
        let before = self.network_part();
        let reached = self.reached.get_or_insert_with(addrs);
        ids.begin_part(&before);
        if !self.world.routing.replace(routes, reached, ids) {
            ids.rollback();
            return None;
        }
        let (Contents { next_hops, groups, v4, v6, .. }, routing) = (&mut self.contents, &self.world.routing);
        next_hops.clone_from(&routing.next_hops);
        groups.clone_from(&routing.groups);
        (v4.routes, v6.routes) = (routing.v4().clone(), routing.v6().clone());
        ids.commit_routes(&mut self.contents);
        Some(diff(&before, &self.network_part()))
    }

    /// Has these addresses announced and no others: the operations that withdraw some, which come before any others,
    /// and those that announce some, which come behind all others.
    pub fn announce(&mut self, wanted: &BTreeMap<IpAddr, Announced>) -> (Vec<Op>, Vec<Op>) {
        let mut before = self.empty();
        let mut after = self.empty();
        (after.v4.announced, after.v6.announced) = (of_family(wanted), of_family(wanted));
        before.v4.announced = replace(&mut self.contents.v4.announced, after.v4.announced.clone());
        before.v6.announced = replace(&mut self.contents.v6.announced, after.v6.announced.clone());
        let withdraws = |op: &Op| {
            matches!(
                op,
                Op::V4(FamilyOp::Announced(Change::Remove(_))) | Op::V6(FamilyOp::Announced(Change::Remove(_)))
            )
        };
        diff(&before, &after).into_iter().partition(withdraws)
    }

    /// The operations that lead to the same plan with other policies, or other pods that they are about.
    pub fn policies(&mut self, intent: &Intent, network: &Network) -> Vec<Op> {
        if self.world.policies.is_of(intent, network) {
            return Vec::new();
        }
        let mut after = self.empty();
        self.world.policies = policies::Planned::new(intent, network, &mut after);
        let mut before = self.empty();
        let Contents { pods, peer_ports, v4, v6, .. } = &mut self.contents;
        before.pods = replace(pods, after.pods.clone());
        before.peer_ports = replace(peer_ports, after.peer_ports.clone());
        before.v4.allowed = replace(&mut v4.allowed, after.v4.allowed.clone());
        before.v6.allowed = replace(&mut v6.allowed, after.v6.allowed.clone());
        diff(&before, &after)
    }

    pub fn policy_summary(&self) -> &Summary {
        &self.world.policies.summary
    }

    /// What routes alone bear on.
    fn network_part(&self) -> Contents {
        let Contents { next_hops, groups, v4, v6, .. } = &self.contents;
        Contents {
            next_hops: next_hops.clone(),
            groups: groups.clone(),
            v4: Family { routes: v4.routes.clone(), ..Family::default() },
            v6: Family { routes: v6.routes.clone(), ..Family::default() },
            ..self.empty()
        }
    }

    /// Contents without services, so that only these differ.
    fn empty(&self) -> Contents {
        Contents::empty(self.contents.settings)
    }

    /// What these services have now.
    fn part(&self, ports: &[&ServicePort], ids: &Ids) -> Contents {
        let mut part = self.empty();
        for id in ports.iter().filter_map(|port| ids.services.find(&number_key(port))) {
            if let Some(name) = self.contents.names.get(&id) {
                part.names.insert(id, *name);
                self.v4.copy(id, &self.contents.v4, &mut part.v4);
                self.v6.copy(id, &self.contents.v6, &mut part.v6);
            }
        }
        let placed = part.v4.services.values().chain(part.v6.services.values()).flat_map(Service::rows);
        for first in placed.map(|(first, _)| first) {
            if let Some(row) = self.contents.rows.get(&first) {
                part.rows.insert(first, row.clone());
            }
        }
        part
    }

    /// What these services shall have, in place of `before`.
    fn draft(&self, ports: &[&ServicePort], before: &mut Contents, ids: &mut Ids) -> Result<Contents, PlanError> {
        let mut after = self.empty();
        services(ports.iter().copied(), &self.world, ids, &mut after)?;
        self.alone(&self.contents.v4, &before.v4, &after, &after.v4)?;
        self.alone(&self.contents.v6, &before.v6, &after, &after.v6)?;
        self.v4.own(&self.contents.v4, &mut before.v4, &mut after.v4);
        self.v6.own(&self.contents.v6, &mut before.v6, &mut after.v6);
        let v4 = Sizes::with(&self.contents.v4, &before.v4, &after.v4);
        let v6 = Sizes::with(&self.contents.v6, &before.v6, &after.v6);
        fits(&self.capacity, ids, [v4, v6])?;
        Ok(after)
    }

    /// No service that stays is reached where one of the new ones is.
    fn alone<A: Addr>(
        &self,
        all: &Family<A>,
        before: &Family<A>,
        names: &Contents,
        after: &Family<A>,
    ) -> Result<(), PlanError> {
        for (key, service) in &after.services {
            if let Some(other) = all.services.get(key).filter(|_| !before.services.contains_key(key)) {
                let name = |c: &Contents, id| c.names.get(&id).map_or(String::new(), |n| n.as_str().to_owned());
                return Err(PlanError::Conflict {
                    addr: key.addr.to_ip(),
                    port: key.port.get(),
                    proto: key.proto,
                    first: name(&self.contents, other.id),
                    second: name(names, service.id),
                });
            }
        }
        Ok(())
    }

    /// Counts who needs which bit, and adds the words that this bears on to both parts.
    fn count_bits(&mut self, before: &mut Contents, after: &mut Contents) {
        let (old, new) = (owned::bits(&before.v4, &before.v6), owned::bits(&after.v4, &after.v6));
        old.iter().for_each(|&bit| self.needed[bit as usize] -= 1);
        new.iter().for_each(|&bit| self.needed[bit as usize] += 1);
        for index in old.iter().chain(&new).map(|bit| bit / 64) {
            if let Some(&word) = self.contents.filter.get(&index) {
                before.filter.insert(index, word);
            }
            let first = index as usize * 64;
            let word = (0..64).filter(|bit| self.needed[first + bit] > 0).fold(0, |word, bit| word | 1 << bit);
            if word != 0 {
                after.filter.insert(index, word);
            }
        }
    }

    /// Puts one part in place of another.
    fn exchange(&mut self, before: Contents, after: Contents) {
        let Contents { filter, rows, names, v4, v6, .. } = &mut self.contents;
        before.names.keys().for_each(|id| {
            self.v4.of.remove(id);
            self.v6.of.remove(id);
        });
        self.v4.note(&after.v4);
        self.v6.note(&after.v6);
        exchange(filter, before.filter, after.filter);
        exchange(rows, before.rows, after.rows);
        exchange(names, before.names, after.names);
        exchange_family(v4, before.v4, after.v4);
        exchange_family(v6, before.v6, after.v6);
    }
}

fn of_family<A: Addr>(all: &BTreeMap<IpAddr, Announced>) -> BTreeMap<A, Announced> {
    all.iter().filter_map(|(addr, by)| Some((A::from_ip(*addr)?, *by))).collect()
}

fn exchange<K: Ord, V>(table: &mut BTreeMap<K, V>, before: BTreeMap<K, V>, after: BTreeMap<K, V>) {
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        table.remove(key);
    }
    // Not `append`, which would go through all of the table.
    for (key, value) in after {
        table.insert(key, value);
    }
}

fn exchange_family<A: Addr>(family: &mut Family<A>, before: Family<A>, after: Family<A>) {
    exchange(&mut family.services, before.services, after.services);
    exchange(&mut family.sources, before.sources, after.sources);
    exchange(&mut family.backends, before.backends, after.backends);
    exchange(&mut family.owned, before.owned, after.owned);
}

impl<A: Addr> Parts<A> {
    fn new(
        family: &Family<A>,
        ranges: &[ServiceRange],
        world: &World,
        side: &BTreeMap<Prefix<A>, Owned>,
    ) -> Result<Self, PlanError> {
        let mut no_services = Family::default();
        owned::unused(ranges, &world.routing.local, &mut no_services)?;
        nat::own(side, &mut no_services);
        let mut parts = Parts { of: HashMap::new(), rest: no_services.owned };
        parts.note(family);
        Ok(parts)
    }

    /// Notes whose everything in there is.
    fn note(&mut self, family: &Family<A>) {
        let none = || Part { keys: Vec::new(), sources: Vec::new(), backends: Vec::new() };
        for (key, service) in &family.services {
            self.of.entry(service.id).or_insert_with(none).keys.push(*key);
        }
        for source in family.sources.keys() {
            self.of.entry(source.service).or_insert_with(none).sources.push(*source);
        }
        for (&id, backend) in &family.backends {
            self.of.entry(backend.service).or_insert_with(none).backends.push(id);
        }
    }

    /// Copies what a service has.
    fn copy(&self, service: u32, from: &Family<A>, to: &mut Family<A>) {
        let Some(part) = self.of.get(&service) else { return };
        for key in &part.keys {
            to.services.extend(from.services.get(key).map(|&service| (*key, service)));
            let prefix = Prefix { len: A::BITS, addr: key.addr };
            let vip = from.owned.get(&prefix).filter(|owned| owned.kind == Owned::VIP);
            to.owned.extend(vip.map(|&owned| (prefix, owned)));
        }
        to.sources.extend(part.sources.iter().filter_map(|&source| Some((source, *from.sources.get(&source)?))));
        to.backends.extend(part.backends.iter().filter_map(|&id| Some((id, *from.backends.get(&id)?))));
    }

    /// Adds what stands for an address that only one of the parts has: another service's, a range's.
    fn own(&self, all: &Family<A>, before: &mut Family<A>, after: &mut Family<A>) {
        let prefixes: BTreeSet<Prefix<A>> = before.owned.keys().chain(after.owned.keys()).copied().collect();
        for prefix in prefixes {
            before.owned.extend(all.owned.get(&prefix).map(|&owned| (prefix, owned)));
            if after.owned.contains_key(&prefix) {
                continue;
            }
            let first = ServiceKey { addr: prefix.addr, port: Be16::new(0), proto: 0, pad: 0 };
            let mut there = all.services.range(first..).take_while(|(key, _)| key.addr == prefix.addr);
            if there.any(|(key, _)| !before.services.contains_key(key)) {
                after.owned.insert(prefix, Owned::of(Owned::VIP));
            } else {
                after.owned.extend(self.rest.get(&prefix).map(|&owned| (prefix, owned)));
            }
        }
    }
}

impl Leaving {
    fn of<'a>(ports: impl IntoIterator<Item = &'a ServicePort>) -> impl Iterator<Item = (Moment, &'a ServicePort)> {
        ports.into_iter().flat_map(|port| {
            port.endpoints.iter().filter_map(move |endpoint| endpoint.state.until().map(|until| (until, port)))
        })
    }

    /// What is over has gone with the plan.
    fn add<'a>(&mut self, ports: impl IntoIterator<Item = &'a ServicePort>, now: Moment) {
        let ends = Leaving::of(ports).filter(|(until, _)| *until > now);
        self.0.extend(ends.map(|(until, port)| (until, port.namespace.clone(), port.name.clone())));
    }

    fn remove<'a>(&mut self, ports: impl IntoIterator<Item = &'a ServicePort>) {
        for (until, port) in Leaving::of(ports) {
            self.0.remove(&(until, port.namespace.clone(), port.name.clone()));
        }
    }
}
