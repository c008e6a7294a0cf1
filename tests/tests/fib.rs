//! The table of routes beside a naive longest prefix match, alone and while it changes.

use std::sync::atomic::{AtomicBool, Ordering};

use lb_common::fib::{KERNEL, MAX_VALUE, NONE};
use lb_common::table::Prefix;
use lb_common::wire::{Ip4, Ip6};
use lb_user::fib::{Error, Fib};
use proptest::prelude::*;
use stellwerk_tests::fake::fib::Heap;
use stellwerk_tests::routes::{self, Drawn, Oracle, Random, bits, mask};

/// What happens to a table.
#[derive(Clone, Debug)]
enum Op {
    Insert {
        bits: u128,
        len: u32,
        value: u32,
    },
    /// Removes one of the prefixes that are there.
    Remove {
        which: usize,
    },
    Replace {
        seed: u64,
        count: usize,
    },
}

/// Prefixes of a few bits of freedom, so that they lie within each other, at any depth.
fn op(bits: u32) -> impl Strategy<Value = Op> {
    let dense = prop::collection::vec(0..3u8, 16).prop_map(|bytes| {
        let picked = bytes.iter().map(|byte| [0u8, 0x80, 0xff][usize::from(*byte)]);
        picked.fold(0u128, |bits, byte| bits << 8 | u128::from(byte))
    });
    prop_oneof![
        8 => (dense, 0..=bits, 1..50u32).prop_map(|(bits, len, value)| Op::Insert { bits, len, value }),
        4 => any::<usize>().prop_map(|which| Op::Remove { which }),
        1 => (any::<u64>(), 0..60usize).prop_map(|(seed, count)| Op::Replace { seed, count }),
    ]
}

/// The first and the last address of every prefix, and those beside.
fn edges<A: Drawn>(prefixes: &[Prefix<A>]) -> impl Iterator<Item = A> {
    let unit = 1u128 << (128 - A::BITS);
    prefixes.iter().flat_map(move |prefix| {
        let first = bits(prefix.addr);
        let last = first | (!mask(u128::MAX, prefix.len) & mask(u128::MAX, A::BITS));
        [first, last, first.wrapping_sub(unit), last.wrapping_add(unit)].map(A::of)
    })
}

fn agrees<A: Drawn>(ops: &[Op], parts: usize) {
    let heap = Heap::new(parts, 1);
    let mut fib = Fib::load(heap.writer(), &[]).unwrap();
    let (mut oracle, mut there) = (Oracle::default(), Vec::<Prefix<A>>::new());
    for op in ops {
        let result = match op {
            Op::Insert { bits, len, value } => {
                let prefix = Prefix { len: *len, addr: A::of(mask(*bits, *len)) };
                let old = oracle.insert(&prefix, *value);
                if old.is_none() {
                    there.push(prefix);
                }
                fib.insert(&prefix, *value).map(|was| assert_eq!(was, old))
            }
            Op::Remove { .. } if there.is_empty() => Ok(()),
            Op::Remove { which } => {
                let prefix = there.swap_remove(which % there.len());
                let old = oracle.remove(&prefix);
                fib.remove(&prefix).map(|was| assert_eq!(was, old))
            }
            Op::Replace { seed, count } => {
                let routes = routes::table::<A>(*count, 40, *seed);
                there = routes.iter().map(|(prefix, _)| *prefix).collect();
                oracle = Oracle::of(&routes);
                fib.replace(&routes)
            }
        };
        let spilled = fib.usage().spilled;
        assert!(result.is_ok() || matches!(result, Err(Error::Full { .. })) && spilled > 0, "{result:?}");
        for addr in edges(&there) {
            let (found, right) = (heap.find(0, addr), oracle.find(addr));
            assert!(found == right || found == KERNEL && spilled > 0, "{addr:?}: {found} instead of {right}");
        }
    }
    assert_eq!(fib.usage().prefixes, there.len());
    for prefix in there {
        let _ = fib.remove(&prefix);
    }
    let _ = fib.retry();
    let usage = fib.usage();
    assert_eq!((usage.prefixes, usage.nodes, usage.used, usage.spilled), (0, 0, 0, 0), "{usage:?}");
    assert_eq!(heap.find(0, A::default()), NONE);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn agrees4(ops in prop::collection::vec(op(32), 1..120)) {
        agrees::<Ip4>(&ops, 4);
    }
    #[test]
    fn agrees6(ops in prop::collection::vec(op(128), 1..120)) {
        agrees::<Ip6>(&ops, 4);
    }
    /// Without any room, everything but short prefixes asks the kernel; never a wrong answer.
    #[test]
    fn agrees_without_room(ops in prop::collection::vec(op(32), 1..60)) {
        agrees::<Ip4>(&ops, 0);
    }
}

