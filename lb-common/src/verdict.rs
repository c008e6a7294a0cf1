//! What becomes of a packet, for the hook to carry out.

use crate::drop::Drop;

/// Where a packet is met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// XDP on a port.
    Xdp,
    /// TC ingress of a port or an inside interface.
    Ingress,
    /// TC egress: what this node's own stack sends, or the kernel forwards.
    Egress,
}

/// What is known of a packet beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub hook: Hook,
    /// The link it came in on or, at egress, leaves by.
    pub ifindex: u32,
    /// The current tick.
    pub now: u32,
    /// Payload of each segment of a segmentation-offloaded packet; 0 = an ordinary one.
    pub gso_size: u32,
    /// Not zero: it carries a VLAN tag outside its bytes. A number as the kernel gives it: a `bool`
    /// made of it is a branch, and the verifier would walk the whole path once for each side.
    pub tagged: u8,
    /// Not zero: at egress, this node's own stack made it (nobody sent it to us). A number, as above.
    pub own: u8,
    /// Not zero: another node sent it here in the overlay. A number, as above.
    pub tunneled: u8,
}

/// The hook's part. The packet itself is already what it shall be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Verdict {
    /// Not ours: untouched, on its way.
    Pass,
    /// Translated; the kernel delivers or forwards it.
    Continue,
    /// Out by a link, link-layer addresses in place.
    Transmit {
        ifindex: u32,
    },
    /// The same, received at once by the link's other end, which is in another network namespace.
    TransmitPeer {
        ifindex: u32,
    },
    /// The same in the overlay, by the next hop of this index: what is left is to put the headers around it, or with
    /// [`crate::table::NextHop::TOO_LARGE`] to tell its sender ([`crate::path::overlay::leave`]).
    Encapsulate {
        next_hop: u32,
    },
    /// An answer of ours, back to where the packet came from: out by the link it came in on or, at
    /// egress, up to this node's own stack.
    Reply,
    /// The same, and the packet itself is counted as dropped.
    Refuse(Drop),
    /// From this node's own stack, to be received and routed again.
    Reinject,
    Drop(Drop),
}

/// A verdict as two whole words, which is how the stages hand it on and the hooks read it.
///
/// An enum's payload that isn't there is undefined: the compiler spills it all the same, and the
/// verifier refuses the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
#[must_use]
pub struct Outcome {
    pub action: Action,
    /// The link of [`Action::Transmit`] and [`Action::TransmitPeer`]; the next hop of [`Action::Encapsulate`]; the reason of [`Action::Refuse`] and [`Action::Drop`]; else 0.
    pub value: u32,
}

/// What there is of a [`Verdict`] without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Action {
    Pass,
    Continue,
    Transmit,
    Encapsulate,
    Reply,
    Refuse,
    Reinject,
    Drop,
    TransmitPeer,
}

impl Outcome {
    pub const PASS: Outcome = Outcome { action: Action::Pass, value: 0 };

    #[inline(always)]
    pub const fn drop(reason: Drop) -> Self {
        Outcome { action: Action::Drop, value: reason as u32 }
    }

    /// The verdict, for user space and tests.
    pub fn verdict(self) -> Verdict {
        let reason = || Drop::ALL[self.value as usize];
        match self.action {
            Action::Pass => Verdict::Pass,
            Action::Continue => Verdict::Continue,
            Action::Transmit => Verdict::Transmit { ifindex: self.value },
            Action::TransmitPeer => Verdict::TransmitPeer { ifindex: self.value },
            Action::Encapsulate => Verdict::Encapsulate { next_hop: self.value },
            Action::Reply => Verdict::Reply,
            Action::Refuse => Verdict::Refuse(reason()),
            Action::Reinject => Verdict::Reinject,
            Action::Drop => Verdict::Drop(reason()),
        }
    }
}

impl From<Result<Verdict, Drop>> for Outcome {
    #[inline(always)]
    fn from(result: Result<Verdict, Drop>) -> Self {
        let (action, value) = match result {
            Ok(Verdict::Pass) => (Action::Pass, 0),
            Ok(Verdict::Continue) => (Action::Continue, 0),
            Ok(Verdict::Transmit { ifindex }) => (Action::Transmit, ifindex),
            Ok(Verdict::TransmitPeer { ifindex }) => (Action::TransmitPeer, ifindex),
            Ok(Verdict::Encapsulate { next_hop }) => (Action::Encapsulate, next_hop),
            Ok(Verdict::Reply) => (Action::Reply, 0),
            Ok(Verdict::Refuse(reason)) => (Action::Refuse, reason as u32),
            Ok(Verdict::Reinject) => (Action::Reinject, 0),
            Ok(Verdict::Drop(reason)) | Err(reason) => (Action::Drop, reason as u32),
        };
        Outcome { action, value }
    }
}
