//! The `program` job type: federated learning by any program that the parties have installed (`<programs-dir>/<name>/program.toml`).
//!
//! `job_config`: `program`, `proposal_wait_time` (seconds, 1 to 86400), `worker_num` (1 to 256), `endpoints` (0 to 64, default 1),
//! `params` (any JSON, given to every step as a file). The initiator's compile step runs when its master has the program installed
//! and the program has one. A task names a program and never brings one; its payload is another party's and is believed in nothing.

use super::child::{Child, DATA_ENV, check_endpoint};
use super::exec::Run;
use super::program_toml::{self, ENDPOINTS_MAX, Manifest, Program, Step, endpoint_number, expand};
use super::schema::small;
use super::{BadJob, MESSAGE_ROOM, Place, PrepareError, PrepareInput, Prepared, WAIT_MAX_S, WORKERS_MAX, files, pack, task, unpack};
use crate::machine::ids::TaskKey;
use crate::machine::plan::Plan;
use crate::wire::connect::MESSAGE_MAX;
use crate::wire::fedbroker::v1::ProgramTask;
use crate::wire::fedvision::framework::Task;
use prost::Message;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

const TRAINER: &str = "program_trainer";
const AGGREGATOR: &str = "program_aggregator";
pub(super) const TASK_TYPES: [&str; 2] = [TRAINER, AGGREGATOR];
const TYPE_URL: &str = "type.googleapis.com/fedbroker.v1.ProgramTask";
pub(super) fn schema() -> Value {
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "program": {"type": "string"},
            "proposal_wait_time": {"type": "integer", "minimum": 1, "maximum": WAIT_MAX_S},
            "worker_num": {"type": "integer", "minimum": 1, "maximum": WORKERS_MAX},
            "endpoints": {"type": "integer", "minimum": 0, "maximum": ENDPOINTS_MAX},
            "params": {}
        },
        "required": ["program", "proposal_wait_time", "worker_num"],
        "additionalProperties": false
    })
}

pub(super) fn plan(config: &Value) -> Result<Plan, BadJob> {
    let name = config["program"].as_str().unwrap_or_default();
    if !program_toml::is_name(name) {
        return Err(BadJob::field(
            "program",
            program_toml::Error::Name(name.chars().take(100).collect()).to_string(),
        ));
    }
    Ok(Plan {
        endpoints: u16::try_from(small(config, "endpoints", 1)).unwrap_or(u16::MAX),
        workers: small(config, "worker_num", 1),
        wait_s: small(config, "proposal_wait_time", 1),
    })
}

pub(super) async fn prepare(place: &Place, plan: Plan, input: &PrepareInput) -> Result<Prepared, PrepareError> {
    let name = input.config["program"].as_str().unwrap_or_default();
    let mut payload = ProgramTask {
        program: name.to_owned(),
        index: 0,
        count: plan.workers,
        endpoints: input.endpoints.clone(),
        params: input.config["params"].to_string(),
        files: Vec::new(),
    };
    if let Some(programs) = &place.programs_dir {
        match Program::find(programs, name).await {
            Ok(program) => payload.files = compile(place, &program, &payload, input).await?,
            // The master need not have what its workers run; then there is no compile step.
            Err(program_toml::Error::NotInstalled(_)) => tracing::debug!(program = name, "not installed at the master, no compile step"),
            Err(error) => return Err(PrepareError::new(error.to_string())),
        }
    }
    let size = payload.encoded_len() + MESSAGE_ROOM;
    if size.saturating_mul(plan.workers as usize) > MESSAGE_MAX {
        return Err(PrepareError::new(format!(
            "{} tasks of {size} bytes do not fit one proposal of {MESSAGE_MAX} bytes; let the compile step write less",
            plan.workers
        )));
    }
    let aggregator = task(&input.job_id, "aggregator".to_owned(), AGGREGATOR, pack(&payload, TYPE_URL));
    let mut proposal_tasks = Vec::with_capacity(plan.workers as usize);
    for index in 0..plan.workers {
        payload.index = index;
        proposal_tasks.push(task(&input.job_id, format!("trainer_{index}"), TRAINER, pack(&payload, TYPE_URL)));
    }
    Ok(Prepared {
        proposal_tasks,
        local_tasks: vec![aggregator],
    })
}

