//! `fedbroker job watch`: the steps of a job as they come, until it ends. A bar on a terminal, a line for each elsewhere.

use super::super::output::{self, plain, text};
use super::stream::Events;
use super::wait;
use super::{COLUMNS, Target, duration};
use crate::cli::client::{Client, Request};
use crate::cli::exit::TimedOut;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

/// The steps of a job on its way, in their order; it may skip some.
const STEPS: [&str; 6] = ["waiting", "leasing", "preparing", "proposing", "running", "success"];

/// `fedbroker job watch`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker job watch party1-20260131120000-7")]
pub(super) struct WatchOptions {
    /// The job
    job: String,
    #[command(flatten)]
    target: Target,
    /// Watch no longer than this: 500ms, 90s, 5m, 2h or 1d; exit 4 then
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// How long a master that is away is tried again
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    patience: Duration,
}

/// Watch.
///
/// # Errors
/// The job is not known, the master is away for too long, or the time is over.
pub(super) async fn watch(options: WatchOptions) -> anyhow::Result<ExitCode> {
    let client = options.target.client()?;
    let screen = Screen::new();
    let time = options.timeout.unwrap_or(Duration::MAX);
    let end = tokio::time::sleep(time);
    let mut job = get(&client, &options, options.patience.min(time)).await?;
    screen.show(&job);
    let to_the_end = follow(&client, &options, &screen, &mut job);
    let ended = tokio::select! {
        ended = to_the_end => Some(ended?),
        () = end => None,
    };
    screen.bar.finish_and_clear();
    if ended.is_none() {
        let state = text(&job["state"]);
        anyhow::bail!(TimedOut(format!("job {} is still {state} after the time given", options.job)));
    }
    output::one(options.target.format(), COLUMNS, "job_id", &job);
    Ok(wait::code(&job))
}

/// Show each step of a job until it has ended.
async fn follow(client: &Client, options: &WatchOptions, screen: &Screen, job: &mut Value) -> anyhow::Result<()> {
    let path = ["api", "v1", "jobs", &options.job, "events"];
    let mut events = Events::new(client.clone(), &path, None, options.patience);
    while !has_ended(job) {
        let event = events.next().await?;
        if event["type"].as_str().is_some_and(|name| name.starts_with("job_")) {
            *job = get(client, options, options.patience).await?;
            screen.show(job);
        }
    }
    Ok(())
}

async fn get(client: &Client, options: &WatchOptions, patience: Duration) -> anyhow::Result<Value> {
    let request = || Request::get(&["api", "v1", "jobs", &options.job]);
    Ok(client.ask_patiently(patience, request).await?)
}

fn has_ended(job: &Value) -> bool {
    matches!(job["state"].as_str(), Some("success" | "failed" | "cancelled"))
}

/// Where the steps show.
struct Screen {
    bar: ProgressBar,
    /// The line shown last, where there is no bar.
    last: std::cell::RefCell<String>,
}

impl Screen {
    fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{bar:20} {msg} ({elapsed})").unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(STEPS.len() as u64 - 1).with_style(style);
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        } else {
            ProgressBar::hidden()
        };
        Self {
            bar,
            last: std::cell::RefCell::default(),
        }
    }

    fn show(&self, job: &Value) {
        let state = text(&job["state"]);
        let line = plain(&match job["reason"].as_str() {
            Some(reason) => format!("{state}: {reason}"),
            None => state.clone(),
        });
        if let Some(at) = STEPS.iter().position(|step| *step == state) {
            self.bar.set_position(at as u64);
        }
        if !self.bar.is_hidden() {
            self.bar.set_message(line);
        } else if *self.last.borrow() != line {
            eprintln!("{} {line}", plain(&text(&job["job_id"])));
            self.last.replace(line);
        }
    }
}
