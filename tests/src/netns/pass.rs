//! An XDP program that passes everything, for the other end of a veth.
//!
//! What an XDP program sends back on a veth arrives only if the other end has an XDP program, too
//! (`veth_xdp_flush` asks for one; aggregation's receive queue alone does not do). Two
//! instructions need no compiler and no object file.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use super::Ns;

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const DRIVER_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`
const PROGRAM: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct Load {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
struct Link {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches it to a link; it hangs there as long as the descriptor is open.
pub fn attach(ns: &Ns, link: &str) -> Result<OwnedFd> {
    let text = ns.ip_text(&format!("-o link show dev {link}"))?;
    let interface = text.split(':').next().and_then(|n| n.trim().parse().ok()).context("no index")?;
    ns.run(|| {
        let load = Load {
            program_type: PROG_TYPE_XDP,
            count: PROGRAM.len() as u32,
            instructions: PROGRAM.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
        };
        let program = bpf(PROG_LOAD, &load).context("loading the passing program")?;
        let flags = DRIVER_MODE;
        let link = Link { program: program.as_raw_fd() as u32, interface, attach_type: ATTACH_XDP, flags };
        bpf(LINK_CREATE, &link).context("attaching the passing program")
    })?
}

#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper for a program without an object file")]
fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is one of the two structs above, which begin `union bpf_attr` as the kernel
    // defines it for that command; it and the static memory it points to live across the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
