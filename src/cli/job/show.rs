//! `fedbroker job get` and `fedbroker job events`.

use super::super::output::{self, Column, Format, text};
use super::stream::Events;
use super::{COLUMNS, Target, column, duration};
use crate::cli::client::Request;
use clap::Args;
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;

/// Events that the service gives at most in one page.
const PAGE_MAX: usize = 1000;

/// `fedbroker job get`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker job get party1-20260131120000-7 -o yaml")]
pub(super) struct GetOptions {
    /// The jobs
    #[arg(required = true)]
    jobs: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// `fedbroker job events`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker job events party1-20260131120000-7\n  fedbroker job events --follow -o jsonl")]
pub(super) struct EventsOptions {
    /// The job; all that happens at the master without
    job: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Go on with what happens from now on, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Only those after this sequence
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// How long a master that is away is tried again
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    patience: Duration,
}

const EVENT_COLUMNS: &[Column] = &[
    column("SEQ", false, |event| text(&event["seq"])),
    column("AT", false, |event| text(&event["at"])),
    column("TYPE", false, |event| text(&event["type"])),
    column("JOB", false, |event| text(&event["job_id"])),
    column("TASK", false, |event| text(&event["task_id"])),
    column("WHAT", false, what),
];

/// The other fields, the large ones left out.
fn what(event: &Value) -> String {
    let known = ["seq", "at", "type", "job_id", "task_id"];
    let fields = event.as_object().into_iter().flatten();
    let small = |value: &Value| !value.is_null() && value.to_string().len() <= 80;
    let shown = fields.filter(|(name, value)| !known.contains(&name.as_str()) && small(value));
    let pairs: Vec<String> = shown.map(|(name, value)| format!("{name}={}", text(value))).collect();
    if pairs.is_empty() { "-".to_owned() } else { pairs.join(" ") }
}

/// Show jobs.
///
/// # Errors
/// A job is not known, or the master cannot be reached; the others are shown all the same.
pub(super) async fn get(options: GetOptions) -> anyhow::Result<ExitCode> {
    let client = options.target.client()?;
    let (mut jobs, mut failed) = (Vec::new(), None);
    for id in &options.jobs {
        match client.ask(Request::get(&["api", "v1", "jobs", id])).await {
            Ok(job) => jobs.push(job),
            Err(error) => {
                let is_passing = error.is_passing();
                if let Some(earlier) = failed.replace(error) {
                    eprintln!("fedbroker: {earlier}");
                }
                if is_passing {
                    break;
                }
            }
        }
    }
    match jobs.as_slice() {
        [] => {}
        [job] => output::one(options.target.format(), COLUMNS, "job_id", job),
        jobs => output::list(options.target.format(), COLUMNS, "job_id", jobs),
    }
    failed.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
}

/// Show events.
///
/// # Errors
/// The job is not known, or the master cannot be reached.
pub(super) async fn events(options: EventsOptions) -> anyhow::Result<ExitCode> {
    let client = options.target.client()?;
    let path = match &options.job {
        Some(id) => vec!["api", "v1", "jobs", id.as_str(), "events"],
        None => vec!["api", "v1", "events"],
    };
    if options.follow {
        let mut events = Events::new(client, &path, options.after.map(|seq| seq.to_string()), options.patience);
        loop {
            line(options.target.format(), &events.next().await?);
        }
    }
    let (mut items, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let request = Request::get(&path).query("limit", PAGE_MAX.to_string());
        let request = match (&cursor, options.after) {
            // Here the next page begins after a number, as the first one may.
            (Some(last), _) => request.query("after", last.clone()),
            (None, Some(after)) => request.query("after", after.to_string()),
            (None, None) => request,
        };
        let mut page = client.ask(request).await?;
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        let Some(Value::Array(mut found)) = page.get_mut("items").map(Value::take) else {
            anyhow::bail!("the master gave no items")
        };
        if matches!(options.target.format(), Format::Jsonl | Format::Name) {
            found.iter().for_each(|event| line(options.target.format(), event));
        } else {
            items.append(&mut found);
        }
        if cursor.is_none() {
            break;
        }
    }
    if !matches!(options.target.format(), Format::Jsonl | Format::Name) {
        output::list(options.target.format(), EVENT_COLUMNS, "seq", &items);
    }
    Ok(ExitCode::SUCCESS)
}

/// One event on a line, as it comes.
fn line(format: Format, event: &Value) {
    match format {
        Format::Table | Format::Wide => {
            let cells = EVENT_COLUMNS.iter().map(|column| output::plain(&(column.cell)(event)));
            crate::telemetry::say(&cells.collect::<Vec<_>>().join("  "));
        }
        Format::Name => crate::telemetry::say(&text(&event["seq"])),
        Format::Json | Format::Jsonl | Format::Yaml => crate::telemetry::say(&output::line(event)),
    }
}
