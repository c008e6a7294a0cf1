//! Changes of single services, against the plan of everything and the difference of the whole.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::{Ids, Op, Planned, diff, plan};
use super::churn::{apply, intents, networks, services};
use super::world::*;
use super::{Model, clock, nothing};
use crate::intent::{Intent, ServicePort};

/// One change: which services get what is said of them here.
#[derive(Clone, Debug)]
struct Step {
    services: Vec<ServicePort>,
    /// By service, as are the others.
    chosen: Vec<bool>,
    /// Has an address that others may have, too.
    shares: Vec<bool>,
    /// Is reached there by the same port as others: refused, where these are two.
    collides: bool,
    seconds: u32,
    fails_at: Option<usize>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flags = || vec(any::<bool>(), 4);
    let fails_at = proptest::option::weighted(0.2, 0usize..40);
    let step = (services(), flags(), flags(), proptest::bool::weighted(0.1), 0u32..20, fails_at);
    let step = step.prop_map(|(services, chosen, shares, collides, seconds, fails_at)| Step {
        services,
        chosen,
        shares,
        collides,
        seconds,
        fails_at,
    });
    vec(step, 1..10)
}

fn index(port: &ServicePort) -> usize {
    port.name[1..].parse().expect("a number")
}

/// The wish after a step.
fn after(old: &[ServicePort], step: &Step) -> Vec<ServicePort> {
    let mut all: Vec<ServicePort> = old.iter().filter(|s| !step.chosen[index(s)]).cloned().collect();
    for port in step.services.iter().filter(|s| step.chosen[index(s)]) {
        let mut port = port.clone();
        if step.shares[index(&port)] {
            port.addresses.extend(["192.168.20.120", "172.28.9.9", "fd28::99"].map(ip));
            port.port = if step.collides { 80 } else { 80 + index(&port) as u16 };
        }
        all.push(port);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The ports that a step changes, before or after it.
fn changed<'a>(all: &'a [ServicePort], step: &Step, due: &BTreeSet<(String, String)>) -> Vec<&'a ServicePort> {
    let is_due = |s: &ServicePort| due.contains(&(s.namespace.clone(), s.name.clone()));
    all.iter().filter(|s| step.chosen[index(s)] || is_due(s)).collect()
}

/// Applies as much as goes, and tells the memory.
fn carry_out(model: &mut Model, ops: &[Op], ids: &mut [&mut Ids], fails_at: Option<usize>) -> bool {
    let done = apply(model, ops, fails_at);
    for ids in ids {
        if done { ids.applied() } else { ids.settle(&model.read()) }
    }
    done
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_part_is_planned_as_the_whole_would_be(
        steps in steps(),
        wish in intents(Just(vec![])),
        network in networks(),
        slots in 300u32..4_000,
    ) {
        let mut intent: Intent = wish;
        intent.tuning.capacity.nat_addresses = 64;
        intent.tuning.capacity.slots = slots;
        intent.service_ranges.push(crate::intent::ServiceRange { first: ip("fd28::90"), last: ip("fd28::99") });
        let (mut ids, mut now) = (Ids::default(), 0);
        let mut planned = Planned::new(&intent, &network, &mut ids, clock(now), None).expect("a plan");
        // The one that always plans everything.
        let mut other = ids.clone();
        let mut model = Model::new(&nothing());
        prop_assert!(carry_out(&mut model, &diff(&nothing(), planned.contents()), &mut [&mut ids, &mut other], None));
        for step in steps {
            now += step.seconds;
            let wish = Intent { services: after(&intent.services, &step), ..intent.clone() };
            let due = planned.due(clock(now).now);
            let (was, is) = (changed(&intent.services, &step, &due), changed(&wish.services, &step, &due));
            let before = planned.contents().clone();
            let whole = plan(&wish, &network, &mut other, clock(now));
            let ops = match planned.update(&was, &is, &mut ids, clock(now)) {
                Ok(ops) => ops,
                Err(error) => {
                    prop_assert!(whole.is_err(), "{error}, but the whole is {whole:?}");
                    prop_assert_eq!(planned.contents(), &before);
                    continue;
                }
            };
            let whole = whole.expect("the whole, since the part is planned");
            prop_assert_eq!(planned.contents(), &whole);
            prop_assert_eq!(&ops, &diff(&before, &whole));
            intent = wish;
            if !carry_out(&mut model, &ops, &mut [&mut ids, &mut other], step.fails_at) {
                planned = Planned::new(&intent, &network, &mut ids, clock(now), None).expect("a plan");
                prop_assert_eq!(planned.contents(), &plan(&intent, &network, &mut other, clock(now)).expect("a plan"));
                let ops = diff(&model.read(), planned.contents());
                prop_assert!(carry_out(&mut model, &ops, &mut [&mut ids, &mut other], None));
            }
            prop_assert_eq!(&model.read(), planned.contents());
            let again = Planned::new(&intent, &network, &mut ids.clone(), clock(now), None).expect("a plan");
            prop_assert_eq!(again.next_deadline(), planned.next_deadline());
        }
    }
}
