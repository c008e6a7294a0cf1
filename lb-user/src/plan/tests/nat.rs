//! What the plan says of the translation between inside and outside.

use ipnet::IpNet;
use lb_common::table::filter::{inside_bit, outside_bit};
use lb_common::table::{Backend, NextHop, Owned, Prefix, PrefixPair, Settings, Uplink};
use lb_common::wire::{Addr, Ip4, Ip6};

use super::super::{Change, Contents, FamilyOp, Ids, Op, PlanError, Planned, diff};
use super::world::*;
use super::{Model, clock, nothing};
use crate::intent::{
    Filtering, Intent, InternalSwitch, Network, PrefixPair as Pair, ServicePort, ServiceRange, Translation,
};

fn planned(intent: &Intent, network: &Network, ids: &mut Ids) -> Contents {
    super::super::plan(intent, network, ids, clock(0)).expect("a plan")
}

fn plan(intent: &Intent, network: &Network) -> Contents {
    planned(intent, network, &mut Ids::default())
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().expect("a subnet")).collect()
}

fn a<A: Addr>(text: &str) -> A {
    A::from_ip(ip(text)).expect("an address of the family")
}

fn prefix<A: Addr>(text: &str) -> Prefix<A> {
    let net: IpNet = text.parse().expect("a prefix");
    Prefix { len: net.prefix_len().into(), addr: a(&net.addr().to_string()) }
}

fn kind(c: &Contents, text: &str) -> Option<u16> {
    let v4 = text.contains('.');
    if v4 { c.v4.owned.get(&prefix(text)) } else { c.v6.owned.get(&prefix(text)) }.map(|owned| owned.kind)
}

/// The addresses of an uplink, each with its plane.
fn pool<A: Addr>(uplink: &Uplink<A>) -> Vec<(String, u32)> {
    let all = uplink.addrs.iter().zip(uplink.planes).take(uplink.count as usize);
    all.map(|(addr, plane)| (addr.to_ip().to_string(), plane)).collect()
}

fn has_bit(c: &Contents, bit: u32) -> bool {
    c.filter.get(&(bit / 64)).is_some_and(|w| w >> (bit % 64) & 1 == 1)
}

/// Port2 leads out for both families, and both are translated.
fn both() -> (Intent, Network) {
    let mut wish = intent(vec![]);
    wish.ports[0].gateways = vec![ip("203.0.113.1"), ip("2001:db8:7::1")];
    wish.nat.ipv6 = Translation::Masquerade;
    wish.internal_switch =
        Some(InternalSwitch { interface: "br-int".into(), addresses: nets(&["10.20.0.1/24", "fd10::1/64"]) });
    let mut network = network();
    network.addresses.push(address(ETH0, "2001:db8:7::2/64"));
    (wish, network)
}

#[test]
fn the_inside_leaves_by_the_port_with_a_gateway() {
    let (wish, network) = both();
    let c = plan(&wish, &network);
    assert_eq!((c.v4.uplinks.len(), pool(&c.v4.uplinks[&ETH0])), (1, vec![("203.0.113.2".into(), 0)]));
    assert_eq!((c.v6.uplinks.len(), pool(&c.v6.uplinks[&ETH0])), (1, vec![("2001:db8:7::2".into(), 0)]));
    assert_eq!((kind(&c, "10.20.0.0/24"), kind(&c, "fd10::/64")), (Some(Owned::INSIDE), Some(Owned::INSIDE)));
    assert_eq!(kind(&c, "203.0.113.2/32"), Some(Owned::OUTSIDE));
    assert_eq!(kind(&c, "2001:db8:7::2/128"), Some(Owned::OUTSIDE));
    assert!(has_bit(&c, inside_bit(a::<Ip4>("10.20.0.77"))) && has_bit(&c, inside_bit(a::<Ip6>("fd10::77"))));
    assert!(has_bit(&c, outside_bit(a::<Ip4>("203.0.113.2"))) && has_bit(&c, outside_bit(a::<Ip6>("2001:db8:7::2"))));
    assert_eq!((c.settings.nat, c.settings.nat_quota), (Settings::NAT, 8_192));
}

