//! What the parts do together, against real directories, sockets and processes.

mod api;
mod bench;
mod cli;
mod cluster;
mod control;
mod coordinator;
mod coordinator_federation;
mod coordinator_large;
mod coordinator_limits;
mod federation;
mod follow;
mod gated;
mod logs;
mod memory;
mod metrics;
mod order;
mod payloads;
mod pins;
mod quickstart;
mod reports;
mod rest;
mod restart;
mod restart_others;
mod sending;
mod space;
mod store_contract;
mod store_sled;
mod store_tools;
#[path = "../support/mod.rs"]
mod support;
mod worker;
