//! Into the overlay and out of it, as global functions: the verifier walks each once, by itself, and not with each way
//! through the path.
//!
//! Invariant: nothing is decided here ([`lb_common::path::overlay`]). Behind a call the packet is another one.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use lb_common::path::overlay;
use lb_common::verdict::{Action, Hook, Outcome};

use crate::packet::{Skb, Xdp};
use crate::tables::{Kernel, now};

/// A packet whose headers can be taken off and put around.
pub trait Overlay {
    /// Why it is dropped; of a packet that passes, whether it came in the overlay (1).
    fn enter(&mut self, ifindex: u32) -> Outcome;
    fn leave(&mut self, next_hop: u32) -> Outcome;
}

/// An outcome in one register.
const fn packed(outcome: Outcome) -> u64 {
    (outcome.action as u64) << 32 | outcome.value as u64
}

/// Of those that come out of here.
#[inline(always)]
fn unpacked(packed: u64) -> Outcome {
    let action = match (packed >> 32) as u32 {
        PASS => Action::Pass,
        TRANSMIT => Action::Transmit,
        REFUSE => Action::Refuse,
        _ => Action::Drop,
    };
    Outcome { action, value: packed as u32 }
}

const PASS: u32 = Action::Pass as u32;
const TRANSMIT: u32 = Action::Transmit as u32;
const REFUSE: u32 = Action::Refuse as u32;

macro_rules! overlay {
    ($packet:ident, $context:ty, $hook:expr, $enter:ident, $leave:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $enter(context: *mut $context, ifindex: u32) -> u64 {
            packed(match overlay::enter(&mut $packet(context), ifindex, &Kernel) {
                Ok(tunneled) => Outcome { action: Action::Pass, value: tunneled },
                Err(reason) => Outcome::drop(reason),
            })
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $leave(context: *mut $context, next_hop: u32) -> u64 {
            packed(overlay::leave(&mut $packet(context), next_hop, $hook, now(), &Kernel))
        }

        impl Overlay for $packet {
            #[inline(always)]
            fn enter(&mut self, ifindex: u32) -> Outcome {
                unpacked($enter(self.0, ifindex))
            }

            #[inline(always)]
            fn leave(&mut self, next_hop: u32) -> Outcome {
                unpacked($leave(self.0, next_hop))
            }
        }
    };
}

overlay!(Xdp, xdp_md, Hook::Xdp, overlay_enter_xdp, overlay_leave_xdp);
overlay!(Skb, __sk_buff, Hook::Ingress, overlay_enter_skb, overlay_leave_skb);
