//! `fedbroker job`: what a user does with jobs, against the REST service of a master.
//!
//! Each command is one file or a few lines of `act`; `stream` follows events; `filter` is the choice of jobs that list, export and cancel share.

mod act;
mod filter;
mod list;
mod logs;
mod show;
mod stream;
pub(super) mod submit;
mod wait;
mod watch;

use super::client::Client;
use super::output::{Column, Format, age, text};
use clap::{Args, Subcommand};
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

/// `fedbroker job`
#[derive(Args, Clone, Debug)]
#[command(after_help = super::exit::CLIENT_HELP)]
pub(super) struct JobOptions {
    #[command(subcommand)]
    command: JobCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum JobCommand {
    /// Submit a job file
    Submit(submit::SubmitOptions),
    /// List jobs, newest first
    #[command(visible_alias = "ls")]
    List(list::ListOptions),
    /// Show jobs
    Get(show::GetOptions),
    /// Wait for jobs to end
    Wait(wait::WaitOptions),
    /// Watch a job's steps until it ends
    Watch(watch::WatchOptions),
    /// Show what happened to a job, or to all
    Events(show::EventsOptions),
    /// Show what a task wrote
    Logs(logs::LogsOptions),
    /// Cancel jobs; their running tasks are stopped
    Cancel(act::CancelOptions),
    /// Run jobs again, each as a new job
    Rerun(act::RerunOptions),
    /// Hold jobs that do not run yet
    Hold(act::HoldOptions),
    /// Let held jobs go on
    Release(act::ReleaseOptions),
    /// Remove ended jobs with all that is kept of them
    Purge(act::PurgeOptions),
    /// Write jobs as JSON lines
    Export(list::ExportOptions),
}

/// Where the master is, and how to show what it says.
#[derive(Args, Clone, Debug)]
pub(super) struct Target {
    /// REST service of the master, host:port
    #[arg(long, env = "FEDBROKER_ENDPOINT")]
    pub endpoint: String,
    /// How to show the answer [default: table; json for submit, name for purge]
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

impl Target {
    fn format(&self) -> Format {
        self.output.unwrap_or_default()
    }

    fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.endpoint)?)
    }
}

/// Do it.
///
/// # Errors
/// The input is no good, or the master cannot be reached or says no.
pub(super) fn run(options: JobOptions) -> anyhow::Result<ExitCode> {
    block_on(async {
        match options.command {
            JobCommand::Submit(options) => submit::submit(options).await,
            JobCommand::List(options) => list::list(options).await,
            JobCommand::Get(options) => show::get(options).await,
            JobCommand::Wait(options) => wait::wait(options).await,
            JobCommand::Watch(options) => watch::watch(options).await,
            JobCommand::Events(options) => show::events(options).await,
            JobCommand::Logs(options) => logs::logs(options).await,
            JobCommand::Cancel(options) => act::cancel(options).await,
            JobCommand::Rerun(options) => act::rerun(options).await,
            JobCommand::Hold(options) => act::hold(options).await,
            JobCommand::Release(options) => act::release(options).await,
            JobCommand::Purge(options) => act::purge(options).await,
            JobCommand::Export(options) => list::export(options).await,
        }
    })
}

/// Run a command of a client.
///
/// # Errors
/// Its own.
pub(super) fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

/// The columns of jobs.
const COLUMNS: &[Column] = &[
    column("JOB", false, |job| text(&job["job_id"])),
    column("TYPE", false, |job| text(&job["job_type"])),
    column("STATE", false, |job| text(&job["state"])),
    column("AGE", false, |job| age(&job["created_at"])),
    column("CHANGED", true, |job| age(&job["changed_at"])),
    column("PRIORITY", true, |job| text(&job["priority"])),
    column("ATTEMPT", true, |job| text(&job["attempt"])),
    column("PARENT", true, |job| text(&job["parent"])),
    column("LABELS", true, |job| text(&job["labels"])),
    column("REASON", false, |job| text(&job["reason"])),
];

const fn column(head: &'static str, wide: bool, cell: fn(&serde_json::Value) -> String) -> Column {
    Column { head, wide, cell }
}

/// A length of time: `500ms`, `90`, `90s`, `5m`, `2h`, `1d`.
fn duration(given: &str) -> Result<Duration, String> {
    let digits = given.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_ms = match &given[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        other => return Err(format!("unknown unit {other:?}; there are ms, s, m, h and d")),
    };
    let count: u64 = digits
        .parse()
        .map_err(|_| "give a whole number and a unit: 500ms, 90s, 5m, 2h or 1d".to_owned())?;
    count
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(|| "too long".to_owned())
}

/// A time: RFC 3339, or a length of time from now, into the past with `-`. Gives RFC 3339.
fn time(given: &str) -> Result<String, String> {
    let now = super::output::now();
    let relative = |length: Duration, back: bool| {
        let length = jiff::SignedDuration::try_from(length).ok();
        let at = length.and_then(|length| if back { now.checked_sub(length) } else { now.checked_add(length) }.ok());
        at.map(|at| at.to_string())
            .ok_or_else(|| "beyond the times there are, 1970 to 9999-12-30".to_owned())
    };
    if let Some(length) = given.strip_prefix('-') {
        return relative(duration(length)?, true);
    }
    if let Ok(length) = duration(given.strip_prefix('+').unwrap_or(given)) {
        return relative(length, false);
    }
    let at: jiff::Timestamp = given
        .parse()
        .map_err(|_| "give an RFC 3339 time up to 9999-12-30, as 2026-01-31T12:00:00Z, or a distance from now, as 2h or -2h".to_owned())?;
    Ok(at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_times_are_read() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "s", "1.5s", "-1s", "5m3s"] {
            let why = duration(bad).unwrap_err();
            assert!(why.contains("500ms, 90s, 5m, 2h or 1d"), "{bad}: {why}");
        }
        assert!(duration("5us").unwrap_err().contains("ms, s, m, h and d"));
        assert!(time("4000000d").unwrap_err().contains("9999"));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(duration("h").is_err() && duration("2w").is_err() && duration("99999999999999999999d").is_err());
        assert_eq!(time("2026-01-31T12:00:00+01:00"), Ok("2026-01-31T11:00:00Z".to_owned()));
        let past: jiff::Timestamp = time("-1h").unwrap().parse().unwrap();
        let future: jiff::Timestamp = time("1h").unwrap().parse().unwrap();
        assert_eq!((future - past).get_seconds() / 10, 720);
        assert!(time("yesterday").is_err());
    }
}
