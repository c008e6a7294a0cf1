//! The flow table alone, beside a map of the standard library.

use std::collections::HashMap;

use lb_common::flow_table::{self, Entry, FlowTable, Hit, Meta, NONE, Place, PutError, Words};
use lb_common::table::{Flow, FlowKey, Settings};
use lb_common::tables::Configured;
use lb_common::tcp;
use lb_common::wire::{Addr, Be16, Ip4, Ip6};
use proptest::prelude::*;
use stellwerk_tests::fake::flows::Memory;
use stellwerk_tests::flow_maps::{Dying, drawn};
use stellwerk_tests::routes::Random;
use zerocopy::FromZeros;

/// A table and what an insertion asks beside it.
struct Table<A: Addr>(Memory<A>);

impl<A: Addr> FlowTable<A> for Table<A> {
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        self.0.line(place)
    }
    fn mask(&self) -> u32 {
        self.0.mask()
    }
    fn multiplier(&self, index: usize) -> u64 {
        self.0.multiplier(index)
    }
}

impl<A: Addr> Configured for Table<A> {
    fn settings(&self) -> Settings {
        Settings::with_clock(100)
    }
}

/// The number's address and port; 14 bits in the port, as a client's connections count up.
fn key<A: Addr>(number: u32, addr: impl Fn(u32) -> A) -> FlowKey<A> {
    FlowKey {
        src: addr(number >> 14),
        dst: addr(1 << 20),
        sport: Be16::new(1024 + (number & 0x3fff) as u16),
        dport: Be16::new(80),
        proto: 6,
    }
}

fn v4(number: u32) -> Ip4 {
    Ip4::from_raw((0x0a00_0000 + number).to_be())
}

fn v6(number: u32) -> Ip6 {
    Ip6::from_raw([0xfd00_0000u32.to_be(), 0, 0, number.to_be()])
}

fn flow<A: Addr>(number: u32, state: u8, now: u32) -> Flow<A> {
    Flow { service: number, backend: !number, last: now, state, ..Flow::default() }
}

fn put<A: Addr>(table: &Table<A>, key: &FlowKey<A>, flow: Flow<A>) -> Result<(), PutError> {
    let mut hit = Hit::new_zeroed();
    hit.flow = flow;
    flow_table::insert(table, key, &mut hit, NONE)
}

/// Answered connections find room up to a load of six tenths, whatever keys count up.
fn fills<A: Addr>(addr: impl Fn(u32) -> A + Copy) {
    let slots = 1 << 18;
    let table = Table(Memory::new(slots));
    let mut refused = 0;
    for number in 0..slots * 6 / 10 / 2 {
        let forward = key(number, addr);
        for key in [forward, forward.reversed()] {
            refused += u32::from(put(&table, &key, flow(number, tcp::ESTABLISHED, 1000)).is_err());
        }
    }
    assert!(refused <= slots / 10_000, "{refused} entries found no room");
}

#[test]
fn keys_that_count_up_find_room() {
    fills(v4);
    fills(v6);
}

/// Who knows the code but not the numbers can't fill one bucket: keys that all fall into one bucket of
/// a table of his own fall anywhere in another.
#[test]
fn keys_chosen_for_one_table_spread_in_another() {
    const SLOTS: u32 = 1 << 13;
    let mut random = Random(7);
    let mut own = Table::<Ip4>(Memory::new(SLOTS));
    own.0.multipliers = drawn(&mut random);
    let bucket = |table: &Table<Ip4>, key: &FlowKey<Ip4>| Place::of(table, &Words::of(key)).first;
    let chosen: Vec<_> = (0..).map(|n| key(n, v4)).filter(|key| bucket(&own, key) == 0).take(2_000).collect();
    for _ in 0..16 {
        let mut other = Table::<Ip4>(Memory::new(SLOTS));
        other.0.multipliers = drawn(&mut random);
        let mut counts = HashMap::<u32, u32>::new();
        chosen.iter().for_each(|key| *counts.entry(bucket(&other, key)).or_default() += 1);
        // 2,000 keys on 256 buckets: 8 each; 40 in one has a chance of one in 10^13.
        let most = counts.values().max().copied().unwrap_or(0);
        assert!(most < 40, "{most} of 2,000 chosen keys fall into one of 256 buckets");
    }
}