/// Run the compile step, if the program has one, and take what it wrote.
async fn compile(
    place: &Place,
    program: &Program,
    payload: &ProgramTask,
    input: &PrepareInput,
) -> Result<Vec<crate::wire::fedbroker::v1::InputFile>, PrepareError> {
    let Some(step) = &program.manifest.compile else {
        return Ok(Vec::new());
    };
    let io = |e: std::io::Error| PrepareError::new(format!("cannot set up {}: {e}", input.work_dir.display()));
    files::clean(&input.work_dir).await.map_err(io)?;
    let dir = tokio::fs::canonicalize(&input.work_dir).await.map_err(io)?;
    let output = dir.join("output");
    tokio::fs::create_dir(&output).await.map_err(io)?;
    tokio::fs::write(dir.join("params.json"), &payload.params).await.map_err(io)?;
    let values = Values {
        program_dir: &program.dir,
        dir: &dir,
        data_dir: None,
        task: payload,
        ids: (&input.job_id, "compile"),
        attempt: input.attempt,
        compiles: true,
    };
    let run = values
        .run(step, &program.manifest)
        .map_err(|why| PrepareError::new(format!("program {}: {why}", payload.program)))?;
    let child = Child {
        what: format!("compile step of program {}", payload.program),
        mend: "",
        shim: place.shim.clone(),
        run,
    };
    child.compile(&input.cancel).await?;
    files::collect(&output)
        .await
        .map_err(|why| PrepareError::new(format!("program {}: {why}", payload.program)))
}

pub(super) async fn stage(place: &Place, task: Task, attempt: u32, work_dir: PathBuf) -> Result<Child, String> {
    let Task {
        job_id,
        task_id,
        task_type,
        task,
        ..
    } = task;
    TaskKey::parse(job_id.as_str(), task_id.as_str()).map_err(|e| e.to_string())?;
    let mut payload: ProgramTask = unpack(task, TYPE_URL)?;
    check(&payload, &task_type)?;
    // Ids become arguments of their own: they must not look like options.
    if let Some(id) = [&job_id, &task_id].into_iter().find(|id| id.starts_with('-')) {
        return Err(format!("an id that begins with '-' is not given to programs: {id:?}"));
    }
    let who = &place.who;
    let programs = place.programs_dir.as_deref().ok_or_else(|| {
        format!(
            "program {} is not installed at {who}: it has no programs directory (--programs-dir)",
            payload.program
        )
    })?;
    let program = Program::find(programs, &payload.program)
        .await
        .map_err(|e| format!("{e} at {who}"))?;
    let io = |e: std::io::Error| format!("{who} cannot set up {}: {e}", work_dir.display());
    files::clean(&work_dir).await.map_err(io)?;
    let dir = tokio::fs::canonicalize(&work_dir).await.map_err(io)?;
    let input = dir.join("input");
    tokio::fs::create_dir(&input).await.map_err(io)?;
    tokio::fs::create_dir(dir.join("output")).await.map_err(io)?;
    tokio::fs::write(dir.join("params.json"), &payload.params).await.map_err(io)?;
    files::write(&input, std::mem::take(&mut payload.files)).await.map_err(io)?;
    let step = if task_type == AGGREGATOR {
        &program.manifest.aggregator
    } else {
        &program.manifest.trainer
    };
    let values = Values {
        program_dir: &program.dir,
        dir: &dir,
        data_dir: place.data_dir.as_deref(),
        task: &payload,
        ids: (&job_id, &task_id),
        attempt,
        compiles: false,
    };
    Ok(Child {
        run: values
            .run(step, &program.manifest)
            .map_err(|why| format!("program {} at {who}: {why}", payload.program))?,
        what: format!("program {}", payload.program),
        mend: "",
        shim: place.shim.clone(),
    })
}

