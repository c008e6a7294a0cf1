//! A larger table takes a smaller one's place, its elder, while packets use both.
//!
//! First all who look entries up look into both tables, and new entries still go into the elder
//! ([`FlowTable::fills_elder`]); then they go into the new table; then each entry of the elder is moved. Who looks
//! up an entry meets it in one of them at any time: it is in the new table before it leaves the elder, and who finds
//! it in neither looks again where it went.
//! Invariant: an entry that leaves the elder is in the new table in the state that it left in, unless a packet has
//! moved that one on since. A mover that dies may begin anew.

use super::{FlowTable, Hit, NONE, PutError, TRIES, find_into, free, insert, remove, set_state, touch};
use crate::table::FlowKey;
use crate::tables::Configured;
use crate::wire::Addr;
use zerocopy::FromZeros;

/// What became of an entry that was to move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// It has moved, or has ended meanwhile.
    Done,
    /// It is still there: somebody else was about the same key.
    Later,
    /// It is still there: the new table has no room for it.
    NoRoom,
}

/// Moves an entry of the elder, met there as `found`, into the new table. To the mover these are two tables.
pub fn transfer<A: Addr, O: FlowTable<A>, N: FlowTable<A> + Configured>(
    elder: &O,
    new: &N,
    key: &FlowKey<A>,
    found: &Hit<A>,
    now: u32,
) -> Moved {
    let mut copy = *found;
    copy.flow.last = now;
    match insert(new, key, &mut copy, NONE) {
        Ok(()) => touch(new, &copy, found.flow.last),
        Err(PutError::Full) => return Moved::NoRoom,
        Err(PutError::Exists) => {
            // A mover that died has brought it here, or two who insert it gave way to each other.
            let there = find_into(new, key, &mut Hit::new_zeroed());
            if there {
                remove(elder, found);
            }
            return if there { Moved::Done } else { Moved::Later };
        }
    }
    let mut known = *found;
    for _ in 0..TRIES {
        if withdraw(elder, &known) {
            return Moved::Done;
        }
        let Some(meta) = elder.entry(known.slot).map(|entry| entry.meta()).filter(|meta| meta.same(known.meta)) else {
            remove(new, &copy);
            return Moved::Done;
        };
        known.meta = meta;
        // Where it fails a packet has moved the new one on: that is the later word.
        set_state(new, &mut copy, meta.state(), now);
    }
    // Now it is in both; the next try ends that.
    Moved::Later
}

/// Removes an entry if it is in the very state that is known. False: it isn't.
fn withdraw<A: Addr, T: FlowTable<A>>(table: &T, hit: &Hit<A>) -> bool {
    let Some(entry) = table.entry(hit.slot) else {
        return false;
    };
    let taken = hit.meta.taken();
    let withdrawn = entry.become_if(hit.meta, taken);
    if withdrawn {
        free(table, hit.slot, entry, taken);
    }
    withdrawn
}
