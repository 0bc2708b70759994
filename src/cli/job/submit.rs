//! `fedbroker submit` and `fedbroker job submit`: a job file to a master, and on request the wait for its end.
//!
//! Every submit has an idempotency key and is repeated with it until it is answered: however often the answer is lost, there is one job.

use super::super::exit;
use super::super::output::{self, Format};
use super::wait::{self, WaitFor};
use super::{COLUMNS, Target, duration, time};
use crate::cli::client::Request;
use crate::engine::clock::{Clock, SystemClock};
use crate::machine::master::spec::{ATTEMPTS_MAX, PRIORITY_MAX};
use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// `fedbroker submit`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  fedbroker submit --config examples/jobs/digits_fedavg.yaml --endpoint 127.0.0.1:10002 --wait\n  \
                  fedbroker submit --config job.yaml --label team=vision --priority 10 -o name"
)]
pub(in crate::cli) struct SubmitOptions {
    /// Job file: job_type, job_config, and optionally algorithm_config, the path of a file beside it
    #[arg(long)]
    config: PathBuf,
    #[command(flatten)]
    target: Target,
    /// Name of this submit: the same again is the same job. Made and shown when not given
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// From -100 to 100: higher ones start first; waiting jobs age, so that none waits for ever
    #[arg(long, allow_hyphen_values = true, value_parser = clap::value_parser!(i8).range(-i64::from(PRIORITY_MAX)..=i64::from(PRIORITY_MAX)))]
    priority: Option<i8>,
    /// Start not before this time: RFC 3339, or 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    not_before: Option<String>,
    /// Fail the job if it has not ended by this time: RFC 3339, or 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    deadline: Option<String>,
    /// key=value; repeat for more
    #[arg(long, value_name = "LABEL", value_parser = label)]
    label: Vec<(String, String)>,
    /// How often the job is run until it succeeds, at most 100 times; each further attempt is a job of its own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(ATTEMPTS_MAX)))]
    max_attempts: Option<u32>,
    /// Wait for the job to end; exit 0 on success, 1 when it failed
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this: 500ms, 90s, 5m, 2h or 1d; exit 4 then
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "wait")]
    timeout: Option<Duration>,
    /// How long a master that is away is tried again
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    patience: Duration,
}

/// Submit.
///
/// # Errors
/// The file is no good, or the master cannot be reached or refuses the job.
pub(in crate::cli) async fn submit(options: SubmitOptions) -> anyhow::Result<ExitCode> {
    let body = body(&options)?;
    let client = options.target.client()?;
    let key = options
        .idempotency_key
        .clone()
        .unwrap_or_else(|| format!("{:016x}{:016x}", SystemClock.random(), SystemClock.random()));
    eprintln!("idempotency key: {key}");
    let request = || {
        let request = Request::post(&["api", "v1", "jobs"]);
        request.header("idempotency-key", key.clone()).json(&body)
    };
    let job = client.ask_patiently(options.patience, request).await?;
    let id = job["job_id"].as_str().context("the master gave no job id")?;
    // As the submitter of FedVision 0.1 shows its answer, for the scripts that read it.
    let format = options.target.output.unwrap_or(Format::Json);
    if !options.wait {
        output::one(format, COLUMNS, "job_id", &job);
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("job: {}", output::plain(id));
    let wait = WaitFor {
        timeout: options.timeout,
        patience: options.patience,
        follow: true,
    };
    let ended = wait.end_of(&client, id).await?;
    output::one(format, COLUMNS, "job_id", &ended);
    Ok(wait::code(&ended))
}

fn label(given: &str) -> Result<(String, String), String> {
    let (key, value) = given.split_once('=').ok_or("give key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn body(options: &SubmitOptions) -> anyhow::Result<Value> {
    let mut request = read(&options.config).or_else(|error| exit::usage(&format!("{error:#}")))?;
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            request.insert(name.to_owned(), value);
        }
    };
    set("priority", options.priority.map(|priority| json!(priority)));
    set("not_before", options.not_before.as_ref().map(|at| json!(at)));
    set("deadline", options.deadline.as_ref().map(|at| json!(at)));
    set("max_attempts", options.max_attempts.map(|count| json!(count)));
    if !options.label.is_empty() {
        let labels = request.entry("labels").or_insert_with(|| json!({}));
        let Some(labels) = labels.as_object_mut() else {
            return exit::usage("--config: labels must be a map");
        };
        labels.extend(options.label.iter().map(|(key, value)| (key.clone(), json!(value))));
    }
    Ok(Value::Object(request))
}

/// A job file as the body of a submit.
fn read(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--config: cannot read {}", path.display()))?;
    let file: Value = serde_saphyr::from_str(&text).with_context(|| format!("--config: {} is not YAML", path.display()))?;
    let Value::Object(mut request) = file else {
        anyhow::bail!("--config: {} is not a map", path.display())
    };
    let has = |name: &str, fits: fn(&Value) -> bool| request.get(name).is_some_and(fits);
    anyhow::ensure!(has("job_type", Value::is_string), "--config: {} has no job_type", path.display());
    anyhow::ensure!(
        has("job_config", Value::is_object),
        "--config: {} has no job_config, a map",
        path.display()
    );
    if let Some(name) = request.get("algorithm_config").and_then(Value::as_str) {
        let beside = path.parent().unwrap_or(Path::new(".")).join(name);
        let text = std::fs::read_to_string(&beside).with_context(|| format!("algorithm_config: cannot read {}", beside.display()))?;
        request.insert("algorithm_config".to_owned(), json!(text));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_join_what_the_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("job.yaml");
        std::fs::write(
            &file,
            "job_type: dummy\njob_config: {worker_num: 2}\npriority: 1\nlabels: {a: x, b: y}\nalgorithm_config: alg.yaml\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("alg.yaml"), "z: 1\n").unwrap();
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            submit: SubmitOptions,
        }
        let line = [
            "x",
            "--config",
            file.to_str().unwrap(),
            "--endpoint",
            "h:1",
            "--priority",
            "-5",
            "--label",
            "b=z",
            "--max-attempts",
            "3",
        ];
        let options = <Line as clap::Parser>::try_parse_from(line).unwrap().submit;
        for (text, why) in [
            ("[1]", "is not a map"),
            ("", "is not a map"),
            ("job_config: {}", "has no job_type"),
            ("job_type: x", "has no job_config"),
        ] {
            let other = dir.path().join("other.yaml");
            std::fs::write(&other, text).unwrap();
            assert!(read(&other).unwrap_err().to_string().contains(why), "{text}");
        }
        let expected = json!({ "job_type": "dummy", "job_config": { "worker_num": 2 }, "priority": -5, "labels": { "a": "x", "b": "z" },
            "algorithm_config": "z: 1\n", "max_attempts": 3 });
        assert_eq!(body(&options).unwrap(), expected);
    }
}
