//! Where facts come from: files, a live cluster, and the kernel.
//!
//! Invariant: a source states facts and decides nothing; what they mean together is
//! [`crate::plan`]'s.

pub mod endpoints;
pub mod live;
pub mod manifests;
pub mod netlink;
pub mod readiness;
pub mod watch;
