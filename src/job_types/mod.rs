//! Layer 2: what a job is made of. The registry of job types, each with a schema for its config, what it asks of the federation
//! ([`Plan`]), how its tasks are made at the initiator ([`Registry::prepare`]) and how they run on a worker ([`TaskRunner`]).
//!
//! Used by the master (plan, prepare) and the worker (runner). Imports machine, wire and config only. It decides nothing about the
//! life of a job, and it never runs anything that a message brought: programs are installed by the party itself.
//!
//! To add a job type: a variant of `Kind`, a module beside `dummy`, and the compiler names every place that must know it.

mod child;
mod dummy;
pub mod exec;
mod files;
mod paddle_fl;
mod program;
pub mod program_toml;
mod schema;

use crate::machine::outcome::{End, Outcome};
use crate::machine::plan::Plan;
use crate::wire::Any;
use crate::wire::fedvision::framework::Task;
use child::Child;
use exec::Shim;
pub use schema::BadJob;
use schema::Schema;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The most parties a job can ask for: each gets a task of its own, and a coordinator records them all in one batch.
pub const WORKERS_MAX: u32 = 256;
/// The longest time a proposal can wait, seconds: a day. Parties hold a call open for it.
pub const WAIT_MAX_S: u32 = 24 * 3600;
/// What a message holds besides the payloads of its tasks: ids and field tags, a generous KiB for each task.
const MESSAGE_ROOM: usize = 1024;

/// A built-in job type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dummy,
    PaddleFl,
    Program,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Dummy, Kind::PaddleFl, Kind::Program];

    fn name(self) -> &'static str {
        match self {
            Kind::Dummy => "dummy",
            Kind::PaddleFl => "paddle_fl",
            Kind::Program => "program",
        }
    }

    /// Task types of trainer and aggregator.
    fn task_types(self) -> [&'static str; 2] {
        match self {
            Kind::Dummy => dummy::TASK_TYPES,
            Kind::PaddleFl => paddle_fl::TASK_TYPES,
            Kind::Program => program::TASK_TYPES,
        }
    }

    fn schema(self) -> Value {
        match self {
            Kind::Dummy => dummy::schema(),
            Kind::PaddleFl => paddle_fl::schema(),
            Kind::Program => program::schema(),
        }
    }
}

/// What runs the steps of `paddle_fl`.
#[derive(Clone, Debug)]
pub struct Python {
    /// A program of the `PATH`, or a path.
    pub command: String,
    /// Wall-clock limit of a compile step (at a master) or of a task (at a worker).
    pub timeout: Duration,
}

/// What a process brings for its job types.
#[derive(Clone, Debug)]
pub struct Options {
    /// Job types this party takes part in; `None` for all built-in ones.
    pub enabled: Option<Vec<String>>,
    /// Programs it has installed.
    pub programs_dir: Option<PathBuf>,
    /// Its data, for tasks.
    pub data_dir: Option<PathBuf>,
    /// What runs the steps of `paddle_fl`.
    pub python: Python,
    /// How child processes are supervised.
    pub shim: Shim,
    /// Who it is, for reasons: `worker w1`, `master p1`.
    pub who: String,
}

/// A registry that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BadRegistry {
    /// An enabled job type does not exist.
    #[error("job type {0} is not built in; there are dummy, program and paddle_fl")]
    Unknown(String),
    /// Programs run in directories of their own, so that a relative path would lead elsewhere.
    #[error("--python: {0:?} cannot be made an absolute path; give one")]
    Python(String),
    /// A built-in schema is wrong: a fault of this program.
    #[error("schema of job type {0}: {1}")]
    Schema(&'static str, String),
}

/// What running needs of its process.
#[derive(Debug)]
struct Place {
    programs_dir: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    python: Python,
    shim: Shim,
    who: String,
}

/// The job types of a process.
#[derive(Debug)]
pub struct Registry {
    types: BTreeMap<&'static str, (Kind, Schema)>,
    place: Arc<Place>,
}