/// By pods' own word, whatever is said of the internal switch's hosts.
#[test]
fn pods_are_translated_by_themselves() {
    let (mut wish, network) = both();
    wish.internal_switch = None;
    (wish.pod_blocks, wish.pod_subnets) =
        (nets(&["172.27.1.0/26", "fd27:1::/122"]), nets(&["172.27.0.0/16", "fd27::/32"]));
    let kinds = |wish: &Intent| {
        let c = plan(wish, &network);
        let inside = |net| kind(&c, net).is_some_and(|kind| kind & Owned::INSIDE != 0);
        [inside("172.27.1.0/26"), inside("fd27:1::/122"), inside("10.20.0.0/24"), inside("fd10::/64")]
    };
    wish.nat.ipv6 = Translation::Off;
    assert_eq!(kinds(&wish), [true, false, false, false], "IPv4 alone where nothing is said");
    wish.nat.pods = Some(true);
    assert_eq!(kinds(&wish), [true, true, false, false]);
    assert_eq!(pool(&plan(&wish, &network).v6.uplinks[&ETH0]), [("2001:db8:7::2".into(), 0)]);
    wish.internal_switch = both().0.internal_switch;
    assert_eq!(kinds(&wish), [true, true, true, false], "the switch's IPv6 hosts are not");
    (wish.nat.ipv4, wish.nat.ipv6) = (Translation::Off, Translation::Masquerade);
    assert_eq!(kinds(&wish), [true, true, false, true]);
    wish.nat.pods = Some(false);
    assert_eq!(kinds(&wish), [false, false, false, true]);
    wish.nat.ipv6 = Translation::Off;
    assert!(plan(&wish, &network).v6.uplinks.is_empty());
}

#[test]
fn a_family_that_is_off_has_no_sides() {
    let (mut wish, network) = both();
    wish.nat.ipv6 = Translation::Off;
    let c = plan(&wish, &network);
    assert!(c.v6.uplinks.is_empty() && c.v6.owned.is_empty());
    assert!(!c.v4.uplinks.is_empty());
    wish.nat.ipv4 = Translation::Off;
    let c = plan(&wish, &network);
    assert!(c.v4.uplinks.is_empty() && c.v4.owned.values().all(|o| o.kind == Owned::UNUSED));
    assert_eq!(c.settings.nat, 0);

    // Nothing is inside; nothing leads out.
    let (mut wish, network) = both();
    wish.internal_switch = None;
    assert!(plan(&wish, &network).v4.uplinks.is_empty());
    let (mut wish, network) = both();
    wish.ports[0].gateways.clear();
    let c = plan(&wish, &network);
    assert_eq!((c.settings.nat, kind(&c, "10.20.0.0/24")), (0, None));
}

#[test]
fn settings_say_how() {
    let (mut wish, network) = both();
    wish.nat.quota = 7;
    wish.nat.log = Some("/var/log/nat".into());
    let all = [Filtering::Address, Filtering::None, Filtering::Port].map(|filtering| {
        wish.nat.filtering = filtering;
        plan(&wish, &network).settings
    });
    let on = Settings::NAT | Settings::NAT_LOG;
    assert_eq!(all.map(|s| s.nat), [on, on | Settings::FILTER_NONE, on | Settings::FILTER_PORT]);
    assert_eq!(all.map(|s| s.nat_quota), [7; 3]);
}

