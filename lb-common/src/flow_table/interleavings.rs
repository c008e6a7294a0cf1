//! Pairs of operations on a bucket, in every way in which their steps may follow each other and in which memory may
//! answer them, up to a bound ([`super::model`]). `STELLWERK_INTERRUPTIONS` says how often a thread may be
//! interrupted; 3 without it, fewer where three threads run or the tests are not optimized.

use std::collections::HashMap;

use super::grow::{Moved, transfer};
use super::model::{Bounds, explore};
use super::tests::{Growing, Table};
use super::*;
use crate::table::NextHop;
use crate::tcp;
use crate::wire::{Be16, Ip4};

const SERVICE: u32 = 7;

fn key(number: u32) -> FlowKey<Ip4> {
    FlowKey {
        src: Ip4::from_raw(number),
        dst: Ip4::from_raw(9),
        sport: Be16::new(number as u16),
        dport: Be16::new(80),
        proto: 6,
    }
}

fn flow(number: u32, state: u8) -> Flow<Ip4> {
    Flow {
        src: Ip4::from_raw(number),
        dst: Ip4::from_raw(!number),
        service: number,
        backend: !number,
        last: 1000,
        state,
        next_hop: number,
        ..Flow::default()
    }
}

fn whole(flow: &Flow<Ip4>, number: u32) -> bool {
    let hop = flow.next_hop == number || flow.next_hop == NextHop::UNRESOLVED || flow.next_hop == SERVICE;
    flow.src.raw() == number && flow.dst.raw() == !number && flow.service == number && flow.backend == !number && hop
}

fn put(table: &(impl FlowTable<Ip4> + Configured), number: u32, state: u8) -> u64 {
    let mut hit = Hit::new_zeroed();
    hit.flow = flow(number, state);
    insert(table, &key(number), &mut hit, NONE).is_ok().into()
}

fn found(table: &impl FlowTable<Ip4>, number: u32, likely: bool) -> Option<Hit<Ip4>> {
    let hit = find(table, &key(number), likely);
    assert!(hit.is_none_or(|hit| whole(&hit.flow, number)), "{number} got {:?}", hit.map(|hit| hit.flow));
    hit
}

/// One bucket twice, with these connections.
fn table(numbers: impl IntoIterator<Item = u32>, state: u8) -> Table<Ip4> {
    let table = Table((0..WAYS).map(|_| Entry::default()).collect());
    numbers.into_iter().for_each(|number| assert_eq!(put(&table, number, state), 1));
    table
}

/// What is there in the end, by number: no key twice, no slot left to anybody.
fn settled(table: &Table<Ip4>) -> HashMap<u32, u8> {
    let mut all = HashMap::new();
    walk(table, 0..1, |key, hit| {
        assert!(whole(&hit.flow, key.src.raw()));
        assert!(all.insert(key.src.raw(), hit.flow.state).is_none(), "a key is there twice");
    });
    for slot in 0..SLOTS {
        let phase = table.entry(slot).map_or(Meta::OWNED, |entry| entry.meta().phase());
        assert!(phase == Meta::FREE || phase == Meta::LIVE, "slot {slot} is left in phase {phase}");
    }
    all
}

const ORDERED: Bounds = Bounds { interruptions: 0, old_values: 0, acquires: true, barriers: true };

/// Interruptions alone, then fewer of them with memory that also gives what stood there before.
fn every_way(what: &str, threads: &[&dyn Fn() -> u64], check: impl Fn(&[u64])) {
    let given = std::env::var("STELLWERK_INTERRUPTIONS").ok().and_then(|text| text.parse().ok());
    // Unoptimized it takes ten times as long.
    let few = u32::from(cfg!(debug_assertions)) + u32::from(threads.len() > 2);
    let interruptions = given.unwrap_or(3 - few);
    let ways = [(interruptions, 0), (interruptions.max(2) - 1, 2)]
        .map(|(interruptions, old_values)| explore(threads, Bounds { interruptions, old_values, ..ORDERED }, &check));
    std::println!("{what}: {} and {} ways", ways[0], ways[1]);
    assert!(ways.iter().all(|&ways| ways > 20));
}

