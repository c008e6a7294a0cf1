//! What pods are allowed changes in an order in which none is ever allowed, or refused, by half of it.

use lb_common::table::{Pod, Settings};
use lb_common::wire::Ip6;

use super::*;
use crate::plan::{diff, rules};
use crate::policy::{Allowed, Entry, Range};

/// Tables in which the pod at a link is allowed these networks, a port each.
fn allowing(link: u32, nets: &[(&str, u16)]) -> Contents {
    let mut contents = Contents::empty(Settings::with_clock(100));
    let entry = |(net, port): &(&str, u16)| Entry {
        net: net.parse().expect("a network"),
        except: &[],
        ports: [Range { proto: Some(6), first: *port, last: *port + 3 }].into(),
    };
    let allowed = Allowed::new(&nets.iter().map(entry).collect::<Vec<_>>()).expect("few sets of ports");
    let number = allowed.number();
    rules(&mut contents, number, &allowed);
    contents.pods.insert(link, Pod { ingress: number, egress: 0, addrs: [Ip6::default(); 2] });
    contents.hooks.insert(link, Hooks { interface: "stpod".into(), policy: true, ..Hooks::default() });
    contents
}

/// All that stands for a number.
fn of(contents: &Contents, number: u32) -> (Vec<u64>, Vec<u64>) {
    let peers = contents.v4.allowed.iter().filter(|(prefix, _)| prefix.policy == number).map(|(_, bits)| *bits);
    let ports = contents.peer_ports.iter().filter(|(prefix, _)| prefix.policy == number).map(|(_, bits)| *bits);
    (peers.collect(), ports.collect())
}

#[test]
fn a_pod_is_judged_by_the_whole_of_what_it_is_allowed() {
    let nothing = Contents::empty(Settings::with_clock(100));
    let one = allowing(7, &[("10.0.0.0/8", 80), ("10.1.0.0/16", 443)]);
    let other = allowing(7, &[("10.0.0.0/8", 80), ("192.0.2.0/24", 22)]);
    let elsewhere = allowing(8, &[("10.0.0.0/8", 80), ("192.0.2.0/24", 22)]);
    for (from, to) in [(&nothing, &one), (&one, &other), (&other, &one), (&other, &elsewhere), (&one, &nothing)] {
        let mut model = Model::new(from);
        for op in diff(from, to) {
            model.apply(&op);
            let now = &model.contents;
            for (link, hooks) in &now.hooks {
                assert!(!hooks.policy || now.pods.contains_key(link), "{op:?}: judged, but of no pod");
            }
            for pod in now.pods.values() {
                let whole = [from, to].map(|contents| of(contents, pod.ingress));
                assert!(whole.contains(&of(now, pod.ingress)), "{op:?}: a part of {whole:?}");
                assert_ne!(of(now, pod.ingress).0.len(), 0, "{op:?}: nothing is left of what it is allowed");
            }
        }
        assert_eq!(model.read(), *to);
    }
}
