//! Waiting: for a descriptor to be readable, for a moment that there may be.
//!
//! Invariant: the descriptor stays open and the same while it is waited for.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

/// Call within a tokio runtime. For owners of one descriptor, such as a socket or a ring buffer.
#[expect(unsafe_code, reason = "tokio asks for a promise that traits can't give")]
pub fn readable<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the callers' types own one open descriptor, have no way to exchange it, and are owned
    // by the result from here on.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}

/// Comes back at a time, or never.
pub async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
