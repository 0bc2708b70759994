//! `fedbroker bench history`: pages of the lists of a master with a long history, while submits run.
//!
//! The master it starts is alone, as for `rest`: what is submitted is accepted and waits. Every page is checked against what the store was made with
//! (`pages`), and after a kill and a restart every submitted job must be there.

use super::Common;
use super::drive::{Driven, Latencies, Until, drive};
use super::http::Connection;
use super::made::PARTY;
use super::maker;
use super::pages::{self, Kind, Pager};
use super::place::Place;
use super::process;
use super::progress::Progress;
use super::rest::{Submitter, jobs_recovered};
use super::table::{Column, Table, Unit};
use crate::cli::federation::Role;
use crate::supervisor::Supervisor;
use anyhow::Context;
use clap::Args;
use serde_json::json;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `fedbroker bench history`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker bench history --finished 1000000 --keep big-store --runs 3")]
pub(super) struct HistoryOptions {
    /// Finished jobs, each with its task; beside every tenth a proposal of another party
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(100..))]
    finished: u64,
    /// How long pages are asked for
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Clients that each ask for one page after the other, of all kinds in turn
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    readers: u16,
    /// Clients that submit meanwhile, each one job after the other
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=256))]
    submitters: u16,
    /// Keep the store in this directory; one that is there already is used, so give the same --finished
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

static COLUMNS: [Column; 8] = [
    Column("per_s", Unit::Number, true),
    Column("items", Unit::Number, false),
    Column("p50_ms", Unit::Millis, false),
    Column("p99_ms", Unit::Millis, true),
    Column("p999_ms", Unit::Millis, false),
    Column("ready_ms", Unit::Millis, true),
    Column("lists_ms", Unit::Millis, true),
    Column("peak_mb", Unit::Megabytes, true),
];

/// How long a start may take: it is what is measured.
const LIMIT: Duration = Duration::from_secs(600);
/// History is kept, however old it is.
const SETTINGS: &str = "[retention]
success = { days = 36500, max = 1000000000 }
failed = { days = 36500, max = 1000000000 }
cancelled = { days = 36500, max = 1000000000 }
proposals_days = 36500
events_days = 36500
";

/// Measure.
///
/// # Errors
/// The store cannot be made, the master does not start on it, or an answer is wrong.
pub(super) async fn run(options: HistoryOptions) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(options.seconds > 0.0, "--seconds: must be more than 0");
    let place = Place::make(&options.common.dir)?;
    let kept = options.keep.clone().unwrap_or_else(|| place.path().join("made"));
    maker::make_once(maker::Role::Master, &kept, 0, options.finished).await?;
    let (mut table, progress) = (Table::new("history", &COLUMNS), Progress::new(5 * u64::from(options.common.runs)));
    for _ in 0..options.common.runs {
        one(&options, &place, &kept, &mut table, &progress).await?;
    }
    drop(progress);
    let notes = [
        format!(
            "{} finished jobs and their tasks; {} clients ask for pages of 50, {} submit meanwhile; they and the master share the cores",
            options.finished, options.readers, options.submitters
        ),
        "ready_ms: from the start of the process to its ready line; lists_ms: to the first page of jobs; files in the page cache"
            .to_owned(),
        "every page was what the store was made with; after the kill every submitted job was there, and none more".to_owned(),
    ];
    table.say(&options.common, &place.machine, &notes);
    Ok(ExitCode::SUCCESS)
}

async fn one(options: &HistoryOptions, place: &Place, kept: &Path, table: &mut Table, progress: &Progress) -> anyhow::Result<()> {
    let run = place.run()?;
    let data_dir = run.path().join("master");
    progress.now("copy of the store");
    let (from, to) = (kept.to_owned(), data_dir.clone());
    Supervisor::blocking(move || maker::copy(&from, &to)).await??;
    let silent = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    let home = Home {
        dir: run.path().to_owned(),
        data_dir,
        silent: silent.local_addr()?.to_string(),
    };
    progress.step();
    progress.now("first start");
    let first = home.start().await?;
    first.tell("start without a checkpoint", table)?;
    first.role.stop().await;
    progress.step();
    progress.now("start");
    let mut master = home.start().await?;
    progress.step();
    progress.now("pages and submits");
    let submitted = measure(options, &master, table).await?;
    master.tell("start", table)?;
    master.role.kill().await?;
    progress.step();
    progress.now("start after a kill");
    let again = home.start().await?;
    again.tell("start after a kill", table)?;
    let found = jobs_recovered(&again.role.address).await?;
    anyhow::ensure!(
        found == submitted,
        "{submitted} jobs were submitted, and {found} are there after a kill and a restart"
    );
    again.role.stop().await;
    progress.step();
    Ok(())
}

/// What a master is started on.
struct Home {
    dir: PathBuf,
    data_dir: PathBuf,
    /// Where its cluster manager and coordinator say nothing.
    silent: String,
}

