//! The only writer: programs, maps, hooks and kernel settings, made to be what the plan says.
//!
//! Invariant: everything that is made here is pinned or written to the state file before it matters,
//! so that a killed agent leaves traffic flowing and `unload` finds all of it, and nothing else.
//! Deliberately not here: what the tables shall hold ([`crate::plan`]).

mod cgroup;
pub mod clock;
pub mod ends;
pub mod fib;
pub mod flows;
mod grow;
mod hooks;
pub mod kernel;
mod layout;
pub mod load;
pub mod maps;
mod migrate;
pub(crate) mod mounts;
pub mod pin;
pub mod ports;
pub mod repin;
mod routes;
mod served;
pub mod sockets;
mod state;
pub mod sweep;
pub(crate) mod sys;
pub mod sysctl;
pub mod table;
mod unload;

pub use cgroup::wrong as wrong_group;
pub use hooks::{Point, attached, is_gone};
pub use kernel::Kernel;
pub use maps::{Maps, Paths};
pub use served::Served;
pub use state::{EndedFor, HealthCheck, Policies, Sockets, State, namespace};
pub use unload::unload;
