//! What the plan says of single wishes.

use std::collections::BTreeMap;

use lb_common::table::filter::{addr_bit, grain_bit};
use lb_common::table::route::PLACES;
use lb_common::table::{Backend, Group, Link, NextHop, Owned, Prefix, Service, ServiceKey};
use lb_common::wire::{Addr, Be16, Ip4, Ip6, Mac};

use super::super::{Contents, FamilyOp, Hooks, Ids, Op, PlanError, diff};
use super::world::*;
use super::{clock, nothing};
use crate::intent::{self, Forwarding, HookChoice, Intent, Network, Path, Protocol, Route, RouteKind, ServiceRange};
use crate::policy::Policies;

fn plan(intent: &Intent, network: &Network) -> Contents {
    super::super::plan(intent, network, &mut Ids::default(), clock(0)).expect("a plan")
}

fn error(intent: &Intent) -> PlanError {
    super::super::plan(intent, &network(), &mut Ids::default(), clock(0)).expect_err("no plan")
}

fn a4(text: &str) -> Ip4 {
    Ip4::from_ip(ip(text)).expect("IPv4")
}

fn a6(text: &str) -> Ip6 {
    Ip6::from_ip(ip(text)).expect("IPv6")
}

fn tcp<A: Addr>(addr: A, port: u16) -> ServiceKey<A> {
    ServiceKey { addr, port: Be16::new(port), proto: 6, pad: 0 }
}

fn row<'a, A: Addr>(
    contents: &'a Contents,
    services: &BTreeMap<ServiceKey<A>, Service>,
    key: ServiceKey<A>,
) -> &'a [u32] {
    &contents.rows[&services[&key].first]
}

fn has_bit(contents: &Contents, bit: u32) -> bool {
    contents.filter.get(&(bit / 64)).is_some_and(|w| w >> (bit % 64) & 1 == 1)
}

#[test]
fn addresses_of_a_service_share_its_row_and_families_have_their_own() {
    let endpoints = vec![ready("10.20.0.5"), ready("10.20.0.6"), ready("fd10::5")];
    let web = service("web", &["172.28.0.1", "192.168.20.100", "fd28::1"], endpoints);
    let c = plan(&intent(vec![web]), &network());
    let (one, two) = (tcp(a4("172.28.0.1"), 80), tcp(a4("192.168.20.100"), 80));
    assert_eq!(c.v4.services[&one], c.v4.services[&two]);
    assert_eq!(c.rows.len(), 2);
    assert!(row(&c, &c.v4.services, one).iter().all(|id| c.v4.backends.contains_key(id)));
    let six = tcp(a6("fd28::1"), 80);
    assert_eq!(c.v4.services[&one].id, c.v6.services[&six].id);
    assert_eq!(row(&c, &c.v6.services, six).len(), 1);
    assert!(!c.v4.backends.keys().any(|id| c.v6.backends.contains_key(id)), "one id space");
    assert_eq!(c.names[&c.v4.services[&one].id].as_str(), "default/web:http");
}

#[test]
fn node_ports_are_on_the_addresses_of_ports_and_switch() {
    let mut web = service("web", &[], vec![ready("10.20.0.5")]);
    web.node_port = Some(30_080);
    web.affinity = Some(60);
    let c = plan(&intent(vec![web]), &network());
    let v4: Vec<_> = c.v4.services.keys().map(|k| (k.addr.to_ip(), k.port.get())).collect();
    let expected = ["203.0.113.2", "192.168.20.1", "10.20.0.1"].map(|a| (ip(a), 30_080));
    assert_eq!(v4.len(), 3);
    assert!(expected.iter().all(|e| v4.contains(e)), "{v4:?}");
    let v6: Vec<_> = c.v6.services.keys().map(|k| k.addr.to_ip()).collect();
    assert_eq!(v6.len(), 2, "no link-local address: {v6:?}");
    assert!(c.v4.services.values().all(|s| s.affinity == 6_000));
    assert!(c.v6.services.values().all(|s| s.count == 0), "no IPv6 backend: refused");
    assert!(c.v4.owned.values().all(|o| o.kind == Owned::UNUSED), "a node's address is not ours to refuse");
}

