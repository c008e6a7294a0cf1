//! Aggregation on reception (GRO) at the pod's end of its interface: without it a veth takes no packets from XDP, and
//! those that XDP sends would go up the pod's stack one by one.

use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::source::netlink::message::{Connection, Message};

/// ETHTOOL_MSG_FEATURES_SET (Linux 5.10; without it the kernel's default stays, which is off at a veth).
const SET: u8 = 12;
const OMIT_REPLY: u32 = 2;

/// The number of ethtool's family: the kernel's, for as long as it runs.
static FAMILY: OnceLock<u16> = OnceLock::new();

/// Of an interface of the thread's network namespace.
pub fn aggregate(link: u32) -> Result<()> {
    let mut connection = Connection::open(libc::NETLINK_GENERIC)?;
    let known = FAMILY.get().copied();
    let family = if known.is_some() { known } else { connection.generic("ethtool").context("asking for ethtool")? };
    let Some(family) = family else { return Ok(()) };
    FAMILY.get_or_init(|| family);
    let bit = |message: Message| message.attr(2, b"rx-gro\0").attr(3, &[]);
    // ETHTOOL_A_FEATURES_HEADER: the link and that no answer is wanted; ETHTOOL_A_FEATURES_WANTED: a set of bits by names.
    let message = Message::new(family, 0, &[SET, 1, 0, 0])
        .nested(1, |header| header.attr(1, &link.to_ne_bytes()).attr(3, &OMIT_REPLY.to_ne_bytes()))
        .nested(3, |set| set.nested(3, |bits| bits.nested(1, bit)));
    connection.change(message).context("turning rx-gro on")
}
