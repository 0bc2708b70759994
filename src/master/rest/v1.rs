//! What FedVision 0.1 never had: why a job is where it is, and what this master is doing. Durable state only.

use super::{Door, health};
use crate::engine::Condition;
use crate::machine::ids::Timestamp;
use crate::machine::master::records::{Job, JobState, Task, TaskState};
use crate::machine::master::{Master, Record};
use crate::machine::outcome::End;
use crate::machine::{Machine, join_key};
use crate::store::space::{FULL, LOW};
use crate::supervisor::Supervisor;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Tasks shown with a job.
const TASKS_SHOWN: usize = 100;

/// `GET /api/v1/jobs/{id}`
pub(super) async fn job(State(door): State<Door>, Path(id): Path<String>) -> Response {
    match door.job(&id).await {
        Ok(Some(job)) => {
            let tasks = tasks(&door, &job).await;
            Json(render(&job, &tasks)).into_response()
        }
        Ok(None) => {
            let body = json!({ "title": "no such job", "status": 404, "detail": format!("this party has no job {id}") });
            (StatusCode::NOT_FOUND, Json(body)).into_response()
        }
        Err(error) => {
            let body = json!({ "title": "the store cannot be read", "status": 503, "detail": error.0 });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// `GET /api/v1/status`
pub(super) async fn status(State(door): State<Door>) -> Response {
    let recovery = &door.shared.recovery;
    let records: serde_json::Map<String, Value> = recovery.records.iter().map(|(what, n)| ((*what).to_owned(), json!(n))).collect();
    let subscription = door.shared.subscription.get();
    let room = health::room(&door).await;
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "party": door.shared.party.as_str(),
        "job_types": door.shared.registry.enabled().collect::<Vec<_>>(),
        "store": match door.shared.handle.condition() {
            Condition::Working => "working",
            Condition::ReadOnly => "read only",
            Condition::Ended => "ended",
        },
        "disk": { "free_bytes": room.free, "level": health::level_name(room.level), "low_below": LOW, "refused_below": FULL },
        "coordinator": { "subscribed": subscription.connected, "trouble": subscription.trouble },
        "recovery": {
            "epoch": recovery.epoch,
            "next_seq": recovery.next_seq,
            "records": records,
            "payloads": recovery.payloads,
            "seconds": recovery.took.as_secs_f64(),
        },
    }))
    .into_response()
}

async fn tasks(door: &Door, job: &Job) -> Vec<Task> {
    let reader = door.shared.handle.reader().clone();
    // The trailing empty part ends the prefix with the separator, so that job `a-1` does not find the tasks of `a-10`.
    let prefix = join_key(b't', &[job.id.as_str(), ""]);
    let scan = move || {
        let mut tasks = Vec::new();
        let result = reader.scan(&prefix, |_, record| {
            if let Record::Task(task) = record {
                tasks.push(task);
            }
            tasks.len() < TASKS_SHOWN
        });
        (tasks, result)
    };
    match Supervisor::blocking(scan).await {
        Ok((tasks, Ok(()))) => tasks,
        Ok((tasks, Err(error))) => {
            tracing::error!(job = %job.id, %error, "the tasks of a job cannot be read");
            tasks
        }
        Err(_) => Vec::new(),
    }
}

fn render(job: &Job, tasks: &[Task]) -> Value {
    let mut body = json!({
        "job_id": job.id.as_str(),
        "job_type": job.spec.job_type.as_str(),
        "state": job.state.name(),
        "reason": if job.note.is_empty() { Value::Null } else { json!(job.note) },
        "submitted_at": time(job.submitted_at),
        "changed_at": time(job.changed_at),
        "live": Master::is_live(&Record::Job(job.clone())),
        "tasks": tasks.iter().map(render_task).collect::<Vec<_>>(),
    });
    if let JobState::Cancelled { reason } = &job.state {
        body["reason"] = json!(reason);
    }
    if let JobState::Failed(failure) = &job.state {
        body["reason"] = json!(failure.reason);
        body["exit_code"] = json!(failure.exit_code);
        body["stderr_tail"] = json!(failure.stderr_tail);
    }
    body
}

fn render_task(task: &Task) -> Value {
    let mut body = json!({
        "task_id": task.key.task.as_str(),
        "task_type": task.task_type.as_str(),
        "queued_at": time(task.queued_at),
        "changed_at": time(task.changed_at),
    });
    body["state"] = json!(match &task.state {
        TaskState::Held => "held",
        TaskState::Queued => "queued",
        TaskState::Submitted { .. } => "submitted",
        TaskState::Cancelling { .. } => "cancelling",
        TaskState::Ended(outcome) => {
            body["reason"] = json!(outcome.reason);
            body["exit_code"] = json!(outcome.exit_code);
            body["stderr_tail"] = json!(outcome.stderr_tail);
            body["worker"] = json!(outcome.worker.as_ref().map(|worker| worker.as_str()));
            body["attempt"] = json!(outcome.attempt);
            match outcome.end {
                End::Succeeded => "success",
                End::Failed => "failed",
                End::Cancelled => "cancelled",
            }
        }
    });
    body
}

/// RFC 3339, UTC, microseconds.
fn time(at: Timestamp) -> Value {
    let instant = i64::try_from(at.0).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    instant.map_or(Value::Null, |instant| json!(format!("{instant:.6}")))
}