#[test]
fn where_backends_are() {
    let endpoints = ["10.20.0.5", "10.20.0.77", "192.168.20.10", "192.168.20.1", "198.51.100.7", "8.8.8.8"];
    let web = service("web", &["172.28.0.1"], endpoints.map(ready).to_vec());
    let mut network = network();
    let mut route = route("198.51.100.0/24", Some("192.168.20.99"), ETH1, 10);
    route.path.source = Some(ip("192.168.20.1"));
    network.routes.set(route.prefix, vec![route.path]);
    let c = plan(&intent(vec![web]), &network);
    let hop = |last: u8| *c.next_hops.iter().find(|(_, h)| h.dst == Mac(mac(last))).expect("a next hop").0;
    let find = |addr: &str| *c.v4.backends.values().find(|b| b.addr == a4(addr)).expect("a backend");
    for (addr, remote, snat, next_hop) in [
        ("10.20.0.5", 0, "10.20.0.1", hop(0x31)),
        ("10.20.0.77", 0, "10.20.0.1", NextHop::UNRESOLVED),
        ("192.168.20.10", 1, "192.168.20.1", hop(0x21)),
        ("192.168.20.1", 0, "192.168.20.1", NextHop::HOST),
        ("198.51.100.7", 1, "192.168.20.1", NextHop::UNRESOLVED),
        ("8.8.8.8", 1, "203.0.113.2", hop(0x11)),
    ] {
        let b = find(addr);
        assert_eq!((b.flags, b.snat, b.next_hop), (remote, a4(snat), next_hop), "{addr}");
        assert_eq!(b.state, Backend::<Ip4>::ACTIVE);
    }
    let uplink = c.next_hops[&hop(0x11)];
    assert_eq!(
        (uplink.ifindex, uplink.kind, uplink.flags, uplink.src),
        (ETH0, NextHop::LINK, NextHop::XDP, Mac(mac(2)))
    );
    assert_eq!(c.next_hops[&hop(0x21)].flags, 0);
}

#[test]
fn routes_mirror_the_kernel() {
    let mut network = network();
    network
        .routes
        .extend([route("198.51.100.0/24", Some("203.0.113.1"), ETH0, 5), route("100.64.0.0/10", None, ETH1, 0)]);
    network.neighbours.extend([neighbour(ETH1, "203.0.113.77", 0x77), neighbour(BR, "fe80::5", 0x78)]);
    let c = plan(&intent(vec![]), &network);
    let route = |addr: &str, len| c.v4.routes.get(&Prefix { len, addr: a4(addr) }).copied();
    let hop = |last: u8| c.next_hops.iter().find(|(_, h)| h.dst == Mac(mac(last))).map(|(&i, _)| i);
    assert_eq!(route("0.0.0.0", 0), hop(0x11));
    assert_eq!(route("198.51.100.0", 24), hop(0x11), "the lower metric wins");
    assert_eq!(route("100.64.0.0", 10), Some(NextHop::UNRESOLVED));
    assert_eq!(route("192.168.20.0", 24), Some(NextHop::UNRESOLVED), "connected");
    assert_eq!(route("192.168.20.1", 32), Some(NextHop::HOST));
    assert_eq!(route("192.168.20.10", 32), hop(0x21), "a neighbour on its link");
    assert_eq!(route("192.168.20.99", 32), None, "not resolved");
    assert_eq!((route("203.0.113.77", 32), hop(0x77)), (None, None), "not on that link by the route to it");
    assert!(c.v6.routes.keys().all(|p| !p.addr.to_ip().to_string().starts_with("fe80")));
    assert_eq!(c.v6.routes[&Prefix { len: 128, addr: a6("fd20::10") }], hop(0x21).expect("shared with IPv4"));

    network.links[1].up = false;
    let down = plan(&intent(vec![]), &network);
    let route = |addr: &str, len| down.v4.routes.get(&Prefix { len, addr: a4(addr) }).copied();
    assert_eq!(route("0.0.0.0", 0), None);
    assert_eq!(route("198.51.100.0", 24), Some(NextHop::UNRESOLVED), "the other one takes over");
}

