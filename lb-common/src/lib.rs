//! The packet engine of stellwerk, and everything that the kernel and user space agree on.
//!
//! Invariant: this crate decides what happens to a packet and nothing else. It has no IO, no
//! maps, no clock and no allocation; what it asks of the world it asks through [`tables::Tables`].
//! The very same code runs in the kernel, in tests, in the fuzzer and in user space.
#![no_std]
// One instruction that the verifier must see and the optimizer must not (frame.rs).
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(test)]
extern crate std;

pub mod apply;
pub mod drop;
pub mod fib;
pub mod flow_table;
pub mod frame;
pub mod hash;
pub mod path;
pub mod port_table;
pub mod table;
pub mod tables;
pub mod tcp;
pub mod verdict;
pub mod wire;
