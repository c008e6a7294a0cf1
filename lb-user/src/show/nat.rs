//! Translation between inside and outside: how it is set up and how full it is, who uses it, and by
//! which connections.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use lb_common::drop::{Drop as Reason, Note};
use lb_common::port_table::{CLASSES, HOLDERS, PLANE, proto};
use lb_common::table::nat::POOL;
use lb_common::table::{Flow, Settings, Uplink};
use lb_common::tcp;
use lb_common::wire::{Addr, Be16};

use super::flows::{Connection, Context, connections, endpoint};
use super::{Cell, Table, interface, interfaces, mirror, open, protocol, set, text};
use crate::apply::maps::FamilyMaps;
use crate::apply::{EndedFor, Maps, Paths, State};

/// What NAT's drops and notes have in common.
const NAT: &str = "nat_";

/// An address outside, and its mappings by the ports' class.
type Address = (IpAddr, [usize; CLASSES as usize]);

/// What is in use of a family.
struct Use {
    name: &'static str,
    /// Links that lead out, and their addresses.
    uplinks: Vec<(u32, Vec<IpAddr>)>,
    addresses: Vec<Address>,
    /// Hosts inside with at least one port.
    hosts: usize,
}

impl Use {
    fn of<A: Addr>(tables: &FamilyMaps<A>) -> Result<Self> {
        let mut taken: HashMap<u32, [usize; CLASSES as usize]> = HashMap::new();
        for port in tables.ports.taken(0, tables.ports.planes() * PLANE) {
            taken.entry(port.plane).or_default()[port.class as usize] += 1;
        }
        let uplinks: BTreeMap<u32, Uplink<A>> = tables.uplinks.entries()?.into_iter().collect();
        let addresses: BTreeSet<(A, u32)> = uplinks.values().flat_map(pool).collect();
        let addrs = |uplink: &Uplink<A>| pool(uplink).map(|(addr, _)| addr.to_ip()).collect();
        Ok(Use {
            name: if A::IS_V6 { "IPv6" } else { "IPv4" },
            uplinks: uplinks.iter().map(|(link, uplink)| (*link, addrs(uplink))).collect(),
            addresses: addresses
                .into_iter()
                .map(|(addr, plane)| (addr.to_ip(), taken.remove(&plane).unwrap_or_default()))
                .collect(),
            hosts: hosts(tables).filter(|(_, ports, _)| *ports != 0).count(),
        })
    }
}

fn pool<A: Addr>(uplink: &Uplink<A>) -> impl Iterator<Item = (A, u32)> {
    uplink.addrs.into_iter().zip(uplink.planes).take((uplink.count as usize).min(POOL))
}

/// Hosts inside, their ports, and packets dropped since they had too many.
fn hosts<A: Addr>(tables: &FamilyMaps<A>) -> impl Iterator<Item = (IpAddr, u64, u64)> {
    let mut all: BTreeMap<A, (u64, u64)> = BTreeMap::new();
    for (host, ports, denied) in tables.ports.hosts() {
        // A count that is about to be corrected may be below zero.
        let ports = u64::from(ports.cast_signed().max(0).cast_unsigned());
        let host = all.entry(host).or_default();
        *host = (host.0 + ports, host.1 + u64::from(denied));
    }
    all.into_iter().map(|(host, (ports, denied))| (host.to_ip(), ports, denied))
}

fn on(settings: &Settings) -> bool {
    settings.nat(Settings::NAT)
}

/// The word of who may send to a mapping, and what it means.
fn filtering(settings: &Settings) -> (&'static str, &'static str) {
    if settings.nat(Settings::FILTER_PORT) {
        ("port", "only an address and port that it was sent to from there may send to a mapping")
    } else if settings.nat(Settings::FILTER_NONE) {
        ("none", "anybody may send to a mapping")
    } else {
        ("address", "only an address that it was sent to from there may send to a mapping")
    }
}

fn range(settings: &Settings) -> String {
    let (first, count) = settings.ports();
    format!("{first} to {}", first + count - 1)
}

