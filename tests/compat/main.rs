//! What others made and expect of us: directories of earlier releases.

mod stored_formats;
#[path = "../support/mod.rs"]
mod support;
