//! Tests of the modules against real files and processes.

mod store_contract;
mod store_sled;
