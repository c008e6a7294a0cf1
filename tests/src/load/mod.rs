//! Real traffic: small HTTP and echo servers, and the client that loads and judges them.
//!
//! Invariant: each server and each client lives in one thread with a runtime of its own, which is
//! moved into its namespace before the first socket is made. Not here: namespaces ([`crate::netns`]).

pub mod client;
pub mod echo;
pub mod http;
pub mod name;
pub mod pool;
pub mod replica;
pub mod stats;
pub mod task;

pub use client::{Load, Plan, Reader};
pub use stats::{Sample, Summary};
pub use task::Task;
