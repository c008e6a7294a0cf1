//! The benchmarks. Each measures everything it compares in one run and prints ratios; what a figure
//! should reach stands beside it.

pub mod connect;
pub mod dns;
pub mod flow_table;
pub mod machine;
pub mod nat;
pub mod packet;
pub mod plot;
pub mod pods;
pub mod report;
pub mod route;
pub mod scene;
pub mod script;
pub mod series;
pub mod sockets;
pub mod turns;
pub mod update;
pub mod wire;
