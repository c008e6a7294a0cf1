//! The flow table alone, beside a map of the standard library.

use std::collections::HashMap;

use lb_common::drop::Note;
use lb_common::flow_table::{self, Entry, FlowTable, Hit, NONE, PutError};
use lb_common::table::{Flow, FlowKey, NextHop, Settings};
use lb_common::tables::Common;
use lb_common::tcp;
use lb_common::wire::{Addr, Be16, Ip4, Ip6};
use proptest::prelude::*;
use stellwerk_tests::fake::flows::Memory;
use zerocopy::FromZeros;

/// A table and what an insertion asks beside it.
struct Table<A: Addr>(Memory<A>);

impl<A: Addr> FlowTable<A> for Table<A> {
    fn entry(&self, slot: u32) -> Option<&Entry<A>> {
        self.0.entry(slot)
    }
    fn mask(&self) -> u32 {
        self.0.mask()
    }
    fn multiplier(&self, index: usize) -> u64 {
        self.0.multiplier(index)
    }
}

impl<A: Addr> Common for Table<A> {
    fn settings(&self) -> Settings {
        Settings::with_clock(100)
    }
    fn filter(&self, _: u32) -> u64 {
        unreachable!()
    }
    fn slot(&self, _: u32) -> Option<u32> {
        unreachable!()
    }
    fn next_hop(&self, _: u32) -> Option<NextHop> {
        unreachable!()
    }
    fn icmp_permit(&self, _: u32) -> bool {
        unreachable!()
    }
    fn count(&self, _: u32, _: bool, _: u32) {}
    fn count_connection(&self, _: u32) {}
    fn note(&self, _: Note) {}
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
