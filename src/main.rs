//! The binary: parses and runs. For now the worker and its task shim.

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run tasks for a cluster manager
    ClusterWorker(fedbroker::config::WorkerOptions),
    /// Supervise one task process; started by the worker itself
    #[command(hide = true)]
    TaskShim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::TaskShim { args } => fedbroker::job_types::exec::shim_main(args),
        Command::ClusterWorker(options) => match worker(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("fedbroker cluster-worker: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn worker(options: fedbroker::config::WorkerOptions) -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let supervisor = fedbroker::supervisor::Supervisor::new();
        fedbroker::worker::serve(options, supervisor.clone()).await?;
        supervisor.run().await
    })
}
