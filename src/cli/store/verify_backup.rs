//! `fedbroker store verify-backup`: could this be restored?

use super::DAMAGED;
use super::progress::{Progress, size};
use crate::engine::backup::verify::verify;
use crate::telemetry::say;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// `fedbroker store verify-backup`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Exit code 0: whole. 65: damaged, with every bad file named on stderr.

Example:
  fedbroker store verify-backup --from /backups/master-p1")]
pub(super) struct VerifyOptions {
    /// The backup
    #[arg(long)]
    from: PathBuf,
}

/// Verify.
///
/// # Errors
/// There is no backup, or its manifest is damaged.
pub(super) fn run(options: &VerifyOptions) -> anyhow::Result<ExitCode> {
    let progress = Progress::bytes("reading the backup", super::specimen::size_of(&options.from));
    let verdict = verify(&options.from, &mut |bytes| progress.more(bytes))?;
    drop(progress);
    for file in &verdict.strange {
        eprintln!("{file} is in the directory and not in the manifest; it is left alone");
    }
    for line in &verdict.damage {
        eprintln!("fedbroker: {}: {line}", options.from.display());
    }
    let manifest = &verdict.manifest;
    say(&format!(
        "{}: {}{} at commit {}, made {}, {} values, {} payload files ({})",
        if verdict.damage.is_empty() { "whole" } else { "damaged" },
        manifest.origin.role,
        if manifest.origin.owner.is_empty() {
            String::new()
        } else {
            format!(" of {}", manifest.origin.owner)
        },
        manifest.head.batch,
        manifest.origin.created_at,
        manifest.counts.values,
        manifest.counts.payloads,
        size(manifest.counts.payload_bytes)
    ));
    Ok(if verdict.damage.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DAMAGED)
    })
}