#[test]
fn an_entry_says_all_that_holds_for_its_prefix() {
    let (mut wish, network) = both();
    wish.services = vec![service("web", &["10.20.0.100", "10.9.0.1"], vec![])];
    wish.service_ranges = vec![ServiceRange { first: ip("10.20.0.96"), last: ip("10.20.0.127") }];
    wish.nat.subnets = nets(&["10.0.0.0/12", "10.9.0.0/24"]);
    wish.nat.direct = nets(&["10.0.0.0/8", "10.9.0.0/16", "10.9.0.1/32", "203.0.113.0/24"]);
    let c = plan(&wish, &network);
    for (net, kinds) in [
        ("10.0.0.0/8", Owned::DIRECT),
        ("10.0.0.0/12", Owned::INSIDE | Owned::DIRECT),
        ("10.9.0.0/16", Owned::INSIDE | Owned::DIRECT),
        ("10.9.0.0/24", Owned::INSIDE | Owned::DIRECT),
        ("10.20.0.0/24", Owned::INSIDE | Owned::DIRECT),
        ("203.0.113.0/24", Owned::DIRECT),
        // What is a service's, or ours, is that alone.
        ("10.9.0.1/32", Owned::VIP),
        ("10.20.0.100/32", Owned::VIP),
        ("10.20.0.96/27", Owned::UNUSED),
        ("203.0.113.2/32", Owned::OUTSIDE),
    ] {
        assert_eq!(kind(&c, net), Some(kinds), "{net}");
    }
    assert!(has_bit(&c, inside_bit(a::<Ip4>("10.15.255.1"))) && has_bit(&c, inside_bit(a::<Ip4>("10.3.0.0"))));
    assert!(!has_bit(&c, inside_bit(a::<Ip4>("10.200.0.1"))));

    wish.nat.subnets = nets(&["10.0.0.0/7"]);
    let error = super::super::plan(&wish, &network, &mut Ids::default(), clock(0)).expect_err("no plan");
    assert_eq!(
        error.to_string(),
        "the subnet 10.0.0.0/7 is too large to be translated: at most a /8 (IPv4) or a /48 (IPv6)"
    );
}

#[test]
fn the_switch_counts_with_the_addresses_that_it_has() {
    let (mut wish, mut network) = both();
    wish.internal_switch = Some(InternalSwitch { interface: "br-int".into(), addresses: vec![] });
    network.addresses.push(address(BR, "fe80::1/64"));
    network.addresses.push(address(BR, "10.77.0.1/16"));
    let c = plan(&wish, &network);
    let inside = ["10.20.0.0/24", "10.77.0.0/16", "fd10::/64", "fe80::/64"].map(|net| kind(&c, net));
    assert_eq!(inside, [Some(Owned::INSIDE), Some(Owned::INSIDE), Some(Owned::INSIDE), None]);
}

#[test]
fn which_addresses_packets_get() {
    let (mut wish, mut network) = both();
    network.addresses.retain(|a| a.link != ETH0);
    // In the kernel's order; one of its addresses isn't static.
    for net in ["10.99.0.2/24", "203.0.113.2/24", "203.0.113.3/24", "fd99::2/64", "fe80::2/64"] {
        network.addresses.push(address(ETH0, net));
    }
    network.addresses.push(crate::intent::Address { temporary: true, ..address(ETH0, "203.0.113.9/24") });
    let v4 = |wish: &Intent, network: &Network| -> Vec<String> {
        pool(&plan(wish, network).v4.uplinks[&ETH0]).into_iter().map(|(addr, _)| addr).collect()
    };
    assert_eq!(v4(&wish, &network), ["203.0.113.2"], "in the gateway's network");
    assert_eq!(pool(&plan(&wish, &network).v6.uplinks[&ETH0]), [("fd99::2".into(), 0)], "the first, not link-local");
    wish.ports[0].gateways = vec![ip("192.0.2.1")];
    assert_eq!(v4(&wish, &network), ["10.99.0.2"], "the first");

    wish.ports[0].nat_addresses = ["203.0.113.3", "203.0.113.4", "203.0.113.9", "10.99.0.2"].map(ip).to_vec();
    assert_eq!(v4(&wish, &network), ["203.0.113.3", "10.99.0.2"], "named, there, and static");
    assert!(!plan(&wish, &network).v6.uplinks.contains_key(&ETH0), "no IPv6 gateway");
    network.addresses.retain(|a| a.link != ETH0);
    assert!(v4(&wish, &network).is_empty(), "nothing leaves by it");
}

#[test]
fn every_port_with_a_gateway_is_an_uplink_while_its_link_is_there() {
    let (mut wish, mut network) = both();
    wish.ports[1].gateways = vec![ip("192.168.20.254"), ip("fd20::254")];
    let mut ids = Ids::default();
    let c = planned(&wish, &network, &mut ids);
    assert_eq!(pool(&c.v4.uplinks[&ETH1]), [("192.168.20.1".into(), 1)]);
    assert_eq!(pool(&c.v6.uplinks[&ETH1]), [("fd20::1".into(), 1)]);

    // Down, it keeps its addresses outside, and connections survive until it is up again.
    network.links[1].up = false;
    let down = planned(&wish, &network, &mut ids);
    assert_eq!((&down.v4.uplinks, &down.v6.uplinks), (&c.v4.uplinks, &c.v6.uplinks));
    network.links.remove(1);
    let gone = planned(&wish, &network, &mut ids);
    assert_eq!(gone.v4.uplinks.keys().collect::<Vec<_>>(), [&ETH1]);
    assert_eq!(pool(&gone.v4.uplinks[&ETH1]), [("192.168.20.1".into(), 1)], "the other keeps its plane");

    wish.tuning.capacity.nat_addresses = 1;
    let (wish, network) = (wish, both().1);
    let error = super::super::plan(&wish, &network, &mut Ids::default(), clock(0)).expect_err("no plan");
    assert_eq!(error, PlanError::Full { table: "nat_addresses", need: 2, capacity: 1 });
}

