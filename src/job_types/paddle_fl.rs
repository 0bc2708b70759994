//! The `paddle_fl` job type of FedVision 0.1: federated training by the Paddle programs that the parties have installed as Python
//! packages `fedvision.ml.paddle.<program>`. Messages, files and arguments are those of 0.1, so that its programs run unchanged.
//!
//! `job_config`: `program` (a plain module name), `proposal_wait_time` (seconds, 1 to 86400), `worker_num` (1 to 256), `max_iter`,
//! `inner_step`; other keys are the program's. The initiator's compile step runs `fl_master` of the program; [`compiled`] packs what it
//! wrote, [`tasks`] runs the tasks at a worker. Nothing here goes through a shell, and only modules of that package are run.

mod compiled;
mod tasks;

use super::child::{Child, check_endpoint};
use super::exec::Run;
use super::schema::small;
use super::{BadJob, Place, PrepareError, PrepareInput, Prepared, WAIT_MAX_S, WORKERS_MAX, files};
use crate::machine::plan::Plan;
use crate::wire::python_json;
use serde_json::{Value, json};
use std::path::PathBuf;
pub(super) use tasks::{run, stage};

const TRAINER: &str = "fl_trainer";
const AGGREGATOR: &str = "fl_aggregator";
pub(super) const TASK_TYPES: [&str; 2] = [TRAINER, AGGREGATOR];
const TRAINER_URL: &str = "type.googleapis.com/fedvision.paddle_fl.PaddleFLWorkerTask";
const AGGREGATOR_URL: &str = "type.googleapis.com/fedvision.paddle_fl.PaddleFLAggregatorTask";
/// The package of all programs.
const PACKAGE: &str = "fedvision.ml.paddle";
/// The longest program name, bytes; a module is a file, whose name has at most 255.
const PROGRAM_LEN_MAX: usize = 128;
/// File of `job_config` in the directory of every step.
const CONFIG: &str = "config.json";
/// File of `algorithm_config` in the directory of every step.
const ALGORITHM_CONFIG: &str = "algorithm_config.yaml";
/// What to do about a Python that cannot be started.
const MEND: &str = "; --python names the one that has the packages";
/// What must be an integer for the programs, which count with it; a submitter may write `1.0`.
const INTEGERS: [&str; 4] = ["proposal_wait_time", "worker_num", "max_iter", "inner_step"];

/// The schema of 0.1, with limits where 0.1 took what it could not run. Zero is no `inner_step`: a trainer divides by it.
pub(super) fn schema() -> Value {
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "PaddleFL",
        "description": "PaddleFL job config",
        "type": "object",
        "properties": {
            "proposal_wait_time": {"type": "integer", "minimum": 1, "maximum": WAIT_MAX_S},
            "worker_num": {"type": "integer", "minimum": 1, "maximum": WORKERS_MAX},
            "program": {"type": "string"},
            "max_iter": {"type": "integer", "minimum": 0, "maximum": u32::MAX},
            "inner_step": {"type": "integer", "minimum": 1, "maximum": u32::MAX}
        },
        "required": ["proposal_wait_time", "worker_num", "program", "max_iter", "inner_step"]
    })
}

pub(super) fn plan(config: &Value, algorithm_config: Option<&str>) -> Result<Plan, BadJob> {
    let program = config["program"].as_str().unwrap_or_default();
    if !is_module(program) {
        let shown: String = program.chars().take(100).collect();
        return Err(BadJob::field(
            "program",
            format!("{shown:?} is not a plain module name; give the name of a package in {PACKAGE}"),
        ));
    }
    if algorithm_config.is_none() {
        return Err(BadJob::Config {
            path: "algorithm_config".to_owned(),
            pointer: "/algorithm_config".to_owned(),
            message: "is required for a paddle_fl job: the text of its yaml file".to_owned(),
        });
    }
    Ok(Plan {
        endpoints: 2,
        workers: small(config, "worker_num", 1),
        wait_s: small(config, "proposal_wait_time", 1),
    })
}

/// True for a name that Python takes as one module: it becomes an argument, and a part of a module path on other machines.
fn is_module(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.len() <= PROGRAM_LEN_MAX && name.chars().all(word) && name.starts_with(|c: char| word(c) && !c.is_ascii_digit())
}

pub(super) async fn prepare(place: &Place, plan: Plan, input: &PrepareInput) -> Result<Prepared, PrepareError> {
    let [server, scheduler] = input.endpoints.as_slice() else {
        let got = input.endpoints.len();
        return Err(PrepareError::new(format!("the cluster lent {got} endpoints, 2 are needed")));
    };
    // They came from the cluster manager, and become arguments here and elsewhere.
    check_endpoint(server)
        .and_then(|()| check_endpoint(scheduler))
        .map_err(PrepareError::new)?;
    let parts = compiled::Parts {
        job_id: &input.job_id,
        program: input.config["program"].as_str().unwrap_or_default(),
        scheduler,
        config: config_text(&input.config),
        algorithm_config: input.algorithm_config.as_deref().unwrap_or_default(),
    };
    let dir = compile(place, &parts, server, input).await?;
    compiled::pack(&dir.join("compile"), plan.workers, &parts)
        .await
        .map_err(|why| PrepareError::new(format!("program {}: {why}", parts.program)))
}

/// The text of `config.json`, as 0.1 makes it: all keys, in their order.
fn config_text(config: &Value) -> String {
    let mut config = config.clone();
    for name in INTEGERS {
        if config[name].is_f64() {
            // The schema has checked that it is whole and within 32 bits.
            config[name] = json!(small(&config, name, 0));
        }
    }
    python_json::text(&config)
}

/// Run the compile step; the directory it ran in.
async fn compile(place: &Place, parts: &compiled::Parts<'_>, server: &str, input: &PrepareInput) -> Result<PathBuf, PrepareError> {
    let work_dir = &input.work_dir;
    let io = |e: std::io::Error| PrepareError::new(format!("cannot set up {}: {e}", work_dir.display()));
    files::clean(work_dir).await.map_err(io)?;
    let dir = tokio::fs::canonicalize(work_dir).await.map_err(io)?;
    tokio::fs::write(dir.join(ALGORITHM_CONFIG), parts.algorithm_config)
        .await
        .map_err(io)?;
    tokio::fs::write(dir.join(CONFIG), &parts.config).await.map_err(io)?;
    let module = format!("{PACKAGE}.{}.fl_master", parts.program);
    let options = ["--ps-endpoint", server, "--algorithm-config", ALGORITHM_CONFIG, "--config", CONFIG];
    let child = Child {
        what: format!("compile step of program {}", parts.program),
        mend: MEND,
        shim: place.shim.clone(),
        run: python(place, &module, options, dir.clone()),
    };
    let compiled = child.compile(&input.cancel).await;
    compiled.map_err(|mut error| {
        tasks::explain(place, &mut error.reason, &error.stderr_tail);
        error
    })?;
    Ok(dir)
}

/// The run of a module with arguments.
fn python<S: Into<String>>(place: &Place, module: &str, options: impl IntoIterator<Item = S>, dir: PathBuf) -> Run {
    let mut argv = vec![place.python.command.clone(), "-m".to_owned(), module.to_owned()];
    argv.extend(options.into_iter().map(Into::into));
    Run {
        argv,
        env: Vec::new(),
        dir,
        timeout: place.python.timeout,
    }
}

#[cfg(test)]
mod tests;
