//! Packets for `stellwerk monitor`, as global functions: the verifier walks each once, by itself.
//!
//! Invariant: nothing is changed. While nobody watches a packet costs one look at one word.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use lb_common::apply::Packet;
use lb_common::drop::Note;
use lb_common::table::monitor::{SEEN, Sighting};
use lb_common::verdict::{Action, Arrival, Outcome};

use crate::maps;
use crate::packet::{Skb, Xdp};
use crate::tables::{count, now};

/// The reader looks by itself, so that nobody is woken for each packet.
const BPF_RB_NO_WAKEUP: u64 = 1;

/// A packet that can be shown.
pub trait Seen {
    fn show(&self, link: u32, what: u32, value: u32);
}

/// Shows the packet to whoever watches.
#[inline(always)]
pub fn see<P: Seen>(packet: &P, at: &Arrival, outcome: Outcome) {
    if maps::WATCH.get(0).is_some_and(|watch| watch.until != 0) && (is_lost(outcome.action as u32) || is_next()) {
        packet.show(at.ifindex, (at.hook as u32) << 16 | outcome.action as u32, outcome.value);
    }
}

#[inline(always)]
fn is_lost(action: u32) -> bool {
    const LOST: [u32; 2] = [Action::Drop as u32, Action::Refuse as u32];
    action == LOST[0] || action == LOST[1]
}

/// Whether it is this packet's turn among those that are not lost: without a call, since most are not.
#[inline(always)]
fn is_next() -> bool {
    let Some(left) = maps::WATCH_LEFT.get_ptr_mut(0) else { return false };
    // SAFETY: the map's value, of this CPU alone; a packet of another hook in between would miss its turn.
    unsafe {
        *left = (*left).wrapping_sub(1);
        *left as i32 <= 0
    }
}

/// Whether somebody still watches, and this packet.
#[inline(always)]
fn wanted(action: u32) -> bool {
    let Some(watch) = maps::WATCH.get(0) else { return false };
    let (until, every) = (watch.until, watch.every);
    if !is_lost(action) {
        let Some(left) = maps::WATCH_LEFT.get_ptr_mut(0) else { return false };
        // SAFETY: as above. Where none is wanted it is long until the next turn.
        unsafe { *left = if every == 0 { i32::MAX as u32 } else { every } }
        if every == 0 {
            return false;
        }
    }
    (until.wrapping_sub(now()) as i32) >= 0
}

#[inline(always)]
fn show<P: Packet>(packet: &P, link: u32, what: u32, value: u32) {
    let Some(sighting) = maps::SIGHTING.get_ptr_mut(0) else { return };
    // SAFETY: the map's value, of this CPU and this packet alone.
    let sighting = unsafe { &mut *sighting };
    let frame = packet.frame();
    (sighting.link, sighting.value, sighting.len) = (link, value, frame.len());
    (sighting.action, sighting.hook) = (what as u16, (what >> 16) as u16);
    sighting.kept = 0;
    for at in 0..SEEN {
        let Some(pair) = frame.read::<u16>(at as u32 * 2) else { break };
        sighting.bytes.as_flattened_mut()[at] = pair;
        sighting.kept = at as u32 * 2 + 2;
    }
    if maps::SIGHTINGS.output::<Sighting>(&*sighting, BPF_RB_NO_WAKEUP).is_err() {
        count(&maps::NOTES, Note::MonitorLost as u32);
    }
}

macro_rules! seen {
    ($packet:ident, $context:ty, $show:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $show(context: *mut $context, link: u32, what: u32, value: u32) -> u32 {
            let wanted = wanted(what & 0xffff);
            if wanted {
                show(&$packet(context), link, what, value);
            }
            wanted as u32
        }

        impl Seen for $packet {
            #[inline(always)]
            fn show(&self, link: u32, what: u32, value: u32) {
                $show(self.0, link, what, value);
            }
        }
    };
}

seen!(Xdp, xdp_md, monitor_xdp);
seen!(Skb, __sk_buff, monitor_skb);
