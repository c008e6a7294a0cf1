//! A lookup over memory written by hand; what the table promises is tested in `tests/tests/fib.rs`.

use std::vec::Vec;

use super::*;
use crate::wire::{Ip4, Ip6};

struct Hand {
    root: Vec<Cell64>,
    lines: Vec<Line>,
}

impl<A: Addr> Memory<A> for Hand {
    fn root(&self, index: u32) -> Option<&Cell64> {
        self.root.get(index as usize)
    }
    fn line(&self, index: u32) -> Option<&Line> {
        self.lines.get(index as usize)
    }
}

fn hand() -> Hand {
    let hand = Hand {
        root: (0..ROOT_WORDS).map(|_| Cell64::default()).collect(),
        lines: (0..2).map(|_| Line::default()).collect(),
    };
    // 10.0.0.0/15 is 5, but what is in 10.1.0.0/16 is in a node: 10.1.128.0/24 is 7.
    hand.root[0x0a00 / 2].store(5 | ((NODE | 1) as u64) << 32);
    let line = &hand.lines[1];
    line[0].store(1);
    line[2].store(0b11);
    line[HEAD as usize].store(5 << 32 | 0x03_01_01_00);
    line[5].store(7 << 32);
    hand
}

#[test]
fn the_longest_prefix_is_found() {
    let hand = hand();
    let find = |a: [u8; 4]| super::find::<Ip4, _>(&hand, std::net::Ipv4Addr::from(a).into());
    assert_eq!(find([10, 0, 1, 1]), 5);
    assert_eq!(find([10, 1, 127, 255]), 5);
    assert_eq!(find([10, 1, 128, 0]), 7);
    assert_eq!(find([10, 1, 128, 255]), 7);
    assert_eq!(find([10, 1, 129, 0]), 5);
    assert_eq!(find([10, 2, 0, 0]), NONE);
}

/// Whatever stands there, a lookup ends, and what it can't read it doesn't answer.
#[test]
fn memory_that_makes_no_sense_ends() {
    let hand = hand();
    hand.root[0].store(u64::MAX);
    assert_eq!(find::<Ip4, _>(&hand, Ip4::default()), KERNEL);
    // A node that names itself.
    hand.root[0].store((NODE | 1) as u64);
    hand.lines[1][0].store(u64::MAX);
    (5..8).for_each(|word| hand.lines[1][word].store((NODE | 1) as u64 * (1 << 32 | 1)));
    assert_eq!(find::<Ip4, _>(&hand, Ip4::default()), KERNEL);
    assert_eq!(find::<Ip6, _>(&hand, Ip6::default()), KERNEL);
}
