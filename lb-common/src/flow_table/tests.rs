//! Two threads on one table, few steps, for miri: no step reads or writes memory that it may not.
//! What the table promises is tested in `tests/tests/flow_table.rs`.

use std::thread;
use std::vec::Vec;

use super::*;
use crate::table::Settings;
use crate::tcp;
use crate::wire::{Be16, Ip6};

pub(super) struct Table<A: Addr>(pub Vec<Entry<A>>);

impl<A: Addr> FlowTable<A> for Table<A> {
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        self.0.get(place as usize)
    }
    fn mask(&self) -> u32 {
        self.0.len() as u32 / WAYS - 1
    }
    fn multiplier(&self, index: usize) -> u64 {
        0x9e37_79b9_7f4a_7c15u64.rotate_left(index as u32 * 5) | 1
    }
}

impl<A: Addr> Configured for Table<A> {
    fn settings(&self) -> Settings {
        Settings::with_clock(100)
    }
}

/// A table that grows from an elder.
pub(super) struct Growing<A: Addr> {
    pub young: Table<A>,
    pub elder: Table<A>,
    pub fills_elder: bool,
}

impl<A: Addr> FlowTable<A> for Growing<A> {
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        if place & ELDER == 0 { self.young.line(place) } else { self.elder.line(place & !ELDER) }
    }
    fn mask(&self) -> u32 {
        self.young.mask()
    }
    fn elder(&self) -> u32 {
        FlowTable::<A>::mask(&self.elder)
    }
    fn fills_elder(&self) -> bool {
        self.fills_elder
    }
    fn multiplier(&self, index: usize) -> u64 {
        FlowTable::<A>::multiplier(&self.young, index)
    }
}

impl<A: Addr> Configured for Growing<A> {
    fn settings(&self) -> Settings {
        Settings::with_clock(100)
    }
}

fn key(number: u32) -> FlowKey<Ip6> {
    let addr = |last| Ip6::from_raw([1, 2, 3, last]);
    FlowKey { src: addr(number), dst: addr(0), sport: Be16::new(7), dport: Be16::new(80), proto: 6 }
}

#[test]
fn two_threads_find_insert_change_and_remove() {
    // One bucket twice: all keys meet.
    let table = Table::<Ip6>((0..WAYS).map(|_| Entry::default()).collect());
    let work = |first: u32| {
        for number in (first..first + 40).map(|n| n % 36) {
            let mut hit = Hit::new_zeroed();
            if find_into(&table, &key(number), &mut hit) {
                assert_eq!(hit.flow.service, number);
                touch(&table, &hit, 1001);
                set_state(&table, &mut hit, tcp::ESTABLISHED, 1001);
                set_next_hop(&table, &mut hit, 9, 1);
                if number % 3 == 0 {
                    remove(&table, &hit);
                }
            } else {
                hit.flow = Flow { service: number, last: 1000, ..Flow::default() };
                let _ = insert(&table, &key(number), &mut hit, NONE);
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| work(0));
        scope.spawn(|| work(5));
    });
    let mut keys = Vec::new();
    walk(&table, 0..1, |key, hit| keys.push((key.src, hit.flow.service)));
    keys.sort_unstable();
    let all = keys.len();
    keys.dedup();
    assert!(all > 0 && keys.len() == all, "a key is there twice: {keys:?}");
}
