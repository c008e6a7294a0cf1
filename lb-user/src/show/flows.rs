//! Connections. Each is two entries in the kernel and one row here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use lb_common::flow_table::{self, Hit};
use lb_common::table::{Flow, FlowKey, age};
use lb_common::tcp;
use lb_common::wire::{Addr, Be16};
use zerocopy::FromZeros;

use super::parallel::{cores, in_order};
use super::{Cell, Table as Listing, names, open, protocol, set};
use crate::apply::clock;
use crate::apply::flows::Flows;
use crate::apply::{Maps, Paths};

pub(super) struct Context {
    pub names: BTreeMap<u32, String>,
    pub now: u32,
    pub ticks: u32,
}

impl Context {
    pub fn read(paths: &Paths, maps: &Maps) -> Result<Arc<Self>> {
        Ok(Arc::new(Context {
            names: names(maps)?,
            now: clock::read_pinned(paths, maps)?.tick(),
            ticks: maps.settings.get(&0)?.unwrap_or_default().ticks_per_second.max(1),
        }))
    }

    /// How long a connection is silent in both directions; `reply`: when the other one was used.
    pub fn idle<A: Addr>(&self, flow: &Flow<A>, reply: Option<u32>) -> u32 {
        let reply = reply.map_or(u32::MAX, |last| age(self.now, last));
        age(self.now, flow.last).min(reply)
    }

    pub fn seconds(&self, ticks: u32) -> Cell<'static> {
        Cell::Seconds(f64::from(ticks) / f64::from(self.ticks))
    }
}

const COLUMNS: &[&str] = &["protocol", "client", "vip", "backend", "snat", "service", "state", "set", "idle_s"];

/// Connections; with `nat` the translated ones alone.
pub fn flows(paths: &Paths, nat: bool) -> Result<Listing> {
    let maps = open(paths)?;
    let context = Context::read(paths, &maps)?;
    let mut listing = Listing::new(COLUMNS);
    list(&mut listing, connections(&maps.v4.flows, nat, &context)?, &context);
    list(&mut listing, connections(&maps.v6.flows, nat, &context)?, &context);
    Ok(listing)
}

/// How many connections there are, by protocol, whether they are translated, and state.
pub fn flow_counts(paths: &Paths) -> Result<Listing> {
    let maps = open(paths)?;
    let mut all = BTreeMap::new();
    count(&maps.v4.flows, &mut all);
    count(&maps.v6.flows, &mut all);
    let mut listing = Listing::new(&["protocol", "kind", "state", "set", "count"]);
    for ((proto, nat, state), count) in all {
        let kind = if nat { "nat" } else { "service" };
        listing.push([
            protocol(proto).into(),
            kind.into(),
            tcp::label(state).into(),
            set(state).into(),
            Cell::Number(count),
        ]);
    }
    Ok(listing)
}

fn count<A: Addr>(table: &Flows<A>, all: &mut BTreeMap<(u8, bool, u8), u64>) {
    flow_table::walk(table, 0..table.buckets(), |key, Hit { flow, .. }| {
        if is_listed(&flow, false) {
            *all.entry((key.proto as u8, flow.is(Flow::<A>::NAT), flow.state)).or_default() += 1;
        }
    });
}

/// Whether an entry has a row: the direction in which its connection was opened.
fn is_listed<A: Addr>(flow: &Flow<A>, nat: bool) -> bool {
    !flow.is(Flow::<A>::REPLY | Flow::<A>::MEMORY) && (!nat || flow.is(Flow::<A>::NAT))
}

/// A connection, by its entry in the direction in which it was opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Connection<A: Addr> {
    pub key: FlowKey<A>,
    pub flow: Flow<A>,
    /// Ticks.
    pub idle: u32,
}