#[test]
fn packets_are_handed_to_pods_where_nothing_waits_for_them() {
    let mut network = network();
    let ends = [("stpod1", false, 0x51), ("stpod2", true, 0x52), ("veth1", false, 0x53)];
    for (index, (name, queued, last)) in (10..).zip(ends) {
        network.links.push(intent::Link { queued, ..link(index, name, Some("veth")) });
        let addr = format!("10.9.0.{last}");
        network.routes.extend([route(&format!("{addr}/32"), None, index, 0)]);
        network.neighbours.push(neighbour(index, &addr, last));
    }
    let handed = |wish: &Intent| {
        let c = plan(wish, &network);
        let flags = |last| c.next_hops.values().find(|hop| hop.dst == Mac(mac(last))).expect("a next hop").flags;
        [0x51, 0x52, 0x53, 0x11].map(|last| flags(last) & NextHop::PEER != 0)
    };
    let mut wish = intent(vec![]);
    assert_eq!(handed(&wish), [true, false, false, false], "a pod's, one that waits in a queue, and no pod's");
    // Where policies are judged nothing passes by.
    wish.policies = Some(Policies { cluster: None, leases: Default::default() });
    assert_eq!(handed(&wish), [false; 4]);
}

#[test]
fn draining_backends_are_in_no_row_until_nothing_else_is_left() {
    let soon = clock(30).now;
    let endpoints = vec![ready("10.20.0.5"), draining("10.20.0.6", soon), draining("10.20.0.7", clock(0).now)];
    let mut wish = intent(vec![service("web", &["172.28.0.1"], endpoints)]);
    let c = plan(&wish, &network());
    assert_eq!(c.v4.backends.len(), 2, "past its deadline it is gone");
    let leaving = c.v4.backends.iter().find(|(_, b)| b.addr == a4("10.20.0.6")).expect("still there");
    assert_eq!((leaving.1.state, leaving.1.deadline), (Backend::<Ip4>::DRAINING, 3_007));
    assert_eq!(row(&c, &c.v4.services, tcp(a4("172.28.0.1"), 80)).len(), 1);

    wish.services[0].endpoints.remove(0);
    let c = plan(&wish, &network());
    let last = c.v4.backends.values().next().expect("a backend");
    assert_eq!((last.state, last.deadline), (Backend::<Ip4>::ACTIVE, 0));
    wish.services[0].endpoints.clear();
    assert_eq!(plan(&wish, &network()).v4.services[&tcp(a4("172.28.0.1"), 80)].count, 0);
}

#[test]
fn a_deadline_does_not_move_by_itself() {
    let wish =
        intent(vec![service("web", &["172.28.0.1"], vec![ready("10.20.0.5"), draining("10.20.0.6", clock(30).now)])]);
    let mut ids = Ids::default();
    let first = super::super::plan(&wish, &network(), &mut ids, clock(0)).expect("a plan");
    let mut later = clock(10);
    later.tick += 60;
    assert_eq!(super::super::plan(&wish, &network(), &mut ids, later).expect("a plan"), first);
    let mut ids = Ids::recover(&first);
    assert_eq!(super::super::plan(&wish, &network(), &mut ids, later).expect("a plan"), first);
}

#[test]
fn owned_addresses_and_their_bits() {
    let mut wish = intent(vec![service("web", &["192.168.20.100", "172.28.0.1"], vec![])]);
    wish.service_ranges.extend([
        ServiceRange { first: ip("172.28.0.0"), last: ip("172.28.255.255") },
        ServiceRange { first: ip("fd28::"), last: ip("fd28::ffff:ffff") },
        ServiceRange { first: ip("192.168.20.0"), last: ip("192.168.20.3") },
    ]);
    let c = plan(&wish, &network());
    let owned = |addr: &str, len| c.v4.owned.get(&Prefix { len, addr: a4(addr) }).map(|o| o.kind);
    assert_eq!(owned("192.168.20.100", 32), Some(Owned::VIP));
    assert_eq!(owned("192.168.20.100", 30), Some(Owned::UNUSED));
    assert_eq!(owned("192.168.20.120", 32), Some(Owned::UNUSED));
    assert_eq!(owned("172.28.0.0", 16), Some(Owned::UNUSED));
    assert_eq!((owned("192.168.20.0", 32), owned("192.168.20.1", 32)), (Some(Owned::UNUSED), None), "the node's own");
    assert_eq!(owned("192.168.20.2", 31), Some(Owned::UNUSED));
    for addr in ["192.168.20.100", "192.168.20.120", "172.28.0.1", "192.168.20.3"] {
        assert!(has_bit(&c, addr_bit(a4(addr))), "{addr}");
    }
    assert!(has_bit(&c, grain_bit(a4("172.28.200.9"))));
    assert!(has_bit(&c, grain_bit(a6("fd28::1234:5678"))));
    assert!(!has_bit(&c, grain_bit(a4("192.168.20.100"))));
}

