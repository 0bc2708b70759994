//! The binary: parses and runs.

use std::process::ExitCode;

/// Commits make and drop many small values, most of them in the storage engine.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fedbroker::cli::main()
}
