//! Connections. Each is two entries in the kernel and one row here.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use lb_common::flow_table::{self, Hit};
use lb_common::table::{Flow, FlowKey, age};
use lb_common::tcp;
use lb_common::wire::Addr;
use zerocopy::FromZeros;

use super::{Cell, Table as Listing, endpoint, names, open, protocol, set};
use crate::apply::clock;
use crate::apply::flows::Flows;
use crate::apply::{Maps, Paths};

pub(super) struct Context {
    pub names: BTreeMap<u32, String>,
    pub now: u32,
    pub ticks: u32,
}

impl Context {
    pub fn read(paths: &Paths, maps: &Maps) -> Result<Self> {
        Ok(Context {
            names: names(maps)?,
            now: clock::read_pinned(paths, maps)?.tick(),
            ticks: maps.settings.get(&0)?.unwrap_or_default().ticks_per_second.max(1),
        })
    }
}

const COLUMNS: &[&str] = &["protocol", "client", "vip", "backend", "snat", "service", "state", "set", "idle_s"];

/// Connections; with `nat` the translated ones alone.
pub fn flows(paths: &Paths, nat: bool) -> Result<Listing> {
    let maps = open(paths)?;
    let context = Context::read(paths, &maps)?;
    let mut listing = Listing::new(COLUMNS);
    list_table(&mut listing, &maps.v4.flows, &context, nat);
    list_table(&mut listing, &maps.v6.flows, &context, nat);
    Ok(listing)
}

fn list_table<A: Addr>(listing: &mut Listing, table: &Flows<A>, context: &Context, nat: bool) {
    let mut forward = Vec::new();
    flow_table::walk(table, 0..table.buckets(), |key, hit| {
        if is_listed(&hit.flow, nat) {
            forward.push((key, hit.flow));
        }
    });
    forward.sort_unstable();
    let last = |key: &FlowKey<A>| {
        let mut hit = Hit::new_zeroed();
        flow_table::find_into(table, key, &mut hit).then_some(hit.flow.last)
    };
    list(listing, &forward, last, context);
}

pub(super) fn entries<A: Addr>(table: &Flows<A>) -> HashMap<FlowKey<A>, Flow<A>> {
    table.entries().into_iter().map(|(key, hit)| (key, hit.flow)).collect()
}

/// How long a connection is silent in both directions; `reply`: when the other one was used.
pub(super) fn idle<A: Addr>(flow: &Flow<A>, reply: Option<u32>, context: &Context) -> Cell {
    let reply = reply.map_or(u32::MAX, |last| age(context.now, last));
    Cell::Seconds(f64::from(age(context.now, flow.last).min(reply)) / f64::from(context.ticks))
}

/// Whether an entry has a row: the direction in which its connection was opened.
fn is_listed<A: Addr>(flow: &Flow<A>, nat: bool) -> bool {
    !flow.is(Flow::<A>::REPLY | Flow::<A>::MEMORY) && (!nat || flow.is(Flow::<A>::NAT))
}

