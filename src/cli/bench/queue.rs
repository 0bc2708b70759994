//! `fedbroker bench queue`: the durable task queue against the raw disk, run by run in turn.
//!
//! Ratios are what counts: the disk of a shared machine is another one from minute to minute, and each run measures it first.

use super::Common;
use super::drive::{Until, drive};
use super::maker;
use super::place::Place;
use super::progress::Progress;
use super::raw::{self, Raw};
use super::table::{Column, Table, Unit};
use super::tasks::{Queue, Work};
use crate::machine::content::INLINE_MAX;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// `fedbroker bench queue`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker bench queue --producers 1,16,256 --seconds 3")]
pub(super) struct QueueOptions {
    /// Producers that work at once, each waiting for its acknowledgement; several numbers are measured one after another
    #[arg(long, value_delimiter = ',', default_value = "1,16,256", value_parser = clap::value_parser!(u16).range(1..=512))]
    producers: Vec<u16>,
    /// Content of a task, bytes
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=INLINE_MAX as i64))]
    size: u16,
    /// How long each is measured
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// What is done with the tasks
    #[arg(long, value_enum, default_value_t = Workload::Both)]
    workload: Workload,
    /// Ended tasks that are in the store before it begins
    #[arg(long, default_value_t = 0)]
    stored: u64,
    /// Fail if the median ratio of an enqueue to the raw disk is below this
    #[arg(long, value_name = "RATIO")]
    min_ratio: Option<f64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Enqueue only
    Enqueue,
    /// The whole life: enqueued, assigned, ended
    Life,
    /// One after the other
    Both,
}

static COLUMNS: [Column; 13] = [
    Column("per_s", Unit::Number, true),
    Column("raw_per_s", Unit::Number, true),
    Column("ratio", Unit::Ratio, true),
    Column("p50_ms", Unit::Millis, false),
    Column("p99_ms", Unit::Millis, false),
    Column("p999_ms", Unit::Millis, false),
    Column("raw_p50_ms", Unit::Millis, false),
    Column("raw_p99_ms", Unit::Millis, false),
    Column("raw_p999_ms", Unit::Millis, false),
    Column("p99_ratio", Unit::Ratio, true),
    Column("per_commit", Unit::Number, false),
    Column("raw_per_commit", Unit::Number, false),
    Column("commits", Unit::Number, false),
];

/// Durable transitions in a task's life.
const TRANSITIONS: f64 = 3.0;

/// Measure.
///
/// # Errors
/// It could not be measured, or the store does not hold what was acknowledged.
pub(super) async fn run(options: QueueOptions) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(options.seconds > 0.0, "--seconds: must be more than 0");
    let place = Place::make(&options.common.dir)?;
    let works: &[Work] = match options.workload {
        Workload::Enqueue => &[Work::Enqueue],
        Workload::Life => &[Work::Life],
        Workload::Both => &[Work::Enqueue, Work::Life],
    };
    let filled = filled(&options, &place)?;
    let steps = u64::from(options.common.runs) * (options.producers.len() * (works.len() + 1)) as u64;
    let (mut table, progress) = (Table::new("queue", &COLUMNS), Progress::new(steps));
    for _ in 0..options.common.runs {
        for producers in &options.producers {
            progress.now(&format!("raw disk, {producers} producers"));
            let length = Duration::from_secs_f64(options.seconds);
            let raw = raw::measure(place.path(), usize::from(*producers), usize::from(options.size), length).await?;
            progress.step();
            for work in works {
                let name = format!("{} {producers}", name(*work));
                progress.now(&name);
                let values = measure(&options, &place, filled.as_ref(), *work, *producers, &raw).await?;
                table.add(&name, &values);
                progress.step();
            }
        }
    }
    drop(progress);
    let mut notes = vec![
        format!(
            "content {} B; the raw disk writes records of as many bytes and one fdatasync for all that wait",
            options.size
        ),
        "every acknowledged task was read back from the closed store: each once, none more".to_owned(),
    ];
    if options.workload != Workload::Enqueue {
        notes.push("life counts transitions: enqueued, assigned, ended; its latencies are of a whole life, two commits".to_owned());
    }
    if options.stored > 0 {
        notes.push(format!(
            "{} ended tasks were in the store before; measured once the check behind the start had come through them",
            options.stored
        ));
    }
    table.say(&options.common, &place.machine, &notes);
    let ratio = table.least("ratio", "enqueue");
    if let (Some(wanted), Some(ratio)) = (options.min_ratio, ratio)
        && ratio < wanted
    {
        anyhow::bail!("the ratio to the raw disk is {ratio:.3}, below --min-ratio {wanted}: is a commit still shared by all that wait?");
    }
    Ok(ExitCode::SUCCESS)
}

fn name(work: Work) -> &'static str {
    match work {
        Work::Enqueue => "enqueue",
        Work::Life => "life",
    }
}

/// A store to begin from.
struct Filled {
    dir: PathBuf,
    commits: u64,
}

fn filled(options: &QueueOptions, place: &Place) -> anyhow::Result<Option<Filled>> {
    if options.stored == 0 {
        return Ok(None);
    }
    let dir = place.path().join("filled");
    let commits = maker::tasks(&dir, 0, options.stored)?.batch;
    Ok(Some(Filled { dir, commits }))
}

#[expect(clippy::cast_precision_loss, reason = "rates for a reader")]
async fn measure(
    options: &QueueOptions,
    place: &Place,
    filled: Option<&Filled>,
    work: Work,
    producers: u16,
    raw: &Raw,
) -> anyhow::Result<Vec<f64>> {
    let run = place.run()?;
    let dir = run.path().join("data");
    if let Some(filled) = filled {
        maker::copy(&filled.dir, &dir)?;
    }
    // The first commit of a start raises its epoch, the second attaches the worker.
    let before = filled.map_or(0, |filled| filled.commits) + 1 + u64::from(work == Work::Life);
    let queue = Queue::open(&dir, work).await?;
    queue.proved().await?;
    let clients = (0..usize::from(producers)).map(|number| queue.producer(number, work, usize::from(options.size)));
    let clients = clients.collect::<anyhow::Result<Vec<_>>>()?;
    let supervisor = queue.supervisor.clone();
    let driven = drive(&supervisor, clients, Until::Over(Duration::from_secs_f64(options.seconds))).await?;
    let (acknowledged, rate) = (driven.acknowledged(), driven.rate());
    let counts = driven.clients.into_iter().map(|(producer, n)| (producer.number, n)).collect();
    let commits = queue.check(work, counts).await? - before;
    let (transitions, commands) = match work {
        Work::Enqueue => (1.0, 1.0),
        Work::Life => (TRANSITIONS, 2.0),
    };
    let rate = rate * transitions;
    let ours = [500, 990, 999].map(|permille| driven.latencies.permille(permille));
    let theirs = [500, 990, 999].map(|permille| raw.driven.latencies.permille(permille));
    let mut values = vec![rate, raw.driven.rate(), rate / raw.driven.rate()];
    values.extend(ours);
    values.extend(theirs);
    let per_commit = acknowledged as f64 * commands / commits as f64;
    let raw_per_commit = raw.driven.acknowledged() as f64 / raw.syncs as f64;
    values.extend([ours[1] / theirs[1], per_commit, raw_per_commit, commits as f64]);
    Ok(values)
}
