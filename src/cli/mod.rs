//! The command line: one subcommand for each role, and what a user needs around them.

mod bench;
mod client;
mod completion;
mod exit;
mod federation;
mod installed;
mod job;
mod output;
mod quickstart;
mod serve;
mod standalone;
mod status;
mod store;
mod terminal;

use crate::config::{ClusterManagerOptions, CoordinatorOptions, MasterOptions, WorkerOptions};
use crate::job_types::exec::{SHIM_COMMAND, shim_main};
use crate::telemetry;
use clap::{Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::process::ExitCode;

/// Crash-safe party master for federated learning, and the durable job broker under it
#[derive(Parser)]
#[command(name = "fedbroker", version, about, max_term_width = 100, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Stop when standard input ends: for programs that start roles and must not leave them behind
    #[arg(long, global = true, hide = true)]
    stop_on_stdin_end: bool,
    /// How lines of the log look: text for people, or a JSON object each
    #[arg(long, global = true, env = "FEDBROKER_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    /// Collector that spans are sent to, http://host:4318
    #[cfg(feature = "otlp")]
    #[arg(long, global = true, value_name = "URL")]
    otlp_endpoint: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Plain,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Watch a federated job of three parties survive a crash
    Quickstart(quickstart::QuickstartOptions),
    /// Run a whole federation on this machine, until Ctrl-C
    Standalone(standalone::StandaloneOptions),
    /// Submit a job to a master
    Submit(job::submit::SubmitOptions),
    /// List, watch, wait for, cancel and otherwise handle the jobs of a master
    Job(job::JobOptions),
    /// Show what a master is doing
    Status(status::StatusOptions),
    /// Print a completion script for a shell
    Completion(completion::CompletionOptions),
    /// Check, look into, back up, restore and migrate data directories
    Store(store::StoreOptions),
    /// Measure this machine, and what the durable queue, REST, a federation and a start make of it
    Bench(bench::BenchOptions),
    /// Run the master of a party
    Master(MasterOptions),
    /// Run the coordinator of a federation
    Coordinator(CoordinatorOptions),
    /// Run the cluster manager of a party
    ClusterManager(ClusterManagerOptions),
    /// Run tasks for a cluster manager
    ClusterWorker(WorkerOptions),
    /// Print the contract of the REST service: OpenAPI 3.1
    #[command(after_help = "Example:\n  fedbroker openapi > docs/openapi.json")]
    Openapi,
    /// Supervise one task process; started by workers and masters
    #[command(name = SHIM_COMMAND, hide = true)]
    TaskShim {
        /// For the shim
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Parse the command line and do what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::TaskShim { args } = cli.command {
        return shim_main(args);
    }
    let _exports = match start_telemetry(&cli) {
        Ok(exports) => exports,
        Err(error) => {
            eprintln!("fedbroker: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let Cli {
        command,
        stop_on_stdin_end,
        ..
    } = cli;
    #[cfg(debug_assertions)]
    if let Ok(point) = std::env::var(crate::crash_point::VARIABLE)
        && let Err(error) = crate::crash_point::arm(&point)
    {
        eprintln!("fedbroker: {error}");
        return ExitCode::FAILURE;
    }
    let result = match command {
        Command::Quickstart(options) => quickstart::run(options),
        Command::Standalone(options) => standalone::run(options),
        Command::Submit(options) => job::block_on(job::submit::submit(options)),
        Command::Job(options) => job::run(options),
        Command::Status(options) => status::run(options),
        Command::Completion(options) => completion::run::<Cli>(&options),
        Command::Store(options) => store::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Master(options) => serve::role(stop_on_stdin_end, |supervisor| crate::master::serve(options, supervisor)),
        Command::Coordinator(options) => serve::role(stop_on_stdin_end, |supervisor| crate::coordinator::serve(options, supervisor)),
        Command::ClusterManager(options) => serve::role(stop_on_stdin_end, |supervisor| crate::cluster::serve(options, supervisor)),
        Command::ClusterWorker(options) => serve::role(stop_on_stdin_end, |supervisor| async move {
            crate::worker::serve(options, supervisor.clone()).await?;
            supervisor.stopped().await;
            Ok(())
        }),
        Command::Openapi => {
            // `say` ends the line.
            telemetry::say(crate::master::rest::contract().trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::TaskShim { .. } => Ok(ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("fedbroker: {}", terminal::lines(&format!("{error:#}")));
        if let Some(crate::store::Error::Damaged { .. }) = error.downcast_ref() {
            eprintln!("next: fedbroker store check --data-dir DIR, which tells what is damaged and how to go on (docs/operations.md)");
        }
        ExitCode::from(exit::code(&error))
    })
}

fn start_telemetry(cli: &Cli) -> anyhow::Result<telemetry::Exports> {
    let service = match &cli.command {
        Command::Master(_) => "fedbroker-master",
        Command::Coordinator(_) => "fedbroker-coordinator",
        Command::ClusterManager(_) => "fedbroker-cluster-manager",
        Command::ClusterWorker(_) => "fedbroker-cluster-worker",
        _ => "fedbroker",
    };
    let quiet = matches!(cli.command, Command::Bench(_)).then(|| "warn".to_owned());
    telemetry::start(telemetry::Options {
        filter: std::env::var(telemetry::LOG_VARIABLE).ok().or(quiet).as_deref(),
        format: match cli.log_format {
            LogFormat::Plain => telemetry::Format::Plain,
            LogFormat::Json => telemetry::Format::Json,
        },
        service,
        #[cfg(feature = "otlp")]
        otlp_endpoint: cli.otlp_endpoint.as_deref(),
    })
}