/// A wish with these addresses outside, and their network.
fn outside(addrs: &[&str]) -> (Intent, Network) {
    let (mut wish, mut network) = both();
    wish.ports[0].nat_addresses = addrs.iter().map(|a| ip(a)).collect();
    network.addresses.retain(|a| a.link != ETH0);
    network.addresses.extend(addrs.iter().map(|a| address(ETH0, &format!("{a}/24"))));
    (wish, network)
}

#[test]
fn a_plane_has_another_address_only_once_the_last_ones_connections_have_ended() {
    let (one, two) = ("203.0.113.2", "203.0.113.3");
    let (wish, network) = outside(&[one, two]);
    let mut ids = Ids::default();
    let first = planned(&wish, &network, &mut ids);
    ids.applied();
    assert_eq!(pool(&first.v4.uplinks[&ETH0]), [(one.into(), 0), (two.into(), 1)]);

    // All planes are taken: the new address waits for the one that goes.
    let (wish, network) = outside(&[two, "203.0.113.4"]);
    let second = planned(&wish, &network, &mut ids);
    assert_eq!((pool(&second.v4.uplinks[&ETH0]), ids.waits()), (vec![(two.into(), 1)], true));

    // The agent stops before the connections have ended, then behind that, and at last it is through.
    let ops = diff(&first, &second);
    let ends = |op: &Op| matches!(op, Op::V4(FamilyOp::EndOutside { plane: 0, .. }));
    let removes = |op: &Op| matches!(op, Op::V4(FamilyOp::Owned(Change::Remove(p))) if *p == prefix("203.0.113.2/32"));
    let (end, remove) = (ops.iter().position(ends).expect("an end"), ops.iter().position(removes).expect("a removal"));
    assert!(end < remove);
    for stop in [end, remove, ops.len()] {
        let mut model = Model::new(&first);
        ops[..stop].iter().for_each(|op| model.apply(op));
        let mut settled = ids.clone();
        settled.settle(&model.read());
        for mut ids in [settled, Ids::recover(&model.read())] {
            let next = planned(&wish, &network, &mut ids);
            let gone = stop == ops.len();
            assert_eq!(ids.waits(), !gone, "stopped before {stop} of {}", ops.len());
            assert_eq!(pool(&next.v4.uplinks[&ETH0]).len(), if gone { 2 } else { 1 });
        }
    }
    ids.applied();
    let third = planned(&wish, &network, &mut ids);
    assert_eq!(pool(&third.v4.uplinks[&ETH0]), [(two.into(), 1), ("203.0.113.4".into(), 0)]);
    assert!(!ids.waits());
}

#[test]
fn translation_begins_last_and_ends_first() {
    let (mut wish, network) = both();
    let mut ids = Ids::default();
    let on = planned(&wish, &network, &mut ids);
    ids.applied();
    let place = |ops: &[Op], what: &dyn Fn(&Op) -> bool| ops.iter().position(what).expect("the operation");
    let is_on = |op: &Op| matches!(op, Op::Settings(s) if s.nat(Settings::NAT));
    let uplink = |op: &Op| matches!(op, Op::V4(FamilyOp::Uplink(_)));
    let sides = |op: &Op| matches!(op, Op::V4(FamilyOp::Owned(_)));
    let hooks = |op: &Op| matches!(op, Op::Hooks(_));
    let ops = diff(&nothing(), &on);
    let order = [&hooks as &dyn Fn(&Op) -> bool, &sides, &uplink, &is_on].map(|what| place(&ops, what));
    assert!(order.is_sorted(), "{order:?}");

    (wish.nat.ipv4, wish.nat.ipv6) = (Translation::Off, Translation::Off);
    let off = planned(&wish, &network, &mut ids);
    let ops = diff(&on, &off);
    let is_off = |op: &Op| matches!(op, Op::Settings(s) if !s.nat(Settings::NAT));
    let ends = |op: &Op| matches!(op, Op::V4(FamilyOp::EndOutside { .. }));
    let order = [&is_off as &dyn Fn(&Op) -> bool, &uplink, &ends, &sides].map(|what| place(&ops, what));
    assert!(order.is_sorted(), "{order:?}");
    assert!(!ops.iter().any(is_on));
}

