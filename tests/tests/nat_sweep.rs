//! The sweep of ports outside, over tables in this process's memory: what has ended goes, what an agent
//! left that was killed in the middle is mended, and what lives stays.

use std::sync::atomic::{AtomicU32, Ordering};

use lb_common::flow_table::{self, Hit, NONE};
use lb_common::port_table::{self, HOLDERS, Holder, Mapping, PLANE, PORTS, PortTable, base};
use lb_common::table::{Flow, FlowKey, Settings};
use lb_common::tcp;
use lb_common::wire::{Addr, Be16, Ip4, Ip6};
use lb_user::apply::ports::{self, Taken, give_back};
use lb_user::apply::sweep::{self, Swept};
use stellwerk_tests::fake::Fake;
use stellwerk_tests::fake::ports::PortMemory;
use zerocopy::FromZeros;

const PLANES: u32 = 2;
const NOW: u32 = 1 << 30;
const SETTINGS: Settings = Settings::with_clock(100);

fn v4(host: u8) -> Ip4 {
    Ip4::from_ip([10, 20, 0, host].into()).unwrap()
}

fn v6(host: u8) -> Ip6 {
    Ip6::from_ip([0xfd00, 0, 0, 0, 0, 0, 0, host.into()].into()).unwrap()
}

struct World<A: Addr> {
    table: PortMemory<A>,
    pass: sweep::ports::Pass<A>,
    ended: Vec<Taken<A>>,
}

impl<A: Addr> World<A> {
    fn new() -> Self {
        World { table: PortMemory::new(PLANES), pass: Default::default(), ended: Vec::new() }
    }

    /// As a packet does it.
    fn map(&self, inside: A, port: u16, index: u32, state: u8) {
        port_table::charge(&self.table, port_table::admit(&self.table, inside, u32::MAX));
        assert!(port_table::take(&self.table, index));
        let mapping = Mapping { inside, remote: inside, port: Be16::new(port), state, away: false, now: NOW };
        port_table::own(&self.table, index, &mapping);
    }

    fn step(&mut self, now: u32) -> Swept {
        let ended = &mut self.ended;
        sweep::ports::step(&self.table, PLANES, &mut self.pass, (&SETTINGS, now), |taken| ended.push(*taken))
    }

    /// A whole pass.
    fn sweep(&mut self, now: u32) -> Swept {
        (0..8).map(|_| self.step(now)).fold(Swept::default(), |sum, swept| Swept {
            ports: sum.ports + swept.ports,
            leaked: sum.leaked + swept.leaked,
            hosts: sum.hosts + swept.hosts,
            counts: sum.counts + swept.counts,
            places: sum.places + swept.places,
            ..sum
        })
    }

    fn hosts(&self) -> Vec<(A, u32)> {
        self.table.hosts().into_iter().map(|(host, ports, _)| (host, ports)).collect()
    }
}

fn only(ports: usize, leaked: usize, hosts: usize, counts: usize) -> Swept {
    Swept { ports, leaked, hosts, counts, ..Swept::default() }
}

fn what_is_over_goes<A: Addr>(host: impl Fn(u8) -> A) {
    let mut all = World::<A>::new();
    let (tcp, udp) = (base(0, 0), base(1, 1));
    all.map(host(1), 5000, tcp + 5000, tcp::ESTABLISHED);
    all.map(host(1), 5001, tcp + 5001, tcp::NEW);
    all.map(host(2), 5000, udp + 65_535, tcp::ESTABLISHED);
    assert_eq!(all.sweep(NOW), only(0, 0, 0, 0));
    // Past the timeout: a packet of the other direction alone may still have kept it.
    assert_eq!(all.sweep(NOW + SETTINGS.tcp_transitory + 2), only(0, 0, 0, 0));
    let later = NOW + SETTINGS.tcp_transitory + 2 * lb_common::table::BOTH + 1;
    assert_eq!(all.sweep(later), only(2, 0, 0, 0));
    let ended: Vec<_> = all.ended.iter().map(|t| (t.plane, t.class, t.outside_port, t.inside, t.inside_port)).collect();
    assert_eq!(ended, [(0, 0, 5001, host(1), 5001), (1, 1, 65_535, host(2), 5000)]);
    assert_eq!(all.table.taken(), [tcp + 5000]);
    assert_eq!(all.hosts(), [(host(1), 1), (host(2), 0)]);
    // A whole pass without a port, and the one before: forgotten.
    assert_eq!(all.sweep(later), only(0, 0, 1, 0));
    assert_eq!(all.hosts(), [(host(1), 1)]);
    assert_eq!(all.sweep(later), only(0, 0, 0, 0));
}

