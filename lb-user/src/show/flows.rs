//! Connections. Each is two entries in the kernel and one row here.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use lb_common::table::{Flow, FlowKey, age};
use lb_common::tcp;
use lb_common::wire::Addr;

use super::{Cell, Table as Listing, endpoint, names, open, protocol};
use crate::apply::Paths;
use crate::apply::clock;
use crate::apply::flows::Flows;

struct Context {
    names: BTreeMap<u32, String>,
    now: u32,
    ticks: u32,
}

/// Connections.
pub fn flows(paths: &Paths) -> Result<Listing> {
    let maps = open(paths)?;
    let context = Context {
        names: names(&maps)?,
        now: clock::read_pinned(paths, &maps)?.tick(),
        ticks: maps.settings.get(&0)?.unwrap_or_default().ticks_per_second.max(1),
    };
    let mut listing =
        Listing::new(&["protocol", "client", "vip", "backend", "snat", "service", "state", "set", "idle_s"]);
    list(&mut listing, &maps.v4.flows, &context);
    list(&mut listing, &maps.v6.flows, &context);
    Ok(listing)
}

fn list<A: Addr>(listing: &mut Listing, table: &Flows<A>, context: &Context) {
    let all: HashMap<FlowKey<A>, Flow<A>> = table.entries().into_iter().map(|(key, hit)| (key, hit.flow)).collect();
    let mut forward: Vec<_> = all.iter().filter(|(_, flow)| flow.flags & Flow::<A>::REPLY == 0).collect();
    forward.sort();
    for (key, flow) in forward {
        let reply = all.get(&flow.reverse_key(key.proto));
        let idle = age(context.now, flow.last).min(reply.map_or(u32::MAX, |reply| age(context.now, reply.last)));
        let snat = flow.flags & Flow::<A>::SNAT != 0;
        listing.push([
            protocol(key.proto as u8).into(),
            endpoint(key.src.to_ip(), key.sport.get()).into(),
            endpoint(key.dst.to_ip(), key.dport.get()).into(),
            endpoint(flow.dst.to_ip(), flow.dport.get()).into(),
            snat.then(|| endpoint(flow.src.to_ip(), flow.sport.get())).into(),
            context.names.get(&flow.service).cloned().into(),
            tcp::label(flow.state).into(),
            (if tcp::answered(flow.state) { "established" } else { "half-open" }).into(),
            Cell::Seconds(f64::from(idle) / f64::from(context.ticks)),
        ]);
    }
}