#[test]
fn what_is_no_route_is_refused() {
    let heap = Heap::new(1, 1);
    let mut fib = Fib::<Ip4, _>::load(heap.writer(), &[]).unwrap();
    let prefix = |len, addr: u32| Prefix { len, addr: Ip4::from_raw(addr.to_be()) };
    assert_eq!(fib.insert(&prefix(33, 0), 5), Err(Error::Prefix));
    assert_eq!(fib.insert(&prefix(24, 0x0a00_0001), 5), Err(Error::Prefix));
    assert_eq!(fib.insert(&prefix(24, 0x0a00_0000), 0), Err(Error::Value(0)));
    assert_eq!(fib.insert(&prefix(24, 0x0a00_0000), MAX_VALUE + 1), Err(Error::Value(MAX_VALUE + 1)));
    assert_eq!(fib.insert(&prefix(32, 0x0a00_0001), MAX_VALUE), Ok(None));
    assert_eq!(fib.insert(&prefix(0, 0), 9), Ok(None));
    assert_eq!(heap.find(0, Ip4::from_raw(0x0a00_0001u32.to_be())), MAX_VALUE);
    assert_eq!(heap.find(0, Ip4::from_raw(0xffff_ffffu32.to_be())), 9);
}

/// As many lookups as the promise says, on a table as large as it says, which changes all the while.
fn large<A: Drawn>(routes: usize) {
    let (lookups, routes) = if cfg!(debug_assertions) { (500_000, routes / 20) } else { (10_000_000, routes) };
    let heap = Heap::new(256, 1);
    let table = routes::table::<A>(routes + routes / 10, 1000, 7);
    let (first, later) = table.split_at(routes);
    let mut fib = Fib::load(heap.writer(), first).unwrap();
    assert_eq!(fib.retry(), Ok(()));
    let mut oracle = Oracle::of(first);
    let mut random = Random(3);
    for number in 0..lookups {
        if number % (lookups / 2) == lookups / 4 {
            // Another whole table, with most of the prefixes.
            let begin = random.below(later.len() as u64) as usize;
            let all = &table[begin..begin + routes];
            assert_eq!(fib.replace(all), Ok(()));
            oracle = Oracle::of(all);
        }
        if number % 100 == 0 {
            let (old, _) = &table[random.below(routes as u64) as usize];
            let (new, value) = &later[random.below(later.len() as u64) as usize];
            match random.below(3) {
                0 => assert_eq!(fib.remove(old), Ok(oracle.remove(old))),
                1 => assert_eq!(fib.insert(old, *value), Ok(oracle.insert(old, *value))),
                _ => assert_eq!(fib.insert(new, *value), Ok(oracle.insert(new, *value))),
            }
        }
        let addr = match random.below(4) {
            0 => A::of(u128::from(random.word()) << 64),
            _ => {
                let (prefix, _) = &table[random.below(table.len() as u64) as usize];
                routes::within(&mut random, prefix)
            }
        };
        let (found, right) = (heap.find(0, addr), oracle.find(addr));
        assert_eq!(found, right, "{addr:?}");
    }
    println!("{:?}", fib.usage());
}

#[test]
fn ten_million_lookups4() {
    large::<Ip4>(1_000_000);
}

#[test]
fn ten_million_lookups6() {
    large::<Ip6>(250_000);
}

