//! bpf(2) on one map, and its memory: what aya has no call for (batches, mmap).
//!
//! Invariant: every function here is safe to call. A [`RawMap`] knows the kernel's sizes of its keys
//! and values and refuses buffers of another length, so that the kernel never reads or writes past
//! one. What the bytes mean is [`super::maps`]'s.

pub mod links;
mod parts;

use std::fmt;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr;
use std::slice;
use std::sync::atomic::AtomicU32;

use anyhow::{Context, Result, ensure};
use aya::maps::{MapData, MapInfo, MapType};
use lb_common::table::Plain;
use rustix::process::{Resource, Rlimit, setrlimit};

const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const DELETE: u32 = 3;
const NEXT_KEY: u32 = 4;
const OBJECT_GET: u32 = 7;
const INFO: u32 = 15;
const LOOKUP_BATCH: u32 = 24;
const UPDATE_BATCH: u32 = 26;
const DELETE_BATCH: u32 = 27;

/// An update's flag: only what isn't there.
const NOEXIST: u64 = 1;

/// What the kernel says of maps without batches; no errno of user space.
pub const ENOTSUPP: i32 = 524;
/// How a map is made so that user space can map its memory.
pub const MMAPABLE: u32 = 1 << 10;

/// The bytes of plain values.
#[expect(unsafe_code, reason = "Plain is the proof that all of them are initialized")]
pub fn bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` has no padding, so every byte is initialized; the length is the slice's own.
    unsafe { slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// A pinned or loaded map with its sizes.
#[derive(Debug)]
pub struct RawMap {
    fd: OwnedFd,
    kind: MapType,
    key_size: usize,
    /// Bytes of a value as bpf(2) hands it over: for per-CPU maps, one slice per possible CPU.
    stride: usize,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a batched walk through a map stands: a bucket number for hashes, an index for arrays.
#[derive(Clone, Debug, Default)]
pub struct Cursor(Option<Vec<u8>>);

/// A batch of a walk: how many entries came, and whether it is over.
pub struct Batched {
    pub count: usize,
    pub end: bool,
}

/// bpf(2) with an attribute of `T`.
#[expect(unsafe_code, reason = "the system call that this file is about")]
fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live, whole struct of one of bpf(2)'s layouts, and the addresses in it are
    // those of buffers that the private callers below borrow across this call and have checked.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<T>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc as i32) }
}

fn addr(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn addr_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}

impl RawMap {
    pub fn from_pin(path: &Path) -> Result<Self> {
        let map = MapData::from_pin(path).with_context(|| format!("the pinned map {}", path.display()))?;
        Self::new(&map)
    }

    pub fn new(map: &MapData) -> Result<Self> {
        let info: MapInfo = map.info()?;
        let kind = info.map_type()?;
        let value = info.value_size() as usize;
        let stride = match kind {
            MapType::PerCpuArray | MapType::PerCpuHash => value.next_multiple_of(8) * possible_cpus()?,
            // Batches of plain arrays and hashes hand values over rounded up to 8 bytes only inside
            // the kernel; bpf(2) itself takes the declared size.
            _ => value,
        };
        Ok(RawMap {
            fd: map.fd().as_fd().try_clone_to_owned()?,
            kind,
            key_size: info.key_size() as usize,
            stride,
            max_entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }

    pub fn key_size(&self) -> usize {
        self.key_size
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    pub fn is_array(&self) -> bool {
        matches!(self.kind, MapType::Array | MapType::PerCpuArray)
    }

    pub fn kind(&self) -> MapType {
        self.kind
    }

    /// Slices of a value: one for each CPU, where each has its own.
    pub fn slices(&self) -> Result<usize> {
        match self.kind {
            MapType::PerCpuArray | MapType::PerCpuHash => possible_cpus(),
            _ => Ok(1),
        }
    }

    pub fn is_trie(&self) -> bool {
        matches!(self.kind, MapType::LpmTrie)
    }

    fn element(&self, key: &[u8], value: u64) -> Element {
        assert_eq!(key.len(), self.key_size, "a key of another map");
        Element { map_fd: self.fd.as_raw_fd() as u32, pad: 0, key: addr(key), value, flags: 0 }
    }

    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert_eq!(value.len(), self.stride, "a value of another map");
        let mut attr = self.element(key, addr_mut(value));
        absent(bpf(LOOKUP, &mut attr))
    }

    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!(value.len(), self.stride, "a value of another map");
        bpf(UPDATE, &mut self.element(key, addr(value))).map(drop)
    }

    /// Writes what isn't there; whether it wasn't.
    pub fn add(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        assert_eq!(value.len(), self.stride, "a value of another map");
        let mut attr = Element { flags: NOEXIST, ..self.element(key, addr(value)) };
        match bpf(UPDATE, &mut attr) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether it was there.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        absent(bpf(DELETE, &mut self.element(key, 0)))
    }

    /// The key behind `key`; the first without one.
    pub fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        assert_eq!(next.len(), self.key_size, "a key of another map");
        let mut attr = Element {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: key.map_or(0, |key| {
                assert_eq!(key.len(), self.key_size, "a key of another map");
                addr(key)
            }),
            value: addr_mut(next),
            flags: 0,
        };
        absent(bpf(NEXT_KEY, &mut attr))
    }

    fn batch(&self, count: usize, keys: u64, values: u64) -> Batch {
        Batch {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count: count as u32,
            map_fd: self.fd.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        }
    }

    /// Writes many entries by one call; how many were written before an error.
    pub fn update_batch(&self, keys: &[u8], values: &[u8]) -> Result<(), (usize, io::Error)> {
        let count = keys.len() / self.key_size;
        assert!(keys.len() == count * self.key_size && values.len() == count * self.stride, "not this map's");
        let mut attr = self.batch(count, addr(keys), addr(values));
        bpf(UPDATE_BATCH, &mut attr).map(drop).map_err(|error| (done(&attr, count, &error), error))
    }

    /// Removes many entries by one call; stops at the first that isn't there.
    pub fn delete_batch(&self, keys: &[u8]) -> Result<(), (usize, io::Error)> {
        let count = keys.len() / self.key_size;
        assert_eq!(keys.len(), count * self.key_size, "not this map's");
        let mut attr = self.batch(count, addr(keys), 0);
        bpf(DELETE_BATCH, &mut attr).map(drop).map_err(|error| (done(&attr, count, &error), error))
    }

    /// Reads the next entries of a walk. ENOSPC: a bucket holds more than the buffers.
    pub fn lookup_batch(&self, cursor: &mut Cursor, keys: &mut [u8], values: &mut [u8]) -> io::Result<Batched> {
        let count = keys.len() / self.key_size;
        assert!(keys.len() == count * self.key_size && values.len() == count * self.stride, "not this map's");
        // A hash's cursor is 4 bytes, an LPM trie's or an array's as long as its key.
        let mut out = vec![0u8; self.key_size.max(4)];
        let mut attr = self.batch(count, addr_mut(keys), addr_mut(values));
        attr.in_batch = cursor.0.as_deref().map_or(0, addr);
        attr.out_batch = addr_mut(&mut out);
        let end = match bpf(LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = (attr.count as usize).min(count);
        cursor.0 = (!end).then_some(out);
        Ok(Batched { count, end })
    }

    /// The map's memory, shared with the kernel, as values of `T`. None: it wasn't made for it.
    pub fn mapping<T: Shared>(&self) -> Result<Option<Mapping<T>>> {
        if self.flags & MMAPABLE == 0 {
            return Ok(None);
        }
        // An array's elements are rounded up to 8 bytes.
        let fits = self.stride.is_multiple_of(8) && self.stride.is_multiple_of(size_of::<T>());
        ensure!(self.kind == MapType::Array && fits, "only whole arrays can be mapped");
        Mapping::map(&self.fd, self.max_entries as usize * self.stride).map(Some)
    }
}

/// How many entries of a failed batch were done. The kernel leaves `count` untouched when it did not
/// even begin (an unknown command, a map without batches).
fn done(attr: &Batch, count: usize, error: &io::Error) -> usize {
    match error.raw_os_error() {
        Some(libc::EINVAL | ENOTSUPP | libc::EFAULT) if attr.count as usize == count => 0,
        _ => (attr.count as usize).min(count),
    }
}

fn absent(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// CPUs that per-CPU values have a slice for.
pub fn possible_cpus() -> Result<usize> {
    aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))
}

/// What the memory of a map may be taken for.
///
/// # Safety
/// Any bits are a value, and all access through a reference is by atomics, so that the kernel's
/// programs may read and write the same memory at the same time.
#[expect(unsafe_code, reason = "the mapping rests on this proof")]
pub unsafe trait Shared: Sync {}

#[expect(unsafe_code, reason = "structs of atomics alone")]
mod shared {
    use lb_common::fib::Line;
    use lb_common::flow_table::Entry;
    use lb_common::flow_table::cell::Cell64;
    use lb_common::port_table::{Holder, Owner};
    use lb_common::wire::Addr;

    // SAFETY: an atomic.
    unsafe impl super::Shared for super::AtomicU32 {}
    // SAFETY: cells of `lb_common::flow_table`, which are atomics.
    unsafe impl<A: Addr> super::Shared for Entry<A> {}
    // SAFETY: as above.
    unsafe impl super::Shared for Cell64 {}
    // SAFETY: as above.
    unsafe impl super::Shared for Line {}
    // SAFETY: as above.
    unsafe impl<A: Addr> super::Shared for Owner<A> {}
    // SAFETY: as above.
    unsafe impl<A: Addr> super::Shared for Holder<A> {}
}

/// The memory of an array map.
pub struct Mapping<T> {
    start: ptr::NonNull<T>,
    bytes: usize,
}

#[expect(unsafe_code, reason = "a mapping belongs to no thread")]
// SAFETY: the memory is reached through atomics alone, and unmapping works from any thread.
unsafe impl<T: Shared> Send for Mapping<T> {}
#[expect(unsafe_code, reason = "a mapping belongs to no thread")]
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapping<T> {}

impl<T: Shared> Mapping<T> {
    #[expect(unsafe_code, reason = "aya has no mmap")]
    fn map(fd: &OwnedFd, bytes: usize) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mapping an array");
        }
        let start = ptr::NonNull::new(start.cast()).context("the kernel mapped address 0")?;
        Ok(Mapping { start, bytes })
    }

    #[expect(unsafe_code, reason = "aya has no mmap")]
    pub fn get(&self) -> &[T] {
        // SAFETY: `map` mapped `bytes` bytes, page-aligned and zeroed or written before, for as long as
        // self lives; any bits are a `T`, whose atomics allow that the kernel writes at the same time.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes / size_of::<T>()) }
    }
}

impl<T> fmt::Debug for Mapping<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:p}", self.bytes, self.start)
    }
}

impl<T> Drop for Mapping<T> {
    #[expect(unsafe_code, reason = "aya has no mmap")]
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping, and no slice of it outlives self.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A link's name in the process's network namespace. /sys/class/net would tell those of the
/// namespace that /sys was mounted in.
#[expect(unsafe_code, reason = "if_indextoname has no safe form in libc")]
pub fn interface_name(link: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call asks for, and lives across it.
    let found = unsafe { libc::if_indextoname(link, name.as_mut_ptr()) };
    let bytes: Vec<u8> = name.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    (!found.is_null()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// What the kernel says of a link: the program and the interface; index 0: the interface is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    pub program: u32,
    pub ifindex: u32,
}

#[repr(C)]
struct InfoRequest {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
struct ObjectRequest {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The facts of a pinned XDP or tcx link: in both, `struct bpf_link_info`'s union starts with the
/// index. aya keeps a link's descriptor to itself, so that it is opened anew here.
pub fn link_facts(path: &Path) -> io::Result<LinkFacts> {
    let info = links::info(path)?;
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    Ok(LinkFacts { program: word(8), ifindex: word(16) })
}

/// The number that programs know our network namespace by.
#[expect(unsafe_code, reason = "no safe form of this option")]
pub fn namespace_cookie() -> io::Result<u64> {
    /// include/uapi/asm-generic/socket.h; kernels from 5.14 have it.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let (mut cookie, mut size) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the value and its size are those of `cookie`, and live across the call.
    let rc = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut size)
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Kernels before 5.11 count maps as locked memory of the process.
pub fn raise_memlock() {
    // A refusal shows later, as a map that can't be made.
    _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

/// Has what is freed go back to the kernel. glibc gives each thread a heap of its own and keeps the room that a start or
/// a large plan took: with 1,000 services 133 MB of which 34 are in use. The agent's threads seldom allocate at once.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "mallopt has no safe form in libc")]
pub fn keep_no_heaps() {
    // SAFETY: the call changes numbers of the allocator, by whole numbers that malloc's manual has.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// Other allocators have no such heaps.
#[cfg(not(target_env = "gnu"))]
pub fn keep_no_heaps() {}