/// `last`: when another entry was used.
fn list<A: Addr>(
    listing: &mut Listing,
    forward: &[(FlowKey<A>, Flow<A>)],
    last: impl Fn(&FlowKey<A>) -> Option<u32>,
    context: &Context,
) {
    for (key, flow) in forward {
        let translated = flow.is(Flow::<A>::NAT);
        let snat = flow.is(Flow::<A>::SNAT) || translated && flow.is(Flow::<A>::OUT);
        let service = match translated {
            true => Some("nat".to_owned()),
            false => context.names.get(&flow.service).cloned(),
        };
        listing.push([
            protocol(key.proto as u8).into(),
            endpoint(key.src.to_ip(), key.sport.get()).into(),
            endpoint(key.dst.to_ip(), key.dport.get()).into(),
            endpoint(flow.dst.to_ip(), flow.dport.get()).into(),
            snat.then(|| endpoint(flow.src.to_ip(), flow.sport.get())).into(),
            service.into(),
            tcp::label(flow.state).into(),
            set(flow.state).into(),
            idle(flow, last(&flow.reverse_key(key.proto)), context),
        ]);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use lb_common::wire::{Be16, Ip4};
    use serde_json::{Value, json};

    use super::*;

    type End = (Ip4, u16);

    pub fn v4(host: u8, port: u16) -> End {
        (Ip4::from_ip([10, 0, 0, host].into()).unwrap(), port)
    }

    /// An entry: who sends to whom, and what that becomes.
    #[expect(clippy::too_many_arguments, reason = "a row of a table")]
    pub fn entry(
        proto: u32,
        from: End,
        to: End,
        becomes_from: End,
        becomes_to: End,
        flags: u8,
        state: u8,
        last: u32,
    ) -> (FlowKey<Ip4>, Flow<Ip4>) {
        let port = Be16::new;
        let key = FlowKey { src: from.0, dst: to.0, sport: port(from.1), dport: port(to.1), proto };
        let flow = Flow {
            src: becomes_from.0,
            dst: becomes_to.0,
            sport: port(becomes_from.1),
            dport: port(becomes_to.1),
            service: 7,
            backend: Flow::<Ip4>::NO_BACKEND,
            flags,
            state,
            last,
            ..Flow::default()
        };
        (key, flow)
    }

    #[test]
    fn a_row_a_connection() {
        const NAT: u8 = Flow::<Ip4>::NAT;
        let context = Context { names: BTreeMap::from([(7, "shop/web:80".to_owned())]), now: 1000, ticks: 100 };
        let (host, outside, remote) = (v4(10, 5000), v4(200, 5001), v4(99, 443));
        let all = HashMap::from([
            entry(6, host, remote, outside, remote, NAT | Flow::<Ip4>::OUT, tcp::ESTABLISHED, 500),
            entry(6, remote, outside, remote, host, NAT | Flow::<Ip4>::REPLY, tcp::ESTABLISHED, 900),
            entry(0x106, host, v4(0, 0), outside, v4(0, 0), NAT | Flow::<Ip4>::MEMORY, tcp::ESTABLISHED, 1),
            entry(1, v4(98, 0), v4(200, 9), v4(98, 0), v4(10, 9), NAT, tcp::NEW, 1000),
            entry(6, v4(50, 1), v4(51, 80), v4(200, 1), v4(52, 8080), Flow::<Ip4>::SNAT, tcp::NEW, 800),
        ]);
        let row = |protocol, client, vip, backend, snat: Value, service, state, set, idle: f64| {
            json!({"protocol": protocol, "client": client, "vip": vip, "backend": backend, "snat": snat,
                   "service": service, "state": state, "set": set, "idle_s": idle})
        };
        let (a, b, c) = ("10.0.0.10:5000", "10.0.0.99:443", "10.0.0.200:5001");
        let out = row("TCP", a, b, b, c.into(), "nat", "established", "established", 1.0);
        let service = row(
            "TCP",
            "10.0.0.50:1",
            "10.0.0.51:80",
            "10.0.0.52:8080",
            "10.0.0.200:1".into(),
            "shop/web:80",
            "new",
            "half-open",
            2.0,
        );
        let into =
            row("ICMP", "10.0.0.98:0", "10.0.0.200:9", "10.0.0.10:9", Value::Null, "nat", "new", "half-open", 0.0);
        for (nat, want) in [(false, vec![&out, &service, &into]), (true, vec![&out, &into])] {
            let mut listing = Listing::new(COLUMNS);
            let listed = all.iter().filter(|(_, flow)| is_listed(flow, nat));
            let mut forward: Vec<_> = listed.map(|(key, flow)| (*key, *flow)).collect();
            forward.sort_unstable();
            list(&mut listing, &forward, |key| Some(all.get(key)?.last), &context);
            let rows: Value = serde_json::from_str(&listing.json().unwrap()).unwrap();
            assert_eq!(rows, json!(want));
        }
    }
}
