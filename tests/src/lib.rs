//! What the rungs of the test ladder share: the tables without a kernel ([`fake`]) and what runs
//! on them. No product code.

pub mod bpf;
pub mod case;
pub mod chaos;
pub mod control;
pub mod demo;
pub mod exposition;
pub mod fake;
pub mod fake_api;
pub mod flow_maps;
pub mod load;
pub mod names;
pub mod netns;
pub mod object;
pub mod packet;
pub mod routes;
pub mod runner;
pub mod schema;
pub mod sim;
