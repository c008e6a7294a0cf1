//! Pinned links: detached, another program in the old one's place, and what the kernel says of those of control groups.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::{INFO, InfoRequest, OBJECT_GET, ObjectRequest, addr_mut, bpf};

const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// What the kernel says of a link: its program and its control group, by their numbers; group 0: it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLink {
    pub program: u32,
    pub group: u64,
}

/// Takes a pinned link's program away, at once: without its pin it would go a little later.
pub fn detach(path: &Path) -> io::Result<()> {
    let link = open(path)?;
    bpf(LINK_DETACH, &mut Detach { link: link.as_raw_fd() as u32 }).map(drop)
}

#[repr(C)]
struct Detach {
    link: u32,
}

#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

/// A pinned object's descriptor.
#[expect(unsafe_code, reason = "a descriptor from the kernel gets its owner")]
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut request = ObjectRequest { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(OBJECT_GET, &mut request)?;
    // SAFETY: BPF_OBJ_GET has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The first bytes of `struct bpf_link_info`: type, id, prog_id, padding to 8, then what the type says.
pub(super) fn info(path: &Path) -> io::Result<[u8; 64]> {
    let fd = open(path)?;
    let mut info = [0u8; 64];
    let mut attr = InfoRequest { fd: fd.as_raw_fd() as u32, len: 64, info: addr_mut(&mut info) };
    bpf(INFO, &mut attr)?;
    Ok(info)
}

/// The facts of a pinned link of a control group; None: there is no such pin.
pub fn group_link(path: &Path) -> io::Result<Option<GroupLink>> {
    let info = match info(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        info => info?,
    };
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let [low, high] = [word(16), word(20)].map(u64::from);
    // cgroup_id, in memory order.
    let group = if cfg!(target_endian = "little") { low | high << 32 } else { low << 32 | high };
    Ok(Some(GroupLink { program: word(8), group }))
}

/// Puts a program in the place of a pinned link's, in one step.
pub fn update(path: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = open(path)?;
    let (link, program) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    bpf(LINK_UPDATE, &mut Update { link, program, flags: 0, old: 0 }).map(drop)
}
