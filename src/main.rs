//! The binary: parses and runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    fedbroker::cli::main()
}