/// Translation at a glance.
pub fn nat_status(paths: &Paths) -> Result<Table> {
    let maps = open(paths)?;
    let settings = maps.settings.get(&0)?.unwrap_or_default();
    let state = State::read(paths)?;
    let names = interfaces(mirror(&state)?.as_ref());
    let mut table = Table::new(&["what", "name", "state", "count", "capacity", "detail"]);
    list_setting(&mut table, &settings);
    for family in [Use::of(&maps.v4)?, Use::of(&maps.v6)?] {
        list_use(&mut table, &family, &settings, &names);
    }
    list_ended(&mut table, &state.nat_ended);
    let mut count = |what: &'static str, reason: &'static str, count: u64, meaning| {
        if reason.starts_with(NAT) {
            table.push([what.into(), reason.into(), Cell::None, count.into(), Cell::None, text(meaning)]);
        }
    };
    for (index, reason) in (0..).zip(Reason::ALL) {
        count("drop", reason.label(), maps.drops.sum(index)?, reason.text());
    }
    for (index, note) in (0..).zip(Note::ALL) {
        count("note", note.label(), maps.notes.sum(index)?, note.text());
    }
    Ok(table)
}

fn list_setting(table: &mut Table, settings: &Settings) {
    let word = |on| if on { "on" } else { "off" };
    let mut say =
        |what: &'static str, state: Option<&'static str>, capacity: Option<u32>, detail: Option<&'static str>| {
            table.push([what.into(), Cell::None, state.into(), Cell::None, capacity.into(), detail.into()]);
        };
    say("translation", Some(word(on(settings))), None, None);
    let (filter, meaning) = filtering(settings);
    say("filtering", Some(filter), None, Some(meaning));
    say("quota", None, Some(settings.nat_quota), Some("ports of one host inside, of all protocols together"));
    say("log", Some(word(settings.nat(Settings::NAT_LOG))), None, None);
}

fn list_use(table: &mut Table, family: &Use, settings: &Settings, names: &BTreeMap<u32, String>) {
    for (link, addrs) in &family.uplinks {
        let name = interface(*link, names);
        let addrs: Vec<String> = addrs.iter().map(IpAddr::to_string).collect();
        table.push(["uplink".into(), name.into(), family.name.into(), Cell::None, Cell::None, addrs.join(", ").into()]);
    }
    let (_, capacity) = settings.ports();
    for (addr, taken) in &family.addresses {
        for (class, count) in (0..).zip(taken) {
            let number = if addr.is_ipv6() {
                proto::<lb_common::wire::Ip6>(class)
            } else {
                proto::<lb_common::wire::Ip4>(class)
            };
            table.push([
                "ports".into(),
                addr.to_string().into(),
                protocol(number).into(),
                (*count).into(),
                capacity.into(),
                range(settings).into(),
            ]);
        }
    }
    if on(settings) || family.hosts != 0 {
        table.push([
            "hosts".into(),
            Cell::None,
            family.name.into(),
            family.hosts.into(),
            HOLDERS.into(),
            "inside, with at least one port".into(),
        ]);
    }
}

/// Connections that agents ended, since the tables were made.
fn list_ended(table: &mut Table, ended: &EndedFor) {
    for (what, count, meaning) in [
        ("address", ended.address, "connections whose address is no longer one outside"),
        ("ports", ended.ports, "connections whose port is no longer in the range"),
        ("prefix", ended.prefix, "connections whose prefix is no longer exchanged"),
    ] {
        table.push(["ended".into(), what.into(), Cell::None, count.into(), Cell::None, meaning.into()]);
    }
}

/// Translation in one line.
pub struct Brief {
    /// Those that lead out.
    pub links: BTreeSet<u32>,
    /// Ports in use, and all that there are.
    pub used: usize,
    pub capacity: u64,
    pub detail: String,
}

impl Brief {
    /// None where nothing is translated.
    pub fn read(maps: &Maps, settings: &Settings) -> Result<Option<Self>> {
        if !on(settings) {
            return Ok(None);
        }
        let families = [Use::of(&maps.v4)?, Use::of(&maps.v6)?];
        let addresses = || families.iter().flat_map(|family| &family.addresses);
        let hosts = families.iter().map(|family| family.hosts).sum::<usize>();
        let lost = match maps.notes.sum(Note::NatLogLost as u32)? {
            0 => String::new(),
            lost => format!(", {lost} events lost to the log"),
        };
        Ok(Some(Brief {
            links: families.iter().flat_map(|family| &family.uplinks).map(|(link, _)| *link).collect(),
            used: addresses().flat_map(|(_, taken)| taken).sum(),
            capacity: u64::from(settings.ports().1) * u64::from(CLASSES) * addresses().count() as u64,
            detail: format!("ports of {hosts} hosts{lost}"),
        }))
    }
}

