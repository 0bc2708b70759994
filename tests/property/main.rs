//! Random histories of the real engine on a disk that fails on order, for each of the three machines.
//!
//! `harness` runs one history and checks what must hold whatever the machine; `master`, `coordinator` and `cluster` say what users and
//! peers do, and how an effect comes back as commands. The seed is printed; `PROPERTY_SEED=<seed>` runs the same histories again.

mod cluster;
mod coordinator;
mod harness;
mod master;
mod process;
mod replayed;
mod shadow;
