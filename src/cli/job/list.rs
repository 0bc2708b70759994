//! `fedbroker job list` and `fedbroker job export`: many jobs, page by page or as one stream.

use super::super::output::{self, Format};
use super::filter::FilterOptions;
use super::{COLUMNS, Target};
use crate::cli::client::Request;
use crate::cli::terminal::{self, Pieces};
use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::Value;
use std::io::Write;
use std::process::ExitCode;

/// What the service gives at most in one page.
const PAGE_MAX: usize = 500;

/// `fedbroker job list`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  fedbroker job list --state failed --created-after -24h -o wide\n  fedbroker job list --label team=vision --all -o name"
)]
pub(super) struct ListOptions {
    #[command(flatten)]
    filter: FilterOptions,
    #[command(flatten)]
    target: Target,
    /// How many at most
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// All of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Which come first
    #[arg(long, value_enum, default_value_t = Order::Newest)]
    order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    Newest,
    Oldest,
}

/// `fedbroker job export`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker job export --created-before -720h > jobs.jsonl")]
pub(super) struct ExportOptions {
    #[command(flatten)]
    filter: FilterOptions,
    /// REST service of the master, host:port
    #[arg(long, env = "FEDBROKER_ENDPOINT")]
    endpoint: String,
}

/// List.
///
/// # Errors
/// The master cannot be reached, or does not take the filter.
pub(super) async fn list(options: ListOptions) -> anyhow::Result<ExitCode> {
    let client = options.target.client()?;
    let order = match options.order {
        Order::Newest => "created_desc",
        Order::Oldest => "created_asc",
    };
    let limit = if options.all { usize::MAX } else { options.limit };
    let (mut items, mut shown, mut cursor) = (Vec::new(), 0, None::<String>);
    // What is shown line by line need not be collected.
    let streams = matches!(options.target.format(), Format::Jsonl | Format::Name);
    loop {
        let page_size = (limit - shown).min(PAGE_MAX);
        let request = Request::get(&["api", "v1", "jobs"]).queries(options.filter.pairs());
        let request = request.query("order", order).query("limit", page_size.to_string());
        let request = match &cursor {
            Some(cursor) => request.query("cursor", cursor.clone()),
            None => request,
        };
        let mut page = client.ask(request).await?;
        let next = page["next_cursor"].as_str().map(str::to_owned);
        let Some(Value::Array(mut found)) = page.get_mut("items").map(Value::take) else {
            anyhow::bail!("the master gave no items")
        };
        shown += found.len();
        if streams {
            output::list(options.target.format(), COLUMNS, "job_id", &found);
        } else {
            items.append(&mut found);
        }
        cursor = next;
        if cursor.is_none() || shown >= limit {
            break;
        }
    }
    if !streams {
        output::list(options.target.format(), COLUMNS, "job_id", &items);
    }
    if cursor.is_some() {
        eprintln!("there are more; see --limit and --all");
    }
    Ok(ExitCode::SUCCESS)
}

/// Export.
///
/// # Errors
/// The master cannot be reached, does not take the filter, or the stream broke off.
pub(super) async fn export(options: ExportOptions) -> anyhow::Result<ExitCode> {
    let client = crate::cli::client::Client::new(&options.endpoint)?;
    let request = Request::get(&["api", "v1", "jobs:export"]).queries(options.filter.pairs());
    let mut answer = client.open(request).await?;
    let mut out = std::io::stdout().lock();
    let mut shown = Pieces::new(terminal::json);
    while let Some(chunk) = client.chunk(&mut answer).await? {
        out.write_all(shown.take(&chunk).as_bytes()).context("cannot write to stdout")?;
    }
    out.write_all(shown.end().as_bytes()).context("cannot write to stdout")?;
    out.flush().context("cannot write to stdout")?;
    Ok(ExitCode::SUCCESS)
}
