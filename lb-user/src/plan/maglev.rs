//! Rows of slots: which backend a hash chooses.
//!
//! Weighted Maglev with quotas. Backends take turns in the order of the Webster apportionment
//! (turn `j` of weight `w` is due at `(2j + 1) / w`) and take the next free slot on a walk of their
//! own. That order knows nothing of the other backends, so that one that comes only takes and one
//! that leaves only gives. Where the shares come out too coarse the row is doubled: each slot's two
//! halves keep its backend, and only what is over the new quotas changes hands.
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

/// splitmix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Most backends, and the length their rows begin with: many divisors, so that few equal backends
/// share exactly. Another length moves nearly everything, so that the steps are wide.
const LADDER: [(usize, u32); 7] =
    [(1, 1), (4, 120), (16, 480), (64, 3_840), (256, 15_360), (1_024, 61_440), (4_096, 245_760)];
const LONGEST: u32 = 983_040;
/// A row is doubled at most so often.
const DOUBLINGS: u32 = 4;
/// A share is off its weight by at most one in so many.
const ACCURACY: u64 = 50;

/// The slots of a row, each an index into `members`. Empty without members.
pub fn row(members: &[Member]) -> Vec<u32> {
    if members.is_empty() {
        return Vec::new();
    }
    let base = LADDER.iter().find(|(most, _)| members.len() <= *most).map_or(LONGEST, |(_, len)| *len);
    let (mut row, mut quota) = fill(members, base);
    for _ in 0..DOUBLINGS {
        let len = row.len() as u32;
        if len * 2 > LONGEST || is_accurate(members, &quota, len) {
            break;
        }
        quota = webster(members, len * 2);
        row = double(members, &row, &quota);
    }
    row
}

/// The places of a row of this length, each an index into `members`, of which there are some.
pub fn places(members: &[Member], len: u32) -> Vec<u32> {
    fill(members, len).0
}

/// Backends by their next turn.
struct Turns(BinaryHeap<Reverse<(u64, u64, u32)>>);

impl Turns {
    fn new(members: &[Member]) -> Self {
        Turns(members.iter().zip(0..).map(|(m, i)| Reverse((due(m, 0), m.key, i))).collect())
    }

    /// The backend whose turn it is; `had` counts the turns it has had.
    fn next(&mut self, members: &[Member], had: &mut [u32]) -> Option<usize> {
        let mut top = self.0.peek_mut()?;
        let i = top.0.2 as usize;
        had[i] += 1;
        top.0.0 = due(&members[i], had[i]);
        Some(i)
    }
}

/// When a turn is due.
fn due(member: &Member, turn: u32) -> u64 {
    ((u64::from(turn) * 2 + 1) << 32) / u64::from(member.weight.max(1))
}

/// How many of `len` slots each backend gets.
fn webster(members: &[Member], len: u32) -> Vec<u32> {
    let mut turns = Turns::new(members);
    let mut had = vec![0; members.len()];
    for _ in 0..len {
        turns.next(members, &mut had);
    }
    had
}

fn is_accurate(members: &[Member], quota: &[u32], len: u32) -> bool {
    let total: u64 = members.iter().map(|m| u64::from(m.weight.max(1))).sum();
    members.iter().zip(quota).all(|(m, &q)| {
        let due = u64::from(m.weight.max(1)) * u64::from(len);
        (u64::from(q) * total).abs_diff(due) * ACCURACY <= due
    })
}

/// A new row: each backend in its turn takes the next free slot of its walk. And how many each got.
fn fill(members: &[Member], len: u32) -> (Vec<u32>, Vec<u32>) {
    let mut slots = vec![u32::MAX; len as usize];
    let mut steps = vec![0u64; members.len()];
    let mut turns = Turns::new(members);
    let mut had = vec![0; members.len()];
    for _ in 0..len {
        let Some(i) = turns.next(members, &mut had) else { break };
        loop {
            let hash = mix(members[i].key ^ steps[i].wrapping_mul(0xd134_2543_de82_ef95));
            let at = ((u128::from(hash) * u128::from(len)) >> 64) as usize;
            steps[i] += 1;
            if slots[at] == u32::MAX {
                slots[at] = i as u32;
                break;
            }
        }
    }
    (slots, had)
}

/// How much a backend wants a slot.
fn wish(member: &Member, slot: u32, len: usize) -> u64 {
    mix(member.key ^ mix(u64::from(slot) << 32 | len as u64))
}

/// The row of twice the length in which `quota` is met and as few slots as possible change hands.
fn double(members: &[Member], row: &[u32], quota: &[u32]) -> Vec<u32> {
    let len = row.len() * 2;
    let mut slots: Vec<u32> = row.iter().flat_map(|&i| [i, i]).collect();
    let mut held: Vec<Vec<u32>> = vec![Vec::new(); members.len()];
    for (&i, slot) in slots.iter().zip(0..) {
        held[i as usize].push(slot);
    }
    let mut free = Vec::new();
    let mut wanted = Vec::new();
    for (i, member) in members.iter().enumerate() {
        let (has, due_to) = (held[i].len() as u32, quota[i]);
        if has > due_to {
            held[i].sort_unstable_by_key(|&slot| wish(member, slot, len));
            free.extend_from_slice(&held[i][..(has - due_to) as usize]);
        }
        wanted.extend((has..due_to).map(|turn| (due(member, turn), member.key, i as u32)));
    }
    wanted.sort_unstable();
    free.sort_unstable();
    for (_, _, i) in wanted {
        let dearest = (0..free.len()).max_by_key(|&at| wish(&members[i as usize], free[at], len));
        if let Some(at) = dearest {
            slots[free.swap_remove(at) as usize] = i;
        }
    }
    slots
}

#[cfg(test)]
mod tests;
