//! `fedbroker store backup`: of a master while it runs, or of any directory that stands still.

use super::progress::{Progress, size};
use super::specimen::Specimen;
use crate::cli::client::{Client, Request};
use crate::engine::backup::manifest::Manifest;
use crate::engine::backup::receive::{Feeding, Receiver};
use crate::engine::backup::{SendError, Source};
use crate::store::payload::Payloads;
use crate::telemetry::say;
use anyhow::Context;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// `fedbroker store backup`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  fedbroker store backup --endpoint 127.0.0.1:10002 --to /backups/master-p1
  fedbroker store backup --data-dir fedbroker-data/coordinator --to /backups/coordinator")]
pub(super) struct BackupOptions {
    /// REST service of a master that runs, host:port
    #[arg(long, env = "FEDBROKER_ENDPOINT", required_unless_present = "data_dir")]
    endpoint: Option<String>,
    /// Data directory of a role that does not run
    #[arg(long, conflicts_with = "endpoint")]
    data_dir: Option<PathBuf>,
    /// With --data-dir: where its log is copied to first [default: work/ in the data directory]
    #[arg(long, requires = "data_dir")]
    scratch: Option<PathBuf>,
    /// Directory the backup gets; must not be there yet
    #[arg(long)]
    to: PathBuf,
}

/// Back up.
///
/// # Errors
/// The master or the directory cannot be had, the backup cannot be written, or was cut off.
pub(super) fn run(options: &BackupOptions) -> anyhow::Result<ExitCode> {
    let mut receiver = Receiver::new(&options.to)?;
    match (&options.data_dir, &options.endpoint) {
        (Some(data_dir), _) => offline(data_dir, options.scratch.as_deref(), &mut receiver)?,
        (None, endpoint) => {
            let endpoint = endpoint.as_deref().context("--endpoint or --data-dir is needed")?;
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(online(endpoint, &mut receiver))?;
        }
    }
    let manifest = receiver.finish()?;
    describe(&manifest, &options.to);
    Ok(ExitCode::SUCCESS)
}

async fn online(endpoint: &str, receiver: &mut Receiver) -> anyhow::Result<()> {
    let client = Client::new(endpoint)?;
    let mut incoming = client.open(Request::post(&["api", "v1", "backup"])).await?;
    let progress = Progress::flowing("backing up");
    while let Some(bytes) = client.chunk(&mut incoming).await? {
        progress.more(bytes.len() as u64);
        receiver.feed(&bytes)?;
    }
    Ok(())
}

fn offline(data_dir: &Path, scratch: Option<&Path>, receiver: &mut Receiver) -> anyhow::Result<()> {
    let specimen = Specimen::take(data_dir, scratch)?;
    let store = Arc::new(specimen.open()?);
    // Nobody writes to it: the limit does not matter.
    let payloads = Arc::new(Payloads::open(&specimen.directory.payload_dir(), u64::MAX)?);
    let source = Source::new(&specimen.directory, store, payloads);
    let progress = Progress::flowing("backing up");
    let mut heard = |counts: crate::engine::backup::manifest::Counts| progress.at(counts.payload_bytes);
    let mut feeding = Feeding::new(receiver, &mut heard);
    let sent = source.send(&mut feeding);
    feeding.outcome()?;
    match sent {
        Ok(()) => Ok(()),
        Err(SendError::Store(error)) => Err(specimen.as_of_original(error).into()),
        Err(gone) => Err(gone.into()),
    }
}

fn describe(manifest: &Manifest, to: &Path) {
    let counts = &manifest.counts;
    say(&format!(
        "{}: {} at commit {}, {} values, {} payload files ({})",
        to.display(),
        manifest.origin.role,
        manifest.head.batch,
        counts.values,
        counts.payloads,
        size(counts.payload_bytes)
    ));
}
