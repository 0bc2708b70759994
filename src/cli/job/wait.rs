//! `fedbroker job wait`: until jobs have ended, over restarts of the master.

use super::super::output;
use super::{COLUMNS, Target, duration};
use crate::cli::client::{Client, Request};
use crate::cli::exit::TimedOut;
use clap::Args;
use serde_json::Value;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The longest a master is asked to wait with one answer.
const TURN: Duration = Duration::from_secs(30);

/// How long a master that is away is tried again by who waits until a cancelled job is closed.
const CLOSING_PATIENCE: Duration = Duration::from_secs(60);

/// `fedbroker job wait`
#[derive(Args, Clone, Debug)]
#[command(after_help = concat!(
    "Exits with 0 when all ended well, 1 when one did not, 4 when the time was over, 6 when one is not known.\n\n",
    "Example:\n  fedbroker job wait party1-20260131120000-7 --timeout 10m"
))]
pub(super) struct WaitOptions {
    /// The jobs
    #[arg(required = true)]
    jobs: Vec<String>,
    #[command(flatten)]
    target: Target,
    /// Wait no longer than this: 500ms, 90s, 5m, 2h or 1d; exit 4 then
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// How long a master that is away is tried again
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    patience: Duration,
    /// Do not go on with the job that runs a failed one again
    #[arg(long)]
    no_follow: bool,
}

/// How to wait.
pub(super) struct WaitFor {
    pub(super) timeout: Option<Duration>,
    pub(super) patience: Duration,
    /// When a job has failed and another one runs it again, wait for that.
    pub(super) follow: bool,
}

/// Wait.
///
/// # Errors
/// A job is not known, the master is away for too long, or the time is over.
pub(super) async fn wait(options: WaitOptions) -> anyhow::Result<ExitCode> {
    let client = options.target.client()?;
    let began = Instant::now();
    let mut ended = Vec::new();
    for id in &options.jobs {
        let wait = WaitFor {
            timeout: options.timeout.map(|timeout| timeout.saturating_sub(began.elapsed())),
            patience: options.patience,
            follow: !options.no_follow,
        };
        ended.push(wait.end_of(&client, id).await?);
    }
    output::list(options.target.format(), COLUMNS, "job_id", &ended);
    let failed = ended.iter().any(|job| job["state"] != "success");
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// 0 for a success.
pub(super) fn code(job: &Value) -> ExitCode {
    if job["state"] == "success" {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// One turn of waiting for a job: as it is once `phase` is reached, or after [`TURN`]. It ends at `until`, also while the master is away.
async fn turn(client: &Client, id: &str, phase: &str, patience: Duration, until: Option<Instant>) -> anyhow::Result<Value> {
    let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
    let waits = left.min(TURN);
    let ms = waits.as_micros().div_ceil(1000);
    let request = || {
        let mut request = Request::get(&["api", "v1", "jobs", id]);
        request.waits = waits;
        request.query("wait", format!("{ms}ms")).query("until", phase)
    };
    Ok(client.ask_patiently(patience.min(left), request).await?)
}

/// A job once nothing of it can run any more.
///
/// # Errors
/// The job is not known, the master is away for too long, or the time is over.
pub(super) async fn closed(client: &Client, id: &str, until: Option<Instant>) -> anyhow::Result<Value> {
    loop {
        let job = turn(client, id, "closed", CLOSING_PATIENCE, until).await?;
        if job["live"] == false {
            return Ok(job);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            anyhow::bail!(TimedOut(format!("something of job {id} may still run after the time given")));
        }
    }
}

impl WaitFor {
    /// The job once it has ended, or the one that ran it again.
    ///
    /// # Errors
    /// The job is not known, the master is away for too long, or the time is over.
    pub(super) async fn end_of(&self, client: &Client, id: &str) -> anyhow::Result<Value> {
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut id = id.to_owned();
        loop {
            let job = turn(client, &id, "terminal", self.patience, until).await?;
            if matches!(job["state"].as_str(), Some("success" | "failed" | "cancelled")) {
                match job["successor"].as_str() {
                    Some(next) if self.follow => {
                        eprintln!(
                            "{}",
                            output::plain(&format!(
                                "{id} {}: {}; {next} runs it again",
                                output::text(&job["state"]),
                                output::text(&job["reason"])
                            ))
                        );
                        next.clone_into(&mut id);
                        continue;
                    }
                    _ => return Ok(job),
                }
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                anyhow::bail!(TimedOut(format!(
                    "job {id} is still {} after the time given",
                    output::text(&job["state"])
                )));
            }
        }
    }
}
