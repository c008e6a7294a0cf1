//! What forwarding is measured beside: a forwarder that asks `bpf_fib_lookup`, as the kernel's own `xdp_fwd`
//! sample does, and one that asks nobody; and the wrapper in front of all, which writes the whole packet anew, to
//! a random destination.
//!
//! Invariant: packets are written as the wrapper of `lb-ebpf/src/bin/bench.rs` does it, in stores as wide as the
//! loads that follow.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use aya::maps::MapData;
use stellwerk_tests::bpf::Size::{Byte, Double, Half, Word};
use stellwerk_tests::bpf::{Code, Target, op};
use stellwerk_tests::routes::kernel::DESTINATIONS;

const ABORTED: i32 = 0;
const PASS: i32 = 2;

/// Helpers' numbers.
const MAP_LOOKUP: i32 = 1;
const TAIL_CALL: i32 = 12;
const REDIRECT: i32 = 23;
const FIB_LOOKUP: i32 = 69;

/// The Ethernet header.
const LINK: i16 = 14;
/// The stack's top, by its register.
const STACK: u8 = 10;
/// The kernel's `struct bpf_fib_lookup`, on the stack.
const QUESTION: i16 = -64;

/// Where a family's fields are, counted from the packet's beginning.
#[derive(Clone, Copy)]
pub struct Layout {
    pub length: i16,
    ethertype: [u8; 2],
    ttl: i16,
    src: i16,
    dst: i16,
    /// Words of an address.
    words: i16,
    family: i32,
}

pub const V4: Layout =
    Layout { length: 54, ethertype: [8, 0], ttl: LINK + 8, src: LINK + 12, dst: LINK + 16, words: 1, family: 2 };
pub const V6: Layout =
    Layout { length: 74, ethertype: [0x86, 0xdd], ttl: LINK + 7, src: LINK + 8, dst: LINK + 24, words: 4, family: 10 };

impl Layout {
    fn v4(&self) -> bool {
        self.family == V4.family
    }

    fn ethertype(&self) -> i32 {
        u16::from_le_bytes(self.ethertype).into()
    }

