//! What others made and expect of us: directories of earlier releases, messages and programs of FedVision 0.1.

mod golden;
mod paddle_fl;
mod stored_formats;
#[path = "../support/mod.rs"]
mod support;
