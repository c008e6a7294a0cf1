//! A limit to what leaves by an interface: the kernel's token bucket (tc-tbf) as its root.
//!
//! Invariant: the pod's own end has the one of what it sends, which is held back there and not lost; the node's end has
//! the one of what goes to the pod. Packets that XDP sends would not meet it: the agent sends none to an interface that has
//! a root of its own ([`crate::source::netlink`]).

use std::io;

use crate::ipam::Rate;
use crate::source::netlink::message::{CREATE, Connection, Message, REPLACE};
use crate::source::netlink::write::{NEW_QDISC, traffic_control};

const ROOT: u32 = 0xffff_ffff;
const ETHERNET: u8 = 1;
/// Bytes. A bucket that holds less than the largest packet would never let it pass.
const LEAST_BURST: u64 = 65_550;
/// For how long a packet waits at the most, in milliseconds.
const PATIENCE: u64 = 25;

pub fn limit(connection: &mut Connection, link: u32, rate: Rate) -> io::Result<()> {
    let header = traffic_control(link, 0, ROOT, 0);
    let bytes = (rate.rate / 8).max(1);
    let burst = (rate.burst / 8).max(LEAST_BURST).min(u32::MAX.into());
    let queue = bytes.saturating_mul(PATIENCE) / 1_000 + burst;
    let whole = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes();
    // tc_tbf_qopt: the rate (a tc_ratespec) and the peak's, the queue's limit, and what is said apart.
    let mut parms = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parms.extend_from_slice(&whole(bytes));
    parms.extend_from_slice(&[0; 12]);
    parms.extend_from_slice(&whole(queue));
    parms.extend_from_slice(&[0; 8]);
    // TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST
    let options = |message: Message| message.attr(1, &parms).attr(4, &bytes.to_ne_bytes()).attr(6, &whole(burst));
    // TCA_KIND, TCA_OPTIONS
    let message = Message::new(NEW_QDISC, CREATE | REPLACE, &header).attr(1, b"tbf\0");
    connection.change(message.nest(2, options))
}
