//! Words of memory that several CPUs, and user space, read and write at once.
//!
//! Invariant: every access is one whole word (or one byte of [`Lanes`]), so that nothing is ever read
//! half. What order is promised beyond that: a [`Cell32::swap_if`] is a full barrier, as the kernel's
//! own compare-and-exchange is, and [`acquire`] keeps the loads before it before those behind it. On
//! the host these are the atomics of `core`.

#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

pub use imp::{Cell32, Cell64, Lanes, acquire, pick, word};

#[cfg(not(target_arch = "bpf"))]
mod imp {
    use super::*;
    #[cfg(test)]
    use crate::flow_table::model::{Step, step};

    /// What a test's model of memory gives instead, where one runs.
    macro_rules! modelled {
        ($cell:expr, $step:expr, $given:expr) => {
            #[cfg(test)]
            if let Some(value) = step(core::ptr::from_ref($cell).addr(), $cell.0.load(Ordering::Relaxed).into(), $step)
            {
                return $given(value);
            }
        };
    }

    /// A 32-bit word.
    #[repr(transparent)]
    #[derive(Debug, Default)]
    pub struct Cell32(AtomicU32);

    /// A 64-bit word.
    #[repr(transparent)]
    #[derive(Debug, Default)]
    pub struct Cell64(AtomicU64);

    /// Eight bytes, each written by itself and all read at once.
    #[repr(transparent)]
    #[derive(Debug, Default)]
    pub struct Lanes(AtomicU64);

    /// Loads before it happen before loads behind it.
    pub fn acquire() {
        #[cfg(test)]
        if step(0, 0, Step::Acquire).is_some() {
            return;
        }
        fence(Ordering::Acquire);
    }

    impl Cell32 {
        pub fn load(&self) -> u32 {
            modelled!(self, Step::Load { acquire: true }, |value| value as u32);
            self.0.load(Ordering::Acquire)
        }

        pub fn store(&self, value: u32) {
            modelled!(self, Step::Store(value.into()), |_| ());
            self.0.store(value, Ordering::Relaxed);
        }

        /// Writes `new` where `old` stands; false where something else does. A full barrier.
        pub fn swap_if(&self, old: u32, new: u32) -> bool {
            modelled!(self, Step::Swap { old: old.into(), new: new.into(), fenced: true }, |done| done != 0);
            fence(Ordering::SeqCst);
            let done = self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            fence(Ordering::SeqCst);
            done
        }

        /// Adds; wraps.
        pub fn add(&self, value: u32) {
            self.0.fetch_add(value, Ordering::Relaxed);
        }
    }

    impl Cell64 {
        pub fn load(&self) -> u64 {
            modelled!(self, Step::Load { acquire: false }, |value| value);
            self.0.load(Ordering::Relaxed)
        }

        pub fn store(&self, value: u64) {
            modelled!(self, Step::Store(value), |_| ());
            self.0.store(value, Ordering::Relaxed);
        }

        /// Writes `new` where `old` stands; false where something else does.
        pub fn swap_if(&self, old: u64, new: u64) -> bool {
            modelled!(self, Step::Swap { old, new, fenced: false }, |done| done != 0);
            self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        }
    }

    impl Lanes {
        pub fn load(&self) -> u64 {
            modelled!(self, Step::Bytes, |value| value);
            self.0.load(Ordering::Relaxed)
        }

        /// Writes one lane. Nobody else writes the same one.
        pub fn set(&self, lane: u32, value: u8) {
            modelled!(self, Step::Byte { lane: lane % 8, value }, |_| ());
            let shift = lane % 8 * 8;
            // Two steps: the lane is empty in between, which promises nothing to anyone.
            self.0.fetch_and(!(0xff << shift), Ordering::Relaxed);
            self.0.fetch_or((value as u64) << shift, Ordering::Relaxed);
        }

        /// Sets all bits of a lane, which several may do at once.
        pub fn mark(&self, lane: u32) {
            modelled!(self, Step::Byte { lane: lane % 8, value: 0xff }, |_| ());
            self.0.fetch_or(0xff << (lane % 8 * 8), Ordering::Relaxed);
        }
    }

    /// One of four words.
    pub fn pick(lanes: &[Lanes; 4], index: u32) -> &Lanes {
        &lanes[index as usize % 4]
    }

    /// One of eight words.
    pub fn word(line: &[Cell64; 8], index: u32) -> &Cell64 {
        &line[index as usize % 8]
    }
}

#[cfg(target_arch = "bpf")]
#[expect(unsafe_code, reason = "the kernel's shared memory, word by word")]
mod imp {
    use core::arch::asm;
    use core::cell::UnsafeCell;

    /// A 32-bit word.
    #[repr(transparent)]
    #[derive(Default)]
    pub struct Cell32(UnsafeCell<u32>);

    /// A 64-bit word.
    #[repr(transparent)]
    #[derive(Default)]
    pub struct Cell64(UnsafeCell<u64>);

    /// Eight bytes, each written by itself and all read at once.
    #[repr(transparent)]
    #[derive(Default)]
    pub struct Lanes(UnsafeCell<u64>);

