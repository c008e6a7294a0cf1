//! A link's offloads, by the ioctl that ethtool(8) uses, so that the program need not be there.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

use super::Ns;

/// What can be switched. Numbers are of the kernel's `include/uapi/linux/ethtool.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Offload {
    /// Checksums on transmission (`tx`), and with them segmentation.
    TxChecksum = 0x17,
    /// Segmentation of TCP (`tso`).
    TcpSegmentation = 0x1f,
    /// Segmentation in software (`gso`).
    Segmentation = 0x24,
    /// Aggregation on reception (`gro`).
    Aggregation = 0x2c,
}

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut Value,
    /// The rest of the kernel's union.
    rest: [u8; 16],
}

/// Switches an offload of a link in a namespace.
pub fn set(ns: &Ns, link: &str, offload: Offload, on: bool) -> Result<()> {
    ns.run(|| set_here(link, offload, on))?.with_context(|| format!("{offload:?} of {link} in {}", ns.full_name()))
}

fn set_here(link: &str, offload: Offload, on: bool) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    let mut value = Value { command: offload as u32, data: on.into() };
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: &mut value, rest: [0; 16] };
    ensure!(link.len() < libc::IFNAMSIZ, "the name of the link is too long");
    request.name[..link.len()].copy_from_slice(link.as_bytes());
    #[expect(unsafe_code, reason = "SIOCETHTOOL has no safe wrapper")]
    // SAFETY: `request` has the layout of the kernel's `struct ifreq` (name, then a union of 24
    // bytes that begins with the pointer) and `value` that of `struct ethtool_value`; both live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) };
    nix::errno::Errno::result(result)?;
    Ok(())
}
