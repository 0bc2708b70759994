//! The `dummy` job type: tasks that only wait, inside the process that runs them. For trying out a federation and for measuring it.
//!
//! `job_config`: `worker_num` (0 to 256; 0 means no proposal, only the aggregator), `proposal_wait_time` (seconds, 1 to 86400;
//! required unless `worker_num` is 0, then it has no meaning), `sleep_ms` (0 to 3600000, default 0), `fail` (default false), `endpoints` (0 to 64, default
//! 0; leased as for any job, and not used), `local_tasks` (1 to 16, default 1: `aggregator`, then `local_1` and so on),
//! `payload_bytes` (0 to 402653184, default 0: as many bytes that mean nothing, in every task).

use super::program_toml::ENDPOINTS_MAX;
use super::schema::{integer, small};
use super::{BadJob, PrepareError, PrepareInput, Prepared, WAIT_MAX_S, WORKERS_MAX, task, unpack};
use crate::machine::master::LOCAL_TASKS_MAX;
use crate::machine::outcome::{End, Outcome};
use crate::machine::plan::Plan;
use crate::wire::Any;
use crate::wire::fedbroker::v1::DummyTask;
use crate::wire::fedvision::framework::Task;
use crate::wire::pieces;
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub(super) const TASK_TYPES: [&str; 2] = ["dummy_trainer", "dummy_aggregator"];
const TYPE_URL: &str = "type.googleapis.com/fedbroker.v1.DummyTask";
/// The longest a dummy task waits: an hour. A task that comes over the wire is held to it as well.
const SLEEP_MAX_MS: u64 = 3_600_000;

/// The most bytes that mean nothing: 384 MiB, below what a message may have.
const PAYLOAD_MAX: u64 = 384 * 1024 * 1024;

pub(super) type Staged = DummyTask;

pub(super) fn schema() -> Value {
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "worker_num": {"type": "integer", "minimum": 0, "maximum": WORKERS_MAX},
            "proposal_wait_time": {"type": "integer", "minimum": 1, "maximum": WAIT_MAX_S},
            "sleep_ms": {"type": "integer", "minimum": 0, "maximum": SLEEP_MAX_MS},
            "fail": {"type": "boolean"},
            "endpoints": {"type": "integer", "minimum": 0, "maximum": ENDPOINTS_MAX},
            "local_tasks": {"type": "integer", "minimum": 1, "maximum": LOCAL_TASKS_MAX},
            "payload_bytes": {"type": "integer", "minimum": 0, "maximum": PAYLOAD_MAX}
        },
        "required": ["worker_num"],
        "additionalProperties": false,
        "if": {"properties": {"worker_num": {"const": 0}}, "required": ["worker_num"]},
        "else": {"required": ["proposal_wait_time"]}
    })
}

pub(super) fn plan(config: &Value) -> Result<Plan, BadJob> {
    if small(config, "local_tasks", 1) > 1 && small(config, "endpoints", 0) > 0 {
        // All would run on the worker that lends them, where only one has a slot for certain.
        return Err(BadJob::field("local_tasks", "more than 1 does not go with endpoints"));
    }
    let workers = small(config, "worker_num", 0);
    Ok(Plan {
        endpoints: u16::try_from(small(config, "endpoints", 0)).unwrap_or(u16::MAX),
        workers,
        wait_s: if workers == 0 { 0 } else { small(config, "proposal_wait_time", 1) },
    })
}

#[expect(clippy::unnecessary_wraps, reason = "the shape all types have")]
pub(super) fn prepare(plan: Plan, input: &PrepareInput) -> Result<Prepared, PrepareError> {
    let dummy = DummyTask {
        sleep_ms: integer(&input.config, "sleep_ms", 0),
        fail: input.config["fail"].as_bool().unwrap_or(false),
        payload: Bytes::new(),
    };
    let payload = Any {
        type_url: TYPE_URL.to_owned(),
        value: filled(&dummy, &input.job_id, integer(&input.config, "payload_bytes", 0)),
    };
    let [trainer, aggregator] = TASK_TYPES;
    let trainers = (0..plan.workers).map(|i| task(&input.job_id, format!("trainer_{i}"), trainer, payload.clone()));
    let locals = (0..small(&input.config, "local_tasks", 1)).map(|i| match i {
        0 => "aggregator".to_owned(),
        i => format!("local_{i}"),
    });
    let locals = locals.map(|id| task(&input.job_id, id, aggregator, payload.clone()));
    Ok(Prepared {
        proposal_tasks: trainers.collect(),
        local_tasks: locals.collect(),
    })
}

/// A task that has no payload, encoded with one of `len` bytes, which are written once and where they stay.
fn filled(dummy: &DummyTask, job: &str, len: u64) -> Bytes {
    if len == 0 {
        return dummy.encode_to_vec().into();
    }
    let head = pieces::before(dummy, 3, len);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity((head.len() + len).next_multiple_of(8) + 8);
    bytes.extend_from_slice(&head);
    fill(&mut bytes, job, len);
    bytes.into()
}

/// Bytes that do not repeat, and differ from job to job: nothing on their way can make them fewer.
fn fill(bytes: &mut Vec<u8>, job: &str, len: usize) {
    let mut state = job
        .bytes()
        .fold(0x9e37_79b9_7f4a_7c15u64, |state, byte| state.rotate_left(8) ^ u64::from(byte));
    let words = std::iter::repeat_with(|| {
        // xorshift; never zero, since the state is not.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let end = bytes.len() + len;
    words.take(len.div_ceil(8)).for_each(|word| bytes.extend_from_slice(&word));
    bytes.truncate(end);
}

pub(super) fn stage(task: Task) -> Result<Staged, String> {
    let dummy: DummyTask = unpack(task.task, TYPE_URL)?;
    if dummy.sleep_ms > SLEEP_MAX_MS {
        return Err(format!(
            "sleep_ms: {} is greater than the maximum of {SLEEP_MAX_MS}",
            dummy.sleep_ms
        ));
    }
    Ok(dummy)
}

pub(super) async fn run(dummy: Staged, cancel: CancellationToken) -> Outcome {
    if cancel.is_cancelled() {
        return Outcome::without_process(End::Cancelled, "cancelled");
    }
    if dummy.sleep_ms > 0 {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(dummy.sleep_ms)) => {}
            () = cancel.cancelled() => return Outcome::without_process(End::Cancelled, "cancelled"),
        }
    }
    if dummy.fail {
        return Outcome::without_process(End::Failed, "asked to fail");
    }
    Outcome::without_process(End::Succeeded, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_task_is_the_one_with_the_payload() {
        for (sleep_ms, fail, len) in [(0, false, 0), (7, true, 1), (0, false, 8), (300, true, 100_001)] {
            let dummy = DummyTask {
                sleep_ms,
                fail,
                ..DummyTask::default()
            };
            let bytes = filled(&dummy, "j", len);
            let read = DummyTask::decode(bytes.clone()).unwrap();
            assert_eq!((read.sleep_ms, read.fail, read.payload.len() as u64), (sleep_ms, fail, len));
            assert_eq!(read.encode_to_vec(), bytes);
        }
    }
}
