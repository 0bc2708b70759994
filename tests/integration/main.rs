//! Tests of the modules against real files and processes.

mod cluster;
mod payloads;
mod store_contract;
mod store_sled;
