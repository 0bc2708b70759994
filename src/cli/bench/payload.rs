//! `fedbroker bench payload`: a job with a large task from REST to the worker, how long it takes and what memory each role takes for it.
//!
//! The payload is made by the compile step of the job at the master, as in real jobs: a REST body is at most a mebibyte.

use super::Common;
use super::federation::{start, succeeded};
use super::http::Connection;
use super::place::Place;
use super::process;
use super::progress::Progress;
use super::table::{Column, Table, Unit};
use crate::cli::client::{Client, Request};
use crate::cli::federation::{Federation, Role};
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// `fedbroker bench payload`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker bench payload --sizes 1kB,64MB,256MB --runs 3")]
pub(super) struct PayloadOptions {
    /// Bytes of a task's payload, with kB or MB behind the number if wanted
    #[arg(long, value_delimiter = ',', default_value = "1kB,1MB,64MB", value_parser = size)]
    sizes: Vec<u64>,
    /// Parties; with more than one the tasks of all but the initiator's own go through the coordinator, whose window takes a second
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    parties: u16,
    #[command(flatten)]
    common: Common,
}

static COLUMNS: [Column; 7] = [
    Column("ms", Unit::Millis, true),
    Column("mb_per_s", Unit::Megabytes, false),
    Column("master_mb", Unit::Megabytes, true),
    Column("manager_mb", Unit::Megabytes, true),
    Column("worker_mb", Unit::Megabytes, true),
    Column("coordinator_mb", Unit::Megabytes, true),
    Column("most_per_payload", Unit::Ratio, true),
];

fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        _ => return Err(format!("{unit:?} is no unit; give B, kB or MB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok(number.saturating_mul(unit))
}

/// Measure.
///
/// # Errors
/// A role did not start or ended, or the job did not succeed.
pub(super) async fn run(options: PayloadOptions) -> anyhow::Result<ExitCode> {
    let place = Place::make(&options.common.dir)?;
    let steps = u64::from(options.common.runs) * options.sizes.len() as u64;
    let (mut table, progress) = (Table::new("payload", &COLUMNS), Progress::new(steps));
    for _ in 0..options.common.runs {
        for size in &options.sizes {
            progress.now(&format!("{size} B"));
            // A new federation each time: a process keeps memory that it had once.
            let run = place.run()?;
            let mut federation = start(run.path(), options.parties).await?;
            let values = one(&mut federation, options.parties, *size).await?;
            federation.stop().await;
            table.add(&format!("{size} B"), &values);
            progress.step();
        }
    }
    drop(progress);
    let notes = [
        "from POST /submit to success; memory: the peak of each role above what it had before, of all parties the most".to_owned(),
        format!("{} parties", options.parties),
    ];
    table.say(&options.common, &place.machine, &notes);
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::cast_precision_loss, reason = "sizes for a reader")]
async fn one(federation: &mut Federation, parties: u16, size: u64) -> anyhow::Result<Vec<f64>> {
    let endpoint = federation.parties[0].master.address.clone();
    let mut config = json!({ "worker_num": 0, "payload_bytes": size });
    if parties > 1 {
        for party in &federation.parties {
            subscribed(&Client::new(&party.master.address)?).await?;
        }
        config["worker_num"] = json!(parties);
        config["proposal_wait_time"] = json!(1);
    }
    let mut connection = Connection::open(&endpoint).await?;
    let before = Memory::of(federation)?;
    let began = Instant::now();
    let body = json!({ "job_type": "dummy", "job_config": config }).to_string();
    let answer = connection.post("/submit", &body).await?;
    anyhow::ensure!(answer.status == 200, "/submit was answered {}: {}", answer.status, answer.body);
    let body: Value = serde_json::from_str(&answer.body)?;
    succeeded(&mut connection, body["job_id"].as_str().context("no job id")?).await?;
    let took = began.elapsed().as_secs_f64();
    federation.still_runs()?;
    let growth = before.growth()?;
    let most = growth.iter().copied().fold(0.0, f64::max) / size.max(1) as f64;
    let mut values = vec![took * 1e3, size as f64 / 1e6 / took];
    values.extend(growth.map(|bytes| bytes / 1e6));
    values.push(if size < 1_000_000 { f64::NAN } else { most });
    Ok(values)
}

/// Processes by role, each with what it had.
struct Memory([Vec<(u32, u64)>; 4]);

impl Memory {
    fn of(federation: &Federation) -> anyhow::Result<Self> {
        let look = |role: &Role| -> anyhow::Result<(u32, u64)> {
            let pid = role.pid()?;
            process::forget_peak(pid)?;
            Ok((pid, process::resident(pid)?))
        };
        let of = |role: fn(&crate::cli::federation::Party) -> &Role| federation.parties.iter().map(|party| look(role(party))).collect();
        let masters: anyhow::Result<_> = of(|party| &party.master);
        let managers: anyhow::Result<_> = of(|party| &party.cluster_manager);
        let workers: anyhow::Result<_> = of(|party| &party.worker);
        Ok(Self([masters?, managers?, workers?, vec![look(&federation.coordinator)?]]))
    }

    /// Bytes at the peak above what was there before: the most of each role.
    #[expect(clippy::cast_precision_loss, reason = "sizes for a reader")]
    fn growth(&self) -> anyhow::Result<[f64; 4]> {
        let mut growth = [0.0; 4];
        for (role, most) in self.0.iter().zip(&mut growth) {
            for (pid, before) in role {
                *most = f64::max(*most, process::peak(*pid)?.saturating_sub(*before) as f64);
            }
        }
        Ok(growth)
    }
}

/// Wait until a master takes part in the federation.
async fn subscribed(client: &Client) -> anyhow::Result<()> {
    loop {
        let status = client.ask(Request::get(&["api", "v1", "status"])).await?;
        if status["coordinator"]["subscribed"] == true {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!([size("7"), size("1kB"), size("64MB")], [Ok(7), Ok(1000), Ok(64_000_000)]);
        assert!(size("1GB").is_err() && size("x").is_err());
    }
}
