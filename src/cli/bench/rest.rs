//! `fedbroker bench rest`: durable submits and queries at a master, over HTTP with connections that are kept.
//!
//! The master it starts is alone: coordinator and cluster are a port that takes connections and says nothing, so that jobs are accepted and wait for
//! their lease, and the rest of their life does not stand in the way of what is measured. Afterwards it is killed and started again, and must
//! find as many jobs as it has acknowledged.

use super::Common;
use super::drive::{Client, Until, drive};
use super::http::Connection;
use super::place::Place;
use super::progress::Progress;
use super::raw;
use super::table::{Column, Table, Unit};
use crate::cli::client::{Client as RestClient, Request};
use crate::cli::federation::Role;
use crate::supervisor::Supervisor;
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// `fedbroker bench rest`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  fedbroker bench rest --connections 64\n  fedbroker bench rest --endpoint 127.0.0.1:10002 --runs 1")]
pub(super) struct RestOptions {
    /// Connections that each wait for their answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=512))]
    connections: u16,
    /// How long submits are measured, and then queries
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// A master that runs already, host:port; it keeps the jobs, and should not have anything else to do
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    #[command(flatten)]
    common: Common,
}

static COLUMNS: [Column; 10] = [
    Column("submits_per_s", Unit::Number, true),
    Column("raw_per_s", Unit::Number, true),
    Column("ratio", Unit::Ratio, true),
    Column("p50_ms", Unit::Millis, false),
    Column("p99_ms", Unit::Millis, true),
    Column("p999_ms", Unit::Millis, false),
    Column("queries_per_s", Unit::Number, true),
    Column("query_p50_ms", Unit::Millis, false),
    Column("query_p99_ms", Unit::Millis, false),
    Column("query_p999_ms", Unit::Millis, false),
];

/// About what a job takes in the log.
const RECORD: usize = 200;

/// Measure.
///
/// # Errors
/// The master does not answer as it should, or has lost a job.
pub(super) async fn run(options: RestOptions) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(options.seconds > 0.0, "--seconds: must be more than 0");
    let place = Place::make(&options.common.dir)?;
    let length = Duration::from_secs_f64(options.seconds);
    let connections = usize::from(options.connections);
    let (mut table, progress) = (Table::new("rest", &COLUMNS), Progress::new(2 * u64::from(options.common.runs)));
    for _ in 0..options.common.runs {
        progress.now("raw disk");
        let raw = raw::measure(place.path(), connections, RECORD, length).await?.driven;
        progress.step();
        progress.now("submits and queries");
        let mut values = match &options.endpoint {
            Some(endpoint) => submits_and_queries(endpoint, connections, length).await?.values,
            None => own_master(&place, connections, length).await?,
        };
        values.splice(1..1, [raw.rate(), values[0] / raw.rate()]);
        table.add(&format!("{connections} connections"), &values);
        progress.step();
    }
    drop(progress);
    let mut notes = vec![format!("a raw record has {RECORD} B; client and master share the cores")];
    if options.endpoint.is_none() {
        notes.push(
            "every run on a master of its own, killed and started again afterwards: it found every acknowledged job, and none more"
                .to_owned(),
        );
    }
    table.say(&options.common, &place.machine, &notes);
    Ok(ExitCode::SUCCESS)
}

struct Measured {
    /// Rate and latencies of submits, then of queries.
    values: Vec<f64>,
    jobs: usize,
}

async fn own_master(place: &Place, connections: usize, length: Duration) -> anyhow::Result<Vec<f64>> {
    let run = place.run()?;
    let silent = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    let mut master = start_master(run.path(), &silent.local_addr()?.to_string()).await?;
    let measured = submits_and_queries(&master.address, connections, length).await?;
    master.kill().await?;
    master.restart().await?;
    let recovered = jobs_recovered(&master.address).await?;
    anyhow::ensure!(
        recovered == measured.jobs as u64,
        "{} jobs were acknowledged, and {recovered} are there after a kill and a restart",
        measured.jobs
    );
    master.stop().await;
    Ok(measured.values)
}

