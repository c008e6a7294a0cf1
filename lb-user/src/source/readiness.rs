//! Waiting for a descriptor to be readable.
//!
//! Invariant: the descriptor stays open and the same while it is waited for.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Call within a tokio runtime. For owners of one descriptor, such as a socket or a ring buffer.
#[expect(unsafe_code, reason = "tokio asks for a promise that traits can't give")]
pub fn readable<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the callers' types own one open descriptor, have no way to exchange it, and are owned
    // by the result from here on.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}
