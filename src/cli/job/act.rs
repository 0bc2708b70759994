//! `fedbroker job cancel|rerun|hold|release|purge`: one request for each job named, or one for all that a filter finds.

use super::super::output::{self, Format, plain, text};
use super::filter::FilterOptions;
use super::{COLUMNS, Target, duration, wait};
use crate::cli::client::{Client, ClientError, Request};
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// `fedbroker job cancel`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  fedbroker job cancel party1-20260131120000-7 --reason 'wrong data' --wait\n  fedbroker job cancel --label sweep=3 --state running --dry-run"
)]
pub(super) struct CancelOptions {
    /// The jobs; or choose them with the flags below
    jobs: Vec<String>,
    #[command(flatten)]
    filter: FilterOptions,
    #[command(flatten)]
    target: Target,
    /// Why; shown with the job
    #[arg(long)]
    reason: Option<String>,
    /// With a filter: only say which jobs it finds
    #[arg(long)]
    dry_run: bool,
    /// Come back only once nothing of them runs at this party and nothing can start
    #[arg(long)]
    wait: bool,
    /// With --wait: no longer than this, 500ms, 90s, 5m, 2h or 1d; exit 4 then
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "wait")]
    timeout: Option<Duration>,
}

/// `fedbroker job rerun`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker job rerun party1-20260131120000-7")]
pub(super) struct RerunOptions {
    /// The jobs
    #[arg(required = true)]
    jobs: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// `fedbroker job hold`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker job hold party1-20260131120000-7")]
pub(super) struct HoldOptions {
    /// The jobs
    #[arg(required = true)]
    jobs: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// `fedbroker job release`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker job release party1-20260131120000-7")]
pub(super) struct ReleaseOptions {
    /// The jobs
    #[arg(required = true)]
    jobs: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// `fedbroker job purge`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker job list --state failed --all -o name | xargs fedbroker job purge")]
pub(super) struct PurgeOptions {
    /// The jobs; each must have ended
    #[arg(required = true)]
    jobs: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// Cancel.
///
/// # Errors
/// The master cannot be reached, or refused one; those before it are cancelled.
pub(super) async fn cancel(options: CancelOptions) -> anyhow::Result<ExitCode> {
    let client = options.target.client()?;
    let reason = options.reason.as_ref().map_or(json!({}), |reason| json!({ "reason": reason }));
    if !options.jobs.is_empty() {
        if !options.filter.is_empty() || options.dry_run {
            return super::super::exit::usage("name jobs, or choose them with flags, not both; --dry-run goes with flags");
        }
        let (mut done, refused) = ask_each(&client, &options.jobs, "cancel", &reason).await;
        if options.wait {
            done = closed(&client, done, options.timeout).await?;
        }
        return shown(&options.target, &done, refused);
    }
    if options.filter.is_empty() {
        return super::super::exit::usage(
            "name jobs, or choose them with --state, --type, --label, --created-after, --created-before or --id",
        );
    }
    let mut body = reason;
    body["filter"] = options.filter.json();
    body["dry_run"] = json!(options.dry_run);
    let mut found = Vec::new();
    loop {
        let answer = client.ask(Request::post(&["api", "v1", "jobs:cancel"]).json(&body)).await?;
        let ids = answer["job_ids"].as_array().into_iter().flatten();
        found.extend(ids.map(|id| json!({ "job_id": id })));
        if answer["more"] != true || options.dry_run {
            let more = if answer["more"] == true { "at least " } else { "" };
            let what = if options.dry_run { "would be cancelled" } else { "cancelled" };
            eprintln!("{more}{} jobs {what}", found.len());
            break;
        }
    }
    if options.wait && !options.dry_run {
        closed(&client, found.clone(), options.timeout).await?;
    }
    output::list(options.target.format(), &COLUMNS[..1], "job_id", &found);
    Ok(ExitCode::SUCCESS)
}

/// These jobs, once nothing of them can run any more.
async fn closed(client: &Client, jobs: Vec<Value>, timeout: Option<Duration>) -> anyhow::Result<Vec<Value>> {
    let until = timeout.map(|timeout| Instant::now() + timeout);
    let mut closed = Vec::with_capacity(jobs.len());
    for job in jobs {
        closed.push(wait::closed(client, &text(&job["job_id"]), until).await?);
    }
    Ok(closed)
}

/// Run again.
///
/// # Errors
/// The master cannot be reached, or refused one.
pub(super) async fn rerun(options: RerunOptions) -> anyhow::Result<ExitCode> {
    each(&options.target.client()?, &options.target, &options.jobs, "rerun", &json!({})).await
}

/// Hold.
///
/// # Errors
/// The master cannot be reached, or refused one.
pub(super) async fn hold(options: HoldOptions) -> anyhow::Result<ExitCode> {
    each(&options.target.client()?, &options.target, &options.jobs, "hold", &json!({})).await
}

/// Let go on.
///
/// # Errors
/// The master cannot be reached, or refused one.
pub(super) async fn release(options: ReleaseOptions) -> anyhow::Result<ExitCode> {
    each(&options.target.client()?, &options.target, &options.jobs, "release", &json!({})).await
}

/// Purge.
///
/// # Errors
/// The master cannot be reached, or refused one; those before it are purged and shown.
pub(super) async fn purge(options: PurgeOptions) -> anyhow::Result<ExitCode> {
    let client = options.target.client()?;
    let (mut gone, mut refused) = (Vec::new(), None);
    for id in &options.jobs {
        if let Err(error) = client.ask(Request::delete(&["api", "v1", "jobs", id])).await {
            refused = Some(of_job(id, error));
            break;
        }
        gone.push(json!({ "job_id": id }));
    }
    if !gone.is_empty() {
        let format = options.target.output.unwrap_or(Format::Name);
        output::list(format, &COLUMNS[..1], "job_id", &gone);
    }
    refused.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// The same for each; what was done before a refusal is shown.
async fn each(client: &Client, target: &Target, jobs: &[String], action: &str, body: &Value) -> anyhow::Result<ExitCode> {
    let (done, refused) = ask_each(client, jobs, action, body).await;
    shown(target, &done, refused)
}

/// With the job, where the error does not name it.
fn of_job(id: &str, error: ClientError) -> anyhow::Error {
    let names_it = error.to_string().contains(id);
    let error = anyhow::Error::new(error);
    if names_it {
        error
    } else {
        error.context(format!("job {}", plain(id)))
    }
}

/// What was done, and the first refusal.
async fn ask_each(client: &Client, jobs: &[String], action: &str, body: &Value) -> (Vec<Value>, Option<anyhow::Error>) {
    let mut done = Vec::new();
    let mut refused = None;
    for id in jobs {
        let last = format!("{id}:{action}");
        match client.ask(Request::post(&["api", "v1", "jobs", &last]).json(body)).await {
            Ok(job) => done.push(job),
            Err(error) => {
                refused = Some(of_job(id, error));
                break;
            }
        }
    }
    (done, refused)
}

fn shown(target: &Target, done: &[Value], refused: Option<anyhow::Error>) -> anyhow::Result<ExitCode> {
    if !done.is_empty() {
        output::list(target.format(), COLUMNS, "job_id", done);
    }
    refused.map_or(Ok(ExitCode::SUCCESS), Err)
}
