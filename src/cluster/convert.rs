//! Between the wire and the machine: every field that comes from outside is bounded here, by name.
//!
//! Called by the doors of this role. Decides nothing and keeps nothing.

use super::dispatch::Part;
use super::hub::Order;
use crate::engine::Refusal;
use crate::machine::cluster::Rejection;
use crate::machine::cluster::records::{ENDPOINTS_MAX, INSTANCE_MAX, IP_MAX, Ports, Profile, TASKS_MAX};
use crate::machine::ids::{BadId, JobId, TaskId, TaskKey};
use crate::machine::outcome::{End, Outcome};
use crate::wire::fedbroker::v1 as ours;
use crate::wire::fedvision::framework::cluster as theirs;
use tonic::Status;

/// The most tasks a worker may say it knows: twice all slots of the largest one, since reports may wait too, and some to spare.
pub(super) const KNOWN_MAX: usize = 2048;

pub(super) fn bad_id(error: BadId) -> Status {
    Status::invalid_argument(error.to_string())
}

pub(super) fn bad(field: &str, why: &str) -> Status {
    Status::invalid_argument(format!("{field}: {why}"))
}

/// What a command that was refused means to a caller.
pub(super) fn refused(refusal: Refusal<Rejection>) -> Status {
    match refusal {
        Refusal::Rejected(rejection) => Status::failed_precondition(rejection.to_string()),
        // A full disk too: masters take RESOURCE_EXHAUSTED for a refusal that stands, and wait out UNAVAILABLE.
        other @ (Refusal::DiskFull | Refusal::Unknown | Refusal::Stopped) => Status::unavailable(other.to_string()),
    }
}

/// The store, or reading from it, failed.
pub(super) fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

pub(super) fn key(job: String, task: String) -> Result<TaskKey, Status> {
    let job = JobId::parse(job).map_err(bad_id)?;
    let task = TaskId::parse(task).map_err(bad_id)?;
    Ok(TaskKey { job, task })
}

pub(super) fn attempt(task: Option<ours::TaskAttempt>) -> Result<(TaskKey, u32), Status> {
    let task = task.ok_or_else(|| bad("task", "must be set"))?;
    Ok((key(task.job_id, task.task_id)?, task.attempt))
}

pub(super) fn attempt_message(key: TaskKey, attempt: u32) -> ours::TaskAttempt {
    ours::TaskAttempt {
        job_id: key.job.as_str().to_owned(),
        task_id: key.task.as_str().to_owned(),
        attempt,
    }
}

pub(super) fn part_message(part: Part) -> ours::to_worker::Message {
    use ours::to_worker::Message;
    match part {
        Part::Announced { attempt, bytes } => Message::Run(ours::RunTask {
            task: None,
            attempt,
            content_bytes: bytes,
        }),
        Part::Piece(data) => Message::Piece(ours::TaskPiece { data, void: false }),
        Part::Void => Message::Piece(ours::TaskPiece {
            void: true,
            ..Default::default()
        }),
    }
}

/// An order that is no task's; `None` for those that are.
pub(super) fn order_message(order: Order) -> Option<ours::to_worker::Message> {
    use ours::to_worker::Message;
    Some(match order {
        Order::FetchLogs {
            id,
            key,
            attempt,
            stream,
            tail_lines,
            follow,
            window,
        } => Message::FetchLogs(ours::FetchLogs {
            request_id: id,
            task: Some(attempt_message(key, attempt)),
            stream: stream.into(),
            tail_lines,
            follow,
            window,
        }),
        Order::MoreLogs { id, parts } => Message::MoreLogs(ours::MoreLogs { request_id: id, parts }),
        Order::StopLogs { id } => Message::StopLogs(ours::StopLogs { request_id: id }),
        Order::RemoveJob { job } => Message::RemoveJob(ours::RemoveJob {
            job_id: job.as_str().to_owned(),
        }),
        Order::Run { .. } | Order::Kill { .. } | Order::Acknowledge { .. } => return None,
    })
}

fn text(field: &str, text: String, max: usize) -> Result<String, Status> {
    if text.is_empty() || text.len() > max || text.chars().any(char::is_control) {
        return Err(bad(field, &format!("must be 1 to {max} bytes of printable text")));
    }
    Ok(text)
}

fn ports(start: i32, end: i32) -> Result<Ports, Status> {
    let check = |field, port: i32| match u32::try_from(port) {
        Ok(port) if port <= 65_536 => Ok(port),
        _ => Err(bad(field, "must be 0 to 65536")),
    };
    let (start, end) = (check("port_start", start)?, check("port_end", end)?);
    // Port 0 means "any" and can be lent to nobody.
    Ok(Ports { start: start.max(1), end })
}

