//! `fedbroker store`: what an operator needs around a data directory, above all on the worst day. `docs/operations.md` leads from
//! symptoms to these commands.
//!
//! All of them but the online backup work on a directory that no role holds, and say who does hold it. Those that only look work on a
//! copy of the log: the storage engine changes the files it opens, and may make a damaged one worse. Data goes to stdout, talk to
//! stderr.

mod backup;
mod check;
mod dump;
mod migrate;
mod plain;
mod progress;
mod restore;
mod role;
mod specimen;
mod stat;
mod verify_backup;

use crate::store::Error;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code of a command that found damage: `EX_DATAERR` of sysexits.h.
const DAMAGED: u8 = 65;

/// `fedbroker store`
#[derive(Args, Clone, Debug)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct StoreOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Prove a data directory whole: every value, every payload file, and the records against a replay of all events
    Check(check::CheckOptions),
    /// Print records and events as JSON lines
    Dump(dump::DumpOptions),
    /// Say what is in a data directory and how much room it takes
    Stat(stat::StatOptions),
    /// Back up a master while it runs, or a directory that stands still
    Backup(backup::BackupOptions),
    /// Prove a backup whole
    VerifyBackup(verify_backup::VerifyOptions),
    /// Make a data directory of a backup, new or in place of a damaged one
    Restore(restore::RestoreOptions),
    /// Bring a data directory of an older release to the current format; every start of a role does it by itself
    Migrate(migrate::MigrateOptions),
}

/// The directory to look at.
#[derive(Args, Clone, Debug)]
struct DataDir {
    /// Data directory of a role that does not run
    #[arg(long)]
    data_dir: PathBuf,
    /// Where the log is copied to for the look at it [default: work/ in the data directory]
    #[arg(long)]
    scratch: Option<PathBuf>,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Lines for a reader
    Text,
    /// One JSON object
    Json,
}

/// Do what the command line says.
///
/// # Errors
/// The directory cannot be had or read. Damage is no error here but the exit code 65.
pub(super) fn run(options: StoreOptions) -> anyhow::Result<ExitCode> {
    let done = match options.command {
        Command::Check(options) => check::run(&options),
        Command::Dump(options) => dump::run(&options),
        Command::Stat(options) => stat::run(&options),
        Command::Backup(options) => backup::run(&options),
        Command::VerifyBackup(options) => verify_backup::run(&options),
        Command::Restore(options) => restore::run(&options),
        Command::Migrate(options) => migrate::run(&options),
    };
    done.or_else(|error| match error.downcast_ref::<Error>() {
        Some(Error::Damaged { .. }) => {
            eprintln!("fedbroker: {error:#}");
            Ok(ExitCode::from(DAMAGED))
        }
        _ => Err(error),
    })
}
