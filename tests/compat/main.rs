//! What others made and expect of us: directories of earlier releases, messages, REST answers and programs of FedVision 0.1, and its
//! peers with all their faults (`old`).

mod federation;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "../integration/gated.rs"]
mod gated;
mod golden;
mod old;
mod paddle_fl;
mod rest;
mod serving;
mod stored_formats;
#[path = "../support/mod.rs"]
mod support;
mod towards_coordinator;
mod towards_manager;
