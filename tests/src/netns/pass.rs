//! An XDP program that passes everything, for the other end of a veth.
//!
//! What an XDP program sends back on a veth arrives only if the other end has an XDP program, too
//! (`veth_xdp_flush` asks for one; aggregation's receive queue alone does not do).

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};

use super::Ns;
use crate::bpf::{self, Code};

const XDP_PASS: i32 = 2;

/// Attaches it to a link; it hangs there as long as the descriptor is open.
pub fn attach(ns: &Ns, link: &str) -> Result<OwnedFd> {
    let text = ns.ip_text(&format!("-o link show dev {link}"))?;
    let interface = text.split(':').next().and_then(|n| n.trim().parse().ok()).context("no index")?;
    ns.run(|| {
        let program = Code::default().load_xdp(XDP_PASS).context("loading the passing program")?;
        bpf::attach_xdp(program.as_fd(), interface).context("attaching the passing program")
    })?
}