/// Of several that insert one key exactly one does, and its entry stays.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn insert_and_insert() {
    for there in [0, 1] {
        let table = table(100..100 + there, tcp::ESTABLISHED);
        let insert = || put(&table, 1, tcp::NEW);
        every_way("insert and insert", &[&insert, &insert], |done| {
            assert_eq!(done.iter().sum::<u64>(), 1, "{done:?}");
            assert!(settled(&table).contains_key(&1));
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "hours")]
fn three_at_once() {
    let table = table(100..102, tcp::ESTABLISHED);
    let insert = || put(&table, 1, tcp::NEW);
    let look = || u64::from(found(&table, 1, false).is_some());
    every_way("insert thrice", &[&insert, &insert, &insert], |done| {
        assert_eq!(done.iter().sum::<u64>(), 1, "{done:?}");
        assert!(settled(&table).contains_key(&1));
    });
    every_way("insert twice and look up", &[&insert, &insert, &look], |done| {
        assert_eq!(done[0] + done[1], 1, "{done:?}");
        assert!(settled(&table).contains_key(&1));
    });
}

#[test]
#[cfg_attr(miri, ignore = "hours")]
fn insert_and_look_up() {
    let table = table(100..103, tcp::ESTABLISHED);
    for likely in [true, false] {
        let look = || u64::from(found(&table, 1, likely).is_some());
        every_way("insert and look up", &[&|| put(&table, 1, tcp::NEW), &look], |done| {
            assert_eq!(done[0], 1);
            assert_eq!(settled(&table).len(), 4);
        });
    }
}

/// The slot is another's at once.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn remove_and_look_up() {
    let table = table(1..1 + SLOTS, tcp::ESTABLISHED);
    let hit = found(&table, 5, true).expect("it was put");
    let replace = || u64::from(remove(&table, &hit)) + put(&table, 100, tcp::NEW);
    for likely in [true, false] {
        let look = || u64::from(found(&table, 5, likely).is_some()) + u64::from(found(&table, 100, likely).is_some());
        every_way("remove, insert and look up", &[&replace, &look], |done| {
            assert_eq!(done[0], 2);
            assert_eq!(settled(&table).len(), SLOTS as usize);
        });
    }
}

/// Whatever is swept meanwhile, an insertion of the same key leaves one of it, or none if it came too early.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn sweep_and_insert() {
    let table = table([1, 100], tcp::NEW);
    let sweep = || {
        let mut gone = 0;
        walk(&table, 0..1, |_, hit| gone += u64::from(hit.flow.service == 1 && remove(&table, &hit)));
        gone
    };
    every_way("sweep and insert", &[&sweep, &|| put(&table, 1, tcp::NEW)], |done| {
        let all = settled(&table);
        assert_eq!(all.contains_key(&1), 1 + done[1] - done[0] == 1, "{done:?}");
        assert!(all.contains_key(&100));
    });
}

/// The bucket is full: what is answered at this moment isn't pushed out.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn promote_and_push_out() {
    let table = table(1..1 + SLOTS, tcp::NEW);
    // Whom an insertion pushes out, if nobody disturbs it.
    let victim = std::cell::Cell::new(0);
    explore(&[&|| put(&table, 100, tcp::NEW)], ORDERED, |_| {
        let all = settled(&table);
        victim.set((1..1 + SLOTS).find(|number| !all.contains_key(number)).expect("it was full"));
    });
    let victim = victim.get();
    let hit = found(&table, victim, true).expect("it was put");
    let promote = || {
        let mut hit = hit;
        set_state(&table, &mut hit, tcp::ESTABLISHED, 1000).into()
    };
    every_way("promote and push out", &[&promote, &|| put(&table, 100, tcp::NEW)], |done| {
        let all = settled(&table);
        assert!(done[0] == 0 || all.get(&victim) == Some(&tcp::ESTABLISHED), "{done:?}");
        assert_eq!((done[1], all.len()), (1, SLOTS as usize));
    });
}

/// A next hop that is found late isn't the next owner's.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn reroute_and_replace() {
    let table = table(1..1 + SLOTS, tcp::ESTABLISHED);
    let hit = found(&table, 5, true).expect("it was put");
    let replace = || u64::from(remove(&table, &hit)) + put(&table, 100, tcp::NEW);
    let reroute = || {
        set_next_hop(&table, &mut { hit }, SERVICE, 1);
        0
    };
    every_way("reroute and replace", &[&replace, &reroute], |done| {
        assert_eq!(done[0], 2);
        let hit = find(&table, &key(100), false).expect("it was put");
        assert_eq!(hit.flow.next_hop, 100);
    });
}

/// A table of two buckets that grows from one of one bucket, which has these connections.
fn growing(numbers: impl IntoIterator<Item = u32>, state: u8) -> Growing<Ip4> {
    let young = Table((0..2 * WAYS).map(|_| Entry::default()).collect());
    Growing { young, elder: table(numbers, state), fills_elder: false }
}

/// Moves a connection that was met in the elder.
fn moved(table: &Growing<Ip4>, hit: &Hit<Ip4>, number: u32) -> u64 {
    u64::from(transfer(&table.elder, &table.young, &key(number), hit, 1000) == Moved::Done)
}

fn in_elder(table: &Growing<Ip4>, number: u32) -> Hit<Ip4> {
    found(&table.elder, number, false).expect("it was put there")
}

/// Both tables in the end: no key twice, not even in one and the other.
fn both_settled(table: &Growing<Ip4>) -> HashMap<u32, u8> {
    let mut all = settled(&table.elder);
    for (number, state) in settled(&table.young).into_iter().chain(settled_second(&table.young)) {
        assert!(all.insert(number, state).is_none(), "a key is in both tables");
    }
    all
}

fn settled_second(table: &Table<Ip4>) -> HashMap<u32, u8> {
    let mut all = HashMap::new();
    walk(table, 1..2, |key, hit| _ = all.insert(key.src.raw(), hit.flow.state));
    all
}

