//! Programs of a few instructions, written as such: they need no compiler and no object file.
//!
//! Invariant: a program jumps only forwards, and only to its one end, which says the code for "not done".
//! Not here: what is worth a compiler (`lb-ebpf/src/bin`).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

/// How much a load or a store moves.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Size {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// An instruction's operation on a register and a number, or (`| REG`) on two registers.
pub mod op {
    pub const ADD: u8 = 0x07;
    pub const MUL: u8 = 0x27;
    pub const AND: u8 = 0x57;
    pub const RSH: u8 = 0x77;
    pub const XOR: u8 = 0xa7;
    pub const MOV: u8 = 0xb7;
    /// To network order, of so many bits.
    pub const BE: u8 = 0xdc;
    pub const REG: u8 = 0x08;
    /// Jumps: equal, not equal, less or equal; greater than a register.
    pub const JEQ: u8 = 0x15;
    pub const JNE: u8 = 0x55;
    pub const JLE: u8 = 0xb5;
    pub const JGT: u8 = 0x2d;
}

/// A program in the making.
#[derive(Debug, Default)]
pub struct Code {
    instructions: Vec<[u8; 8]>,
    /// Jumps to the end.
    jumps: Vec<usize>,
}

impl Code {
    fn put(&mut self, code: u8, dst: u8, src: u8, offset: i16, number: i32) -> &mut Code {
        let ([a, b], [c, d, e, f]) = (offset.to_le_bytes(), number.to_le_bytes());
        self.instructions.push([code, src << 4 | dst, a, b, c, d, e, f]);
        self
    }

    /// `dst OP= number`
    pub fn number(&mut self, op: u8, dst: u8, number: i32) -> &mut Code {
        self.put(op, dst, 0, 0, number)
    }

    /// `dst OP= src`
    pub fn register(&mut self, op: u8, dst: u8, src: u8) -> &mut Code {
        self.put(op | op::REG, dst, src, 0, 0)
    }

    /// `dst = *(base + offset)`
    pub fn load(&mut self, size: Size, dst: u8, base: u8, offset: i16) -> &mut Code {
        self.put(0x61 | size as u8, dst, base, offset, 0)
    }

    /// `*(base + offset) = src`
    pub fn store(&mut self, size: Size, base: u8, offset: i16, src: u8) -> &mut Code {
        self.put(0x63 | size as u8, base, src, offset, 0)
    }

    /// `*(base + offset) = number`
    pub fn store_number(&mut self, size: Size, base: u8, offset: i16, number: i32) -> &mut Code {
        self.put(0x62 | size as u8, base, 0, offset, number)
    }

    /// `dst = *(from + at)`, `*(to + offset) = dst`, by register 1.
    pub fn copy(&mut self, size: Size, (to, offset): (u8, i16), (from, at): (u8, i16)) -> &mut Code {
        self.load(size, 1, from, at).store(size, to, offset, 1)
    }

    pub fn wide(&mut self, dst: u8, number: u64) -> &mut Code {
        self.put(0x18, dst, 0, 0, number as i32).put(0, 0, 0, 0, (number >> 32) as i32)
    }

    pub fn map(&mut self, dst: u8, map: BorrowedFd) -> &mut Code {
        self.put(0x18, dst, 1, 0, map.as_raw_fd()).put(0, 0, 0, 0, 0)
    }

    pub fn call(&mut self, helper: i32) -> &mut Code {
        self.put(0x85, 0, 0, 0, helper)
    }

    /// To the end, where `dst OP number`.
    pub fn leave(&mut self, op: u8, dst: u8, number: i32) -> &mut Code {
        self.jumps.push(self.instructions.len());
        self.put(op, dst, 0, 0, number)
    }

    /// To the end, where `dst > src`.
    pub fn leave_above(&mut self, dst: u8, src: u8) -> &mut Code {
        self.jumps.push(self.instructions.len());
        self.put(op::JGT, dst, src, 0, 0)
    }

    /// Returns what register 0 holds.
    pub fn exit(&mut self) -> &mut Code {
        self.put(0x95, 0, 0, 0, 0)
    }