/// What one of our workers says about itself.
pub(super) fn profile(attach: &ours::WorkerAttach) -> Result<Profile, Status> {
    let max_tasks = u16::try_from(attach.max_tasks).ok().filter(|n| (1..=TASKS_MAX).contains(n));
    Ok(Profile {
        ip: text("worker_ip", attach.worker_ip.clone(), IP_MAX)?,
        max_tasks: max_tasks.ok_or_else(|| bad("max_tasks", &format!("must be 1 to {TASKS_MAX}")))?,
        ports: ports(attach.port_start, attach.port_end)?,
        instance: text("instance", attach.instance.clone(), INSTANCE_MAX)?,
        legacy: false,
    })
}

/// What a FedVision 0.1 worker says about itself; it may offer more slots than are used.
pub(super) fn legacy_profile(enroll: &theirs::enroll::Req, instance: String) -> Result<Profile, Status> {
    let max_tasks = u16::try_from(enroll.max_tasks.min(i32::from(TASKS_MAX))).ok().filter(|n| *n > 0);
    Ok(Profile {
        ip: text("worker_ip", enroll.worker_ip.clone(), IP_MAX)?,
        max_tasks: max_tasks.ok_or_else(|| bad("max_tasks", "must be at least 1"))?,
        ports: ports(enroll.port_start, enroll.port_end)?,
        instance,
        legacy: true,
    })
}

/// An outcome as one of our workers reports it.
pub(super) fn outcome(outcome: Option<ours::Outcome>) -> Result<Outcome, Status> {
    let outcome = outcome.ok_or_else(|| bad("outcome", "must be set"))?;
    let end = match outcome.state() {
        ours::outcome::State::Succeeded => End::Succeeded,
        ours::outcome::State::Failed => End::Failed,
        ours::outcome::State::Cancelled => End::Cancelled,
        ours::outcome::State::Unspecified | ours::outcome::State::NotFound => {
            return Err(bad("outcome.state", "must be SUCCEEDED, FAILED or CANCELLED"));
        }
    };
    let mut taken = Outcome::without_process(end, outcome.reason);
    taken.exit_code = outcome.exit_code;
    taken.stderr_tail = outcome.stderr_tail;
    Ok(taken.clipped())
}

/// An outcome as a FedVision 0.1 worker reports it.
pub(super) fn legacy_outcome(status: &theirs::update_status::Req) -> Result<Outcome, Status> {
    use theirs::update_status::TaskStatus;
    let exception = || match status.exception.as_str() {
        "" => "the worker reported an exception without text".to_owned(),
        text => text.to_owned(),
    };
    let outcome = match TaskStatus::try_from(status.task_status) {
        Ok(TaskStatus::TaskFinish) => Outcome::without_process(End::Succeeded, ""),
        Ok(TaskStatus::TaskException) => Outcome::without_process(End::Failed, exception()),
        Ok(TaskStatus::TaskCancel) => Outcome::without_process(End::Cancelled, status.exception.clone()),
        Ok(TaskStatus::TaskUnknown) | Err(_) => return Err(bad("task_status", "must be TASK_CANCEL, TASK_EXCEPTION or TASK_FINISH")),
    };
    Ok(outcome.clipped())
}

/// The end of a task as a watcher hears it; without an outcome the task is not known.
pub(super) fn task_end(key: &TaskKey, outcome: Option<&Outcome>) -> ours::TaskEnd {
    use ours::outcome::State;
    let state = match outcome.map(|outcome| outcome.end) {
        Some(End::Succeeded) => State::Succeeded,
        Some(End::Failed) => State::Failed,
        Some(End::Cancelled) => State::Cancelled,
        None => State::NotFound,
    };
    let mut message = ours::Outcome {
        state: state.into(),
        ..Default::default()
    };
    if let Some(outcome) = outcome {
        message.reason = outcome.reason.clone();
        message.exit_code = outcome.exit_code;
        message.stderr_tail = outcome.stderr_tail.clone();
        message.worker_id = outcome.worker.as_ref().map(ToString::to_string).unwrap_or_default();
        message.attempt = outcome.attempt;
    }
    ours::TaskEnd {
        job_id: key.job.as_str().to_owned(),
        task_id: key.task.as_str().to_owned(),
        outcome: Some(message),
    }
}

/// How many endpoints are asked for.
pub(super) fn endpoints(count: i64, field: &str) -> Result<u16, Status> {
    let taken = u16::try_from(count).ok().filter(|n| *n <= ENDPOINTS_MAX);
    taken.ok_or_else(|| bad(field, &format!("must be 0 to {ENDPOINTS_MAX}")))
}
