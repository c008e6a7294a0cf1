//! Any packets on any of a few devices, and what must hold whatever they are: for properties and
//! for the fuzzer.

use lb_common::table::{Flow, FlowKey};
use lb_common::tcp;
use lb_common::verdict::{Arrival, Hook, Verdict};
use lb_common::wire::{Ip4, Ip6};
use lb_user::plan::Contents;

use crate::case::{What, World, parse};
use crate::fake::{Fake, InFake};
use crate::packet::{checksum, hex};
use crate::runner::{START, host};

/// Devices in the words of a case. The first one has what most cases have, so that their packets
/// make good seeds.
const DEVICES: &[&str] = &[
    "service tcp vip:80 cluster:80 node:30080 = pod1:8080 pod2:8080 pod3:8080
     service udp vip:53 = pod1:5353 pod2:5353
     service sctp vip:3868 = pod1:3868
     service tcp vip2:80 = far:8080/remote
     service udp vip2:53 =
     advance 0s",
    "set icmp_rate=3 snat_first=20000 snat_last=20003
     service tcp vip:80 = far:8080/remote quiet:8080
     service udp vip:53 = far:53/remote pod1:53 affinity=60s
     service sctp vip:3868 = far:3868/remote
     service tcp vip2:80 = pod1:8080/gone
     service udp vip2:53 = node:53
     advance 0s",
    "advance 0s",
    // Translated, the inside's port forward among it.
    "nat 172.27.0.0/16 fd00:27::/64
     uplink port2
     service tcp vip:80 cluster:80 = pod1:8080 pod2:8080
     service tcp out:8443 = pod1:443
     advance 0s",
    // Few ports, anybody may send to them, and IPv6 by prefixes.
    "set snat_first=20000 snat_last=20003 nat_quota=3 filter_none=1
     nat 172.27.0.0/16 fd00:77::/64
     direct 192.168.20.0/24 fd00:20::/64
     uplink port2
     prefix port2 fd00:27::/64 2001:db8:27::/64
     service udp vip:53 = far:53/remote pod1:53
     advance 0s",
];

/// How many devices there are.
pub const COUNT: usize = DEVICES.len();
/// The first one that translates between inside and outside.
pub const TRANSLATES: u8 = 3;

/// The tables of a device, for both IP versions at once.
pub fn contents(device: usize) -> Contents {
    let one = |v6| {
        let case = parse::case("device", DEVICES[device % DEVICES.len()], v6).ok().flatten();
        let case = case.expect("the devices are written right");
        case.steps.into_iter().find_map(|step| match step.what {
            What::Tables(contents) => Some(*contents),
            _ => None,
        })
    };
    let (four, six) = (one(false).expect("tables"), one(true).expect("tables"));
    let mut both = Contents { v6: six.v6, prefixes: six.prefixes, ..four };
    for (index, word) in six.filter {
        *both.filter.entry(index).or_default() |= word;
    }
    both
}

pub fn fake(device: usize) -> Fake {
    Fake::holding(&contents(device))
}

/// The world of a device, for names.
pub fn world(v6: bool) -> World {
    parse::case("device", DEVICES[0], v6).ok().flatten().expect("the devices are written right").world
}

/// Where a packet arrives, from a byte: one of the hooks, one of the links of the cases.
pub fn arrival(byte: u8) -> Arrival {
    let hook = [Hook::Xdp, Hook::Ingress, Hook::Egress][usize::from(byte % 3)];
    Arrival {
        hook,
        ifindex: 102 + u32::from(byte / 3 % 3),
        now: START,
        gso_size: 0,
        tagged: u8::from(byte & 0x80 != 0),
        own: u8::from(hook == Hook::Egress && byte & 0x40 != 0),
        tunneled: 0,
    }
}