    /// Loads it as an XDP program that returns `code` where it left for the end.
    pub fn load_xdp(&mut self, code: i32) -> Result<OwnedFd> {
        let end = self.instructions.len();
        for &jump in &self.jumps {
            let offset = (end - jump - 1) as i16;
            self.instructions[jump][2..4].copy_from_slice(&offset.to_le_bytes());
        }
        self.number(op::MOV, 0, code).exit();
        let mut log = vec![0u8; 1 << 16];
        let mut load = Load {
            program_type: PROG_TYPE_XDP,
            count: self.instructions.len() as u32,
            instructions: self.instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel: 0,
            flags: 0,
            name: [0; 16],
            interface: 0,
            attach_type: ATTACH_XDP,
        };
        if let Ok(program) = fd(PROG_LOAD, &mut load) {
            return Ok(program);
        }
        (load.log_level, load.log_size, load.log) = (1, log.len() as u32, log.as_mut_ptr() as u64);
        fd(PROG_LOAD, &mut load).with_context(|| String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned())
    }
}

/// Puts an XDP program on a link's driver; it hangs there as long as the descriptor is open.
pub fn attach_xdp(program: BorrowedFd, interface: u32) -> io::Result<OwnedFd> {
    let program = program.as_raw_fd() as u32;
    fd(LINK_CREATE, &mut Link { program, interface, attach_type: ATTACH_XDP, flags: DRIVER_MODE })
}

/// Takes the program of a pinned link off, and leaves the pin: as any other program could.
pub fn detach_pinned(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let link = fd(OBJECT_GET, &mut ObjectGet { path: path.as_ptr() as u64, fd: 0, flags: 0 })?;
    bpf(LINK_DETACH, &mut LinkDetach { link: link.as_raw_fd() as u32 }).map(drop)
}

/// Runs an XDP program so many times on a packet, which becomes what the last run made of it: what that returned.
pub fn test_run(program: BorrowedFd, packet: &mut [u8], repeat: u32) -> Result<u32> {
    let input = packet.to_vec();
    let mut run = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: input.len() as u32,
        size_out: packet.len() as u32,
        data_in: input.as_ptr() as u64,
        data_out: packet.as_mut_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut run).context("a test run")?;
    Ok(run.result)
}

/// A place for the program that another one calls by its tail.
#[derive(Debug)]
pub struct Target(OwnedFd);

impl Target {
    pub fn new() -> Result<Target> {
        let mut map = Map { kind: MAP_PROG_ARRAY, key: 4, value: 4, entries: 1 };
        Ok(Target(fd(MAP_CREATE, &mut map).context("an array of programs")?))
    }

    pub fn map(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub fn set(&self, program: BorrowedFd) -> Result<()> {
        let (key, value) = (0u32, program.as_raw_fd());
        let (map, key, value) = (self.0.as_raw_fd() as u32, (&raw const key) as u64, (&raw const value) as u64);
        bpf(MAP_UPDATE, &mut Update { map, pad: 0, key, value, flags: 0 }).context("the program under test")?;
        Ok(())
    }
}

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;
const OBJECT_GET: libc::c_int = 7;
const LINK_DETACH: libc::c_int = 34;
const MAP_PROG_ARRAY: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const DRIVER_MODE: u32 = 1 << 2;

/// The beginning of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
struct Map {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
}

/// The same for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct Update {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for BPF_PROG_LOAD.
#[repr(C)]
struct Load {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    /// Programs that call each other by their tails must agree on it (kernel 6.18).
    attach_type: u32,
}

/// The same for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
struct Link {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// The same for BPF_OBJ_GET.
#[repr(C)]
struct ObjectGet {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The same for BPF_LINK_DETACH.
#[repr(C)]
struct LinkDetach {
    link: u32,
}

fn fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    #[expect(unsafe_code, reason = "a descriptor from a system call has no owner yet")]
    // SAFETY: the commands that this is used for return a new descriptor, which nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    Ok(fd)
}

#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper for a program without an object file")]
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is the struct above for that command, which begins `union bpf_attr` as the kernel defines it;
    // it and what it points to live across the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
