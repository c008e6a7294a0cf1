//! The engine on the host: the path over [`Fake`] and a packet in ordinary memory.

use std::cell::RefCell;

use lb_common::apply::{Diff, Packet};
use lb_common::drop::Drop;
use lb_common::frame::Frame;
use lb_common::path;
use lb_common::path::network_policy::{self, Judgement, Meeting};
use lb_common::table::FlowKey;
use lb_common::verdict::{Action, Arrival, Hook, Outcome, Verdict};
use lb_common::wire::{Addr, Be16};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::fake::Fake;

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

    /// There are no sockets: `netns_nat` has some.
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

thread_local! {
    /// As in the kernel, with whatever the last packet left in it.
    static SCRATCH: RefCell<path::Scratch> = RefCell::default();
    static JUDGEMENT: RefCell<Judgement> = RefCell::default();
}

/// Runs one packet, counting a drop as the hooks do.
pub fn run(fake: &Fake, arrival: &Arrival, bytes: Vec<u8>, refuses: Refuses) -> (Verdict, Vec<u8>) {
    let mut packet = Buffer::new(bytes, refuses);
    let outcome = match fake.pods.contains_key(&arrival.ifindex) {
        true => JUDGEMENT.with_borrow_mut(|room| judged(fake, arrival, &mut packet, room)),
        false => whole(fake, arrival, &mut packet, |_, outcome| outcome),
    };
    let verdict = outcome.verdict();
    (verdict, packet.into_bytes())
}

/// As the hooks do it (`lb-ebpf/src/main.rs`).
fn whole(
    fake: &Fake,
    arrival: &Arrival,
    packet: &mut Buffer,
    judge: impl FnOnce(&mut Buffer, Outcome) -> Outcome,
) -> Outcome {
    let counted = |outcome| counted(fake, outcome);
    let overlay = fake.settings.overlay();
    if overlay
        && arrival.hook != Hook::Egress
        && arrival.tagged == 0
        && let Err(reason) = path::overlay::enter(packet, arrival.ifindex, fake)
    {
        return counted(Outcome::drop(reason));
    }
    let outcome = counted(SCRATCH.with_borrow_mut(|scratch| path::run(packet, arrival, fake, || Some(scratch))));
    let outcome = judge(packet, outcome);
    let next_hop = path::overlay::asks(outcome, arrival.hook);
    if next_hop == 0 || !overlay {
        return outcome;
    }
    let left = counted(path::overlay::leave(packet, next_hop, fake));
    if left.action == Action::Pass { outcome } else { left }
}

fn counted(fake: &Fake, outcome: Outcome) -> Outcome {
    if let Verdict::Drop(reason) | Verdict::Refuse(reason) = outcome.verdict() {
        fake.dropped(reason);
    }
    outcome
}

/// At a pod's link where policies are judged: at ingress around the path, at egress alone.
fn judged(fake: &Fake, arrival: &Arrival, packet: &mut Buffer, room: &mut Judgement) -> Outcome {
    let link = arrival.ifindex;
    let dropped = |found: u32| {
        let drop = |value| counted(fake, Outcome { action: Action::Drop, value });
        network_policy::reason(found).map(drop)
    };
    // Where it came in doesn't matter, as long as it is not here.
    let from = if arrival.own != 0 { 0 } else { u32::MAX };
    let at = Meeting { link, from, now: arrival.now };
    if arrival.hook == Hook::Egress {
        return dropped(network_policy::inward(packet, &at, fake, room)).unwrap_or(Outcome::PASS);
    }
    let asked = network_policy::outward(packet, &at, fake, room);
    if let Some(outcome) = dropped(asked) {
        return outcome;
    }
    whole(fake, arrival, packet, |packet, outcome| {
        if asked != network_policy::JUDGE || matches!(outcome.action, Action::Drop | Action::Reply | Action::Refuse) {
            return outcome;
        }
        dropped(network_policy::translated(packet, &at, fake, room)).unwrap_or(outcome)
    })
}
