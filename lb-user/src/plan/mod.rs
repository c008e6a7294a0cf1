//! From the wish to the tables' contents, without IO.

pub mod contents;

pub use contents::{Apply, Change, Contents, Family, FamilyOp, Hooks, Op};