/// A table's connections, in order; with `nat` the translated ones alone.
pub(super) fn connections<A: Addr>(table: &Flows<A>, nat: bool, context: &Context) -> Result<Vec<Connection<A>>> {
    let last = |key: &FlowKey<A>| {
        let mut hit = Hit::new_zeroed();
        flow_table::find_into(table, key, &mut hit).then_some(hit.flow.last)
    };
    let (buckets, parts) = (u64::from(table.buckets()), cores());
    let bound = |part: usize| (buckets * part as u64 / parts as u64) as u32;
    let part = |part| {
        let mut part_of_all = Vec::new();
        flow_table::walk(table, bound(part)..bound(part + 1), |key, Hit { flow, .. }| {
            if is_listed(&flow, nat) {
                let idle = context.idle(&flow, last(&flow.reverse_key(key.proto)));
                part_of_all.push(Connection { key, flow, idle });
            }
        });
        part_of_all.sort_unstable();
        part_of_all
    };
    let mut all = Vec::new();
    in_order(parts, part, |part| {
        all.extend(part);
        Ok(())
    })?;
    // This one merges what is sorted.
    all.sort();
    Ok(all)
}

pub(crate) fn endpoint<A: Addr>(addr: A, port: Be16) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port.get())
}

fn list<A: Addr>(listing: &mut Listing, connections: Vec<Connection<A>>, context: &Arc<Context>) {
    listing.extend(connections, context, |Connection { key, flow, idle }, context| {
        let translated = flow.is(Flow::<A>::NAT);
        let snat = flow.is(Flow::<A>::SNAT) || translated && flow.is(Flow::<A>::OUT);
        let service = match translated {
            true => Some("nat"),
            false => context.names.get(&flow.service).map(String::as_str),
        };
        [
            protocol(key.proto as u8).into(),
            endpoint(key.src, key.sport).into(),
            endpoint(key.dst, key.dport).into(),
            endpoint(flow.dst, flow.dport).into(),
            snat.then(|| endpoint(flow.src, flow.sport)).into(),
            service.into(),
            tcp::label(flow.state).into(),
            set(flow.state).into(),
            context.seconds(*idle),
        ]
    });
}

#[cfg(test)]
pub(super) mod tests {
    use lb_common::wire::{Ip4, Ip6};
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

    /// As [`connections`], of entries that lie in no table.
    pub fn connections<A: Addr>(entries: &[(FlowKey<A>, Flow<A>)], nat: bool, context: &Context) -> Vec<Connection<A>> {
        let last = |key| entries.iter().find(|(other, _)| *other == key).map(|(_, flow)| flow.last);
        let mut all: Vec<_> = entries
            .iter()
            .filter(|(_, flow)| is_listed(flow, nat))
            .map(|&(key, flow)| Connection { key, flow, idle: context.idle(&flow, last(flow.reverse_key(key.proto))) })
            .collect();
        all.sort();
        all
    }

    fn listing<A: Addr>(entries: &[(FlowKey<A>, Flow<A>)], nat: bool, context: &Arc<Context>) -> Listing {
        let mut listing = Listing::new(COLUMNS);
        list(&mut listing, connections(entries, nat, context), context);
        listing
    }

