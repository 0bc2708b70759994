//! What the parts do together, against real directories, sockets and processes.

mod cluster;
mod coordinator;
mod coordinator_limits;
mod payloads;
mod store_contract;
mod store_sled;
mod worker;