#[test]
fn what_is_over_goes_and_its_host_is_forgotten() {
    what_is_over_goes(v4);
    what_is_over_goes(v6);
}

#[test]
fn the_end_says_who_had_which_port() {
    let all = World::<Ip6>::new();
    all.map(v6(7), 500, base(1, 2) + 501, tcp::NEW);
    let taken = ports::at(&all.table, base(1, 2) + 501).unwrap();
    let ended = taken.ended(v6(99), None);
    assert_eq!(
        (ended.protocol, ended.inside, ended.outside),
        (58, "[fd00::7]:500".parse().unwrap(), "[fd00::63]:501".parse().unwrap())
    );
}

/// Killed between the owner's release and the bit's: nobody has it, and nobody else gets it.
#[test]
fn a_port_without_an_owner_is_freed_after_two_looks() {
    let mut all = World::<Ip4>::new();
    let indexes = [0, 63, PORTS + 5, PLANE, PLANES * PLANE - 1];
    for index in indexes {
        assert!(port_table::take(&all.table, index));
    }
    assert_eq!(all.sweep(NOW), only(0, 0, 0, 0));
    assert_eq!(all.table.taken(), indexes);
    assert_eq!(all.sweep(NOW), only(0, 5, 0, 0));
    assert!(all.table.taken().is_empty());
    assert!(port_table::take(&all.table, 63));
}

/// What was between two looks in other hands is looked at anew.
#[test]
fn a_port_that_was_used_meanwhile_is_no_leak() {
    let mut all = World::<Ip4>::new();
    assert!(port_table::take(&all.table, 100));
    all.sweep(NOW);
    // It got its owner, who gave it back, and another packet is about to own it.
    let mapping = Mapping { inside: v4(1), remote: v4(2), port: Be16::new(1), state: tcp::NEW, away: false, now: NOW };
    port_table::own(&all.table, 100, &mapping);
    let meta = all.table.owner(100).unwrap().meta();
    assert!(port_table::release(&all.table, 100, meta) && port_table::take(&all.table, 100));
    assert_eq!(all.sweep(NOW), only(0, 0, 0, 0));
    assert_eq!(all.table.taken(), [100]);
    // Then the packet owns it.
    port_table::own(&all.table, 100, &mapping);
    all.sweep(NOW);
    assert_eq!(all.sweep(NOW).leaked, 0);
    assert_eq!(all.table.all().len(), 1);
}

#[test]
fn a_count_that_is_wrong_is_corrected_once_two_passes_agree() {
    let mut all = World::<Ip4>::new();
    all.map(v4(1), 1, base(0, 0) + 1, tcp::ESTABLISHED);
    all.map(v4(2), 1, base(0, 1) + 1, tcp::ESTABLISHED);
    // Killed before the count was lowered; and one that is too low.
    port_table::charge(&all.table, port_table::admit(&all.table, v4(1), 10));
    port_table::charge(&all.table, port_table::admit(&all.table, v4(1), 10));
    port_table::refund(&all.table, v4(2));
    assert_eq!(all.hosts(), [(v4(1), 3), (v4(2), 0)]);
    assert_eq!(all.sweep(NOW), only(0, 0, 0, 0));
    assert_eq!(all.sweep(NOW), only(0, 0, 0, 2));
    assert_eq!(all.hosts(), [(v4(1), 1), (v4(2), 1)]);
    for _ in 0..3 {
        assert_eq!(all.sweep(NOW), only(0, 0, 0, 0));
    }
}

/// While ports come and go, a pass is no picture of one moment.
#[test]
fn a_count_in_motion_is_left_alone() {
    let mut all = World::<Ip4>::new();
    let high = base(1, 0) + 1;
    all.map(v4(1), 1, high, tcp::ESTABLISHED);
    for turn in 0..6 {
        // The host's only mapping jumps back over the walk, and to a port ahead before the next one.
        all.step(NOW);
        assert!(give_back(&all.table, &ports::at(&all.table, high + turn).unwrap()));
        all.map(v4(1), 1, turn, tcp::ESTABLISHED);
        let rest = (1..8).map(|_| all.step(NOW)).fold(0, |sum, swept| sum + swept.counts + swept.hosts);
        assert_eq!((rest, all.hosts()), (0, vec![(v4(1), 1)]));
        assert!(give_back(&all.table, &ports::at(&all.table, turn).unwrap()));
        all.map(v4(1), 1, high + turn + 1, tcp::ESTABLISHED);
    }
}

