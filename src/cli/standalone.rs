//! `fedbroker standalone`: a whole federation on one machine, durable, until Ctrl-C.

use super::federation::{Federation, Ports, SLOTS};
use super::installed;
use crate::telemetry::say;
use anyhow::Context;
use clap::Args;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// The most parties: each takes a hundred ports.
const PARTIES_MAX: u16 = 50;

/// `fedbroker standalone`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  fedbroker standalone --parties 3\n  fedbroker submit --config examples/jobs/digits_fedavg.yaml --endpoint 127.0.0.1:10002 --wait"
)]
pub(super) struct StandaloneOptions {
    /// Where everything is kept; started again on the same directory, it goes on where it was
    #[arg(long, default_value = "fedbroker-data/standalone")]
    data_dir: PathBuf,
    /// Number of parties
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(PARTIES_MAX)))]
    parties: u16,
    /// Port of the coordinator; masters follow from two above, as in FedVision 0.1; 0 takes free ones for all
    #[arg(long, default_value_t = 10000)]
    port: u16,
}

/// Run until a signal, or until a role ends.
///
/// # Errors
/// A role did not start or has ended.
pub(super) fn run(options: StandaloneOptions) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(standalone(options))
}

async fn standalone(options: StandaloneOptions) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        options.port <= 60_000,
        "--port: at most 60000, since the ports above it are used too"
    );
    for index in 0..options.parties {
        installed::install(
            &options.data_dir.join(format!("party{}", index + 1)),
            usize::from(index),
            usize::from(options.parties),
        )?;
    }
    let dir = std::path::absolute(&options.data_dir)?;
    let ports = match options.port {
        0 => Ports {
            coordinator: 0,
            masters: 0,
            cluster_managers: 0,
            lent: lent(&dir, options.parties)?,
        },
        port => Ports {
            coordinator: port,
            masters: port + 2,
            cluster_managers: port + 1000,
            lent: 12_000,
        },
    };
    // From here on a signal means an orderly end, even while the roles are starting.
    let asked = signalled()?;
    tokio::pin!(asked);
    let mut federation = tokio::select! {
        started = Federation::start(&dir, options.parties, ports, SLOTS) => started?,
        () = &mut asked => return Ok(ExitCode::SUCCESS),
    };
    say(&format!("standalone ready on {}", federation.parties[0].master.address));
    say(&format!("coordinator {}", federation.coordinator()));
    for party in &federation.parties {
        say(&format!("{} REST http://{}", party.id, party.master.address));
    }
    say(&format!("data and logs in {}; Ctrl-C stops", dir.display()));
    let result = tokio::select! {
        () = asked => Ok(()),
        ended = watch(&mut federation) => ended,
    };
    federation.stop().await;
    result.map(|()| ExitCode::SUCCESS)
}

/// The ports lent to jobs: those of the first start on this directory, since a job in flight may hold some.
fn lent(dir: &Path, parties: u16) -> anyhow::Result<u16> {
    let file = dir.join("lent-ports");
    if let Some(first) = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(first);
    }
    let first = Ports::free_to_lend(parties);
    std::fs::write(&file, format!("{first}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(first)
}

/// Ends with the first role that ends.
async fn watch(federation: &mut Federation) -> anyhow::Result<()> {
    let mut look = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        look.tick().await;
        federation.still_runs()?;
    }
}

/// Signals are taken from this call on; resolves with the first.
fn signalled() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
