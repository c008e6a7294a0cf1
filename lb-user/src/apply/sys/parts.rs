//! Arrays that are made one by one, for an array of maps.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use aya::maps::MapType;

use super::{MMAPABLE, RawMap, bpf};

const CREATE: u32 = 0;

#[repr(C)]
struct NewMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

impl RawMap {
    /// A new array whose memory can be mapped.
    #[expect(unsafe_code, reason = "a descriptor from the kernel gets its owner")]
    pub fn new_array(value_size: usize, max_entries: u32) -> io::Result<RawMap> {
        let kind = MapType::Array;
        let mut attr =
            NewMap { kind: kind as u32, key_size: 4, value_size: value_size as u32, max_entries, flags: MMAPABLE };
        let fd = bpf(CREATE, &mut attr)?;
        // SAFETY: BPF_MAP_CREATE has just made this descriptor for us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(RawMap { fd, kind, key_size: 4, stride: value_size, max_entries, flags: MMAPABLE })
    }

    /// The descriptor's number, which is what an array of maps is given.
    pub fn number(&self) -> u32 {
        self.fd.as_raw_fd() as u32
    }
}
