//! Fedbroker: a crash-safe party master for federated learning, and the durable job broker under it.
//!
//! The rooms, in layer order; imports go downwards only (`tests/layering.rs` checks it):
//!
//! - layer 0 [`machine`]: pure state machines
//! - layer 1 [`store`]: bytes and order; [`wire`]: the protocols
//! - layer 2 [`engine`]: the one loop; `job_types`: what a job is made of
//! - layer 3 the roles: `master`, `coordinator`, `cluster`, `worker`
//! - layer 4 `cli`
#![forbid(unsafe_code)]

pub mod cluster;
pub mod config;
pub mod engine;
pub mod machine;
pub mod store;
pub mod supervisor;
pub mod wire;

#[path = "../migrations/mod.rs"]
pub mod migrations;