/// Check a payload that came over the wire.
fn check(payload: &ProgramTask, task_type: &str) -> Result<(), String> {
    if !program_toml::is_name(&payload.program) {
        return Err(program_toml::Error::Name(payload.program.chars().take(100).collect()).to_string());
    }
    if !(1..=WORKERS_MAX).contains(&payload.count) {
        return Err(format!("count {} is not 1 to {WORKERS_MAX}", payload.count));
    }
    if payload.index >= payload.count || (task_type == AGGREGATOR && payload.index != 0) {
        return Err(format!("index {} does not fit a {task_type} of {}", payload.index, payload.count));
    }
    if payload.endpoints.len() as u64 > ENDPOINTS_MAX {
        return Err(format!("{} endpoints, at most {ENDPOINTS_MAX} are taken", payload.endpoints.len()));
    }
    payload.endpoints.iter().try_for_each(|endpoint| check_endpoint(endpoint))?;
    serde_json::from_str::<serde::de::IgnoredAny>(&payload.params).map_err(|e| format!("params is not JSON: {e}"))?;
    files::check(&payload.files)
}

/// What the placeholders of one step stand for.
struct Values<'a> {
    program_dir: &'a Path,
    dir: &'a Path,
    data_dir: Option<&'a Path>,
    task: &'a ProgramTask,
    ids: (&'a str, &'a str),
    attempt: u32,
    compiles: bool,
}

impl Values<'_> {
    fn get(&self, name: &str) -> Result<String, String> {
        let path = |path: &Path| {
            path.to_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("{} is not UTF-8", path.display()))
        };
        let absent = |why: &str| Err(format!("{{{name}}}: {why}"));
        match name {
            "program_dir" => path(self.program_dir),
            "work_dir" => path(self.dir),
            "data_dir" => match self.data_dir {
                Some(dir) => path(dir),
                None if self.compiles => absent("a compile step has no data"),
                None => absent("this worker has no data directory (--data-base-dir)"),
            },
            "input_dir" if self.compiles => absent("a compile step has no input"),
            "input_dir" => path(&self.dir.join("input")),
            "output_dir" => path(&self.dir.join("output")),
            "params_file" => path(&self.dir.join("params.json")),
            "endpoints" => Ok(self.task.endpoints.join(",")),
            "index" => Ok(self.task.index.to_string()),
            "count" => Ok(self.task.count.to_string()),
            "job_id" => Ok(self.ids.0.to_owned()),
            "task_id" => Ok(self.ids.1.to_owned()),
            "attempt" => Ok(self.attempt.to_string()),
            _ => match endpoint_number(name) {
                Some(i) => self.task.endpoints.get(i).cloned().map_or_else(
                    || {
                        absent(&format!(
                            "the job has {} endpoints; set job_config.endpoints",
                            self.task.endpoints.len()
                        ))
                    },
                    Ok,
                ),
                None => absent("unknown placeholder"),
            },
        }
    }

    /// The command of a step.
    fn run(&self, step: &Step, manifest: &Manifest) -> Result<Run, String> {
        let get = |name: &str| self.get(name);
        let argv: Result<_, String> = step.argv.iter().map(|argument| expand(argument, &get)).collect();
        let mut env = Vec::with_capacity(manifest.env.len() + 1);
        for (name, value) in &manifest.env {
            env.push((name.clone(), OsString::from(expand(value, &get)?)));
        }
        if let Some(dir) = self.data_dir {
            env.push((DATA_ENV.to_owned(), dir.into()));
        }
        Ok(Run {
            argv: argv?,
            env,
            dir: self.dir.to_owned(),
            timeout: Duration::from_secs(manifest.timeout_seconds),
        })
    }
}