/// How many jobs the master found under way when it started.
///
/// # Errors
/// It does not say.
pub(super) async fn jobs_recovered(endpoint: &str) -> anyhow::Result<u64> {
    let status = RestClient::new(endpoint)?.ask(Request::get(&["api", "v1", "status"])).await?;
    let records = status["recovery"]["records"].as_object().into_iter().flatten();
    let of_jobs = records.filter(|(what, _)| what.starts_with("job "));
    Ok(of_jobs.filter_map(|(_, n)| n.as_u64()).sum())
}

async fn start_master(dir: &Path, silent: &str) -> anyhow::Result<Role> {
    let data_dir = dir.join("master");
    let args = [
        "master",
        "--party-id",
        "bench",
        "--submitter-port",
        "0",
        "--cluster-address",
        silent,
        "--coordinator-address",
        silent,
        "--data-dir",
        &data_dir.to_string_lossy(),
    ];
    Role::start("master", dir, args.iter().map(|arg| (*arg).to_owned()).collect()).await
}

async fn submits_and_queries(endpoint: &str, connections: usize, length: Duration) -> anyhow::Result<Measured> {
    let supervisor = Supervisor::new();
    let body: Arc<str> = json!({ "job_type": "dummy", "job_config": { "worker_num": 0 } }).to_string().into();
    let mut submitters = Vec::new();
    for _ in 0..connections {
        submitters.push(Submitter::new(Connection::open(endpoint).await?, body.clone()));
    }
    let submits = drive(&supervisor, submitters, Until::Over(length)).await?;
    let ids: HashSet<&String> = submits.clients.iter().flat_map(|(client, _)| &client.ids).collect();
    let jobs = ids.len();
    anyhow::ensure!(jobs as u64 == submits.acknowledged(), "a job id was given twice");
    let mut values = vec![submits.rate()];
    values.extend([500, 990, 999].map(|permille| submits.latencies.permille(permille)));
    let asking = |(client, _): (Submitter, u64)| Asker {
        connection: client.connection,
        ids: client.ids,
    };
    let askers = submits
        .clients
        .into_iter()
        .map(asking)
        .filter(|asker| !asker.ids.is_empty())
        .collect();
    let queries = drive(&supervisor, askers, Until::Over(length)).await?;
    values.push(queries.rate());
    values.extend([500, 990, 999].map(|permille| queries.latencies.permille(permille)));
    Ok(Measured { values, jobs })
}

/// Submits jobs over one connection.
pub(super) struct Submitter {
    pub(super) connection: Connection,
    pub(super) body: Arc<str>,
    /// What was acknowledged.
    pub(super) ids: Vec<String>,
}

impl Submitter {
    pub(super) fn new(connection: Connection, body: Arc<str>) -> Self {
        let ids = Vec::new();
        Self { connection, body, ids }
    }
}

impl Client for Submitter {
    async fn ask(&mut self, _: u64) -> anyhow::Result<()> {
        let answer = self.connection.post("/submit", &self.body).await?;
        anyhow::ensure!(answer.status == 200, "/submit was answered {}: {}", answer.status, answer.body);
        let body: Value = serde_json::from_str(&answer.body)?;
        let id = body["job_id"].as_str().context("an answer of /submit has no job id")?;
        self.ids.push(id.to_owned());
        Ok(())
    }
}

/// Asks for the states of jobs.
struct Asker {
    connection: Connection,
    ids: Vec<String>,
}

impl Client for Asker {
    async fn ask(&mut self, n: u64) -> anyhow::Result<()> {
        let at = usize::try_from(n)? % self.ids.len();
        status(&mut self.connection, &self.ids[at]).await.map(drop)
    }
}

/// The state of a job, in the words of FedVision 0.1.
///
/// # Errors
/// The master does not know it.
pub(super) async fn status(connection: &mut Connection, id: &str) -> anyhow::Result<String> {
    let answer = connection.post("/query", &json!({ "job_id": id }).to_string()).await?;
    anyhow::ensure!(
        answer.status == 200,
        "/query of {id} was answered {}: {}",
        answer.status,
        answer.body
    );
    let body: Value = serde_json::from_str(&answer.body)?;
    Ok(body["status"].as_str().unwrap_or_default().to_owned())
}