#[test]
fn hooks_by_role_and_kind() {
    let mut wish = intent(vec![]);
    let mut network = network();
    network.links.extend([link(9, "pod7", Some("veth")), link(10, "docker0", Some("bridge"))]);
    let hooks = |wish: &Intent| -> Vec<(String, bool, bool, bool)> {
        plan(wish, &network).hooks.into_values().map(|h| (h.interface, h.xdp, h.tc_ingress, h.tc_egress)).collect()
    };
    let row = |name: &str, xdp, ingress, egress| (name.to_owned(), xdp, ingress, egress);
    let (lo, inside) =
        (row("lo", false, false, true), [row("br-int", false, true, true), row("pod7", false, true, true)]);
    let [br, pod] = inside;
    let expected = [lo, row("eth0", true, false, true), row("eth1", false, true, true), br, pod];
    assert_eq!(hooks(&wish), expected);
    wish.ports[0].hook = HookChoice::Tc;
    wish.ports[1].hook = HookChoice::Xdp;
    assert_eq!(hooks(&wish)[1..3], [row("eth0", false, true, true), row("eth1", true, false, true)]);
}

#[test]
fn what_cannot_be_planned_changes_nothing() {
    let web = || service("web", &["172.28.0.1"], vec![ready("10.20.0.5"), ready("10.20.0.6")]);
    let mut wish = intent(vec![web()]);
    let mut ids = Ids::default();
    let good = super::super::plan(&wish, &network(), &mut ids, clock(0)).expect("a plan");
    wish.services.insert(0, service("api", &["172.28.0.2"], vec![ready("10.20.0.7")]));
    wish.tuning.capacity.slots = 100;
    let full = super::super::plan(&wish, &network(), &mut ids, clock(0)).expect_err("full");
    assert_eq!(full, PlanError::Full { table: "slots", need: 122, capacity: 100 });
    assert!(full.to_string().contains("`slots` is full: 122 entries needed, room for 100"), "{full}");
    wish.services.remove(0);
    wish.tuning.capacity.slots = 1_000;
    assert_eq!(super::super::plan(&wish, &network(), &mut ids, clock(0)).expect("a plan"), good);

    let other = service("other", &["172.28.0.1"], vec![]);
    assert!(matches!(error(&intent(vec![web(), other])), PlanError::Conflict { port: 80, .. }));
    assert!(matches!(error(&intent(vec![web(), web()])), PlanError::Duplicate { .. }));
    let mut sctp = web();
    sctp.protocol = Protocol::Sctp;
    assert!(matches!(error(&intent(vec![sctp])), PlanError::SctpPort { port: 80, target: 8_080, .. }));
    let mut wish = intent(vec![]);
    wish.service_ranges = vec![ServiceRange { first: ip("fd00::"), last: ip("fd00::1:0:0") }];
    assert!(matches!(error(&wish), PlanError::RangeTooLong { .. }));
    wish.service_ranges = vec![ServiceRange { first: ip("10.0.0.9"), last: ip("10.0.0.1") }];
    assert!(matches!(error(&wish), PlanError::Range { .. }));
}

#[test]
fn ids_wait_until_their_last_owner_is_forgotten() {
    let wish = |endpoint: &str| intent(vec![service("web", &["172.28.0.1"], vec![ready(endpoint)])]);
    let mut ids = Ids::default();
    let mut id_of = |endpoint: &str, applied: bool| {
        let c = super::super::plan(&wish(endpoint), &network(), &mut ids, clock(0)).expect("a plan");
        if applied {
            ids.applied();
        }
        *c.v4.backends.keys().next().expect("a backend")
    };
    assert_eq!(id_of("10.20.0.5", true), 1);
    assert_eq!(id_of("10.20.0.6", false), 2);
    assert_eq!(id_of("10.20.0.7", true), 3, "1 and 2 may still have connections");
    assert_eq!(id_of("10.20.0.8", true), 1);
}

