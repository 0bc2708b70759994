//! Fedbroker's durable queue beside PostgreSQL, Redis and beanstalkd: the same items, producers, seconds and disk, interleaved.
//!
//! Started by `benches/peers/run`. Ends everything it starts, whatever ends it. A peer that is missing is skipped with a line.

mod beanstalkd;
mod disk;
mod document;
mod grpc;
mod inside;
mod item;
mod line;
mod machine;
mod measure;
mod pgwire;
mod postgres;
mod redis;
mod server;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use document::{Row, Run};
use measure::{Figures, Plan, Workload, measure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who is measured. In this order in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// The raw limit
    Disk,
    /// Our queue without a network
    Inside,
    /// Our queue over gRPC
    Grpc,
    /// A table with SKIP LOCKED
    Postgres,
    /// A stream with a consumer group
    Redis,
    /// With its log on disk
    Beanstalkd,
}

impl Kind {
    /// As in the tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Disk => "the disk itself",
            Self::Inside => "fedbroker (in process)",
            Self::Grpc => "fedbroker (gRPC)",
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
            Self::Beanstalkd => "beanstalkd",
        }
    }
}

/// Measure Fedbroker's durable queue beside PostgreSQL, Redis and beanstalkd
#[derive(Parser, Clone, Debug)]
#[command(args_override_self = true)]
struct Options {
    /// Whom to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::value_variants().to_vec())]
    systems: Vec<Kind>,
    /// What producers do
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Workload::Enqueue, Workload::Life])]
    workloads: Vec<Workload>,
    /// How many at once, one measurement for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 256], value_parser = clap::value_parser!(u32).range(1..=256))]
    producers: Vec<u32>,
    /// Seconds that count in one measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds before them that do not
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Measurements of the same thing; the document has median and range
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Where data directories are made and removed: on the disk that is to be measured
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Our program, release build
    #[arg(long, default_value = "target/release/fedbroker")]
    fedbroker: PathBuf,
    /// Write the document here
    #[arg(long)]
    document: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // On this thread to the end: the servers are tied to it.
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            done = run(&options) => done,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted; everything that was started is ended")),
            _ = terminate.recv() => Err(anyhow::anyhow!("asked to end; everything that was started is ended")),
        }
    })
}

/// Those that are here, with their versions; a line for each that is not.
fn present(options: &Options) -> Vec<(Kind, String)> {
    let mut present = Vec::new();
    for kind in &options.systems {
        let version = match kind {
            Kind::Disk => Some("write and fdatasync".to_owned()),
            Kind::Inside | Kind::Grpc => inside::version(&options.fedbroker),
            Kind::Postgres => postgres::version(),
            Kind::Redis => redis::version(),
            Kind::Beanstalkd => beanstalkd::version(),
        };
        match version {
            Some(_) if *kind == Kind::Inside && !inside::has_bench(&options.fedbroker) => {
                eprintln!("skipped {}: this fedbroker has no command `bench queue`", kind.title());
            }
            Some(version) => present.push((*kind, version)),
            None => eprintln!("skipped {}: not installed", kind.title()),
        }
    }
    present
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new().prefix("fedbroker-peers-").tempdir_in(&options.dir);
    let scratch = scratch.with_context(|| format!("cannot make a directory in {}", options.dir.display()))?;
    // Other users' servers must get through to their own directory in it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(scratch.path(), open)?;
    let disk = machine::disk(scratch.path())?;
    let systems = present(options);
    ensure!(!systems.is_empty(), "nobody is here to be measured");
    let began = machine::load();
    let mut rows: Vec<Row> = Vec::new();
    for round in 1..=options.rounds {
        for workload in &options.workloads {
            for producers in &options.producers {
                let plan = Plan {
                    workload: *workload,
                    producers: *producers,
                    warm_up: Duration::from_secs_f64(options.warm_up),
                    window: Duration::from_secs_f64(options.seconds),
                };
                for at in 0..systems.len() {
                    // Each round begins with another, so that nobody always comes after the same one.
                    let (kind, _) = systems[(at + round as usize) % systems.len()];
                    if kind == Kind::Disk && *workload == Workload::Life {
                        continue;
                    }
                    let load = machine::load();
                    let what = || format!("{}, {}, {producers} producers, round {round}", kind.title(), workload.name());
                    let figures = one(kind, plan, scratch.path(), &options.fedbroker).await.with_context(what)?;
                    println!("{}", document::json(kind, plan, round, load, &figures));
                    rows.push(Row {
                        kind,
                        workload: *workload,
                        producers: *producers,
                        load,
                        figures,
                    });
                }
            }
        }
    }
    if let Some(path) = &options.document {
        let run = Run {
            systems,
            rows,
            rounds: options.rounds,
            seconds: options.seconds,
            warm_up: options.warm_up,
            machine: machine::facts(),
            disk,
            date: machine::today(),
            load: (began, machine::load()),
        };
        std::fs::write(path, document::page(&run)).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

/// One measurement in a directory of its own, but for PostgreSQL, which keeps its cluster.
async fn one(kind: Kind, plan: Plan, scratch: &Path, fedbroker: &Path) -> anyhow::Result<Figures> {
    let own = tempfile::tempdir_in(scratch)?;
    let dir = own.path();
    match kind {
        Kind::Disk => measure(disk::Disk::start(dir)?, plan).await,
        Kind::Inside => inside::measure(fedbroker, dir, plan),
        Kind::Grpc => measure(grpc::Grpc::start(dir, fedbroker, plan.workload, plan.producers).await?, plan).await,
        Kind::Postgres => measure(postgres::Postgres::start(scratch).await?, plan).await,
        Kind::Redis => measure(redis::Redis::start(dir).await?, plan).await,
        Kind::Beanstalkd => measure(beanstalkd::Beanstalkd::start(dir).await?, plan).await,
    }
}
