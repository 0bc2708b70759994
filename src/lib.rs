//! Fedbroker: a crash-safe party master for federated learning, and the durable job broker under it.
#![forbid(unsafe_code)]

pub mod machine;
pub mod store;

#[path = "../migrations/mod.rs"]
pub mod migrations;
