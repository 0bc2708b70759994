//! Roles in one process or as real processes, against hand-made peers.

mod worker;