/// What `prepare` works on; the config is one that [`Registry::plan`] has taken.
#[derive(Clone, Debug)]
pub struct PrepareInput {
    /// The job.
    pub job_id: String,
    /// Its `job_config`.
    pub config: Value,
    /// Its `algorithm_config`, if it came with one.
    pub algorithm_config: Option<String>,
    /// The leased endpoints, as many as planned.
    pub endpoints: Vec<String>,
    /// Directory for the compile step: cleaned first, kept afterwards.
    pub work_dir: PathBuf,
    /// Which attempt to prepare this is, from 1.
    pub attempt: u32,
    /// Ends the compile step; what comes of it then is of no use.
    pub cancel: CancellationToken,
}

/// The tasks of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prepared {
    /// `trainer_<i>`, no assignee: for the proposal.
    pub proposal_tasks: Vec<Task>,
    /// `aggregator` and others, at most [`LOCAL_TASKS_MAX`](crate::machine::master::LOCAL_TASKS_MAX), no assignee: the caller sets it to the worker of the lease.
    pub local_tasks: Vec<Task>,
}

/// Why the tasks of a job could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PrepareError {
    /// One line.
    pub reason: String,
    /// Of the compile step, if it ended by itself.
    pub exit_code: Option<i32>,
    /// The last lines of its stderr, at most 1 KiB.
    pub stderr_tail: String,
    /// True when another attempt could go better; no built-in type knows such a case.
    pub retryable: bool,
}

impl PrepareError {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            exit_code: None,
            stderr_tail: String::new(),
            retryable: false,
        }
    }
}

impl Registry {
    /// Build the enabled types.
    ///
    /// # Errors
    /// A type that does not exist, or a Python whose path cannot be used.
    pub fn new(options: Options) -> Result<Self, BadRegistry> {
        let known = |name: &String| Kind::ALL.iter().any(|k| k.name() == name);
        if let Some(name) = options.enabled.iter().flatten().find(|name| !known(name)) {
            return Err(BadRegistry::Unknown(name.clone()));
        }
        let mut types = BTreeMap::new();
        for kind in Kind::ALL {
            if options.enabled.as_ref().is_none_or(|names| names.iter().any(|n| n == kind.name())) {
                let schema = Schema::new(kind.schema()).map_err(|why| BadRegistry::Schema(kind.name(), why))?;
                types.insert(kind.name(), (kind, schema));
            }
        }
        let place = Arc::new(Place {
            programs_dir: options.programs_dir,
            data_dir: options.data_dir,
            python: Python {
                command: absolute(options.python.command)?,
                ..options.python
            },
            shim: options.shim,
            who: options.who,
        });
        Ok(Self { types, place })
    }

    /// The job types this process takes part in, for Subscribe.
    pub fn enabled(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.types.keys().copied()
    }

    /// The JSON schema (draft-07) of a job type's `job_config`.
    pub fn schema(&self, job_type: &str) -> Option<&Value> {
        self.types.get(job_type).map(|(_, schema)| schema.source())
    }

    /// Check a job's config and say what the job asks for.
    ///
    /// # Errors
    /// The job type is not supported here, the config breaks its schema, or the type needs an `algorithm_config`.
    pub fn plan(&self, job_type: &str, job_config: &Value, algorithm_config: Option<&str>) -> Result<Plan, BadJob> {
        let (kind, schema) = self.types.get(job_type).ok_or_else(|| BadJob::unknown_type(job_type))?;
        schema.check(job_config)?;
        match kind {
            Kind::Dummy => dummy::plan(job_config),
            Kind::PaddleFl => paddle_fl::plan(job_config, algorithm_config),
            Kind::Program => program::plan(job_config),
        }
    }

    /// Make the tasks of a job: compile where the type has it, then pack. Once this has returned nothing of the compile step runs any more;
    /// dropping the future ends it too, a little later.
    ///
    /// # Errors
    /// The compile step failed, or what it wrote cannot be sent.
    pub async fn prepare(&self, job_type: &str, input: PrepareInput) -> Result<Prepared, PrepareError> {
        let Some((kind, _)) = self.types.get(job_type) else {
            return Err(PrepareError::new(BadJob::unknown_type(job_type).to_string()));
        };
        let plan = self
            .plan(job_type, &input.config, input.algorithm_config.as_deref())
            .map_err(|bad| PrepareError::new(bad.to_string()))?;
        match kind {
            Kind::Dummy => dummy::prepare(plan, &input),
            Kind::PaddleFl => paddle_fl::prepare(&self.place, plan, &input).await,
            Kind::Program => program::prepare(&self.place, plan, &input).await,
        }
    }