    // SAFETY: every access below is a single instruction on a whole word or byte.
    unsafe impl Sync for Cell32 {}
    // SAFETY: as above.
    unsafe impl Sync for Cell64 {}
    // SAFETY: as above.
    unsafe impl Sync for Lanes {}

    /// x86 keeps loads in their order; the compiler is told by the volatile accesses.
    #[inline(always)]
    pub fn acquire() {}

    impl Cell32 {
        #[inline(always)]
        pub fn load(&self) -> u32 {
            // SAFETY: the cell's own memory, readable as long as the reference lives.
            unsafe { self.0.get().read_volatile() }
        }

        #[inline(always)]
        pub fn store(&self, value: u32) {
            // SAFETY: as in `load`, and writable: a map's value.
            unsafe { self.0.get().write_volatile(value) }
        }

        /// Writes `new` where `old` stands; false where something else does. A full barrier.
        #[inline(always)]
        pub fn swap_if(&self, old: u32, new: u32) -> bool {
            let mut seen = old as u64;
            // SAFETY: BPF_ATOMIC|BPF_CMPXCHG (kernel 5.12) on the cell's own memory. The target's
            // core library has no compare-and-exchange.
            unsafe {
                asm!(
                    "w0 = cmpxchg32_32(r1 + 0, w0, w2)",
                    inout("r0") seen,
                    in("r1") self.0.get(),
                    in("r2") new as u64,
                    options(nostack),
                );
            }
            seen as u32 == old
        }

        /// Adds; wraps.
        #[inline(always)]
        pub fn add(&self, value: u32) {
            // SAFETY: BPF_ATOMIC|BPF_ADD on the cell's own memory.
            unsafe {
                asm!(
                    "lock *(u32 *)(r1 + 0) += w2",
                    in("r1") self.0.get(),
                    in("r2") value as u64,
                    options(nostack),
                );
            }
        }
    }

    impl Cell64 {
        #[inline(always)]
        pub fn load(&self) -> u64 {
            // SAFETY: as for `Cell32`.
            unsafe { self.0.get().read_volatile() }
        }

        #[inline(always)]
        pub fn store(&self, value: u64) {
            // SAFETY: as for `Cell32`.
            unsafe { self.0.get().write_volatile(value) }
        }

        /// Writes `new` where `old` stands; false where something else does.
        #[inline(always)]
        pub fn swap_if(&self, old: u64, new: u64) -> bool {
            let mut seen = old;
            // SAFETY: as for `Cell32`.
            unsafe {
                asm!(
                    "r0 = cmpxchg_64(r1 + 0, r0, r2)",
                    inout("r0") seen,
                    in("r1") self.0.get(),
                    in("r2") new,
                    options(nostack),
                );
            }
            seen == old
        }
    }

    impl Lanes {
        #[inline(always)]
        pub fn load(&self) -> u64 {
            // SAFETY: as for `Cell32`.
            unsafe { self.0.get().read_volatile() }
        }

        /// Writes one lane. Nobody else writes the same one.
        #[inline(always)]
        pub fn set(&self, lane: u32, value: u8) {
            let mut lane = lane as u64;
            // SAFETY: one `and` on a register (the optimizer would drop it, the verifier needs it),
            // and one byte of the cell's eight.
            unsafe {
                asm!("{0} &= 7", inout(reg) lane, options(pure, nomem, nostack));
                self.0.get().cast::<u8>().add(lane as usize).write_volatile(value);
            }
        }

        /// Sets all bits of a lane, which several may do at once.
        #[inline(always)]
        pub fn mark(&self, lane: u32) {
            self.set(lane, 0xff);
        }
    }

    /// One of four words.
    #[inline(always)]
    pub fn pick(lanes: &[Lanes; 4], index: u32) -> &Lanes {
        let mut index = index as u64;
        // SAFETY: as in `set`: the masked index is one of the array's.
        unsafe {
            asm!("{0} &= 3", inout(reg) index, options(pure, nomem, nostack));
            &*lanes.as_ptr().add(index as usize)
        }
    }

    /// One of eight words.
    #[inline(always)]
    pub fn word(line: &[Cell64; 8], index: u32) -> &Cell64 {
        let mut index = index as u64;
        // SAFETY: as in `pick`.
        unsafe {
            asm!("{0} &= 7", inout(reg) index, options(pure, nomem, nostack));
            &*line.as_ptr().add(index as usize)
        }
    }
}

/// A row of words, read and written one by one.
pub trait Cells {
    type Words: Copy + AsRef<[u64]>;

    fn load(&self) -> Self::Words;
    fn store(&self, words: Self::Words);
    /// Whether these words stand here.
    fn holds(&self, words: &Self::Words) -> bool;
}

impl<const N: usize> Cells for [Cell64; N] {
    type Words = [u64; N];

    #[inline(always)]
    fn load(&self) -> [u64; N] {
        let mut words = [0; N];
        for i in 0..N {
            words[i] = self[i].load();
        }
        words
    }

    #[inline(always)]
    fn store(&self, words: [u64; N]) {
        for i in 0..N {
            self[i].store(words[i]);
        }
    }

    #[inline(always)]
    fn holds(&self, words: &[u64; N]) -> bool {
        let mut differs = 0;
        for i in 0..N {
            differs |= self[i].load() ^ words[i];
        }
        differs == 0
    }
}
