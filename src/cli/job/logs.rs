//! `fedbroker job logs`: what a task wrote, through the master and its cluster manager.

use crate::cli::client::{Client, Request};
use crate::cli::terminal::{self, Pieces};
use anyhow::Context;
use clap::{Args, ValueEnum};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

/// `fedbroker job logs`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  fedbroker job logs party1-20260131120000-7 trainer_0 --tail 50\n  fedbroker job logs party1-20260131120000-7 trainer_0 --follow"
)]
pub(super) struct LogsOptions {
    /// The job
    job: String,
    /// The task; may be left out when the job has one here
    task: Option<String>,
    /// REST service of the master, host:port
    #[arg(long, env = "FEDBROKER_ENDPOINT")]
    endpoint: String,
    /// What it wrote to
    #[arg(long, value_enum, default_value_t = Stream::Stderr)]
    stream: Stream,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    /// Go on with what it writes, until it ends
    #[arg(short, long)]
    follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stream {
    Stderr,
    Stdout,
}

/// Show.
///
/// # Errors
/// The task is not known, has not begun, or its worker cannot be reached.
pub(super) async fn logs(options: LogsOptions) -> anyhow::Result<ExitCode> {
    let client = Client::new(&options.endpoint)?;
    let task = match &options.task {
        Some(task) => task.clone(),
        None => only_task(&client, &options.job).await?,
    };
    let stream = match options.stream {
        Stream::Stderr => "stderr",
        Stream::Stdout => "stdout",
    };
    let mut request = Request::get(&["api", "v1", "jobs", &options.job, "tasks", &task, "logs"]).query("stream", stream);
    if let Some(lines) = options.tail {
        request = request.query("tail", lines.to_string());
    }
    if options.follow {
        request = request.query("follow", "true");
    }
    let mut answer = client.open(request).await?;
    let mut out = std::io::stdout().lock();
    // To a file or a program as it was written; a terminal would obey what a task wrote.
    let mut shown = out.is_terminal().then(|| Pieces::new(terminal::lines));
    let mut show = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to stdout");
    while let Some(chunk) = client.chunk(&mut answer).await? {
        match &mut shown {
            Some(pieces) => show(pieces.take(&chunk).as_bytes())?,
            None => show(&chunk)?,
        }
    }
    show(shown.map(Pieces::end).unwrap_or_default().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

async fn only_task(client: &Client, job: &str) -> anyhow::Result<String> {
    let job = client.ask(Request::get(&["api", "v1", "jobs", job])).await?;
    let tasks = job["tasks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = tasks.iter().filter_map(|task| task["task_id"].as_str()).collect();
    match names.as_slice() {
        [] => anyhow::bail!("the job has no task here yet"),
        [only] => Ok((*only).to_owned()),
        several => super::super::exit::usage(&format!("name one of the job's tasks: {}", several.join(", "))),
    }
}