/// What a table of the standard library remembers, as long as nothing must be pushed out.
#[derive(Clone, Debug)]
enum Op {
    Put { key: u32, protected: bool },
    State { key: u32, protected: bool },
    Remove { key: u32 },
}

fn op(keys: u32) -> impl Strategy<Value = Op> {
    let key = 0..keys;
    prop_oneof![
        4 => (key.clone(), any::<bool>()).prop_map(|(key, protected)| Op::Put { key, protected }),
        2 => (key.clone(), any::<bool>()).prop_map(|(key, protected)| Op::State { key, protected }),
        1 => key.prop_map(|key| Op::Remove { key }),
    ]
}

fn state(protected: bool) -> u8 {
    if protected { tcp::ESTABLISHED } else { tcp::NEW }
}

/// Any sequence on a small table, up to far more keys than it has room for: what is found is what was put;
/// what is answered stays; a key is refused only when both its buckets are full of answered connections.
fn agrees<A: Addr>(ops: &[Op], addr: impl Fn(u32) -> A + Copy) {
    let table = Table(Memory::new(128));
    let mut model = HashMap::<u32, (u32, bool)>::new();
    for (number, op) in ops.iter().enumerate() {
        let number = number as u32;
        let look = |key_number: u32| {
            let mut hit = Hit::new_zeroed();
            flow_table::find_into(&table, &key(key_number, addr), &mut hit).then_some(hit)
        };
        match *op {
            Op::Put { key: k, protected } => {
                let there = look(k).map(|hit| tcp::protected(hit.flow.state));
                let result = put(&table, &key(k, addr), flow(number, state(protected), 1000));
                if result == Ok(()) {
                    // An unanswered entry of the very key may have been pushed out for it.
                    assert_ne!(there, Some(true), "an answered connection was replaced");
                    model.insert(k, (number, protected));
                } else if there.is_some() {
                    // Full, or known by then: as it was.
                } else {
                    assert_eq!(result, Err(PutError::Full));
                    let protected = table.0.all().iter().filter(|(_, f)| tcp::protected(f.state)).count();
                    assert!(protected >= 31, "refused with {protected} answered connections");
                    model.remove(&k);
                }
            }
            Op::State { key: k, protected } => {
                if let Some(mut hit) = look(k) {
                    assert!(flow_table::set_state(&table, &mut hit, state(protected), 1000));
                    model.get_mut(&k).expect("found, but never put").1 = protected;
                }
            }
            Op::Remove { key: k } => {
                if let Some(hit) = look(k) {
                    assert!(flow_table::remove(&table, &hit));
                    assert!(!flow_table::remove(&table, &hit), "removed twice");
                }
                model.remove(&k);
            }
        }
        for (&k, &(value, protected)) in &model {
            match look(k) {
                Some(hit) => {
                    assert_eq!((hit.flow.service, hit.flow.backend), (value, !value), "another's value");
                    assert_eq!(hit.flow.state, state(protected));
                }
                None => assert!(!protected, "an answered connection was pushed out"),
            }
        }
    }
    let mut keys: Vec<_> = table.0.hits().into_iter().map(|(key, _)| key).collect();
    let all = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), all, "a key is there twice");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_a_map(ops in prop::collection::vec(op(300), 1..600)) {
        agrees(&ops, v4);
        agrees(&ops, v6);
    }
}

/// A killed agent leaves a slot owned: it is found again; what others own meanwhile is left alone.
#[test]
fn an_owned_slot_is_recovered() {
    let table = Table::<Ip4>(Memory::new(32));
    assert_eq!(put(&table, &key(1, v4), flow(1, tcp::ESTABLISHED, 1000)), Ok(()));
    let (_, hit) = table.0.hits()[0];
    assert!(!flow_table::recover(&table, hit.slot, hit.meta), "a live entry is nobody's to free");
    // As far as an insertion gets that dies behind its first step.
    let mut half = Hit::new_zeroed();
    half.flow = flow(2, tcp::NEW, 1000);
    assert!(flow_table::insert::take(&table, &mut half, NONE));
    assert!(flow_table::recover(&table, half.slot, half.meta));
    assert!(!flow_table::recover(&table, half.slot, half.meta), "freed once");
    assert_eq!(put(&table, &key(2, v4), flow(2, tcp::NEW, 1000)), Ok(()));
}

