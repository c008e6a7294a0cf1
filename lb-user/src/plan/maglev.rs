//! Rows of slots: which backend a hash chooses.
//!
//! Weighted Maglev with quotas: backends pick slots in the order of the Webster apportionment
//! (pick `j` of weight `w` at time `(2j + 1) / w`), each its next free one along its own
//! permutation. That order knows nothing of the other backends, so that a backend that comes only
//! takes and one that leaves only gives.
//! Invariant: a row depends on the set of (identity, weight) alone: not on order, ids or history,
//! so that every node makes the same row. Not here: backend ids and places in the slot array.
//! Figures: `docs/decisions/0002-maglev-rows.md`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

/// A backend as a row sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// [`identity`] of its address and port.
    pub key: u64,
    /// Relative share; 0 counts as 1.
    pub weight: u32,
}

/// What a backend is on every node: its address and port, hashed.
pub fn identity(addr: IpAddr, port: u16) -> u64 {
    let bits = match addr {
        IpAddr::V4(a) => u128::from(a.to_bits()) | 1 << 127,
        IpAddr::V6(a) => a.to_bits(),
    };
    mix(mix(bits as u64 ^ 0x5374_656c_6c77_6572) ^ mix((bits >> 64) as u64).rotate_left(17) ^ u64::from(port))
}

/// splitmix64's finalizer.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Row lengths.
const LADDER: [u32; 6] = [1, 1_021, 8_191, 32_749, 131_071, 524_287];

/// The slots of a row, each an index into `members`. Empty without members.
pub fn row(members: &[Member]) -> Vec<u32> {
    let total: u64 = members.iter().map(|m| u64::from(m.weight.max(1))).sum();
    let Some(least) = members.iter().map(|m| u64::from(m.weight.max(1))).min() else { return Vec::new() };
    let need = if members.len() == 1 { 1 } else { 50 * total / least };
    let len = LADDER.into_iter().find(|&l| u64::from(l) >= need).unwrap_or(LADDER[LADDER.len() - 1]);
    fill(members, len)
}

fn fill(members: &[Member], len: u32) -> Vec<u32> {
    let mut slots = vec![u32::MAX; len as usize];
    let mut turns: BinaryHeap<Reverse<(u64, u64, u32)>> = BinaryHeap::with_capacity(members.len());
    let mut walks: Vec<(u32, u32, u64)> = Vec::with_capacity(members.len());
    for (i, m) in members.iter().enumerate() {
        let skip = if len > 1 { 1 + (mix(m.key ^ 0xa5a5) % u64::from(len - 1)) as u32 } else { 0 };
        walks.push(((mix(m.key) % u64::from(len)) as u32, skip, 1));
        turns.push(Reverse((time(1, m.weight), m.key, i as u32)));
    }
    for _ in 0..len {
        let Some(Reverse((_, key, i))) = turns.pop() else { break };
        let (at, skip, odd) = &mut walks[i as usize];
        while slots[*at as usize] != u32::MAX {
            *at = (*at + *skip) % len;
        }
        slots[*at as usize] = i;
        *odd += 2;
        turns.push(Reverse((time(*odd, members[i as usize].weight), key, i)));
    }
    slots
}

/// When a backend of `weight` has its turn number `odd / 2`.
fn time(odd: u64, weight: u32) -> u64 {
    (odd << 32) / u64::from(weight.max(1))
}
