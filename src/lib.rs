//! Fedbroker: a crash-safe party master for federated learning, and the durable job broker under it.
//!
//! The rooms, in layer order; imports go downwards only (`tests/layering.rs` checks it):
//!
//! - layer 0 [`machine`]: pure state machines; [`metrics`]: what is measured; [`crash_point`]: where the tests kill
//! - layer 1 [`store`]: bytes and order; [`wire`]: the protocols
//! - layer 2 [`engine`]: the one loop; `job_types`: what a job is made of
//! - layer 3 the roles: `master`, [`coordinator`], `cluster`, `worker`
//! - layer 4 `cli`
#![forbid(unsafe_code)]

pub mod cli;
pub mod cluster;
pub mod config;
pub mod coordinator;
pub mod crash_point;
pub mod engine;
pub mod job_types;
pub mod machine;
pub mod master;
pub mod metrics;
#[path = "../migrations/mod.rs"]
pub mod migrations;
pub mod observe;
pub mod store;
pub mod supervisor;
pub mod telemetry;
pub mod wire;
pub mod worker;