/// The hosts inside that have the most ports.
pub fn nat_top(paths: &Paths, rows: usize) -> Result<Table> {
    let maps = open(paths)?;
    let quota = maps.settings.get(&0)?.unwrap_or_default().nat_quota;
    Ok(top(hosts(&maps.v4).chain(hosts(&maps.v6)).collect(), quota, rows))
}

fn top(mut hosts: Vec<(IpAddr, u64, u64)>, quota: u32, rows: usize) -> Table {
    hosts.retain(|(_, ports, denied)| ports + denied != 0);
    hosts.sort_by(|a, b| (b.1, b.2).cmp(&(a.1, a.2)).then(a.0.cmp(&b.0)));
    let mut table = Table::new(&["host", "ports", "quota", "denied"]);
    for (host, ports, denied) in hosts.into_iter().take(rows) {
        table.push([host.to_string().into(), ports.into(), quota.into(), denied.into()]);
    }
    table
}

const FLOWS: &[&str] = &["protocol", "inside", "outside", "remote", "opened", "state", "set", "idle_s"];

/// Translated connections.
pub fn nat_flows(paths: &Paths) -> Result<Table> {
    let maps = open(paths)?;
    let context = Context::read(paths, &maps)?;
    let mut table = Table::new(FLOWS);
    list_flows(&mut table, connections(&maps.v4.flows, true, &context)?, &context);
    list_flows(&mut table, connections(&maps.v6.flows, true, &context)?, &context);
    Ok(table)
}

type End<A> = (A, Be16);

/// Who are in a translated connection, whoever opened it: inside, its protocol, outside, remote.
fn ends<A: Addr>(Connection { key, flow, .. }: &Connection<A>) -> (End<A>, u32, End<A>, End<A>) {
    let (from, to) = ((key.src, key.sport), (key.dst, key.dport));
    if flow.is(Flow::<A>::OUT) {
        (from, key.proto, (flow.src, flow.sport), to)
    } else {
        ((flow.dst, flow.dport), key.proto, to, from)
    }
}

fn list_flows<A: Addr>(table: &mut Table, mut connections: Vec<Connection<A>>, context: &Arc<Context>) {
    connections.sort_by_key(ends);
    table.extend(connections, context, |connection, context| {
        let (inside, proto, outside, remote) = ends(connection);
        let end = |(addr, port)| endpoint(addr, port).into();
        let Connection { flow, idle, .. } = connection;
        [
            protocol(proto as u8).into(),
            end(inside),
            end(outside),
            end(remote),
            (if flow.is(Flow::<A>::OUT) { "inside" } else { "outside" }).into(),
            tcp::label(flow.state).into(),
            set(flow.state).into(),
            context.seconds(*idle),
        ]
    });
}

#[cfg(test)]
mod tests {
    use lb_common::wire::Ip4;
    use serde_json::{Value, json};

    use super::super::flows::tests::{connections, entry, v4};
    use super::*;

    fn rows(table: &Table) -> Value {
        serde_json::from_str(&table.string(true)).unwrap()
    }

    #[test]
    fn connections_from_inside_and_outside_and_both() {
        const NAT: u8 = Flow::<Ip4>::NAT;
        const OUT: u8 = Flow::<Ip4>::OUT;
        const REPLY: u8 = Flow::<Ip4>::REPLY;
        let context = Arc::new(Context { names: BTreeMap::new(), now: 1000, ticks: 100 });
        let (host, other, outside, remote) = (v4(10, 5000), v4(11, 6000), v4(200, 5001), v4(99, 443));
        let all = [
            // From the inside.
            entry(6, host, remote, outside, remote, NAT | OUT, tcp::ESTABLISHED, 500),
            entry(6, remote, outside, remote, host, NAT | REPLY, tcp::ESTABLISHED, 900),
            // To a mapping from elsewhere.
            entry(17, v4(98, 53), v4(200, 6001), v4(98, 53), other, NAT, tcp::NEW, 1000),
            entry(17, other, v4(98, 53), v4(200, 6001), v4(98, 53), NAT | OUT | REPLY, tcp::NEW, 1000),
            // From one host inside to another by its address outside.
            entry(17, host, v4(200, 6001), v4(200, 5000), other, NAT | OUT, tcp::NEW, 1000),
            // What is remembered of a mapping, and a service's connection.
            entry(0x106, host, v4(0, 0), outside, v4(0, 0), NAT | Flow::<Ip4>::MEMORY, tcp::ESTABLISHED, 1),
            entry(6, v4(50, 1), v4(51, 80), v4(50, 1), v4(52, 8080), 0, tcp::NEW, 1),
        ];
        let mut table = Table::new(FLOWS);
        list_flows(&mut table, connections(&all, true, &context), &context);
        let row = |protocol, inside, outside, remote, opened, state, set, idle: f64| {
            json!({"protocol": protocol, "inside": inside, "outside": outside, "remote": remote,
                   "opened": opened, "state": state, "set": set, "idle_s": idle})
        };
        let (a, b) = ("10.0.0.10:5000", "10.0.0.11:6000");
        assert_eq!(
            rows(&table),
            json!([
                row("TCP", a, "10.0.0.200:5001", "10.0.0.99:443", "inside", "established", "established", 1.0),
                row("UDP", a, "10.0.0.200:5000", "10.0.0.200:6001", "inside", "new", "half-open", 0.0),
                row("UDP", b, "10.0.0.200:6001", "10.0.0.98:53", "outside", "new", "half-open", 0.0),
            ])
        );
    }

