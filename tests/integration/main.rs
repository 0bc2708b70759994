//! Tests of the modules against real files and processes.

mod store_sled;
