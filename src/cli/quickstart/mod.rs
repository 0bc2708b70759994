//! `fedbroker quickstart`: a real federated job over three parties, with a crash in the middle.
//!
//! Nothing here is simulated: ten processes, a training in Python, and a SIGKILL. What it says it has seen.

mod screen;
mod training;

use super::client::{Client, Request};
use super::federation::{Federation, Ports, SLOTS};
use super::installed;
use crate::wire::connect::Backoff;
use anyhow::Context;
use clap::Args;
use screen::Screen;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use training::{Round, Training};

/// Parties of the federation.
const PARTIES: u16 = 3;
/// Rounds of the training.
const ROUNDS: u64 = 8;
/// The round after which the master is killed.
const CRASH_AFTER: u64 = 3;
/// Rounds that must go by while it is dead, to show that the work goes on.
const ROUNDS_DEAD: u64 = 2;
/// Pause of the aggregator after each round: without it the training is over before anybody has seen the crash.
const ROUND_DELAY_MS: u64 = 700;
/// How long a proposal waits for the parties, seconds.
const PROPOSAL_WAIT_S: u64 = 2;
/// The whole thing must be over by then.
const LIMIT: Duration = Duration::from_secs(120);
/// How often files and states are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// `fedbroker quickstart`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker quickstart --keep /tmp/quickstart")]
pub(super) struct QuickstartOptions {
    /// Do not kill the master in the middle
    #[arg(long)]
    no_crash: bool,
    /// Keep all data and logs in this new or empty directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Run it.
///
/// # Errors
/// What failed, and where the logs are.
pub(super) fn run(options: QuickstartOptions) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(quickstart(options))
}

async fn quickstart(options: QuickstartOptions) -> anyhow::Result<ExitCode> {
    need_python().await?;
    let place = Place::make(options.keep.clone())?;
    let screen = Screen::new(ROUNDS);
    let play = async {
        tokio::select! {
            played = tokio::time::timeout(LIMIT, play(&place.dir, &screen, !options.no_crash)) => {
                played.unwrap_or_else(|_| Err(anyhow::anyhow!("it was not over after {} s", LIMIT.as_secs())))
            }
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    };
    match play.await {
        Ok(()) => {
            place.leave();
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            screen.end();
            let dir = place.keep();
            Err(error.context(format!("the quickstart failed; the logs are in {}", dir.join("logs").display())))
        }
    }
}

async fn play(dir: &Path, screen: &Screen, crash: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    for index in 0..usize::from(PARTIES) {
        installed::install(&dir.join(format!("party{}", index + 1)), index, usize::from(PARTIES))?;
    }
    screen.step("starting a coordinator and three parties, each with its own cluster, its own data and its own program");
    let ports = Ports {
        coordinator: 0,
        masters: 0,
        cluster_managers: 0,
        lent: Ports::free_to_lend(PARTIES),
    };
    let mut federation = Federation::start(dir, PARTIES, ports, SLOTS).await?;
    let played = job(&mut federation, screen, crash).await;
    if played.is_err() {
        federation.stop().await;
        return played;
    }
    federation.stop().await;
    screen.line(&format!("\nover in {:.1} s; everything is stopped", began.elapsed().as_secs_f64()));
    screen.line(&next());
    Ok(())
}

/// Three commands that work right away, in the words this one was started with.
fn next() -> String {
    let fedbroker = if std::env::var_os("CARGO").is_some() {
        "cargo run --release --"
    } else {
        "fedbroker"
    };
    format!(
        "try next:\n  \
         {fedbroker} standalone --parties 3      # a federation that stays; the next two need it\n  \
         {fedbroker} submit --config examples/jobs/digits_fedavg.yaml --endpoint 127.0.0.1:10002 --wait\n  \
         curl -s http://127.0.0.1:10002/api/v1/status"
    )
}

async fn job(federation: &mut Federation, screen: &Screen, crash: bool) -> anyhow::Result<()> {
    let client = Client::new(&federation.parties[0].master.address)?;
    for party in &federation.parties {
        subscribed(&Client::new(&party.master.address)?)
            .await
            .with_context(|| format!("{} is not subscribed", party.id))?;
    }
    let request = json!({
        "job_type": "program",
        "job_config": {
            "program": installed::PROGRAM,
            "proposal_wait_time": PROPOSAL_WAIT_S,
            "worker_num": PARTIES,
            "params": { "rounds": ROUNDS, "round_delay_ms": ROUND_DELAY_MS },
        },
    });
    let answer = client.ask(Request::post(&["submit"]).json(&request)).await?;
    let id = answer["job_id"].as_str().context("no job id in the answer")?.to_owned();
    screen.step(&format!(
        "job {id} submitted to {}: federated averaging of handwritten digits",
        federation.parties[0].id
    ));

    let mut training = Training::new(&federation.parties[0].dir.join("work"), &id);
    let mut crashed = None;
    let job = loop {
        federation.still_runs()?;
        for round in training.new_rounds()? {
            screen.round(&round);
        }
        if crash && crashed.is_none() && training.round() >= CRASH_AFTER {
            crashed = Some(crash_and_recover(federation, screen, &mut training).await?);
        }
        let job = client.ask(Request::get(&["api", "v1", "jobs", &id])).await?;
        match job["state"].as_str() {
            Some("success") => break job,
            Some("failed" | "cancelled") => anyhow::bail!("the job failed: {}\n{}", shown(&job["reason"]), shown(&job["stderr_tail"])),
            Some(state) => screen.state(state, job["reason"].as_str()),
            None => {}
        }
        tokio::time::sleep(LOOK).await;
    };
    for round in training.new_rounds()? {
        screen.round(&round);
    }
    screen.end();
    report(screen, &id, &job, &training, crashed.as_ref())
}

/// What a crash came to.
struct Crash {
    killed_after: u64,
    alone: u64,
    recovery: Duration,
    report: Value,
}

/// SIGKILL the initiating master, let the training go on without it for a while, start it again.
async fn crash_and_recover(federation: &mut Federation, screen: &Screen, training: &mut Training) -> anyhow::Result<Crash> {
    let master = &mut federation.parties[0].master;
    let killed_after = training.round();
    master.kill().await?;
    screen.step(&format!(
        "kill -9 of the initiating master after round {killed_after}; the training goes on without it"
    ));
    while training.round() < (killed_after + ROUNDS_DEAD).min(ROUNDS) {
        for round in training.new_rounds()? {
            screen.round(&round);
        }
        tokio::time::sleep(LOOK).await;
    }
    let began = Instant::now();
    master.restart().await?;
    let recovery = began.elapsed();
    let status = Client::new(&master.address)?.ask(Request::get(&["api", "v1", "status"])).await?;
    let report = status["recovery"].clone();
    screen.step(&format!(
        "started again: serving after {:.0} ms, found {}",
        recovery.as_secs_f64() * 1e3,
        records(&report)
    ));
    Ok(Crash {
        killed_after,
        alone: training.round() - killed_after,
        recovery,
        report,
    })
}

fn report(screen: &Screen, id: &str, job: &Value, training: &Training, crash: Option<&Crash>) -> anyhow::Result<()> {
    let last = training
        .rounds()
        .last()
        .context("the job succeeded, but its aggregator printed no round")?;
    screen.line(&format!("\njob       {id}"));
    screen.line(&format!("state     {}", shown(&job["state"])));
    let accuracies: Vec<String> = training
        .rounds()
        .iter()
        .map(|Round { accuracy, .. }| format!("{accuracy:.3}"))
        .collect();
    screen.line(&format!(
        "accuracy  {} (rounds 1 to {}, on rows no party trained on)",
        accuracies.join(" "),
        last.round
    ));
    if let Some(Crash {
        killed_after,
        alone,
        recovery,
        report,
    }) = crash
    {
        screen.line(&format!(
            "crash     kill -9 of the initiating master after round {killed_after}; {alone} rounds went by without it"
        ));
        let seconds = report["seconds"].as_f64().unwrap_or_default();
        let (total, read) = (recovery.as_secs_f64() * 1e3, seconds * 1e3);
        screen.line(&format!(
            "recovery  {total:.0} ms from start to serving, {read:.1} ms of it reading records: {}",
            records(report)
        ));
    }
    Ok(())
}

fn records(report: &Value) -> String {
    let found = report["records"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, n)| n.as_u64() > Some(0));
    let found: Vec<String> = found.map(|(what, n)| format!("{n} {what}")).collect();
    if found.is_empty() {
        "nothing in flight".to_owned()
    } else {
        found.join(", ")
    }
}

