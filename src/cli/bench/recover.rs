//! `fedbroker bench recover`: a role is started on a store of so many records, as a process of its own, until it serves.

use super::Common;
use super::made::PARTY;
use super::maker;
use super::place::Place;
use super::process;
use super::progress::Progress;
use super::table::{Column, Table, Unit};
use crate::cli::federation::Role;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// `fedbroker bench recover`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  fedbroker bench recover --live 1000000 --finished 1000000 --keep big-store")]
pub(super) struct RecoverOptions {
    /// Whose start
    #[arg(long, value_enum, default_value_t = maker::Role::ClusterManager)]
    role: maker::Role,
    /// Tasks that wait (jobs, for a master)
    #[arg(long, default_value_t = 100_000)]
    live: u64,
    /// Tasks or jobs that have ended
    #[arg(long, default_value_t = 100_000)]
    finished: u64,
    /// Keep the store in this directory; one that is there already is used as it is, so give the same --role, --live and --finished
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

static COLUMNS: [Column; 6] = [
    Column("ready_ms", Unit::Millis, true),
    Column("empty_ms", Unit::Millis, true),
    Column("rss_mb", Unit::Megabytes, true),
    Column("empty_rss_mb", Unit::Megabytes, false),
    Column("bytes_per_live", Unit::Number, true),
    Column("peak_mb", Unit::Megabytes, false),
];

/// How long a start may take: a million live records on a busy machine take their time, and that is what is measured.
const LIMIT: Duration = Duration::from_secs(600);

/// Measure.
///
/// # Errors
/// The store cannot be made, or the role does not start on it.
pub(super) async fn run(options: RecoverOptions) -> anyhow::Result<ExitCode> {
    let place = Place::make(&options.common.dir)?;
    let dir = options.keep.clone().unwrap_or_else(|| place.path().join("full"));
    let began = Instant::now();
    maker::make_once(options.role, &dir, options.live, options.finished).await?;
    let made = began.elapsed();
    let empty = place.path().join("empty");
    let (mut table, progress) = (Table::new("recover", &COLUMNS), Progress::new(u64::from(options.common.runs)));
    for _ in 0..options.common.runs {
        let none = start(options.role, &empty, place.path()).await?;
        let full = start(options.role, &dir, place.path()).await?;
        let more = full.resident.saturating_sub(none.resident);
        #[expect(clippy::cast_precision_loss, reason = "sizes for a reader")]
        let per_live = if options.live < 1000 {
            f64::NAN
        } else {
            more as f64 / options.live as f64
        };
        let row = format!("{} live, {} finished", options.live, options.finished);
        table.add(
            &row,
            &[
                full.millis,
                none.millis,
                megabytes(full.resident),
                megabytes(none.resident),
                per_live,
                megabytes(full.peak),
            ],
        );
        progress.step();
    }
    drop(progress);
    let notes = [
        "from the start of the process to its ready line, files in the page cache; memory as of then, above that of an empty store"
            .to_owned(),
        format!("the store was made in {:.1} s", made.as_secs_f64()),
    ];
    table.say(&options.common, &place.machine, &notes);
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::cast_precision_loss, reason = "sizes for a reader")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

struct Start {
    millis: f64,
    resident: u64,
    peak: u64,
}

async fn start(role: maker::Role, dir: &Path, logs: &Path) -> anyhow::Result<Start> {
    let data_dir = dir.to_string_lossy();
    let args: &[&str] = match role {
        // Nobody is there to be asked for leases: it is the start that is measured.
        maker::Role::Master => &[
            "master",
            "--party-id",
            PARTY,
            "--submitter-port",
            "0",
            "--cluster-address",
            "127.0.0.1:1",
            "--coordinator-address",
            "127.0.0.1:1",
            "--data-dir",
            &data_dir,
        ],
        maker::Role::ClusterManager => &["cluster-manager", "--port", "0", "--data-dir", &data_dir],
    };
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let began = Instant::now();
    let role = Role::start_within(LIMIT, "recover", logs, args).await?;
    let millis = began.elapsed().as_secs_f64() * 1e3;
    let pid = role.pid()?;
    let start = Start {
        millis,
        resident: process::resident(pid)?,
        peak: process::peak(pid)?,
    };
    role.stop().await;
    Ok(start)
}