/// Killed in the middle of forgetting a host: its place is nobody's, and nobody gets it.
fn a_half_free_place_is_freed<A: Addr>(host: impl Fn(u8) -> A) {
    let places = |all: &World<A>| -> Vec<u32> {
        (0..HOLDERS).filter(|index| all.table.holder(*index).unwrap().read().is_some()).collect()
    };
    let mut all = World::<A>::new();
    all.map(host(1), 1, 10, tcp::ESTABLISHED);
    all.map(host(2), 1, 20, tcp::ESTABLISHED);
    let place = places(&all).into_iter().find(|i| all.table.holder(*i).unwrap().read().unwrap().0 == host(1)).unwrap();
    assert!(give_back(&all.table, &ports::at(&all.table, 10).unwrap()));
    assert_eq!(state(all.table.holder(place).unwrap()).swap(1, Ordering::SeqCst), 2);
    assert_eq!(all.hosts(), [(host(2), 1)]);
    // Meanwhile the host has another one.
    all.map(host(1), 2, 30, tcp::ESTABLISHED);
    let others = places(&all);
    assert!(!others.contains(&place));

    assert_eq!(all.sweep(NOW), only(0, 0, 0, 0));
    assert_eq!(all.sweep(NOW), Swept { places: 1, ..Swept::default() });
    assert_eq!(all.sweep(NOW), only(0, 0, 0, 0));
    assert_eq!(places(&all), others);
    assert_eq!(state(all.table.holder(place).unwrap()).load(Ordering::SeqCst), 0);
}

#[test]
fn a_place_that_was_left_half_free_is_freed_after_two_looks() {
    a_half_free_place_is_freed(v4);
    a_half_free_place_is_freed(v6);
}

/// A place's own word: 0: free, 1: taken or left by somebody just now, 2: a host's.
#[expect(unsafe_code, reason = "nothing but a kill leaves the second one")]
fn state<A: Addr>(holder: &Holder<A>) -> &AtomicU32 {
    // SAFETY: the struct is laid out as C does it, and begins with a cell of 32 bits, which is an atomic.
    unsafe { &*std::ptr::from_ref(holder).cast::<AtomicU32>() }
}

#[test]
fn a_port_goes_back_by_its_own_endpoint_alone() {
    let all = World::<Ip4>::new();
    all.map(v4(1), 1, 77, tcp::NEW);
    let taken = ports::at(&all.table, 77).unwrap();
    assert!(give_back(&all.table, &taken) && !give_back(&all.table, &taken));
    all.map(v4(1), 2, 77, tcp::NEW);
    assert!(!give_back(&all.table, &taken));
    assert_eq!(all.hosts(), [(v4(1), 1)]);
}

/// What is remembered of mappings has a bit beside its protocol and goes by its protocol's time.
#[test]
fn what_is_remembered_goes_like_connections() {
    let fake = Fake::default();
    let table = &fake.flows4;
    let memory = Flow::<Ip4>::NAT | Flow::<Ip4>::MEMORY;
    for (port, proto, state) in
        [(1, 0x106, tcp::NEW), (2, 0x111, tcp::NEW), (3, 0x106, tcp::ESTABLISHED), (4, 17, tcp::NEW)]
    {
        let key = FlowKey { src: v4(1), dst: v4(0), sport: Be16::new(port), dport: Be16::new(0), proto };
        let mut hit = Hit::new_zeroed();
        hit.flow = Flow { src: v4(9), sport: Be16::new(port), state, flags: memory, last: NOW, ..Flow::default() };
        assert_eq!(flow_table::insert(&fake, &key, &mut hit, NONE), Ok(()));
    }
    let left = |ticks: u32| {
        let mut next = 0;
        loop {
            sweep::connections(table, &mut next, &SETTINGS, NOW + ticks + 2 * lb_common::table::BOTH + 1);
            if next == 0 {
                break;
            }
        }
        table.all().into_iter().map(|(key, _)| key.sport.get()).collect::<Vec<_>>()
    };
    assert_eq!(left(0), [1, 2, 3, 4]);
    assert_eq!(left(SETTINGS.udp_unanswered), [1, 3]);
    assert_eq!(left(SETTINGS.tcp_transitory), [3]);
    assert!(left(SETTINGS.tcp_established).is_empty());
}
