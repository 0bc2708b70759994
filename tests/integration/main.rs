//! Tests of the modules against real files and processes.

mod payloads;
mod store_contract;
mod store_sled;
