//! The agent and the command line of stellwerk, cut by the direction in which data flows:
//! sources → [`intent`] → plan → diff → apply → kernel, and show back out.
//!
//! Invariant: no packet logic here; that is `lb-common`'s. Sources state facts and decide nothing;
//! plan is pure; apply is the only writer of maps.

pub mod address;
pub mod agent;
pub mod announce;
pub mod apply;
pub mod bundle;
pub mod check;
pub mod cli;
pub mod cni;
pub mod config;
mod disk;
pub mod dns;
pub mod doctor;
pub mod fib;
pub mod health;
pub mod intent;
pub mod ipam;
pub mod log;
pub mod moment;
pub mod monitor;
pub mod nodes;
pub mod path_mtu;
pub mod peers;
pub mod plan;
pub mod pods;
pub mod policy;
pub mod route;
pub mod show;
pub mod source;
pub mod top;
pub mod trace;
pub mod web;
