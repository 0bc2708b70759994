//! Tests of the modules against real files and processes.

mod coordinator;
mod coordinator_limits;
mod payloads;
mod store_contract;
mod store_sled;
