//! The plan: what every table shall hold, as a pure function of the wish and the facts.
//!
//! Invariant: the same arguments give the same contents, a restart of the agent changes nothing
//! ([`Ids::recover`]), and an error plans nothing at all. Not here: IO, clocks, and the order of
//! changes ([`super::diff`]).

use std::collections::BTreeMap;

use lb_common::table::Settings;
use lb_common::wire::{Addr, Be16, Ip6};

use super::contents::{Contents, Family};
use super::error::PlanError;
use super::hooks::{hooks, links};
use super::ids::Ids;
use super::nat;
use super::owned;
use super::policies;
use super::routing::{Routing, mapped};
use super::services::{World, services};
use crate::intent::{Capacity, Intent, Network};
use crate::moment::Moment;

/// Now, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub now: Moment,
    /// The data plane's time.
    pub tick: u32,
    pub ticks_per_second: u32,
}

impl Clock {
    pub(super) fn ticks(&self, seconds: u32) -> u32 {
        seconds.saturating_mul(self.ticks_per_second)
    }

    /// The tick of a moment. The two clocks drift against each other: what was said before holds
    /// as long as it is within two seconds, so that a plan doesn't change by itself.
    pub(super) fn deadline(&self, until: Moment, before: Option<u32>) -> u32 {
        let left = until.since(self.now).as_millis();
        let left = (left * u128::from(self.ticks_per_second) / 1_000).min(u128::from(u32::MAX / 2));
        let tick = self.tick.wrapping_add(left as u32).max(1);
        before.filter(|&b| (b.wrapping_sub(tick) as i32).unsigned_abs() <= self.ticks(2)).unwrap_or(tick)
    }
}

/// What every table shall hold. `ids` is the memory of the plan before; an error leaves it as it was.
pub fn plan(intent: &Intent, network: &Network, ids: &mut Ids, clock: Clock) -> Result<Contents, PlanError> {
    whole(intent, network, ids, clock, None).map(|(contents, _)| contents)
}

/// The plan, and the world that it was made in. Routing `before` makes it cheaper, and nothing else.
pub(super) fn whole(
    intent: &Intent,
    network: &Network,
    ids: &mut Ids,
    clock: Clock,
    before: Option<&Routing>,
) -> Result<(Contents, World), PlanError> {
    ids.begin();
    let drafted = draft(intent, network, ids, clock, before);
    match &drafted {
        Ok((contents, _)) => ids.commit(contents),
        Err(_) => ids.rollback(),
    }
    drafted
}

fn draft(
    intent: &Intent,
    network: &Network,
    ids: &mut Ids,
    clock: Clock,
    before: Option<&Routing>,
) -> Result<(Contents, World), PlanError> {
    let routing = Routing::new(intent, network, ids, before);
    let mut to = Contents {
        next_hops: routing.next_hops.clone(),
        groups: routing.groups.clone(),
        tunnels: routing.tunnels.clone(),
        peers: peers(intent),
        links: links(intent, network),
        v4: Family { routes: routing.v4().clone(), ..Family::default() },
        v6: Family { routes: routing.v6().clone(), ..Family::default() },
        hooks: hooks(intent, network),
        ..Contents::empty(settings(intent, &clock))
    };
    let sides = nat::translate(intent, network, ids, &mut to)?;
    let mut world = World::new(intent, network, routing, sides, clock);
    world.policies = policies::Planned::new(intent, network, &mut to);
    services(&intent.services, &world, ids, &mut to)?;
    owned::unused(&intent.service_ranges, &world.routing.local, &mut to.v4)?;
    owned::unused(&intent.service_ranges, &world.routing.local, &mut to.v6)?;
    nat::own(&world.sides.v4, &mut to.v4);
    nat::own(&world.sides.v6, &mut to.v6);
    to.filter = owned::filter(&intent.service_ranges, &world.sides, &to.v4, &to.v6);
    to.settings.epoch = ids.epoch_of(&to);
    fits(&intent.tuning.capacity, ids, [Sizes::of(&to.v4), Sizes::of(&to.v6)])?;
    Ok((to, world))
}

/// The other nodes, where packets may come in the overlay.
fn peers(intent: &Intent) -> BTreeMap<Ip6, u32> {
    let others = intent.other_nodes().filter(|_| intent.has_overlay());
    others.flat_map(|node| &node.addresses).map(|addr| (mapped(*addr), 1)).collect()
}

fn settings(intent: &Intent, clock: &Clock) -> Settings {
    let tuning = &intent.tuning;
    let vxlan_port = if intent.has_overlay() { intent.overlay.port } else { 0 };
    Settings {
        vni: intent.overlay.vni,
        vxlan_port: Be16::new(vxlan_port),
        ticks_per_second: clock.ticks_per_second,
        tcp_established: clock.ticks(tuning.tcp_established),
        tcp_transitory: clock.ticks(tuning.tcp_transitory),
        tcp_closed: clock.ticks(tuning.tcp_closed),
        udp_unanswered: clock.ticks(tuning.udp_unanswered),
        udp_answered: clock.ticks(tuning.udp_answered),
        sctp_established: clock.ticks(tuning.sctp_established),
        sctp_transitory: clock.ticks(tuning.sctp_transitory),
        fragment: clock.ticks(tuning.fragment),
        icmp_rate: tuning.icmp_rate,
        snat_first: tuning.snat_first,
        snat_last: tuning.snat_last,
        trace_port: u32::from(tuning.trace_port),
        ..Settings::with_clock(clock.ticks_per_second)
    }
    .calmed()
}

/// Every table has room, or nothing is planned. Routes that find no room ask the kernel, and are right all the same.
pub(super) fn fits(capacity: &Capacity, ids: &Ids, families: [Sizes; 2]) -> Result<(), PlanError> {
    let check = |table, need: u64, capacity: u32| {
        let capacity = u64::from(capacity);
        if need > capacity { Err(PlanError::Full { table, need, capacity }) } else { Ok(()) }
    };
    check("services", ids.services.need(), capacity.services)?;
    check("backends", ids.backends.need(), capacity.backends)?;
    check("next_hops", ids.next_hops.need(), capacity.next_hops)?;
    check("slots", u64::from(ids.rows.need()), capacity.slots)?;
    for family in families {
        check("services", family.services as u64, capacity.services)?;
        check("owned", family.owned as u64, capacity.services)?;
        check("source_ranges", family.sources as u64, capacity.services)?;
    }
    Ok(())
}

/// Entries of a family's tables.
pub(super) struct Sizes {
    services: usize,
    owned: usize,
    sources: usize,
}

impl Sizes {
    fn of<A: Addr>(family: &Family<A>) -> Self {
        Sizes { services: family.services.len(), owned: family.owned.len(), sources: family.sources.len() }
    }

    /// Once one part of the family's tables is in place of another.
    pub fn with<A: Addr>(family: &Family<A>, before: &Family<A>, after: &Family<A>) -> Self {
        Sizes {
            services: family.services.len() - before.services.len() + after.services.len(),
            owned: family.owned.len() - before.owned.len() + after.owned.len(),
            sources: family.sources.len() - before.sources.len() + after.sources.len(),
        }
    }
}
