//! Packets for `stellwerk monitor`, as global functions: the verifier walks each once, by itself.
//!
//! Invariant: nothing is changed. While nobody watches a packet costs one look at one word.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
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
    if maps::WATCH.get(0).is_some_and(|watch| watch.until != 0) {
        packet.show(at.ifindex, (at.hook as u32) << 16 | outcome.action as u32, outcome.value);
    }
}

/// Whether somebody still watches, and this packet.
#[inline(always)]
fn wanted(action: u32) -> bool {
    let Some(watch) = maps::WATCH.get(0) else { return false };
    if (watch.until.wrapping_sub(now()) as i32) < 0 {
        return false;
    }
    const LOST: [u32; 2] = [Action::Drop as u32, Action::Refuse as u32];
    // SAFETY: the helper takes nothing and changes nothing.
    action == LOST[0] || action == LOST[1] || (watch.every != 0 && unsafe { bpf_get_prandom_u32() } % watch.every == 0)
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
