//! A packet as two pointers, and the only home of packet `unsafe`.
//!
//! Invariant: every access is one masked offset and one compare against the packet's end, which the
//! verifier follows and miri accepts. Headers are read and written by value; nothing here keeps a
//! reference into the packet. What headers mean stands in `path/parse.rs`.
#![expect(unsafe_code, reason = "the one place where packet memory is touched")]

use core::marker::PhantomData;
use core::mem::size_of;

use zerocopy::{FromBytes, Immutable};

/// No header that we read starts behind this offset.
pub const MAX_OFFSET: u32 = 0x3ff;

/// The bytes of a packet, from the link-layer header on.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    start: *mut u8,
    end: *mut u8,
    bytes: PhantomData<&'a mut [u8]>,
}

impl<'a> Frame<'a> {
    /// A frame over a whole buffer.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        let range = bytes.as_mut_ptr_range();
        Frame { start: range.start, end: range.end, bytes: PhantomData }
    }

    /// A frame over `start..end`.
    ///
    /// # Safety
    /// The range is readable and writable, in one allocation, for `'a`, and not aliased by Rust references.
    #[inline(always)]
    pub unsafe fn from_range(start: *mut u8, end: *mut u8) -> Self {
        Frame { start, end, bytes: PhantomData }
    }

    #[expect(clippy::len_without_is_empty, reason = "a packet without a byte is not met")]
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // A subtraction narrowed to 32 bits would be arithmetic on pointers, which the verifier forbids.
        core::hint::black_box(self.end as usize - self.start as usize) as u32
    }

    /// Where a `T` at `offset` lies, if it lies in the packet.
    #[inline(always)]
    fn at<T>(&self, offset: u32) -> Option<*mut T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let start = self.start.wrapping_add(masked(offset));
        if start.wrapping_add(size_of::<T>()) > self.end {
            return None;
        }
        Some(start.cast())
    }

    /// The value at `offset`; None when the packet ends before.
    #[inline(always)]
    pub fn read<T: FromBytes + Copy>(&self, offset: u32) -> Option<T> {
        let at = self.at::<T>(offset)?;
        // SAFETY: `at` has checked that the whole value lies between start and end, which
        // `from_range`'s caller vouches for; any bits are a `T`.
        Some(unsafe { load(at) })
    }

    /// Writes `value` at `offset`; None when the packet ends before.
    #[inline(always)]
    pub fn write<T: FromBytes + Immutable + Copy>(&mut self, offset: u32, value: T) -> Option<()> {
        let at = self.at::<T>(offset)?;
        // SAFETY: as in `read`; the frame is the only one to touch the packet.
        unsafe { store(at, value) };
        Some(())
    }
}

impl Frame<'_> {
    /// Changes the value at `offset` in place; None when the packet ends before.
    #[inline(always)]
    pub fn change<T: FromBytes + Immutable + Copy>(&mut self, offset: u32, change: impl FnOnce(&mut T)) -> Option<()> {
        let at = self.at::<T>(offset)?;
        // SAFETY: as in `read` and `write`, at one place.
        unsafe {
            let mut value = load(at);
            change(&mut value);
            store(at, value);
        }
        Some(())
    }
}

/// An offset that was compared with [`MAX_OFFSET`], as the verifier wants to see it.
#[cfg(not(target_arch = "bpf"))]
fn masked(offset: u32) -> usize {
    (offset & MAX_OFFSET) as usize
}

/// The optimizer knows from the comparison that a mask changes nothing, and drops it; the verifier
/// has often lost that comparison by the time the offset is used.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn masked(offset: u32) -> usize {
    let mut offset = offset as u64;
    // SAFETY: one `and` on a register.
    unsafe {
        core::arch::asm!("{0} &= {1}", inout(reg) offset, const MAX_OFFSET, options(pure, nomem, nostack));
    }
    offset as usize
}

/// # Safety
/// `at` points to a readable `T`, of any alignment.
#[cfg(not(target_arch = "bpf"))]
unsafe fn load<T: Copy>(at: *const T) -> T {
    // SAFETY: the caller's duty is this function's.
    unsafe { at.read_unaligned() }
}

/// # Safety
/// `at` points to a writable `T`, of any alignment.
#[cfg(not(target_arch = "bpf"))]
unsafe fn store<T>(at: *mut T, value: T) {
    // SAFETY: the caller's duty is this function's.
    unsafe { at.write_unaligned(value) }
}

/// # Safety
/// `at` points to a readable `T`.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn load<T: Copy>(at: *const T) -> T {
    // SAFETY: readable by the caller's word. Alignment: the kernels' processors load unaligned
    // words from packets, and the verifier refuses the program where they don't; the unaligned
    // form would be taken apart into bytes (docs/decisions/0001-aligned-wire-types.md).
    unsafe { at.read() }
}

/// # Safety
/// `at` points to a writable `T`.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn store<T>(at: *mut T, value: T) {
    // SAFETY: as in `load`.
    unsafe { at.write(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_at_the_very_end_and_not_behind() {
        let mut bytes = [1u8, 2, 3, 4, 5];
        let mut frame = Frame::new(&mut bytes);
        assert_eq!(frame.len(), 5);
        assert_eq!(frame.read::<u32>(1), Some(u32::from_ne_bytes([2, 3, 4, 5])));
        assert_eq!(frame.read::<u32>(2), None);
        assert_eq!(frame.read::<u8>(5), None);
        assert_eq!(frame.read::<u8>(MAX_OFFSET + 1), None);
        assert_eq!(frame.read::<u8>(u32::MAX), None);
        assert_eq!(frame.write(3, 0xffffu16), Some(()));
        assert_eq!(frame.write(4, 0xffffu16), None);
        assert_eq!(bytes, [1, 2, 3, 0xff, 0xff]);
    }
}
