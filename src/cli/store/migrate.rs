//! `fedbroker store migrate`: what a start of the role does with a directory of an older release, at a time of the operator's choice.

use super::DataDir;
use super::specimen::Specimen;
use crate::migrations::CURRENT;
use crate::store::directory::Directory;
use crate::store::sled_store::migrate::{Migration, plan, run as migrate};
use crate::telemetry::say;
use clap::Args;
use std::process::ExitCode;

/// `fedbroker store migrate`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "The old log is replaced in one step once the new one is whole; there must be room for both. Older releases refuse the
directory afterwards, so back it up first.

Example:
  fedbroker store migrate --data-dir fedbroker-data/master-p1 --dry-run"
)]
pub(super) struct MigrateOptions {
    #[command(flatten)]
    dir: DataDir,
    /// Read and prove the old log, say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Migrate.
///
/// # Errors
/// The directory cannot be had, there is no room, or its log is damaged.
pub(super) fn run(options: &MigrateOptions) -> anyhow::Result<ExitCode> {
    let directory = Directory::inspect(&options.dir.data_dir)?;
    let version = directory.version();
    if version == CURRENT {
        say(&format!(
            "{} has format {version}, the current one; nothing to do",
            directory.path().display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    if !options.dry_run {
        describe(&migrate(&directory)?, "carried over");
        return Ok(ExitCode::SUCCESS);
    }
    drop(directory);
    let specimen = Specimen::take(&options.dir.data_dir, options.dir.scratch.as_deref())?;
    let planned = plan(specimen.copy()).map_err(|error| specimen.as_of_original(error))?;
    describe(&planned, "would be carried over");
    Ok(ExitCode::SUCCESS)
}

fn describe(migration: &Migration, done: &str) {
    say(&format!(
        "format {} to {}: {} values at commit {} {done}",
        migration.from, migration.to, migration.values, migration.batch
    ));
}