#[test]
fn other_ports_end_connections_that_have_none_of_them() {
    let (mut wish, network) = both();
    let mut ids = Ids::default();
    let before = planned(&wish, &network, &mut ids);
    (wish.tuning.snat_first, wish.tuning.snat_last) = (2_000, 3_000);
    let ops = diff(&before, &planned(&wish, &network, &mut ids));
    let ended = Op::V4(FamilyOp::EndPorts { planes: [(a("203.0.113.2"), 0)].into(), first: 2_000, last: 3_000 });
    let at = ops.iter().position(|op| *op == ended).expect("an end");
    assert!(matches!(ops[at - 1], Op::Settings(Settings { snat_first: 2_000, snat_last: 3_000, .. })));
    assert!(matches!(ops[at + 1], Op::V6(FamilyOp::EndPorts { .. })));
    let again = diff(&planned(&wish, &network, &mut ids), &planned(&wish, &network, &mut ids));
    assert_eq!(again, []);
}

#[test]
fn routes_to_where_everything_goes_untranslated_are_marked() {
    let (mut wish, mut network) = both();
    wish.nat.direct = nets(&["10.8.0.0/16", "203.0.113.0/24", "fd00::/16", "fd09:2::/32"]);
    wish.nat.ipv6 = Translation::Prefix;
    wish.nat.prefixes = vec![pair("fd10::/64", "fd09:2:0:1::/64")];
    network
        .routes
        .extend(["10.8.0.0/16", "10.8.7.0/24", "10.0.0.0/8"].map(|net| route(net, Some("203.0.113.1"), ETH0, 0)));
    let c = plan(&wish, &network);
    let marked = |net| c.v4.routes[&prefix(net)] & NextHop::DIRECT != 0;
    assert_eq!(["10.8.0.0/16", "10.8.7.0/24", "10.0.0.0/8", "0.0.0.0/0"].map(marked), [true, true, false, false]);
    // What is this node's own, and what nobody knows the way to, is the kernel's.
    assert!(marked("203.0.113.1/32") && !marked("203.0.113.2/32") && !marked("203.0.113.0/24"));
    // Among what is untranslated somebody has an address outside.
    assert_eq!(super::super::nat::direct(&wish), nets(&["10.8.0.0/16", "203.0.113.0/24", "fd00::/16"]));

    // Another wish marks what there was, and no more.
    let mut ids = Ids::default();
    let before = Planned::new(&wish, &network, &mut ids, clock(0), None).expect("a plan");
    wish.nat.direct = nets(&["10.8.7.0/24"]);
    let scratch = Planned::new(&wish, &network, &mut ids.clone(), clock(0), None).expect("a plan");
    let after = Planned::new(&wish, &network, &mut ids, clock(0), Some(&before)).expect("a plan");
    assert_eq!(after.contents().v4.routes, scratch.contents().v4.routes);
    assert_ne!(after.contents().v4.routes, before.contents().v4.routes);
}

fn pair(inside: &str, outside: &str) -> Pair {
    Pair { inside: inside.parse().expect("a prefix"), outside: outside.parse().expect("a prefix") }
}

