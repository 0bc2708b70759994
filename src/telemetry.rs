//! Logs: to stderr, levels from `FEDBROKER_LOG` (default `info`). Set up once by `cli`. And the lines for the user, to stdout.

use std::io::{IsTerminal, Write};
use tracing_subscriber::EnvFilter;

/// Name of the variable with the log filter, e.g. `debug` or `fedbroker::engine=trace`.
pub const LOG_VARIABLE: &str = "FEDBROKER_LOG";

/// Begin to log.
pub fn start(filter: Option<&str>) {
    let filter = EnvFilter::try_new(filter.unwrap_or("info")).unwrap_or_else(|error| {
        eprintln!("{LOG_VARIABLE}: {error}; logging at info");
        EnvFilter::new("info")
    });
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .init();
}

/// A line for the user, on stdout. That nobody reads it any more (`| head -1`) must not end a role, so `println!` will not do.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
