//! What the rungs of the test ladder share: the tables without a kernel ([`fake`]) and what runs
//! on them. No product code.

pub mod fake;
