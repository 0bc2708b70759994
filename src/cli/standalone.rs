//! `fedbroker standalone`: a whole federation on one machine, durable, until Ctrl-C.

use super::federation::{Federation, Ports};
use super::installed;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

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
            lent: 12_000,
        },
        port => Ports {
            coordinator: port,
            masters: port + 2,
            cluster_managers: port + 1000,
            lent: 12_000,
        },
    };
    let mut federation = Federation::start(&dir, options.parties, ports).await?;
    println!("standalone ready on {}", federation.parties[0].master.address);
    println!("coordinator {}", federation.coordinator());
    for party in &federation.parties {
        println!("{} REST http://{}", party.id, party.master.address);
    }
    println!("data and logs in {}; Ctrl-C stops", dir.display());
    let result = watch(&mut federation).await;
    federation.stop().await;
    result.map(|()| ExitCode::SUCCESS)
}

async fn watch(federation: &mut Federation) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut look = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = look.tick() => federation.still_runs()?,
        }
    }
}
