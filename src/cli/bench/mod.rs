//! `fedbroker bench`: how fast this is, and how that compares with what the disk underneath could do at best.
//!
//! One file for each benchmark; `drive` runs clients against anything, `raw` measures the disk, `place` names what it ran on, `table` says
//! the result. The roles and the store measured here are the ones that serve: no barrier is weakened and no check is off
//! (`tests/integration/bench.rs` counts the barriers). `docs/benchmarks.md` tells how to read the numbers.

mod drive;
mod federation;
mod history;
mod http;
mod made;
mod maker;
mod pages;
mod payload;
mod place;
mod process;
mod progress;
mod queue;
mod raw;
mod recover;
mod rest;
mod stream;
mod table;
mod tasks;

use anyhow::Context;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// `fedbroker bench`
#[derive(Args, Clone, Debug)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct BenchOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// The durable task queue in this process, against the raw disk
    Queue(queue::QueueOptions),
    /// Submits and queries at a master, over HTTP with keep-alive
    Rest(rest::RestOptions),
    /// Dummy jobs from REST to success, through all roles as processes
    Federation(federation::FederationOptions),
    /// How long a start takes, and how much memory, with so many records
    Recover(recover::RecoverOptions),
    /// Pages of a long history at a master while submits run
    History(history::HistoryOptions),
    /// Large payloads from REST to the worker, and the memory they take on the way
    Payload(payload::PayloadOptions),
    /// Write a data directory with so many live and finished jobs or tasks
    #[command(hide = true)]
    MakeStore(maker::MakeStoreOptions),
}

/// What every benchmark takes.
#[derive(Args, Clone, Debug)]
struct Common {
    /// How often everything is measured; the median and the range are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// One JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// Where the scratch directory is made: on the disk that is to be measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

/// Run one.
///
/// # Errors
/// It could not be run, or what was delivered is not what was acknowledged.
pub(super) fn run(options: BenchOptions) -> anyhow::Result<ExitCode> {
    if let Command::MakeStore(options) = options.command {
        return maker::run(&options);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let bench = async {
            match options.command {
                Command::Queue(options) => queue::run(options).await,
                Command::Rest(options) => rest::run(options).await,
                Command::Federation(options) => federation::run(options).await,
                Command::Recover(options) => recover::run(options).await,
                Command::History(options) => history::run(options).await,
                Command::Payload(options) => payload::run(options).await,
                Command::MakeStore(_) => Ok(ExitCode::SUCCESS),
            }
        };
        tokio::select! {
            result = bench => result,
            // Dropping it ends the roles it started and removes its scratch directory.
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    runtime.shutdown_background();
    result
}