/// Who removes an entry may die at any access to the table: everybody else's entries are found as before, the key can
/// be put again, and nothing but one slot is missing until it is recovered.
#[test]
fn a_removal_may_end_anywhere() {
    const FULL: u32 = 31;
    for accesses in 0.. {
        let table = Table::<Ip4>(Memory::new(32));
        for number in 0..FULL {
            assert_eq!(put(&table, &key(number, v4), flow(number, tcp::ESTABLISHED, 1000)), Ok(()));
        }
        let find = |number| {
            let mut hit = Hit::new_zeroed();
            flow_table::find_into(&table, &key(number, v4), &mut hit).then_some(hit)
        };
        let hit = find(5).expect("it was put");
        let done = Dying::after(&table, accesses, |table| flow_table::remove(table, &hit));
        assert!((0..FULL).filter(|n| *n != 5).all(|n| find(n).is_some_and(|hit| hit.flow.service == n)));
        let owned = (0..FULL).filter_map(|slot| Some((slot, table.entry(slot)?.meta())));
        let owned: Vec<_> = owned.filter(|(_, meta)| meta.phase() == Meta::OWNED).collect();
        assert_eq!(owned.len(), usize::from(find(5).is_none() && done.is_none()));
        assert!(owned.iter().all(|&(slot, meta)| flow_table::recover(&table, slot, meta)));
        if find(5).is_none() {
            assert_eq!(put(&table, &key(5, v4), flow(5, tcp::ESTABLISHED, 1000)), Ok(()));
        }
        assert!((0..FULL).all(|n| find(n).is_some()));
        if done.is_some() {
            assert!(accesses >= 2, "a removal touches its entry and its hints");
            break;
        }
    }
}

/// Threads that insert, find, change and remove the same keys for a while: no value of another key, no
/// value half old and half new, no key twice, nothing left owned.
#[test]
fn threads_agree() {
    const KEYS: u32 = 96;
    let table = Table::<Ip6>(Memory::new(128));
    let rounds = if cfg!(debug_assertions) { 60_000 } else { 1_000_000 };
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let table = &table;
            scope.spawn(move || {
                let mut draws = Random(thread);
                for _ in 0..rounds {
                    let random = draws.word();
                    let number = random as u32 % KEYS;
                    let key = key(number, v6);
                    let mut hit = Hit::new_zeroed();
                    let found = flow_table::find_into(table, &key, &mut hit);
                    if found {
                        // Every thread writes values that tell their key, and of which the second half is
                        // the first's complement.
                        let Flow { service, backend, src, dst, .. } = hit.flow;
                        assert_eq!((service % KEYS, backend, src, dst), (number, !service, v6(service), v6(backend)));
                    }
                    match random >> 40 & 7 {
                        0 if found => drop(flow_table::remove(table, &hit)),
                        1 if found => drop(flow_table::set_state(table, &mut hit, state(random >> 50 & 1 == 0), 1000)),
                        2 if found => flow_table::set_next_hop(table, &mut hit, number, 1),
                        3..=5 if !found => {
                            let value = (random >> 44) as u32 / KEYS * KEYS % (1 << 30) + number;
                            let new = Flow { src: v6(value), dst: v6(!value), ..flow(value, tcp::NEW, 1000) };
                            let _ = put(table, &key, new);
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    let mut keys: Vec<_> = table.0.hits().into_iter().map(|(key, _)| key).collect();
    let all = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), all, "a key is there twice");
    let slots = (0..128).filter_map(|slot| table.entry(slot).filter(|_| slot % 32 != 31));
    assert!(
        slots.map(Entry::meta).all(|meta| [Meta::FREE, Meta::LIVE].contains(&meta.phase())),
        "a slot is left owned"
    );
}