struct Started {
    role: Role,
    ready_ms: f64,
    lists_ms: f64,
}

impl Home {
    /// Start a master, and wait until it has answered with a page.
    async fn start(&self) -> anyhow::Result<Started> {
        let settings = self.dir.join("settings.toml");
        std::fs::write(&settings, SETTINGS).with_context(|| format!("cannot write {}", settings.display()))?;
        let args = [
            "master",
            "--party-id",
            PARTY,
            "--submitter-port",
            "0",
            "--cluster-address",
            &self.silent,
            "--coordinator-address",
            &self.silent,
            "--config",
            &settings.to_string_lossy(),
            "--data-dir",
            &self.data_dir.to_string_lossy(),
        ];
        let began = Instant::now();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let role = Role::start_within(LIMIT, "master", &self.dir, args).await?;
        let ready_ms = began.elapsed().as_secs_f64() * 1e3;
        let mut connection = Connection::open(&role.address).await?;
        until_answered(&mut connection, "/api/v1/jobs?limit=1", began).await?;
        Ok(Started {
            role,
            ready_ms,
            lists_ms: began.elapsed().as_secs_f64() * 1e3,
        })
    }
}

async fn until_answered(connection: &mut Connection, path: &str, began: Instant) -> anyhow::Result<()> {
    loop {
        let answer = connection.get(path).await?;
        match answer.status {
            200 => return Ok(()),
            503 => anyhow::ensure!(began.elapsed() < LIMIT, "{path} was answered {} for too long", answer.body),
            other => anyhow::bail!("{path} was answered {other}: {}", answer.body),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Started {
    /// How long it took, and the most memory the process has had until now.
    #[expect(clippy::cast_precision_loss, reason = "sizes for a reader")]
    fn tell(&self, row: &str, table: &mut Table) -> anyhow::Result<()> {
        let peak = process::peak(self.role.pid()?)? as f64 / 1e6;
        let none = f64::NAN;
        table.add(row, &[none, none, none, none, none, self.ready_ms, self.lists_ms, peak]);
        Ok(())
    }
}

/// Pages and submits at once; gives the number of jobs submitted.
async fn measure(options: &HistoryOptions, master: &Started, table: &mut Table) -> anyhow::Result<u64> {
    let address = &master.role.address;
    let mut connection = Connection::open(address).await?;
    let there = pages::jobs(&mut connection).await?;
    anyhow::ensure!(
        there == options.finished,
        "--keep: the store has {there} jobs and not {}; name another directory",
        options.finished
    );
    let deep: Arc<[_]> = pages::deep_cursors(&mut connection, options.finished).await?.into();
    let mut pagers = Vec::new();
    for n in 0..u64::from(options.readers) {
        pagers.push(Pager::new(Connection::open(address).await?, options.finished, deep.clone(), n));
    }
    let body: Arc<str> = json!({ "job_type": "dummy", "job_config": { "worker_num": 0 } }).to_string().into();
    let mut submitters = Vec::new();
    for _ in 0..options.submitters {
        submitters.push(Submitter::new(Connection::open(address).await?, body.clone()));
    }
    let supervisor = Supervisor::new();
    let until = Until::Over(Duration::from_secs_f64(options.seconds));
    let (asked, submits) = tokio::try_join!(drive(&supervisor, pagers, until), drive(&supervisor, submitters, until))?;
    tell(&asked, table);
    let none = f64::NAN;
    let [p50, p99, p999] = [500, 990, 999].map(|permille| submits.latencies.permille(permille));
    if options.submitters > 0 {
        table.add("submits", &[submits.rate(), none, p50, p99, p999, none, none, none]);
    }
    Ok(submits.acknowledged())
}

/// A row for each kind of page, and one for all of them.
#[expect(clippy::cast_precision_loss, reason = "rates for a reader")]
fn tell(asked: &Driven<Pager>, table: &mut Table) {
    let mut add = |row: &str, took: Vec<u32>, items: u64| {
        let pages = took.len() as f64;
        let latencies = Latencies::new(took);
        let [p50, p99, p999] = [500, 990, 999].map(|permille| latencies.permille(permille));
        let none = f64::NAN;
        let rate = pages / asked.took.as_secs_f64();
        table.add(row, &[rate, items as f64 / pages, p50, p99, p999, none, none, none]);
    };
    let pagers = || asked.clients.iter().map(|(pager, _)| pager);
    let took = pagers().flat_map(|pager| pager.took.iter().flatten().copied()).collect();
    add("all pages", took, pagers().flat_map(|pager| pager.items).sum());
    for (at, kind) in Kind::ALL.into_iter().enumerate() {
        let took = pagers().flat_map(|pager| pager.took[at].iter().copied()).collect();
        add(kind.name(), took, pagers().map(|pager| pager.items[at]).sum());
    }
}