#[test]
fn several_next_hops_share_the_flows_by_weight() {
    let share = |gateway, link, weight| weighted(route("10.8.0.0/16", Some(gateway), link, 7), weight);
    let mut network = network();
    network.routes.extend([share("192.168.20.10", ETH1, 1), share("203.0.113.1", ETH0, 3)]);
    // Of two routes of one metric the first counts.
    network.routes.extend(["192.168.20.10", "203.0.113.1"].map(|via| route("10.9.0.0/16", Some(via), ETH1, 7)));
    let group = |c: &Contents| {
        let index = c.v4.routes[&Prefix { len: 16, addr: a4("10.8.0.0") }];
        (index & NextHop::GROUP != 0).then(|| c.groups[&(index & !NextHop::GROUP)])
    };
    let c = plan(&intent(vec![]), &network);
    let hop = |last: u8| c.next_hops.iter().find(|(_, h)| h.dst == Mac(mac(last))).map(|(&i, _)| i).expect("known");
    let both = group(&c).expect("a group");
    let to = |hop: u32, group: &Group| group.iter().filter(|&&member| member == hop).count();
    assert_eq!([hop(0x21), hop(0x11)].map(|hop| to(hop, &both)), [64, 192]);
    assert_eq!(c.v4.routes[&Prefix { len: 16, addr: a4("10.9.0.0") }], hop(0x21));
    // One that nobody knows the way to any more leaves all to the other.
    network.neighbours.retain(|n| n.addr != ip("192.168.20.10"));
    let alone = plan(&intent(vec![]), &network);
    assert_eq!(group(&alone), None);
    assert_eq!(alone.next_hops[&alone.v4.routes[&Prefix { len: 16, addr: a4("10.8.0.0") }]].dst, Mac(mac(0x11)));
    // A third one takes its share from the others, and moves next to nothing between them.
    network.neighbours.push(neighbour(ETH1, "192.168.20.10", 0x21));
    network.neighbours.push(neighbour(ETH1, "192.168.20.99", 0x29));
    network.routes.extend([share("192.168.20.99", ETH1, 4)]);
    let third = plan(&intent(vec![]), &network);
    let moved = group(&third).expect("a group");
    let last = |c: &Contents, index: u32| c.next_hops[&index].dst;
    let places = both.iter().zip(&moved).map(|(&a, &b)| (last(&c, a), last(&third, b)));
    let strays = places.filter(|(a, b)| a != b && *b != Mac(mac(0x29))).count();
    assert!(strays <= PLACES / 32, "{strays}");
}

#[test]
fn what_leads_nowhere() {
    let mut network = network();
    let kind =
        |prefix, kind| Route { prefix: str::parse(prefix).expect("a prefix"), path: Path { kind, ..Path::default() } };
    network.routes.extend([kind("10.8.0.0/16", RouteKind::Blackhole), kind("10.9.0.0/16", RouteKind::Refusing)]);
    let c = plan(&intent(vec![]), &network);
    let route = |addr| c.v4.routes[&Prefix { len: 16, addr: a4(addr) }];
    assert_eq!([route("10.8.0.0"), route("10.9.0.0")], [NextHop::BLACKHOLE, NextHop::UNRESOLVED]);
}