    #[test]
    fn the_fullest_host_is_first() {
        let hosts = |all: &[(u8, u64, u64)]| {
            all.iter().map(|(host, ports, denied)| (IpAddr::from([10, 0, 0, *host]), *ports, *denied)).collect()
        };
        let all = [(1, 5, 0), (2, 9, 1), (3, 0, 0), (4, 9, 7), (5, 5, 0), (6, 0, 2)];
        assert_eq!(
            top(hosts(&all), 10, 4).string(false),
            "HOST      PORTS  QUOTA  DENIED\n\
             10.0.0.4      9     10       7\n\
             10.0.0.2      9     10       1\n\
             10.0.0.1      5     10       0\n\
             10.0.0.5      5     10       0\n"
        );
        assert_eq!(rows(&top(hosts(&all), 10, 100)).as_array().unwrap().len(), 5);
        assert_eq!(top(Vec::new(), 10, 4).string(false), "HOST  PORTS  QUOTA  DENIED\n");
    }

    #[test]
    fn how_it_is_set_up_and_used() {
        let settings = Settings {
            nat: Settings::NAT | Settings::FILTER_PORT | Settings::NAT_LOG,
            nat_quota: 100,
            ..Settings::with_clock(100)
        };
        let addr: IpAddr = [203, 0, 113, 2].into();
        let family = Use {
            name: "IPv4",
            uplinks: vec![(2, vec![addr]), (9, vec![])],
            addresses: vec![(addr, [3, 2, 1])],
            hosts: 2,
        };
        let names = BTreeMap::from([(2, "eth0".to_owned())]);
        let mut table = Table::new(&["what", "name", "state", "count", "capacity", "detail"]);
        list_setting(&mut table, &settings);
        list_use(&mut table, &family, &settings, &names);
        list_ended(&mut table, &EndedFor { address: 7, ports: 0, prefix: 1 });
        let text = table.string(false);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "WHAT NAME STATE COUNT CAPACITY DETAIL",
                "translation - on - - -",
                "filtering - port - - only an address and port that it was sent to from there may send to a mapping",
                "quota - - - 100 ports of one host inside, of all protocols together",
                "log - on - - -",
                "uplink eth0 IPv4 - - 203.0.113.2",
                "uplink link 9 IPv4 - - -",
                "ports 203.0.113.2 TCP 3 28976 1024 to 29999",
                "ports 203.0.113.2 UDP 2 28976 1024 to 29999",
                "ports 203.0.113.2 ICMP 1 28976 1024 to 29999",
                "hosts - IPv4 2 16384 inside, with at least one port",
                "ended address - 7 - connections whose address is no longer one outside",
                "ended ports - 0 - connections whose port is no longer in the range",
                "ended prefix - 1 - connections whose prefix is no longer exchanged",
            ]
        );
    }

    #[test]
    fn what_is_counted_is_named_alike() {
        let drops = Reason::ALL.iter().filter(|reason| reason.label().starts_with(NAT)).count();
        let notes = Note::ALL.iter().filter(|note| note.label().starts_with(NAT)).count();
        assert!(drops >= 7 && notes >= 4, "{drops} {notes}");
    }
}
