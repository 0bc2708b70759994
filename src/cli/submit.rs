//! `fedbroker submit`: a job file to a master, and on request the wait for its end.

use super::client::Client;
use crate::telemetry::say;
use crate::wire::connect::Backoff;
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How often a waiting submit asks.
const POLL: Duration = Duration::from_millis(200);

/// `fedbroker submit`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker submit --config examples/jobs/digits_fedavg.yaml --endpoint 127.0.0.1:10002 --wait")]
pub(super) struct SubmitOptions {
    /// Job file: job_type, job_config, and optionally algorithm_config, the path of a file beside it
    #[arg(long)]
    config: PathBuf,
    /// REST service of the master, host:port
    #[arg(long, env = "FEDBROKER_ENDPOINT")]
    endpoint: String,
    /// Wait for the job to end; exit 0 on success, 1 when it failed
    #[arg(long)]
    wait: bool,
}

/// Submit.
///
/// # Errors
/// The file is no good, or the master cannot be reached or refuses the job.
pub(super) fn run(options: SubmitOptions) -> anyhow::Result<ExitCode> {
    let request = read(&options.config)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(submit(options, request))
}

async fn submit(options: SubmitOptions, request: Value) -> anyhow::Result<ExitCode> {
    let client = Client::new(&options.endpoint)?;
    let answer = client
        .post("/submit", &request)
        .await?
        .good()
        .context("the master refused the job")?;
    say(&serde_json::to_string_pretty(&answer)?);
    let id = answer["job_id"].as_str().context("the master gave no job id")?;
    if !options.wait {
        return Ok(ExitCode::SUCCESS);
    }
    let job = wait(&client, id).await?;
    say(&serde_json::to_string_pretty(&job)?);
    Ok(if job["state"] == "success" {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Ask until the job has ended; a master that is away is waited for.
async fn wait(client: &Client, id: &str) -> anyhow::Result<Value> {
    let mut backoff = Backoff::new();
    let mut shown = String::new();
    loop {
        match client.get(&format!("/api/v1/jobs/{id}")).await {
            Ok(answer) => {
                let job = answer.good()?;
                backoff.reset();
                let state = job["state"].as_str().unwrap_or_default().to_owned();
                let now = match job["reason"].as_str() {
                    Some(reason) => format!("{state}: {reason}"),
                    None => state.clone(),
                };
                if now != shown {
                    eprintln!("{id} {now}");
                    shown = now;
                }
                if matches!(state.as_str(), "success" | "failed") {
                    return Ok(job);
                }
                tokio::time::sleep(POLL).await;
            }
            Err(error) => {
                eprintln!("{error:#}; waiting for it to come back");
                backoff.wait().await;
            }
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--config: cannot read {}", path.display()))?;
    let file: Value = serde_saphyr::from_str(&text).with_context(|| format!("--config: {} is not YAML", path.display()))?;
    anyhow::ensure!(file["job_type"].is_string(), "--config: {} has no job_type", path.display());
    anyhow::ensure!(file["job_config"].is_object(), "--config: {} has no job_config", path.display());
    let mut request = json!({ "job_type": file["job_type"], "job_config": file["job_config"] });
    if let Some(name) = file["algorithm_config"].as_str() {
        let beside = path.parent().unwrap_or(Path::new(".")).join(name);
        let text = std::fs::read_to_string(&beside).with_context(|| format!("algorithm_config: cannot read {}", beside.display()))?;
        request["algorithm_config"] = json!(text);
    }
    Ok(request)
}