#[test]
fn exchanged_prefixes() {
    let (mut wish, network) = both();
    wish.nat.ipv6 = Translation::Prefix;
    wish.nat.prefixes = vec![pair("fd10::/64", "2001:db8:10::/64"), pair("fd27::/60", "2001:db8:7::/60")];
    wish.nat.direct = nets(&["fd00::/8"]);
    let mut ids = Ids::default();
    let c = planned(&wish, &network, &mut ids);
    assert_eq!(c.prefixes[&0], PrefixPair::new(a("fd10::"), a("2001:db8:10::"), 64));
    let owned = |text: &str| c.v6.owned.get(&prefix(text)).map(|o| (o.kind, o.index));
    for (net, kinds, index) in [
        ("fd10::/64", Owned::PREFIX_INSIDE | Owned::DIRECT, 0),
        ("2001:db8:10::/64", Owned::PREFIX_OUTSIDE, 0),
        ("fd27::/60", Owned::PREFIX_INSIDE | Owned::DIRECT, 1),
        ("2001:db8:7::/60", Owned::PREFIX_OUTSIDE, 1),
        // This node's own address is no host's inside.
        ("2001:db8:7::2/128", 0, 0),
        ("fd00::/8", Owned::DIRECT, 0),
    ] {
        assert_eq!(owned(net), Some((kinds, index)), "{net}");
    }
    assert_eq!(c.v6.uplinks[&ETH0].count, 0, "no address is shared");
    assert!(has_bit(&c, inside_bit(a::<Ip6>("fd27:0:0:f::1"))) && has_bit(&c, outside_bit(a::<Ip6>("2001:db8:7:f::"))));
    assert_eq!(c.settings.nat, Settings::NAT);
    ids.applied();

    // Another prefix outside is another pair, beside the old one until that one's connections have ended.
    wish.nat.prefixes[0] = pair("fd10::/64", "2001:db8:11::/64");
    let after = planned(&wish, &network, &mut ids);
    assert_eq!(after.prefixes.keys().collect::<Vec<_>>(), [&1, &2]);
    assert_eq!(after.v6.owned[&prefix("fd10::/64")].index, 2);
    let ops = diff(&c, &after);
    let place = |what: Op| ops.iter().position(|op| *op == what).expect("the operation");
    let order = [
        place(Op::Prefix(Change::Set(2, after.prefixes[&2]))),
        place(Op::V6(FamilyOp::Owned(Change::Set(prefix("fd10::/64"), after.v6.owned[&prefix("fd10::/64")])))),
        place(Op::V6(FamilyOp::EndPrefix(prefix("2001:db8:10::/64")))),
        place(Op::V6(FamilyOp::Owned(Change::Remove(prefix("2001:db8:10::/64"))))),
        place(Op::Prefix(Change::Remove(0))),
    ];
    assert!(order.is_sorted(), "{order:?}");
}

/// A port forward, as the configuration makes it of its text.
fn forward(at: &str, to: &str) -> ServicePort {
    ServicePort { namespace: ServicePort::PUBLISH.into(), ..service("forward", &[at], vec![ready(to)]) }
}

#[test]
fn port_forwards_are_services_whose_hosts_answer_through_this_node() {
    let (mut wish, network) = both();
    wish.nat.subnets = nets(&["192.168.20.0/24"]);
    let forwards = [("203.0.113.2", "10.20.0.5"), ("203.0.113.77", "192.168.20.10"), ("203.0.113.78", "8.8.8.8")];
    wish.services = forwards.iter().map(|(at, to)| ServicePort { name: (*at).into(), ..forward(at, to) }).collect();
    wish.services.push(service("web", &["203.0.113.79"], vec![ready("192.168.20.10")]));
    let c = plan(&wish, &network);
    assert_eq!(kind(&c, "203.0.113.2/32"), Some(Owned::OUTSIDE), "this node's own");
    assert_eq!(kind(&c, "203.0.113.77/32"), Some(Owned::VIP));
    let mut flags: Vec<_> = c.v4.backends.values().map(|b| (c.names[&b.service].as_str(), b.flags)).collect();
    flags.sort_unstable();
    let remote = Backend::<Ip4>::REMOTE;
    assert_eq!(
        flags,
        [
            ("default/web:http", remote),
            ("publish/203.0.113.2:http", 0),
            ("publish/203.0.113.77:http", 0),
            ("publish/203.0.113.78:http", remote),
        ]
    );

    wish.services = vec![forward("203.0.113.2", "10.20.0.5"), service("web", &["203.0.113.2"], vec![])];
    let error = super::super::plan(&wish, &network, &mut Ids::default(), clock(0)).expect_err("no plan");
    assert!(matches!(error, PlanError::Conflict { port: 80, .. }), "{error}");
}