    /// A TCP packet to nowhere yet; its destination counts as zeros in its checksum.
    pub fn packet(&self, dst: [u8; 6], src: [u8; 6]) -> Vec<u8> {
        let mut packet = [&dst[..], &src, &self.ethertype].concat();
        if self.v4() {
            packet.extend([0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 7, 0, 0, 0, 0]);
        } else {
            packet.extend([0x60, 0, 0, 0, 0, 20, 6, 64, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
            packet.extend([0; 16]);
        }
        packet.extend([0x12, 0x34, 1, 187, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0x12, 0x34, 0, 0]);
        packet
    }
}

/// Registers 7 and 8 are the packet's beginning and end, 6 the context; leaves where it is too short.
fn begin(code: &mut Code, layout: &Layout) {
    code.register(op::MOV, 6, 1).load(Word, 7, 6, 0).load(Word, 8, 6, 4);
    code.register(op::MOV, 1, 7).number(op::ADD, 1, layout.length.into()).leave_above(1, 8);
}

/// Register 0 is the value of a map at the index on the stack.
fn look_up(code: &mut Code, map: &MapData) {
    code.register(op::MOV, 2, STACK).number(op::ADD, 2, -4).map(1, map.fd().as_fd());
    code.call(MAP_LOOKUP).leave(op::JEQ, 0, 0);
}

/// Writes the packet to the destination whose turn it is, and calls the target. `turn` and `to`: those of the
/// programs that look up by themselves, in whose order it takes destinations.
pub fn wrapper(layout: &Layout, packet: &[u8], turn: &MapData, to: &MapData, target: &Target) -> Result<OwnedFd> {
    let code = &mut Code::default();
    begin(code, layout);
    code.store_number(Word, STACK, -4, 0);
    look_up(code, turn);
    code.load(Double, 1, 0, 0).number(op::ADD, 1, 1).store(Double, 0, 0, 1);
    code.register(op::MOV, 2, 1).number(op::RSH, 2, 17).register(op::XOR, 1, 2);
    code.wide(2, 0xff51_afd7_ed55_8ccd).register(op::MUL, 1, 2);
    code.number(op::RSH, 1, 32).number(op::AND, 1, DESTINATIONS as i32 - 1).store(Word, STACK, -4, 1);
    look_up(code, to);
    code.register(op::MOV, 9, 0);
    for (at, half) in (0..LINK).step_by(2).zip(packet.chunks_exact(2)) {
        code.store_number(Half, 7, at, u16::from_le_bytes([half[0], half[1]]).into());
    }
    for (at, word) in (LINK..).step_by(4).zip(packet[LINK as usize..].chunks_exact(4)) {
        code.store_number(Word, 7, at, i32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    }
    for word in 0..layout.words {
        code.copy(Word, (7, layout.dst + word * 4), (9, word * 4));
    }
    if layout.v4() {
        let header = packet[LINK as usize..LINK as usize + 20].chunks_exact(2);
        let sum: i32 = header.map(|half| i32::from(u16::from_le_bytes([half[0], half[1]]))).sum();
        code.register(op::MOV, 2, 1).number(op::RSH, 2, 16).number(op::AND, 1, 0xffff);
        code.register(op::ADD, 1, 2).number(op::ADD, 1, sum);
        for _ in 0..2 {
            code.register(op::MOV, 2, 1).number(op::RSH, 2, 16).number(op::AND, 1, 0xffff).register(op::ADD, 1, 2);
        }
        code.number(op::XOR, 1, 0xffff).store(Half, 7, LINK + 10, 1);
    }
    code.register(op::MOV, 1, 6).map(2, target.map()).number(op::MOV, 3, 0).call(TAIL_CALL);
    code.load_xdp(ABORTED).context("the wrapper")
}

/// Returns at once.
pub fn stub() -> Result<OwnedFd> {
    Code::default().load_xdp(PASS).context("the program that returns at once")
}

/// Where every packet goes, for who asks nobody.
pub struct Hop {
    pub link: u32,
    pub dst: [u8; 6],
    pub src: [u8; 6],
}

/// Forwards to one next hop.
pub fn bare(layout: &Layout, hop: &Hop) -> Result<OwnedFd> {
    let code = &mut Code::default();
    begin(code, layout);
    allowed(code, layout);
    let addrs = [hop.dst, hop.src].concat();
    for (at, half) in (0i16..).step_by(2).zip(addrs.chunks_exact(2)) {
        code.store_number(Half, 7, at, u16::from_le_bytes([half[0], half[1]]).into());
    }
    shorten_life(code, layout);
    code.number(op::MOV, 1, hop.link as i32).number(op::MOV, 2, 0).call(REDIRECT).exit();
    code.load_xdp(PASS).context("the forwarder that asks nobody")
}

/// Forwards by the kernel's routes and neighbours; packets come in by `link`.
pub fn kernel(layout: &Layout, link: u32) -> Result<OwnedFd> {
    let code = &mut Code::default();
    begin(code, layout);
    allowed(code, layout);
    for at in (QUESTION..0).step_by(8) {
        code.store_number(Double, STACK, at, 0);
    }
    code.store_number(Byte, STACK, QUESTION, layout.family);
    let (protocol, length) = if layout.v4() { (LINK + 9, LINK + 2) } else { (LINK + 6, LINK + 4) };
    code.copy(Byte, (STACK, QUESTION + 1), (7, protocol));
    code.load(Half, 1, 7, length).number(op::BE, 1, 16).store(Half, STACK, QUESTION + 6, 1);
    code.store_number(Word, STACK, QUESTION + 8, link as i32);
    if layout.v4() {
        code.copy(Byte, (STACK, QUESTION + 12), (7, LINK + 1));
    } else {
        code.load(Word, 1, 7, LINK).number(op::AND, 1, 0xffff_ff0fu32 as i32).store(Word, STACK, QUESTION + 12, 1);
    }
    for word in 0..layout.words {
        code.copy(Word, (STACK, QUESTION + 16 + word * 4), (7, layout.src + word * 4));
        code.copy(Word, (STACK, QUESTION + 32 + word * 4), (7, layout.dst + word * 4));
    }
    code.register(op::MOV, 1, 6).register(op::MOV, 2, STACK).number(op::ADD, 2, QUESTION.into());
    code.number(op::MOV, 3, 64).number(op::MOV, 4, 0).call(FIB_LOOKUP).leave(op::JNE, 0, 0);
    // The answer has the source's address first.
    for half in (0..6).step_by(2) {
        code.copy(Half, (7, half), (STACK, QUESTION + 58 + half));
        code.copy(Half, (7, 6 + half), (STACK, QUESTION + 52 + half));
    }
    shorten_life(code, layout);
    code.load(Word, 1, STACK, QUESTION + 8).number(op::MOV, 2, 0).call(REDIRECT).exit();
    code.load_xdp(PASS).context("the forwarder by bpf_fib_lookup")
}

/// Leaves what is of another family, or ends here.
fn allowed(code: &mut Code, layout: &Layout) {
    code.load(Half, 1, 7, LINK - 2).leave(op::JNE, 1, layout.ethertype());
    code.load(Byte, 1, 7, layout.ttl).leave(op::JLE, 1, 1);
}

/// One hop less, and IPv4's checksum of that.
fn shorten_life(code: &mut Code, layout: &Layout) {
    code.load(Byte, 1, 7, layout.ttl).number(op::ADD, 1, -1).store(Byte, 7, layout.ttl, 1);
    if layout.v4() {
        code.load(Half, 1, 7, LINK + 10).number(op::ADD, 1, 1);
        code.register(op::MOV, 2, 1).number(op::ADD, 2, 1).number(op::RSH, 2, 16);
        code.register(op::ADD, 1, 2).store(Half, 7, LINK + 10, 1);
    }
}
