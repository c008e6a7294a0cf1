//! A packet in ordinary memory, as the engine reads and changes it outside of the kernel.

use lb_common::apply::{Diff, Packet};
use lb_common::drop::Drop;
use lb_common::frame::Frame;
use lb_common::table::FlowKey;
use lb_common::wire::{Addr, Be16};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A packet in memory of its own, which can grow.
///
/// Between its making and [`Buffer::into_bytes`] only [`Frame`]s touch the bytes.
pub struct Buffer {
    bytes: Vec<u8>,
    /// `bytes`' own start, taken by a mutable borrow after every change of its length.
    start: *mut u8,
    refuses: Refuses,
}

/// What a kernel may refuse, and this one can be told to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Refuses {
    #[default]
    Nothing,
    Writing,
    Resizing,
}

impl Buffer {
    pub fn new(mut bytes: Vec<u8>, refuses: Refuses) -> Self {
        let start = bytes.as_mut_ptr();
        Buffer { bytes, start, refuses }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn writable(&self) -> Result<(), Drop> {
        if self.refuses == Refuses::Writing { Err(Drop::RewriteFailed) } else { Ok(()) }
    }
}

impl Packet for Buffer {
    #[expect(unsafe_code, reason = "a frame is a view from behind a shared reference, as in the kernel")]
    fn frame(&self) -> Frame<'_> {
        // SAFETY: the vector's bytes are in one allocation that lives as long as `self` is
        // borrowed, and no reference into them exists: this type hands out none.
        unsafe { Frame::from_range(self.start, self.start.wrapping_add(self.bytes.len())) }
    }

    fn store<T: FromBytes + IntoBytes + Immutable + Copy>(&mut self, offset: u32, value: T) -> Result<(), Drop> {
        self.writable()?;
        self.frame().store(offset, value)
    }

    fn update<T: FromBytes + IntoBytes + Immutable + Copy>(
        &mut self,
        offset: u32,
        change: impl FnOnce(&mut T),
    ) -> Result<(), Drop> {
        self.writable()?;
        self.frame().update(offset, change)
    }

    fn transport(&mut self, offset: u32, ports: [Be16; 2], pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop> {
        self.writable()?;
        self.frame().transport(offset, ports, pseudo, plain, udp)
    }

    fn checksum4(&mut self, offset: u32, pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop> {
        self.frame().checksum4(offset, pseudo, plain, udp)
    }

    /// Sockets are not asked for: whose packet it is would have to be known to somebody here.
    fn has_socket<A: Addr>(&self, _: &FlowKey<A>) -> bool {
        false
    }

    fn grow_front(&mut self, by: u32, _: bool) -> Result<(), Drop> {
        if self.refuses == Refuses::Resizing {
            return Err(Drop::OverlayRefused);
        }
        self.bytes.splice(..0, std::iter::repeat_n(0, by as usize));
        self.start = self.bytes.as_mut_ptr();
        Ok(())
    }

    fn shrink_front(&mut self, by: u32, _: bool, _: bool) -> Result<(), Drop> {
        if self.refuses == Refuses::Resizing || by as usize > self.bytes.len() {
            return Err(Drop::OverlayRefused);
        }
        self.bytes.drain(..by as usize);
        self.start = self.bytes.as_mut_ptr();
        Ok(())
    }

    fn resize(&mut self, len: u32) -> Result<(), Drop> {
        if self.refuses == Refuses::Resizing {
            return Err(Drop::ResizeFailed);
        }
        self.bytes.resize(len as usize, 0);
        self.start = self.bytes.as_mut_ptr();
        Ok(())
    }
}
