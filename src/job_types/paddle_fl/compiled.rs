//! From the files of the compile step to the tasks of a job. Called by `prepare` only.
//!
//! Everything is measured before anything is read: a proposal that cannot be sent is told by its size and takes no memory. Each payload is
//! packed once, and what it was packed from is let go before the next one is read.

use super::super::{MESSAGE_ROOM, Prepared, pack as any, task};
use super::{AGGREGATOR, AGGREGATOR_URL, PACKAGE, TRAINER, TRAINER_URL};
use crate::wire::connect::MESSAGE_MAX;
use crate::wire::fedvision::framework::Task;
use crate::wire::fedvision::paddle_fl::{PaddleFlAggregatorTask, PaddleFlWorkerTask};
use bytes::Bytes;
use std::path::{Path, PathBuf};

/// The files of a trainer, in the order of the fields they become; [`FEEDS`] is one more behind them.
const TRAINER_FILES: [&str; 7] = [
    "trainer.main.program",
    "trainer.startup.program",
    "trainer.send.program",
    "trainer.recv.program",
    "feed_names",
    "target_names",
    "strategy.pkl",
];
/// A trainer may have none of its own.
const FEEDS: &str = "feeds.pkl";
/// The files of the aggregator.
const SERVER_FILES: [&str; 2] = ["server.main.program", "server.startup.program"];

/// What the tasks of a job say besides the compiled files.
pub(super) struct Parts<'a> {
    pub job_id: &'a str,
    pub program: &'a str,
    /// The endpoint of the scheduler.
    pub scheduler: &'a str,
    /// The text of `config.json`.
    pub config: String,
    pub algorithm_config: &'a str,
}

/// The tasks of a job with so many trainers, from the directory `compile` that the compile step left.
pub(super) async fn pack(dir: &Path, workers: u32, parts: &Parts<'_>) -> Result<Prepared, String> {
    let mut trainers = Vec::with_capacity(workers as usize);
    let mut proposal = 0;
    for i in 0..workers {
        let files = trainer_files(dir, i).await?;
        proposal += size(dir, &files).await? + room(parts);
        trainers.push(files);
    }
    let server: Vec<PathBuf> = SERVER_FILES.iter().map(|file| Path::new("server0").join(file)).collect();
    let aggregator = size(dir, &server).await? + room(parts);
    for (what, size) in [
        (format!("the proposal of {workers} trainers"), proposal),
        ("the aggregator".to_owned(), aggregator),
    ] {
        if size > MESSAGE_MAX as u64 {
            return Err(format!(
                "{what} would be a message of {size} bytes, at most {MESSAGE_MAX} can be sent; compile less, or ask for fewer trainers"
            ));
        }
    }
    let mut prepared = Prepared::default();
    for (i, files) in (0..).zip(trainers) {
        prepared.proposal_tasks.push(trainer_task(i, read(dir, files).await?, parts));
    }
    prepared.local_tasks.push(aggregator_task(read(dir, server).await?, parts));
    Ok(prepared)
}

fn trainer_task(i: u32, files: Vec<Bytes>, parts: &Parts<'_>) -> Task {
    let mut files = files.into_iter();
    let mut next = || files.next().unwrap_or_default();
    let payload = PaddleFlWorkerTask {
        scheduler_ep: parts.scheduler.to_owned(),
        trainer_id: i,
        trainer_ep: format!("trainer_{i}"),
        entrypoint: format!("{PACKAGE}.{}.fl_trainer", parts.program),
        main_program: next(),
        startup_program: next(),
        send_program: next(),
        recv_program: next(),
        feed_names: next(),
        target_names: next(),
        strategy: next(),
        feeds: next(),
        config_string: parts.config.clone(),
        algorithm_config_string: parts.algorithm_config.to_owned(),
    };
    task(parts.job_id, format!("trainer_{i}"), TRAINER, any(&payload, TRAINER_URL))
}

fn aggregator_task(files: Vec<Bytes>, parts: &Parts<'_>) -> Task {
    let mut files = files.into_iter();
    let mut next = || files.next().unwrap_or_default();
    let payload = PaddleFlAggregatorTask {
        scheduler_ep: parts.scheduler.to_owned(),
        main_program: next(),
        startup_program: next(),
        config_string: parts.config.clone(),
    };
    task(parts.job_id, "aggregator".to_owned(), AGGREGATOR, any(&payload, AGGREGATOR_URL))
}

/// What a task takes besides its files, bytes.
fn room(parts: &Parts<'_>) -> u64 {
    (parts.config.len() + parts.algorithm_config.len() + MESSAGE_ROOM) as u64
}

/// The files of trainer i, relative to `dir`. FedVision 0.1 always takes the feeds of trainer 1, and so asked for a second trainer in every job.
async fn trainer_files(dir: &Path, i: u32) -> Result<Vec<PathBuf>, String> {
    let own = PathBuf::from(format!("trainer{i}"));
    let mut files: Vec<PathBuf> = TRAINER_FILES.iter().map(|file| own.join(file)).collect();
    let (feeds, other) = (own.join(FEEDS), Path::new("trainer1").join(FEEDS));
    let there = async |file: &PathBuf| tokio::fs::try_exists(dir.join(file)).await.map_err(|e| unreadable(file, &e));
    files.push(if there(&feeds).await? || !there(&other).await? {
        feeds
    } else {
        other
    });
    Ok(files)
}

/// The bytes of all these files together.
async fn size(dir: &Path, files: &[PathBuf]) -> Result<u64, String> {
    let mut sum = 0;
    for own in files.iter().filter_map(|file| file.parent()) {
        for part in [dir, &dir.join(own)] {
            let meta = tokio::fs::symlink_metadata(part).await.map_err(|e| unreadable(own, &e))?;
            if !meta.is_dir() {
                return Err(format!(
                    "the compile step wrote compile/{}, which is not a plain directory",
                    own.display()
                ));
            }
        }
    }
    for file in files {
        let meta = tokio::fs::symlink_metadata(dir.join(file))
            .await
            .map_err(|e| unreadable(file, &e))?;
        // Not followed: a link could bring any file of this machine into the tasks, and a pipe would never end.
        if !meta.is_file() {
            return Err(format!(
                "the compile step wrote compile/{}, which is not a plain file",
                file.display()
            ));
        }
        sum += meta.len();
    }
    Ok(sum)
}

async fn read(dir: &Path, files: Vec<PathBuf>) -> Result<Vec<Bytes>, String> {
    let mut contents = Vec::with_capacity(files.len());
    for file in files {
        let content = tokio::fs::read(dir.join(&file)).await.map_err(|e| unreadable(&file, &e))?;
        contents.push(content.into());
    }
    Ok(contents)
}

fn unreadable(file: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => format!("the compile step did not write compile/{}", file.display()),
        _ => format!("the compile step wrote compile/{}, which cannot be read: {error}", file.display()),
    }
}
