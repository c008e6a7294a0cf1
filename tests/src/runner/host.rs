//! The engine on the host: the path over [`Fake`] and a packet in ordinary memory.

use lb_common::verdict::{Arrival, Verdict};
use lb_user::trace;
pub use lb_user::trace::buffer::{Buffer, Refuses};

use crate::fake::Fake;

/// Runs one packet, counting a drop as the hooks do.
pub fn run(fake: &Fake, arrival: &Arrival, bytes: Vec<u8>, refuses: Refuses) -> (Verdict, Vec<u8>) {
    let mut packet = Buffer::new(bytes, refuses);
    let verdict = trace::whole(fake, arrival, &mut packet, |reason| fake.dropped(reason)).verdict();
    (verdict, packet.into_bytes())
}