    #[test]
    fn a_row_a_connection() {
        const NAT: u8 = Flow::<Ip4>::NAT;
        let names = BTreeMap::from([(7, "shop/web:80".to_owned())]);
        let context = Arc::new(Context { names, now: 1000, ticks: 100 });
        let (host, outside, remote) = (v4(10, 5000), v4(200, 5001), v4(99, 443));
        let all = [
            entry(6, remote, outside, remote, host, NAT | Flow::<Ip4>::REPLY, tcp::ESTABLISHED, 900),
            entry(1, v4(98, 0), v4(200, 9), v4(98, 0), v4(10, 9), NAT, tcp::NEW, 1000),
            entry(6, host, remote, outside, remote, NAT | Flow::<Ip4>::OUT, tcp::ESTABLISHED, 500),
            entry(0x106, host, v4(0, 0), outside, v4(0, 0), NAT | Flow::<Ip4>::MEMORY, tcp::ESTABLISHED, 1),
            entry(6, v4(50, 1), v4(51, 80), v4(200, 1), v4(52, 8080), Flow::<Ip4>::SNAT, tcp::NEW, 800),
        ];
        assert_eq!(
            listing(&all, false, &context).string(false),
            "PROTOCOL  CLIENT          VIP            BACKEND         SNAT             SERVICE      STATE        SET          IDLE S\n\
             TCP       10.0.0.10:5000  10.0.0.99:443  10.0.0.99:443   10.0.0.200:5001  nat          established  established     1 s\n\
             TCP       10.0.0.50:1     10.0.0.51:80   10.0.0.52:8080  10.0.0.200:1     shop/web:80  new          half-open       2 s\n\
             ICMP      10.0.0.98:0     10.0.0.200:9   10.0.0.10:9     -                nat          new          half-open       0 s\n"
        );
        let translated: Value = serde_json::from_str(&listing(&all, true, &context).string(true)).unwrap();
        assert_eq!(
            translated,
            json!([
                {"protocol": "TCP", "client": "10.0.0.10:5000", "vip": "10.0.0.99:443", "backend": "10.0.0.99:443",
                 "snat": "10.0.0.200:5001", "service": "nat", "state": "established", "set": "established", "idle_s": 1.0},
                {"protocol": "ICMP", "client": "10.0.0.98:0", "vip": "10.0.0.200:9", "backend": "10.0.0.10:9",
                 "snat": null, "service": "nat", "state": "new", "set": "half-open", "idle_s": 0.0},
            ])
        );
    }

    #[test]
    fn ipv6_and_odd_names() {
        let names = BTreeMap::from([(7, "a\"b\\c\u{7}/größe:80".to_owned())]);
        let context = Arc::new(Context { names, now: 1000, ticks: 250 });
        let ip = |text: &str| Ip6::from_ip(text.parse().unwrap()).unwrap();
        let port = Be16::new;
        let client = (ip("2001:db8:0:0:1::1"), port(65535));
        let key = FlowKey { src: client.0, dst: ip("fd00::50"), sport: client.1, dport: port(80), proto: 132 };
        let flow =
            Flow { src: client.0, dst: ip("::ffff:1.2.3.4"), sport: client.1, dport: port(8080), ..Flow::default() };
        let flow = Flow { service: 7, state: tcp::ESTABLISHED, last: 633, ..flow };
        let gone = FlowKey { src: ip("::"), proto: 6, ..key };
        let listing = listing(
            &[(key, flow), (gone, Flow { service: 8, last: 0u32.wrapping_sub(9000), ..flow })],
            false,
            &context,
        );
        assert_eq!(
            listing.string(false),
            "PROTOCOL  CLIENT                     VIP            BACKEND                SNAT  SERVICE          STATE        SET          IDLE S\n\
             TCP       [::]:65535                 [fd00::50]:80  [::ffff:1.2.3.4]:8080  -     -                established  established    40 s\n\
             SCTP      [2001:db8::1:0:0:1]:65535  [fd00::50]:80  [::ffff:1.2.3.4]:8080  -     a\"b\\c\u{7}/größe:80  established  established     1 s\n"
        );
        assert_eq!(
            listing.string(true),
            r#"[
  {
    "protocol": "TCP",
    "client": "[::]:65535",
    "vip": "[fd00::50]:80",
    "backend": "[::ffff:1.2.3.4]:8080",
    "snat": null,
    "service": null,
    "state": "established",
    "set": "established",
    "idle_s": 40.0
  },
  {
    "protocol": "SCTP",
    "client": "[2001:db8::1:0:0:1]:65535",
    "vip": "[fd00::50]:80",
    "backend": "[::ffff:1.2.3.4]:8080",
    "snat": null,
    "service": "a\"b\\c\u0007/größe:80",
    "state": "established",
    "set": "established",
    "idle_s": 1.468
  }
]
"#
        );
    }
}