    /// How tasks of a type are run; `None` for a type no enabled job type has.
    pub fn runner(&self, task_type: &str) -> Option<TaskRunner> {
        let (kind, _) = self.types.values().find(|(kind, _)| kind.task_types().contains(&task_type))?;
        Some(TaskRunner {
            kind: *kind,
            place: self.place.clone(),
        })
    }

    /// The outcome of a task whose type nobody here knows (FedVision 0.1 dropped it silently).
    pub fn unknown_task_type(task_type: &str) -> Outcome {
        Outcome::without_process(End::Failed, format!("task type {task_type} is not known to this worker")).clipped()
    }
}

/// Runs tasks of one type.
#[derive(Clone, Debug)]
pub struct TaskRunner {
    kind: Kind,
    place: Arc<Place>,
}

/// A task that is checked and unpacked, small enough to wait in memory for its turn.
#[derive(Debug)]
pub struct Staged(Stage);

#[derive(Debug)]
enum Stage {
    Dummy(dummy::Staged),
    PaddleFl(Arc<Place>, Box<Child>),
    Program(Box<Child>),
}

impl TaskRunner {
    /// True when the task gets a directory (of its own, cleaned first); false when it runs inside this process.
    pub fn uses_directory(&self) -> bool {
        self.kind != Kind::Dummy
    }

    /// Check the task's payload and unpack it into `work_dir`, so that its message can leave memory.
    ///
    /// # Errors
    /// The outcome of the task: it cannot be run here.
    pub async fn stage(&self, task: Task, attempt: u32, work_dir: PathBuf) -> Result<Staged, Outcome> {
        let staged = match self.kind {
            Kind::Dummy => dummy::stage(task).map(Stage::Dummy),
            Kind::PaddleFl => paddle_fl::stage(&self.place, task, work_dir)
                .await
                .map(|child| Stage::PaddleFl(self.place.clone(), Box::new(child))),
            Kind::Program => program::stage(&self.place, task, attempt, work_dir)
                .await
                .map(|child| Stage::Program(Box::new(child))),
        };
        staged
            .map(Staged)
            .map_err(|why| Outcome::without_process(End::Failed, why).clipped())
    }
}

impl Staged {
    /// Run it to its end. A cancelled task ends with all its processes.
    pub async fn run(self, cancel: CancellationToken) -> Outcome {
        match self.0 {
            Stage::Dummy(staged) => dummy::run(staged, cancel).await,
            Stage::PaddleFl(place, child) => paddle_fl::run(&place, *child, cancel).await,
            Stage::Program(child) => child.task(cancel).await,
        }
        .clipped()
    }
}

/// A path made absolute, not resolved: the Python of a virtual environment is known by its link. A plain name is looked for in the `PATH`.
fn absolute(command: String) -> Result<String, BadRegistry> {
    if !command.is_empty() && !command.contains('/') {
        return Ok(command);
    }
    let path = std::path::absolute(&command).ok().and_then(|path| path.to_str().map(str::to_owned));
    path.ok_or(BadRegistry::Python(command))
}

/// The task of one part of a job.
fn task(job_id: &str, task_id: String, task_type: &str, payload: Any) -> Task {
    Task {
        job_id: job_id.to_owned(),
        task_id,
        task_type: task_type.to_owned(),
        task: Some(payload),
        assignee: String::new(),
    }
}

/// Take the payload out of a task, if it is of the wanted type.
fn unpack<M: prost::Message + Default>(payload: Option<Any>, type_url: &str) -> Result<M, String> {
    let any = payload.ok_or_else(|| format!("the task has no payload, wanted {type_url}"))?;
    if any.type_url != type_url {
        return Err(format!(
            "the payload is {:?}, wanted {type_url}",
            any.type_url.chars().take(100).collect::<String>()
        ));
    }
    M::decode(any.value).map_err(|e| format!("the payload is damaged: {e}"))
}

/// Put a message into an Any.
fn pack<M: prost::Message>(message: &M, type_url: &str) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec().into(),
    }
}

#[cfg(test)]
mod tests;