/// Room that ends: what has no room asks the kernel, nothing else does, and all comes back with room.
fn full<A: Drawn>(routes: usize) {
    let heap = Heap::new(1, 1);
    let table = routes::table::<A>(routes, 1000, 11);
    let (mut fib, mut oracle) = (Fib::load(heap.writer(), &[]).unwrap(), Oracle::default());
    let mut refused = 0;
    for (prefix, value) in &table {
        oracle.insert(prefix, *value);
        refused += u32::from(fib.insert(prefix, *value).is_err());
    }
    assert!(refused > 0 && fib.usage().spilled > 0, "it didn't get full: {:?}", fib.usage());
    let mut random = Random(5);
    let mut asked = 0;
    for _ in 0..200_000 {
        let (prefix, _) = &table[random.below(routes as u64) as usize];
        let addr = routes::within(&mut random, prefix);
        match heap.find(0, addr) {
            KERNEL => asked += 1,
            found => assert_eq!(found, oracle.find(addr), "{addr:?}"),
        }
    }
    assert!((1_000..199_000).contains(&asked), "{asked} of 200,000 ask the kernel");
    let (gone, stay) = table.split_at(routes * 9 / 10);
    for (prefix, _) in gone {
        let _ = fib.remove(prefix);
        oracle.remove(prefix);
    }
    assert_eq!(fib.retry(), Ok(()));
    for addr in edges(&stay.iter().map(|(prefix, _)| *prefix).collect::<Vec<_>>()) {
        assert_eq!(heap.find(0, addr), oracle.find(addr), "{addr:?}");
    }
    assert_eq!(fib.replace(stay), Ok(()));
    assert!(matches!(fib.replace(&table), Err(Error::Full { .. })));
}

#[test]
fn full4() {
    full::<Ip4>(60_000);
}

#[test]
fn full6() {
    full::<Ip6>(30_000);
}

/// Prefixes that stay, within which others come, go and change all the time: whoever looks up meanwhile finds one
/// of a prefix that the address is in, and never a shorter one than the longest that stays.
fn concurrent<A: Drawn>() {
    const STAY: usize = 2_500;
    let heap = Heap::new(8, 2);
    let mut random = Random(17);
    // Below two /16s, so that nodes are written anew all the time, and that IPv6's are flat.
    let mut table = Vec::<Prefix<A>>::new();
    let all = routes::table::<A>(5_000, 2, 19);
    let parents: Vec<u128> = all.iter().take(2).map(|(prefix, _)| mask(bits(prefix.addr), 20)).collect();
    for (prefix, _) in &all {
        let parent = parents[random.below(2) as usize];
        let bits = mask(parent | bits(prefix.addr) & !mask(u128::MAX, 20), prefix.len);
        let moved = Prefix { len: prefix.len, addr: A::of(bits) };
        if !table.contains(&moved) {
            table.push(moved);
        }
    }
    // A prefix's values are its number, and the same with a bit that changes.
    let value = |number: usize, turn: u32| number as u32 + 2 + ((turn % 2) << 16);
    let stay: Vec<_> = table.iter().take(STAY).enumerate().map(|(i, prefix)| (*prefix, value(i, 0))).collect();
    let oracle = Oracle::of(&stay);
    let mut fib = Fib::load(heap.writer(), &stay).unwrap();
    let (ended, rounds) = (AtomicBool::new(false), if cfg!(debug_assertions) { 30_000 } else { 400_000 });
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (heap, table, oracle, ended) = (&heap, &table, &oracle, &ended);
            scope.spawn(move || {
                let mut random = Random(reader as u64);
                while !ended.load(Ordering::Relaxed) {
                    let number = random.below(table.len() as u64) as usize;
                    let addr = routes::within(&mut random, &table[number]);
                    let least = match oracle.find(addr) {
                        NONE => None,
                        value => Some(table[(value as usize & 0xffff) - 2].len),
                    };
                    let found = heap.find(reader, addr);
                    let prefix = (found != NONE).then(|| &table[(found as usize & 0xffff) - 2]);
                    let holds = prefix.is_none_or(|p| mask(bits(addr), p.len) == bits(p.addr));
                    assert!(holds, "{addr:?}: found another's {prefix:?}");
                    assert!(
                        prefix.map(|prefix| prefix.len) >= least,
                        "{addr:?}: {prefix:?} is shorter than /{least:?}"
                    );
                }
            });
        }
        for turn in 0..rounds {
            let number = random.below(table.len() as u64) as usize;
            let result = match random.below(3) {
                _ if turn % (rounds / 8) == 0 => fib.replace(&stay),
                0 if number >= STAY => fib.remove(&table[number]).map(drop),
                _ => fib.insert(&table[number], value(number, turn)).map(drop),
            };
            assert_eq!(result, Ok(()));
        }
        ended.store(true, Ordering::Relaxed);
    });
}

#[test]
fn readers_see_old_or_new4() {
    concurrent::<Ip4>();
}

#[test]
fn readers_see_old_or_new6() {
    concurrent::<Ip6>();
}
