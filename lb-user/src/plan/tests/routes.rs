//! Changes of routes alone, against the plan of everything.

use std::collections::BTreeMap;

use lb_common::table::{NextHop, Prefix};
use lb_common::wire::Addr;
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::contents::{Change, Contents, Family, FamilyOp, Op};
use super::super::{Ids, Planned, diff};
use super::churn::{apply, intents, networks, services};
use super::world::*;
use super::{Model, clock, nothing};
use crate::intent::{Network, RouteTable};

/// Where prefixes lead, whatever the numbers, and whether untranslated.
fn led<A: Addr>(contents: &Contents, family: &Family<A>) -> BTreeMap<Prefix<A>, (Vec<NextHop>, bool)> {
    let hop = |index: &u32| contents.next_hops[index];
    let of = |index: u32| match index & NextHop::GROUP {
        0 => vec![hop(&index)],
        _ => contents.groups[&(index & !NextHop::GROUP)].iter().map(hop).collect(),
    };
    let led = |index: &u32| (of(index & !NextHop::DIRECT), index & NextHop::DIRECT != 0);
    family.routes.iter().map(|(prefix, index)| (*prefix, led(index))).collect()
}

fn same(one: &Contents, other: &Contents) {
    assert_eq!(led(one, &one.v4), led(other, &other.v4));
    assert_eq!(led(one, &one.v6), led(other, &other.v6));
    let hops = |family: &Family<lb_common::wire::Ip4>| family.backends.values().map(|b| b.link).collect::<Vec<_>>();
    assert_eq!(hops(&one.v4), hops(&other.v4));
    assert_eq!(one.v4.backends.len(), other.v4.backends.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn routes_are_followed_as_the_whole_would_be(
        wish in intents(services()),
        first in networks(),
        steps in vec((networks(), proptest::bool::weighted(0.7), proptest::option::weighted(0.2, 0usize..20)), 1..12),
    ) {
        let mut intent = wish;
        intent.tuning.capacity.nat_addresses = 64;
        let (mut ids, mut network) = (Ids::default(), first);
        let Ok(mut planned) = Planned::new(&intent, &network, &mut ids, clock(0), None) else { return Ok(()) };
        let mut model = Model::new(&nothing());
        prop_assert!(apply(&mut model, &diff(&nothing(), planned.contents()), None));
        ids.applied();
        for (next, routes_alone, fails_at) in steps {
            let epoch = planned.contents().settings.epoch;
            network = if routes_alone { Network { routes: next.routes, ..network } } else { next };
            let before = planned.contents().clone();
            let followed = if routes_alone { planned.routes(&network.routes, &mut ids) } else { None };
            let scratch = Planned::new(&intent, &network, &mut ids.clone(), clock(0), None);
            let ops = match followed {
                Some(ops) => {
                    same(planned.contents(), scratch.expect("a plan, since it was followed").contents());
                    ops
                }
                None => {
                    let Ok(scratch) = scratch else { return Ok(()) };
                    planned = Planned::new(&intent, &network, &mut ids, clock(0), Some(&planned)).expect("as scratch");
                    prop_assert_eq!(planned.contents(), scratch.contents());
                    diff(&before, planned.contents())
                }
            };
            let led_elsewhere = (led(&before, &before.v4), led(&before, &before.v6))
                != (led(planned.contents(), &planned.contents().v4), led(planned.contents(), &planned.contents().v6));
            prop_assert!(!led_elsewhere || planned.contents().settings.epoch != epoch);
            if apply(&mut model, &ops, fails_at) {
                ids.applied();
            } else {
                ids.settle(&model.read());
                planned = Planned::new(&intent, &network, &mut ids, clock(0), Some(&planned)).expect("a plan");
                let ops = diff(&model.read(), planned.contents());
                prop_assert!(apply(&mut model, &ops, None));
                ids.applied();
            }
            prop_assert_eq!(&model.read(), planned.contents());
        }
    }
}

/// A route to a place that nothing of ours is at moves nothing else, and many at once are one operation.
#[test]
fn one_route_is_one_operation() {
    let intent = intent(vec![service("web", &["172.28.0.1"], vec![ready("10.20.0.5")])]);
    let (mut network, mut ids) = (network(), Ids::default());
    let mut planned = Planned::new(&intent, &network, &mut ids, clock(0), None).expect("a plan");
    ids.applied();
    let known = planned.contents().v4.routes.len();
    let mut followed =
        |routes: &RouteTable| planned.routes(routes, &mut ids).map(|ops| (ops, planned.contents().clone()));

    network.routes.extend([route("198.18.0.0/15", Some("203.0.113.1"), ETH0, 0)]);
    let (ops, now) = followed(&network.routes).expect("a route alone");
    let epoch = now.settings.epoch;
    assert!(
        matches!(&ops[..], [Op::Settings(a), Op::V4(FamilyOp::Route(Change::Set(..))), Op::Settings(b)]
            if a.epoch + 1 == epoch && b.epoch == epoch),
        "{ops:?}"
    );
    let more = (0..100).map(|i| route(&format!("100.64.{i}.0/24"), Some("203.0.113.1"), ETH0, 0));
    let all = network.routes.iter().chain(more).collect();
    let (ops, now) = followed(&all).expect("routes alone");
    assert!(matches!(&ops[..], [_, Op::V4(FamilyOp::Routes(_)), _]), "{ops:?}");
    assert_eq!(now.v4.routes.len(), known + 101);
    // What leads to a backend is a matter of the whole.
    network.routes.extend([route("10.20.0.0/24", Some("203.0.113.1"), ETH0, 0)]);
    assert!(followed(&network.routes).is_none());
}
