//! Tables of routes as large as the Internet's, always the same, and what they must answer.
//!
//! Lengths are spread as in the Internet's tables of late 2024: IPv4 has three prefixes of /24 in five and nearly all
//! others from /16 to /23; IPv6 has nearly one of /48 in two, and most others are /32 to /47. IPv6 prefixes lie in
//! providers' blocks, as they do there; IPv4 prefixes anywhere, since hardly a /16 has none.

pub mod kernel;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use lb_common::table::Prefix;
use lb_common::wire::{Addr, Ip4, Ip6};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(end)) >> 64) as u64
    }

    /// One of the lengths, by their weights.
    fn len(&mut self, weights: &[(u32, u64)]) -> u32 {
        let mut at = self.below(weights.iter().map(|(_, weight)| weight).sum());
        for &(len, weight) in weights {
            if at < weight {
                return len;
            }
            at -= weight;
        }
        0
    }
}

/// Lengths and their parts in 1,000.
const LENGTHS4: &[(u32, u64)] = &[
    (8, 1),
    (10, 1),
    (11, 1),
    (12, 1),
    (13, 1),
    (14, 2),
    (15, 2),
    (16, 14),
    (17, 8),
    (18, 14),
    (19, 26),
    (20, 44),
    (21, 52),
    (22, 110),
    (23, 102),
    (24, 611),
    (25, 2),
    (27, 2),
    (29, 2),
    (30, 1),
    (32, 3),
];
const LENGTHS6: &[(u32, u64)] = &[
    (20, 1),
    (24, 2),
    (28, 4),
    (29, 22),
    (30, 4),
    (31, 3),
    (32, 126),
    (33, 18),
    (34, 14),
    (35, 6),
    (36, 62),
    (37, 4),
    (38, 10),
    (39, 4),
    (40, 100),
    (41, 4),
    (42, 22),
    (43, 6),
    (44, 92),
    (45, 10),
    (46, 22),
    (47, 14),
    (48, 440),
    (56, 4),
    (64, 5),
    (128, 1),
];
/// Where the registries' blocks are.
const BLOCKS6: &[(u128, u32)] =
    &[(0x2001, 16), (0x240, 12), (0x260, 12), (0x280, 12), (0x2a0, 12), (0x2a1, 12), (0x2c0, 12)];

/// A family whose tables can be drawn.
pub trait Drawn: Addr + Send + Sync {
    /// A prefix's address, as bits from the highest on, and its length.
    fn draw(random: &mut Random) -> (u128, u32);
    fn of(bits: u128) -> Self;
}

pub fn mask(bits: u128, len: u32) -> u128 {
    if len == 0 { 0 } else { bits & u128::MAX << (128 - len) }
}

pub fn bits<A: Addr>(addr: A) -> u128 {
    let (high, low) = addr.halves();
    u128::from(high) << 64 | u128::from(low)
}

impl Drawn for Ip4 {
    fn draw(random: &mut Random) -> (u128, u32) {
        let len = random.len(LENGTHS4);
        // 1.0.0.0 to 223.255.255.255, but for the node itself.
        let addr = loop {
            let addr = (1 + random.below(223) as u32) << 24 | random.word() as u32 & 0xff_ffff;
            if addr >> 24 != 10 && addr >> 24 != 127 {
                break addr;
            }
        };
        (mask(u128::from(addr) << 96, len), len)
    }

    fn of(bits: u128) -> Self {
        Ip4::from_raw(((bits >> 96) as u32).to_be())
    }
}

impl Drawn for Ip6 {
    fn draw(random: &mut Random) -> (u128, u32) {
        let len = random.len(LENGTHS6);
        let (block, block_len) = BLOCKS6[random.below(BLOCKS6.len() as u64) as usize];
        // A registry's block is given out from its beginning on, mostly in pieces of /29.
        let provider = u128::from(random.below(8_192)) << (128 - 29);
        let within = (u128::from(random.word()) << 64 | u128::from(random.word())) >> 29;
        // Half of what is within a provider's block is in its first /32.
        let within = if random.below(2) == 0 { within & u128::MAX >> 32 } else { within };
        (mask(block << (128 - block_len) | provider | within, len), len)
    }

    fn of(bits: u128) -> Self {
        let word = |at: u32| ((bits >> (96 - at * 32)) as u32).to_be();
        Ip6::from_raw([word(0), word(1), word(2), word(3)])
    }
}

/// So many different prefixes, in no order; values from 2 up to `values + 1`.
pub fn table<A: Drawn>(count: usize, values: u32, seed: u64) -> Vec<(Prefix<A>, u32)> {
    let mut random = Random(seed);
    let mut known = std::collections::HashSet::with_capacity(count);
    let mut routes = Vec::with_capacity(count);
    while routes.len() < count {
        let (bits, len) = A::draw(&mut random);
        if known.insert((bits, len)) {
            let value = 2 + random.below(values.into()) as u32;
            routes.push((Prefix { len, addr: A::of(bits) }, value));
        }
    }
    routes
}

/// An address in a prefix.
pub fn within<A: Drawn>(random: &mut Random, prefix: &Prefix<A>) -> A {
    let any = u128::from(random.word()) << 64 | u128::from(random.word());
    A::of(bits(prefix.addr) | (any & !mask(u128::MAX, prefix.len)))
}

/// Longest prefix match as one would say it: the longest length of which there is the address's prefix.
#[derive(Default)]
pub struct Oracle(BTreeMap<u32, HashMap<u128, u32, BuildHasherDefault<Mixed>>>);

/// A hash of prefixes' bits. The standard one takes most of a test's time.
#[derive(Default)]
pub struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u128");
    }

    fn write_u128(&mut self, bits: u128) {
        self.0 = Random((bits >> 64) as u64 ^ (bits as u64).rotate_left(7)).word();
    }
}

impl Oracle {
    pub fn of<A: Addr>(routes: &[(Prefix<A>, u32)]) -> Self {
        let mut oracle = Oracle::default();
        for (prefix, value) in routes {
            oracle.insert(prefix, *value);
        }
        oracle
    }

    pub fn insert<A: Addr>(&mut self, prefix: &Prefix<A>, value: u32) -> Option<u32> {
        self.0.entry(prefix.len).or_default().insert(bits(prefix.addr), value)
    }

    pub fn remove<A: Addr>(&mut self, prefix: &Prefix<A>) -> Option<u32> {
        self.0.get_mut(&prefix.len)?.remove(&bits(prefix.addr))
    }

    pub fn find<A: Addr>(&self, addr: A) -> u32 {
        let bits = bits(addr);
        self.0.iter().rev().find_map(|(&len, values)| values.get(&mask(bits, len)).copied()).unwrap_or(0)
    }
}
