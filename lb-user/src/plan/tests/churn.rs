//! Properties of plan and diff under any sequence of wishes, networks, failures and restarts.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::super::{Contents, Ids, Op, diff, plan};
use super::world::*;
use super::{Model, clock, nothing};
use crate::intent::{Endpoint, EndpointState, Intent, Network, ServicePort};

const ENDPOINTS: [&str; 8] =
    ["10.20.0.5", "10.20.0.6", "192.168.20.10", "192.168.20.1", "198.51.100.7", "fd10::5", "fd20::10", "fd99::1"];

/// One round: what is wished for, how it goes, and how much later it is.
#[derive(Clone, Debug)]
struct Round {
    intent: Intent,
    network: Network,
    seconds: u32,
    /// The operation that fails, if the list is so long.
    fails_at: Option<usize>,
    /// The agent starts anew before this round.
    restart: bool,
}

fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let state = prop_oneof![3 => Just(None), 1 => (0u32..60).prop_map(Some)];
    let weights = vec((1u32..4, state), ENDPOINTS.len());
    (subsequence(ENDPOINTS.to_vec(), 0..=5), weights).prop_map(|(addrs, rest)| {
        let one = |(addr, (weight, until)): (&str, (u32, Option<u32>))| Endpoint {
            weight,
            state: until.map_or(EndpointState::Ready, |s| EndpointState::Draining { until: clock(s).now }),
            ..ready(addr)
        };
        addrs.into_iter().zip(rest).map(one).collect()
    })
}

pub fn services() -> impl Strategy<Value = Vec<ServicePort>> {
    let all = (0..4usize).map(|i| {
        let addresses = vec![format!("172.28.0.{i}"), format!("192.168.20.10{i}"), format!("fd28::{i}")];
        let rest =
            (subsequence(addresses, 0..=3), any::<bool>(), any::<bool>(), endpoints(), proptest::bool::weighted(0.8));
        rest.prop_map(move |(addresses, node_port, affinity, endpoints, there)| {
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let mut one = service(&format!("s{i}"), &addresses, endpoints);
            one.node_port = node_port.then_some(30_000 + i as u16);
            one.affinity = affinity.then_some(60);
            there.then_some(one)
        })
    });
    all.collect::<Vec<_>>().prop_map(|all| all.into_iter().flatten().collect())
}

pub fn networks() -> impl Strategy<Value = Network> {
    let full = network();
    let neighbours = subsequence(full.neighbours.clone(), 0..=full.neighbours.len());
    let routes = subsequence(
        [
            full.routes.clone(),
            vec![route("198.51.100.0/24", Some("203.0.113.1"), ETH0, 5), route("::/0", Some("fd20::10"), ETH1, 1)],
        ]
        .concat(),
        0..=4,
    );
    let macs = select(vec![0x21u8, 0x22, 0x31]);
    (neighbours, routes, vec(proptest::bool::weighted(0.9), 4), macs, any::<bool>()).prop_map(
        move |(mut neighbours, routes, up, last, port_there)| {
            let moved = neighbours.iter_mut().filter(|n| n.mac == Some(mac(0x21)));
            moved.for_each(|n| n.mac = Some(mac(last)));
            let mut network = Network { neighbours, routes, ..full.clone() };
            network.links.iter_mut().zip(up).for_each(|(link, up)| link.up = up);
            if !port_there {
                network.links.retain(|l| l.index != ETH1);
                network.addresses.retain(|a| a.link != ETH1);
            }
            network
        },
    )
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let round =
        (services(), networks(), 0u32..20, proptest::option::weighted(0.4, 0usize..80), proptest::bool::weighted(0.3));
    let round = round.prop_map(|(services, network, seconds, fails_at, restart)| {
        let intent = intent(services);
        Round { intent, network, seconds, fails_at, restart }
    });
    vec(round, 1..6)
}

/// Applies as much as goes; true if all of it went.
pub fn apply(model: &mut Model, ops: &[Op], fails_at: Option<usize>) -> bool {
    for (i, op) in ops.iter().enumerate() {
        if fails_at == Some(i) {
            return false;
        }
        model.apply(op);
        model.check();
        let before = model.read();
        model.apply(op);
        assert_eq!(model.read(), before, "not idempotent: {op:?}");
    }
    true
}

/// Which backend each id means, and of which service.
fn owners(c: &Contents) -> Vec<(u32, String)> {
    let v4 = c.v4.backends.iter().map(|(&id, b)| (id, format!("{:?} {:?} {}", b.addr, b.port, b.service)));
    let v6 = c.v6.backends.iter().map(|(&id, b)| (id, format!("{:?} {:?} {}", b.addr, b.port, b.service)));
    v4.chain(v6).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_is_safe_and_the_end_is_right(rounds in rounds()) {
        let (mut model, mut ids, mut now) = (Model::new(&nothing()), Ids::default(), 0);
        for round in rounds {
            now += round.seconds;
            if round.restart {
                ids = Ids::recover(&model.read());
            }
            let real = model.read();
            let to = plan(&round.intent, &round.network, &mut ids, clock(now)).expect("a plan");
            for (id, owner) in owners(&to) {
                let before = owners(&real).into_iter().find(|(old, _)| *old == id);
                prop_assert!(before.is_none_or(|(_, old)| old == owner), "{id} has a new owner while the old one is there");
            }
            let ops = diff(&real, &to);
            if apply(&mut model, &ops, round.fails_at) {
                ids.applied();
            } else {
                ids.settle(&model.read());
                let again = plan(&round.intent, &round.network, &mut ids, clock(now)).expect("a plan");
                let ops = diff(&model.read(), &again);
                prop_assert!(apply(&mut model, &ops, None));
                ids.applied();
                prop_assert_eq!(model.read(), again);
                prop_assert_eq!(diff(&model.read(), &plan(&round.intent, &round.network, &mut ids, clock(now)).expect("a plan")), vec![]);
            }
            let to = plan(&round.intent, &round.network, &mut ids, clock(now)).expect("a plan");
            prop_assert_eq!(model.read(), to.clone());
            prop_assert_eq!(diff(&model.read(), &to), vec![]);
            let mut recovered = Ids::recover(&model.read());
            let after = plan(&round.intent, &round.network, &mut recovered, clock(now)).expect("a plan");
            prop_assert_eq!(diff(&model.read(), &after), vec![], "a restart changes something");
        }
    }

    /// Also from contents that no plan of ours led to.
    #[test]
    fn any_contents_lead_to_any_other(a in rounds(), b in rounds()) {
        let make = |r: &Round| plan(&r.intent, &r.network, &mut Ids::default(), clock(0)).expect("a plan");
        let (from, to) = (make(&a[0]), make(&b[0]));
        let mut model = Model::new(&from);
        model.ended.extend(0..1_000);
        model.planes = None;
        diff(&from, &to).iter().for_each(|op| model.apply(op));
        prop_assert_eq!(model.read(), to);
    }
}