fn shown(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Wait until the master takes part in the federation.
async fn subscribed(client: &Client) -> anyhow::Result<()> {
    let mut backoff = Backoff::new();
    loop {
        let status = client.ask(Request::get(&["api", "v1", "status"])).await?;
        if status["coordinator"]["subscribed"] == true {
            return Ok(());
        }
        backoff.wait().await;
    }
}

async fn need_python() -> anyhow::Result<()> {
    let found = tokio::process::Command::new("python3").arg("--version").output().await;
    match found {
        Ok(output) if output.status.success() => Ok(()),
        _ => anyhow::bail!(
            "the example program needs python3 (its standard library only), which is not to be found; install it and try again"
        ),
    }
}

/// Where everything is: a directory that is removed at the end, or the one to keep.
struct Place {
    dir: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn make(keep: Option<PathBuf>) -> anyhow::Result<Self> {
        let Some(dir) = keep else {
            let temporary = tempfile::Builder::new()
                .prefix("fedbroker-quickstart-")
                .tempdir()
                .context("cannot make a directory")?;
            return Ok(Self {
                dir: temporary.path().to_owned(),
                temporary: Some(temporary),
            });
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("--keep: cannot make {}", dir.display()))?;
        let dir = std::path::absolute(dir)?;
        let empty = std::fs::read_dir(&dir)
            .with_context(|| format!("--keep: cannot read {}", dir.display()))?
            .next()
            .is_none();
        anyhow::ensure!(empty, "--keep: {} is not empty; name a new directory", dir.display());
        Ok(Self { dir, temporary: None })
    }

    /// Remove a temporary directory.
    fn leave(self) {
        if let Some(Err(error)) = self.temporary.map(tempfile::TempDir::close) {
            tracing::warn!(%error, "the temporary directory is not removed");
        }
    }

    /// Leave everything for somebody to look at.
    fn keep(self) -> PathBuf {
        self.temporary.map_or(self.dir, tempfile::TempDir::keep)
    }
}
