//! A laboratory of network namespaces: real links, real sockets, real processes, and nothing left
//! behind.
//!
//! Everything that a run makes carries the run's id, `sw-PID-RANDOM`: namespaces, the folder of
//! pins under bpffs, the temporary folder, the control group. A run removes its own things when it ends, also by a panic
//! ([`Lab`]'s drop) or by SIGINT and SIGTERM, and those of runs whose process no longer lives.
//! Not here: what the lab is used for ([`device`] lays the standard one out).

pub mod agent;
pub mod between;
pub mod browser;
pub mod caller;
pub mod clean;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod containerd;
pub mod device;
pub mod ethtool;
pub mod http;
pub mod lab;
pub mod nat;
pub mod nodes;
pub mod ns;
pub mod pass;
pub mod probe;
pub mod scene;
pub mod unit;

pub use agent::Agent;
pub use between::Between;
pub use device::Device;
pub use lab::Lab;
pub use ns::Ns;
pub use scene::Scene;
