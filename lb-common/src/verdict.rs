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
    /// It carries a VLAN tag outside its bytes.
    pub tagged: bool,
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
    Transmit { ifindex: u32 },
    /// An answer of ours, back to where the packet came from: out by the link it came in on or, at
    /// egress, up to this node's own stack.
    Reply,
    /// The same, and the packet itself is counted as dropped.
    Refuse(Drop),
    /// From this node's own stack, to be received and routed again.
    Reinject,
    Drop(Drop),
}
