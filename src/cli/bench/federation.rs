//! `fedbroker bench federation`: dummy jobs from REST to success, through master, cluster manager and worker as processes of their own.
//!
//! Each job has one task or several, is compiled, and waits for nobody. Beside it the worker stream alone: tasks straight to the
//! cluster manager, without a master.

use super::Common;
use super::drive::{Until, drive};
use super::http::Connection;
use super::place::Place;
use super::progress::Progress;
use super::raw;
use super::rest::{Submitter, status};
use super::stream;
use super::table::{Column, Table, Unit};
use crate::cli::federation::{Federation, Ports};
use crate::machine::cluster::records::TASKS_MAX;
use crate::machine::master::LOCAL_TASKS_MAX;
use crate::supervisor::Supervisor;
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `fedbroker bench federation`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker bench federation --tasks 5000")]
pub(super) struct FederationOptions {
    /// Tasks of one run, in as many jobs as that takes, and tasks of one run of the worker stream alone
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    tasks: u64,
    /// Tasks of each job; several numbers are measured one after another
    #[arg(long, value_name = "TASKS", value_delimiter = ',', default_value = "1,16", value_parser = clap::value_parser!(u16).range(1..=LOCAL_TASKS_MAX as i64))]
    per_job: Vec<u16>,
    /// Connections that submit, and calls to the cluster manager in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=512))]
    connections: u16,
    #[command(flatten)]
    common: Common,
}

static COLUMNS: [Column; 6] = [
    Column("jobs_per_s", Unit::Number, true),
    Column("tasks_per_s", Unit::Number, true),
    Column("submit_p99_ms", Unit::Millis, false),
    Column("stream_tasks_per_s", Unit::Number, true),
    Column("stream_p99_ms", Unit::Millis, false),
    Column("raw_per_s", Unit::Number, true),
];

/// How long the raw disk is measured.
const RAW: Duration = Duration::from_secs(1);
/// How often a job that has not ended is asked for.
const POLL: Duration = Duration::from_millis(2);
/// How often it is asked whether all have ended.
const POLL_ALL: Duration = Duration::from_millis(5);
/// A job that has not ended by then never will.
const LIMIT: Duration = Duration::from_secs(120);

/// Measure.
///
/// # Errors
/// A role did not start or ended, or a job did not succeed.
pub(super) async fn run(options: FederationOptions) -> anyhow::Result<ExitCode> {
    let place = Place::make(&options.common.dir)?;
    let (mut table, progress) = (
        Table::new("federation", &COLUMNS),
        Progress::new((2 + options.per_job.len() as u64) * u64::from(options.common.runs)),
    );
    let connections = usize::from(options.connections);
    for _ in 0..options.common.runs {
        progress.now("raw disk");
        let raw = raw::measure(place.path(), connections, 200, RAW).await?.driven;
        progress.step();
        let run = place.run()?;
        let federation = start(run.path(), 1).await?;
        let party = &federation.parties[0];
        let raw = raw.rate();
        for each in &options.per_job {
            let name = format!("jobs of {each}");
            progress.now(&format!("{name} from REST to success"));
            let count = options.tasks.div_ceil(u64::from(*each));
            let [rate, p99] = jobs(&party.master.address, connections, count, *each).await?;
            table.add(&name, &[rate, rate * f64::from(*each), p99, f64::NAN, f64::NAN, raw]);
            progress.step();
        }
        progress.now("tasks to a worker");
        let [rate, p99] = stream::measure(&party.cluster_manager.address, connections, options.tasks).await?;
        federation.stop().await;
        progress.step();
        table.add("worker stream", &[f64::NAN, f64::NAN, f64::NAN, rate, p99, raw]);
    }
    drop(progress);
    let notes = [
        format!(
            "{connections} submit at once, from the first submit to the last success by the master's count, all roles on this machine; then every job was asked for its success"
        ),
        "stream: TaskSubmit to the cluster manager until its watch says how the task ended; each was told once".to_owned(),
    ];
    table.say(&options.common, &place.machine, &notes);
    Ok(ExitCode::SUCCESS)
}

/// A federation whose workers have all the slots one may have.
///
/// # Errors
/// A role did not start.
pub(super) async fn start(dir: &Path, parties: u16) -> anyhow::Result<Federation> {
    for n in 1..=parties {
        for name in ["data", "programs"] {
            std::fs::create_dir_all(dir.join(format!("party{n}")).join(name))?;
        }
    }
    let ports = Ports {
        coordinator: 0,
        masters: 0,
        cluster_managers: 0,
        lent: Ports::free_to_lend(parties),
    };
    Federation::start(dir, parties, ports, TASKS_MAX).await
}

/// Jobs of so many tasks in a second, and the 99th percentile of their submits.
#[expect(clippy::cast_precision_loss, reason = "a rate for a reader")]
async fn jobs(endpoint: &str, connections: usize, count: u64, tasks: u16) -> anyhow::Result<[f64; 2]> {
    let config = json!({ "worker_num": 0, "local_tasks": tasks });
    let body: Arc<str> = json!({ "job_type": "dummy", "job_config": config }).to_string().into();
    let mut submitters = Vec::new();
    for _ in 0..connections {
        submitters.push(Submitter {
            connection: Connection::open(endpoint).await?,
            body: body.clone(),
            ids: Vec::new(),
        });
    }
    let mut connection = Connection::open(endpoint).await?;
    let before = successes(&mut connection).await?;
    let began = Instant::now();
    let submits = drive(&Supervisor::new(), submitters, Until::Asked(count.div_ceil(connections as u64))).await?;
    while successes(&mut connection).await? < before + submits.acknowledged() {
        anyhow::ensure!(began.elapsed() < LIMIT, "jobs have not ended after {} s", LIMIT.as_secs());
        tokio::time::sleep(POLL_ALL).await;
    }
    let took = began.elapsed().as_secs_f64();
    for id in submits.clients.iter().flat_map(|(client, _)| &client.ids) {
        succeeded(&mut connection, id).await?;
    }
    Ok([submits.acknowledged() as f64 / took, submits.latencies.permille(990)])
}

/// Jobs of a master that have succeeded, by its own count.
async fn successes(connection: &mut Connection) -> anyhow::Result<u64> {
    let answer = connection.get("/api/v1/status").await?;
    let status: Value = serde_json::from_str(&answer.body)?;
    let jobs = &status["jobs"];
    anyhow::ensure!(jobs["failed"] == 0, "jobs have failed: {}", answer.body);
    jobs["success"].as_u64().context("the index of the jobs is not there")
}

/// Wait for a job's success.
///
/// # Errors
/// It failed, or takes too long.
pub(super) async fn succeeded(connection: &mut Connection, id: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match status(connection, id).await?.as_str() {
            "_JobStatus.SUCCESS" => return Ok(()),
            "_JobStatus.FAILED" => anyhow::bail!("job {id} failed"),
            state => anyhow::ensure!(began.elapsed() < LIMIT, "job {id} is still {state} after {} s", LIMIT.as_secs()),
        }
        tokio::time::sleep(POLL).await;
    }
}
