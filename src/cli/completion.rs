//! `fedbroker completion`: scripts that teach a shell the commands and flags.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Write;
use std::process::ExitCode;

/// `fedbroker completion`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker completion bash > /etc/bash_completion.d/fedbroker")]
pub(super) struct CompletionOptions {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print it.
///
/// # Errors
/// Standard output is closed.
pub(super) fn run<C: CommandFactory>(options: &CompletionOptions) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut C::command(), "fedbroker", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