/// Who looks finds it, wherever it is at the moment.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn move_and_look_up() {
    let table = growing([1, 100], tcp::ESTABLISHED);
    let hit = in_elder(&table, 1);
    for likely in [true, false] {
        let look = || u64::from(found(&table, 1, likely).is_some());
        let look_into = || u64::from(find_into(&table, &key(1), &mut Hit::new_zeroed()));
        every_way("move and look up", &[&|| moved(&table, &hit, 1), &look], |done| {
            assert_eq!(done, [1, 1]);
            assert_eq!(both_settled(&table).len(), 2);
        });
        every_way("move and look up by tags", &[&|| moved(&table, &hit, 1), &look_into], |done| {
            assert_eq!(done, [1, 1]);
        });
    }
}

/// A state that a packet gives it goes along, unless it comes at the very moment that it leaves the elder.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn move_and_promote() {
    let table = growing([1], tcp::NEW);
    let hit = in_elder(&table, 1);
    let promote = || {
        let Some(mut hit) = found(&table, 1, true) else { return 2 };
        set_state(&table, &mut hit, tcp::ESTABLISHED, 1000).into()
    };
    every_way("move and promote", &[&|| moved(&table, &hit, 1), &promote], |done| {
        let all = both_settled(&table);
        assert_ne!(done[1], 2, "it was not found");
        assert!(done[1] == 0 || all.get(&1) == Some(&tcp::ESTABLISHED), "{done:?}");
        assert_eq!((done[0], all.len()), (1, 1));
    });
}

/// What a packet has ended is in neither.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn move_and_remove() {
    let table = growing([1], tcp::NEW);
    let hit = in_elder(&table, 1);
    let end = || {
        let Some(hit) = found(&table, 1, true) else { return 2 };
        remove(&table, &hit).into()
    };
    every_way("move and remove", &[&|| moved(&table, &hit, 1), &end], |done| {
        let all = both_settled(&table);
        assert_ne!(done[1], 2, "it was not found");
        assert_eq!(all.contains_key(&1), done[1] == 0, "{done:?}");
    });
}

/// It moves, and packets of the same connection that believe that it is new: it is there once.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn move_and_insert() {
    for fills_elder in [false, true] {
        let table = Growing { fills_elder, ..growing([1], tcp::ESTABLISHED) };
        let hit = in_elder(&table, 1);
        every_way("move and insert", &[&|| moved(&table, &hit, 1), &|| put(&table, 1, tcp::NEW)], |done| {
            let all = both_settled(&table);
            assert_eq!((done[1], all.len()), (0, 1), "{done:?}");
            assert_eq!(all[&1], tcp::ESTABLISHED);
        });
    }
}

/// Some packets fill the elder still, others not any more.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn insert_into_both() {
    let table = growing([100], tcp::ESTABLISHED);
    let late = Late(&table);
    every_way("insert into both", &[&|| put(&table, 1, tcp::NEW), &|| put(&late, 1, tcp::NEW)], |done| {
        assert_eq!(done.iter().sum::<u64>(), 1, "{done:?}");
        assert!(both_settled(&table).contains_key(&1));
    });
}

/// As a packet sees it that has begun before new entries went elsewhere.
struct Late<'t>(&'t Growing<Ip4>);

impl FlowTable<Ip4> for Late<'_> {
    fn line(&self, place: u32) -> Option<&Entry<Ip4>> {
        self.0.line(place)
    }
    fn mask(&self) -> u32 {
        self.0.mask()
    }
    fn elder(&self) -> u32 {
        self.0.elder()
    }
    fn fills_elder(&self) -> bool {
        true
    }
    fn multiplier(&self, index: usize) -> u64 {
        self.0.multiplier(index)
    }
}

impl Configured for Late<'_> {
    fn settings(&self) -> crate::table::Settings {
        self.0.settings()
    }
}

/// What the checks are worth: without the loads' order a lookup gives half a value, and they see it.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn without_order_a_lookup_is_torn() {
    let table = table(1..1 + SLOTS, tcp::ESTABLISHED);
    let hit = found(&table, 5, true).expect("it was put");
    let replace = || u64::from(remove(&table, &hit)) + put(&table, 100, tcp::NEW);
    let look = || u64::from(find(&table, &key(5), true).is_some_and(|hit| !whole(&hit.flow, 5)));
    let torn = std::cell::Cell::new(0);
    let bounds = Bounds { interruptions: 1, old_values: 2, acquires: false, ..ORDERED };
    let ways = explore(&[&replace, &look], bounds, |done| torn.set(torn.get() + done[1]));
    std::println!("{} of {ways} ways are torn", torn.get());
    assert!(torn.get() > 0);
}

/// And without barriers two insertions don't see each other.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn without_barriers_a_key_is_there_twice() {
    let table = table(100..101, tcp::ESTABLISHED);
    let insert = || put(&table, 1, tcp::NEW);
    let twice = std::cell::Cell::new(0);
    let bounds = Bounds { interruptions: 1, old_values: 2, barriers: false, ..ORDERED };
    let ways = explore(&[&insert, &insert], bounds, |done| twice.set(twice.get() + u64::from(done == [1, 1])));
    std::println!("{} of {ways} ways leave two", twice.get());
    assert!(twice.get() > 0);
}
