//! Trainer and aggregator at a worker: the payload becomes files and arguments of the names 0.1 gives them.
//!
//! The payload is another party's and believed in nothing: it names one of the programs installed here, and what else it brings is files
//! of fixed names and arguments that cannot be taken for options. None of the files is one that Python would import.

use super::super::child::{Child, DATA_ENV, check_endpoint};
use super::super::{Place, files, unpack};
use super::{AGGREGATOR, AGGREGATOR_URL, ALGORITHM_CONFIG, CONFIG, MEND, PACKAGE, TRAINER_URL, is_module, python};
use crate::machine::ids::TaskKey;
use crate::machine::outcome::Outcome;
use crate::wire::fedvision::framework::Task;
use crate::wire::fedvision::paddle_fl::{PaddleFlAggregatorTask, PaddleFlWorkerTask};
use bytes::Bytes;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// The module of every aggregator.
const SCHEDULER: &str = "fedvision.paddle_fl.tasks.cli.fl_scheduler";
/// The longest name of a trainer, bytes; 0.1 calls them `trainer_<i>`.
const TRAINER_EP_MAX: usize = 300;

/// A module, its arguments and the files it finds.
struct Step {
    what: String,
    module: String,
    options: Vec<String>,
    files: Vec<(&'static str, Bytes)>,
}

pub(in crate::job_types) async fn stage(place: &Place, task: Task, work_dir: PathBuf) -> Result<Child, String> {
    TaskKey::parse(task.job_id.as_str(), task.task_id.as_str()).map_err(|e| e.to_string())?;
    let step = if task.task_type == AGGREGATOR {
        aggregator(unpack(task.task, AGGREGATOR_URL)?)?
    } else {
        trainer(unpack(task.task, TRAINER_URL)?)?
    };
    let who = &place.who;
    let io = |e: std::io::Error| format!("{who} cannot set up {}: {e}", work_dir.display());
    files::clean(&work_dir).await.map_err(io)?;
    let dir = tokio::fs::canonicalize(&work_dir).await.map_err(io)?;
    for (name, content) in step.files {
        tokio::fs::write(dir.join(name), content).await.map_err(io)?;
    }
    let mut run = python(place, &step.module, step.options, dir);
    if let Some(data) = &place.data_dir {
        run.env.push((DATA_ENV.to_owned(), data.into()));
    }
    Ok(Child {
        what: step.what,
        mend: MEND,
        shim: place.shim.clone(),
        run,
    })
}

fn trainer(payload: PaddleFlWorkerTask) -> Result<Step, String> {
    let program = payload.entrypoint.strip_prefix(PACKAGE).and_then(|rest| rest.strip_prefix('.'));
    let program = program
        .and_then(|rest| rest.strip_suffix(".fl_trainer"))
        .filter(|name| is_module(name));
    let program = program.ok_or_else(|| {
        let shown: String = payload.entrypoint.chars().take(100).collect();
        format!("entrypoint {shown:?} is not {PACKAGE}.<program>.fl_trainer with a plain module name")
    })?;
    check_endpoint(&payload.scheduler_ep).map_err(|why| format!("scheduler {why}"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    if payload.trainer_ep.len() > TRAINER_EP_MAX || !payload.trainer_ep.chars().all(plain) {
        let shown: String = payload.trainer_ep.chars().take(100).collect();
        return Err(format!("trainer_ep {shown:?} is not the name of a trainer"));
    }
    let mut options = vec![
        format!("--scheduler-ep={}", payload.scheduler_ep),
        format!("--trainer-id={}", payload.trainer_id),
        format!("--trainer-ep={}", payload.trainer_ep),
    ];
    let files = vec![
        ("startup_program", payload.startup_program),
        ("main_program", payload.main_program),
        ("send_program", payload.send_program),
        ("recv_program", payload.recv_program),
        ("feed_names", payload.feed_names),
        ("target_names", payload.target_names),
        ("feeds", payload.feeds),
        ("strategy", payload.strategy),
        (CONFIG, payload.config_string.into()),
        (ALGORITHM_CONFIG, payload.algorithm_config_string.into()),
    ];
    options.extend(files.iter().take(8).map(|(name, _)| format!("--{}={name}", name.replace('_', "-"))));
    options.extend(["--config", CONFIG, "--algorithm-config", ALGORITHM_CONFIG].map(str::to_owned));
    Ok(Step {
        what: format!("trainer of program {program}"),
        module: payload.entrypoint.clone(),
        options,
        files,
    })
}

fn aggregator(payload: PaddleFlAggregatorTask) -> Result<Step, String> {
    check_endpoint(&payload.scheduler_ep).map_err(|why| format!("scheduler {why}"))?;
    Ok(Step {
        what: "scheduler".to_owned(),
        module: SCHEDULER.to_owned(),
        options: vec![
            format!("--scheduler-ep={}", payload.scheduler_ep),
            "--startup-program=startup_program".to_owned(),
            "--main-program=main_program".to_owned(),
            format!("--config={CONFIG}"),
        ],
        files: vec![
            ("main_program", payload.main_program),
            ("startup_program", payload.startup_program),
            (CONFIG, payload.config_string.into()),
        ],
    })
}

pub(in crate::job_types) async fn run(place: &Place, child: Child, cancel: CancellationToken) -> Outcome {
    let mut outcome = child.task(cancel).await;
    explain(place, &mut outcome.reason, &outcome.stderr_tail);
    outcome
}

/// A package that is not installed is the commonest fault of a new party: say it where everybody looks.
pub(super) fn explain(place: &Place, reason: &mut String, stderr_tail: &str) {
    let last = stderr_tail.lines().next_back().unwrap_or_default();
    if !reason.is_empty() && last.contains("No module named") {
        let python = &place.python.command;
        *reason = format!(
            "{reason}: {python} at {} says: {last}; install it there, or set PYTHONPATH or --python",
            place.who
        );
    }
}
