//! The engine on the host: the path over [`Fake`] and a packet in ordinary memory.

use lb_common::verdict::{Arrival, Hook, Verdict};
use lb_user::trace;
pub use lb_user::trace::buffer::{Buffer, Refuses};

use crate::fake::Fake;

/// Runs one packet, counting a drop as the hooks do. At egress of a pod's link it is judged, and no more: what goes on with
/// it there is another program.
pub fn run(fake: &Fake, arrival: &Arrival, bytes: Vec<u8>, refuses: Refuses) -> (Verdict, Vec<u8>) {
    let mut packet = Buffer::new(bytes, refuses);
    let dropped = |reason| fake.dropped(reason);
    let judged = fake.pods.contains_key(&arrival.ifindex);
    let verdict = match arrival.hook {
        Hook::Egress if judged => {
            trace::inward(fake, arrival, &mut packet, dropped).map_or(Verdict::Pass, Verdict::Drop)
        }
        _ => trace::whole(fake, arrival, judged, &mut packet, dropped).verdict(),
    };
    (verdict, packet.into_bytes())
}
