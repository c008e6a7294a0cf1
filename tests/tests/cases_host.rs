//! Packet cases on the host. `BLESS=1` writes what the engine did into the files;
//! `STELLWERK_CASE=part` runs those whose name holds it.

use std::collections::BTreeSet;

use lb_common::drop::{Drop, Note};
use lb_common::path::network_policy::{Judgement, Meeting, PASS, inward, outward, reason};
use stellwerk_tests::fake::Fake;
use stellwerk_tests::runner::host::{Buffer, Refuses};
use stellwerk_tests::runner::{self, bless};

#[test]
fn every_case_holds() {
    if std::env::var_os("BLESS").is_some() {
        println!("blessed: {:#?}", bless::all().unwrap());
    }
    let cases = runner::cases();
    let run = |case: &Result<_, String>| case.as_ref().map_err(Clone::clone).and_then(runner::on_host).err();
    let wrong: Vec<String> = cases.iter().filter_map(run).collect();
    assert!(wrong.is_empty(), "{} of {} cases fail:\n\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
    println!("{} cases", cases.len());
}

/// Reasons that no packet of a case can meet, and why.
const BEYOND_CASES: &[(&str, &str)] = &[
    (
        "unprotected",
        "one direction must be pushed out and all other slots be of answered connections: tests/flow_table.rs",
    ),
    ("nat_hosts_full", "some thousand hosts inside: tests/nat.rs"),
    ("nat_left_to_socket", "the host's runner has no sockets: tests/netns_nat.rs"),
    ("policy_unknown", "a case has its pods: nothing_passes_without_a_pod"),
    ("socket_refused", "no packet's: tests/netns_socket.rs"),
    ("socket_translated", "no packet's: tests/service_rules/sockets.rs"),
    ("socket_left", "no packet's: tests/service_rules/sockets.rs"),
    ("socket_table_full", "no packet's: tests/service_rules/sockets.rs"),
    ("nat_log_lost", "tens of thousands of mappings must begin while nobody reads: tests/netns_nat_pressure.rs"),
    ("monitor_lost", "thousands of packets while nobody reads: tests/netns_monitor.rs"),
];

/// Where policies are judged, a link whose pod isn't known is shut in both directions, but to what is sent back to it.
#[test]
fn nothing_passes_without_a_pod() {
    let fake = Fake::default();
    let at = |from| Meeting { link: 7, from, now: 0 };
    let mut packet = Buffer::new(vec![0; 64], Refuses::Nothing);
    let mut room = Judgement::default();
    let unknown = Some(Drop::PolicyUnknown as u32);
    assert_eq!(reason(outward(&mut packet, &at(7), &fake, &mut room)), unknown);
    assert_eq!(reason(inward(&mut packet, &at(3), &fake, &mut room)), unknown);
    assert_eq!(reason(inward(&mut packet, &at(0), &fake, &mut room)), unknown);
    assert_eq!(inward(&mut packet, &at(7), &fake, &mut room), PASS);
}

#[test]
fn every_drop_and_note_is_reached() {
    if ["BLESS", "STELLWERK_CASE"].iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let cases: Vec<_> = runner::cases().into_iter().map(Result::unwrap).collect();
    let seen: BTreeSet<String> = cases.iter().flat_map(|case| case.labels()).collect();
    let drops = Drop::ALL.iter().map(|d| d.label());
    let all = drops.chain(Note::ALL.iter().map(|n| n.label()));
    let beyond = |label: &str| BEYOND_CASES.iter().any(|(l, _)| *l == label);
    let missing: Vec<_> = all.filter(|label| !seen.contains(*label) && !beyond(label)).collect();
    assert!(missing.is_empty() || std::env::var_os("STELLWERK_CASE").is_some(), "in no case: {missing:?}");
}
