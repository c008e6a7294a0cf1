//! From the wish to the tables' contents, and from there to an ordered list of changes, without IO.
//!
//! The agent's loop: [`plan()`] what the tables shall hold, [`diff()`] it against what they hold,
//! apply the operations in order, then tell the memory how it went: [`Ids::applied`], or, where
//! one failed, [`Ids::settle`] with what the tables hold now (and try again). After a start:
//! [`Ids::recover`]. Where only services changed, [`Planned::update`] does both for these alone.

pub mod contents;
pub mod diff;
pub mod error;
mod hooks;
pub mod ids;
pub mod maglev;
mod nat;
mod owned;
#[expect(clippy::module_inception, reason = "the plan itself, beside what it is made of")]
pub mod plan;
mod policies;
mod routing;
mod services;
mod slots;
#[cfg(test)]
mod tests;
pub mod update;

pub use contents::{Apply, Change, Contents, Family, FamilyOp, Hooks, Op};
pub use diff::diff;
pub use error::PlanError;
pub(crate) use hooks::by_xdp;
pub(crate) use hooks::matches;
pub use ids::Ids;
pub use plan::{Clock, plan};
pub use policies::{Summary as PolicySummary, allow, rules};
pub use update::Planned;