#[test]
fn links_forward_where_the_kernel_does_and_has_no_policy() {
    let mut network = network();
    let forwarding = |v4, v6, rp_filter| Forwarding { v4, v6, rp_filter };
    network.forwarding =
        [(LO, (true, true, 0)), (ETH0, (true, true, 2)), (ETH1, (true, false, 1)), (BR, (false, true, 0))]
            .map(|(link, (v4, v6, rp_filter))| (link, forwarding(v4, v6, rp_filter)))
            .into();
    let flags = |network: &Network| -> Vec<(u32, u16)> {
        plan(&intent(vec![]), network).links.iter().map(|(&link, l)| (link, l.flags)).collect()
    };
    let (v4, v6, inside, port) = (Link::FORWARDS4, Link::FORWARDS6, Link::INSIDE, Link::PORT);
    let want = [(ETH0, port | v4 | v6 | Link::LOOSE4), (ETH1, port | v4 | Link::STRICT4), (BR, v6 | inside)];
    assert_eq!(flags(&network), want);
    network.policy = [true, false];
    assert_eq!(flags(&network), [(ETH0, port | v6), (ETH1, port), (BR, v6 | inside)]);
    let mut wish = intent(vec![]);
    wish.tuning.fast_forwarding = false;
    let links = plan(&wish, &network).links;
    assert_eq!(
        links.into_iter().map(|(link, l)| (link, l.flags)).collect::<Vec<_>>(),
        [(ETH0, port), (ETH1, port), (BR, inside)]
    );
}

#[test]
fn source_ranges_have_room_or_are_refused() {
    let mut web = service("web", &["192.168.20.100", "fd20::100"], vec![ready("10.20.0.5")]);
    web.traffic.balancer_ips.clone_from(&web.addresses);
    let net = |i: u8| format!("10.0.{i}.0/24").parse().expect("a prefix");
    web.traffic.sources = (0..20).map(net).collect();
    let mut wish = intent(vec![web]);
    let c = plan(&wish, &network());
    assert_eq!((c.v4.sources.len(), c.v6.sources.len()), (20, 0));
    let flags =
        |c: &Contents| (c.v4.services.values().next().unwrap().flags, c.v6.services.values().next().unwrap().flags);
    assert_eq!(flags(&c), (Service::RANGES, 0));
    wish.tuning.capacity.services = 16;
    let refused = super::super::plan(&wish, &network(), &mut Ids::default(), clock(0)).map(drop);
    assert_eq!(refused, Err(PlanError::Full { table: "source_ranges", need: 20, capacity: 16 }));
}

#[test]
fn the_epoch_follows_routes_and_nothing_else() {
    let (mut ids, mut network) = (Ids::default(), network());
    let mut wish = intent(vec![service("web", &["172.28.0.1"], vec![ready("10.20.0.5")])]);
    let mut epoch = |wish: &Intent, network: &Network| {
        super::super::plan(wish, network, &mut ids, clock(0)).expect("a plan").settings.epoch
    };
    assert_eq!(epoch(&wish, &network), 2);
    wish.services[0].endpoints.push(ready("10.20.0.6"));
    assert_eq!(epoch(&wish, &network), 2);
    network.neighbours[0].mac = Some(mac(0x99));
    assert_eq!(epoch(&wish, &network), 4);
    network.links[2].mtu = 9_000;
    assert_eq!(epoch(&wish, &network), 6);
    assert_eq!(epoch(&wish, &network), 6);
}

#[test]
fn nothing_to_do_is_an_empty_list() {
    let wish = intent(vec![service("web", &["172.28.0.1"], vec![ready("10.20.0.5")])]);
    let c = plan(&wish, &network());
    assert_eq!(diff(&c, &c), []);
    assert!(!diff(&nothing(), &c).is_empty());
}

#[test]
fn links_have_programs_before_there_are_services() {
    let to = plan(&intent(vec![service("web", &["172.28.0.1", "fd28::1"], vec![ready("10.20.0.5")])]), &network());
    let ops = diff(&nothing(), &to);
    let hooks = ops.iter().rposition(|op| matches!(op, Op::Hooks(_))).expect("hooks");
    let claims = |op: &Op| {
        matches!(
            op,
            Op::V4(FamilyOp::Service(_) | FamilyOp::Owned(_)) | Op::V6(FamilyOp::Service(_) | FamilyOp::Owned(_))
        )
    };
    assert!(hooks < ops.iter().position(claims).expect("services"));

    // Those of an agent with tables of another layout serve until ours are full.
    let before = to.hooks.iter().map(|(&link, h)| (link, Hooks { interface: h.interface.clone(), ..Hooks::default() }));
    let ops = diff(&Contents { hooks: before.collect(), ..nothing() }, &to);
    let hooks = ops.iter().position(|op| matches!(op, Op::Hooks(_))).expect("hooks");
    assert!(hooks > ops.iter().rposition(claims).expect("services"));
}