/// What became of a packet.
#[derive(Debug, PartialEq)]
pub struct Fate {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

/// Runs a packet and asserts what must hold of any.
pub fn run(fake: &Fake, at: &Arrival, bytes: &[u8]) -> Fate {
    let mut open = fake.clone();
    open.ignore_filter = true;
    let (verdict, out) = host::run(fake, at, bytes.to_vec(), host::Refuses::Nothing);
    let about = || format!("{at:?}\n{}\n→ {verdict:?} {}\n{fake}", hex(bytes), hex(&out));
    if verdict == Verdict::Pass {
        assert_eq!(bytes, out, "passed, but changed: {}", about());
    }
    if !matches!(verdict, Verdict::Refuse(_) | Verdict::Drop(_)) {
        assert_eq!(bytes.len(), out.len(), "resized: {}", about());
    }
    if !matches!(verdict, Verdict::Drop(_)) && checksum::right(bytes) == Some(true) {
        assert_ne!(checksum::right(&out), Some(false), "a right checksum became wrong: {}", about());
    }
    // The filter saves time and changes nothing.
    whatever_the_filter_says(fake, &open, at, bytes, &(verdict, out.clone()));
    whole::<Ip4>(fake);
    whole::<Ip6>(fake);
    Fate { verdict, bytes: out }
}

/// Runs the packet on a device whose filter lets all through: it fares the same.
fn whatever_the_filter_says(fake: &Fake, open: &Fake, at: &Arrival, bytes: &[u8], fate: &(Verdict, Vec<u8>)) {
    let unfiltered = host::run(open, at, bytes.to_vec(), host::Refuses::Nothing);
    let about = || format!("{at:?}\n{}\n→ {:?} {}\n{fake}", hex(bytes), fate.0, hex(&fate.1));
    assert!(unfiltered == *fate, "without the filter {unfiltered:?}: {}", about());
    assert!(open == fake, "without the filter other tables:\n{open}\n{}", about());
}

/// Asserts that every flow has its other direction, in the same state. (Nothing is pushed out here:
/// the tables are larger than any test.)
fn whole<A: InFake>(fake: &Fake) {
    let settings = &fake.settings;
    // The port of a translated connection that has ended is another's to have.
    let ended = |key: &FlowKey<A>, flow: &Flow<A>| {
        let over = settings.is_over(key.proto as u8, flow.state, flow.last, START);
        flow.is(Flow::<A>::NAT) && (over || matches!(flow.state, tcp::CLOSED | tcp::RESET))
    };
    let all = A::flows(fake).all().into_iter().filter(|(_, flow)| !flow.is(Flow::<A>::MEMORY));
    for (key, flow) in all.filter(|(key, flow)| !ended(key, flow)) {
        let other = A::flows(fake).get(&flow.reverse_key(key.proto));
        let other = other.unwrap_or_else(|| panic!("{key:?} {flow:?} has no other direction\n{fake}"));
        let back = (other.src, other.dst, other.sport, other.dport);
        assert_eq!(back, (key.dst, key.src, key.dport, key.sport), "the directions disagree\n{fake}");
        assert_eq!((other.state, other.backend, other.service), (flow.state, flow.backend, flow.service), "{fake}");
    }
}

/// The fuzzer's language: a byte for the device, then packets: where it arrives, how many seconds
/// pass before, its length (two bytes), its bytes.
pub fn fuzz(data: &[u8]) {
    let Some((device, mut rest)) = data.split_first() else {
        return;
    };
    let fake = fake(usize::from(*device));
    while let [place, seconds, high, low, more @ ..] = rest {
        fake.age(u32::from(*seconds) * fake.settings.ticks_per_second);
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(more.len());
        let (packet, others) = more.split_at(len);
        run(&fake, &arrival(*place), packet);
        rest = others;
    }
}

/// The opposite: packets as a fuzzer's input.
pub fn seed<'a>(device: u8, packets: impl IntoIterator<Item = (u8, u8, &'a [u8])>) -> Vec<u8> {
    let mut seed = vec![device];
    for (place, seconds, bytes) in packets {
        seed.extend([place, seconds]);
        seed.extend((bytes.len() as u16).to_be_bytes());
        seed.extend(bytes);
    }
    seed
}
