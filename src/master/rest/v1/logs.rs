//! `GET /api/v1/jobs/{id}/tasks/{task}/logs`: what a task printed, from its worker through the cluster manager, as it is.
//!
//! Nothing of it is kept here: a piece is asked for once the client has taken the one before.

use super::super::Door;
use super::path::Ids;
use super::problem::{Code, Problem, quoted};
use super::query::Query;
use crate::machine::ids::TaskKey;
use crate::master::logs::{Error, Output, Query as Wanted};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use std::io;

/// The most lines from the end that can be asked for; without `tail` there is no limit but what is kept.
const TAIL_MAX: u64 = 1_000_000;

/// What a task printed
///
/// The bytes as they were written. `fedbroker-log-offset` is the place of the first one in all that was written.
#[utoipa::path(get, path = "/api/v1/jobs/{job_id}/tasks/{task_id}/logs", tag = "tasks", operation_id = "get_logs_of_task",
    params(
        ("job_id" = String, Path, description = "Id of its job"),
        ("task_id" = String, Path, description = "Its id within the job"),
        ("stream" = Option<String>, Query, description = "`stderr` or `stdout`; `stderr` if it is not there"),
        ("tail" = Option<u32>, Query, description = "Only the last lines, at most so many"),
        ("attempt" = Option<u32>, Query, description = "From 1; the latest if it is not there"),
        ("follow" = Option<bool>, Query, description = "`true`: go on with what is written later, until the task has ended"),
    ),
    responses(
        (status = 200, description = "The bytes", content_type = "text/plain",
            headers(("fedbroker-log-attempt" = u32, description = "Which attempt it is of"),
                ("fedbroker-log-offset" = u64, description = "Place of the first byte"))),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such task at the cluster manager, or it has not begun, or nothing is kept of it", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "Too many read logs", body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "The cluster manager or the worker knows no logs", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The cluster manager or the worker is away", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn of_task(State(door): State<Door>, Ids(job, task): Ids, mut query: Query) -> Result<Response, Problem> {
    let output = match query.one("stream")?.as_deref() {
        None | Some("stderr") => Output::Stderr,
        Some("stdout") => Output::Stdout,
        Some(other) => {
            return Err(Problem::parameter(
                "stream",
                format!("{} is none; there are stderr and stdout", quoted(other)),
            ));
        }
    };
    let small = |number: u64| u32::try_from(number).expect("its limit is small");
    let tail_lines = query.number("tail", 1, TAIL_MAX)?.map(small);
    let attempt = query.number("attempt", 1, u32::MAX.into())?.map(small);
    let follow = match query.one("follow")?.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(Problem::parameter("follow", format!("{} is neither true nor false", quoted(other)))),
    };
    query.end()?;
    let key = TaskKey::parse(job.as_str(), task.as_str());
    let key = key.map_err(|_| {
        Problem::new(
            Code::TaskNotFound,
            format!("there is no task {} of job {}", quoted(&task), quoted(&job)),
        )
    })?;
    let place = door.take_stream()?;
    let wanted = Wanted {
        task: key,
        attempt,
        output,
        tail_lines,
        follow,
    };
    let log = door.shared.logs.open(wanted).await.map_err(problem)?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (
            header::HeaderName::from_static("fedbroker-log-attempt"),
            HeaderValue::from(log.attempt),
        ),
        (
            header::HeaderName::from_static("fedbroker-log-offset"),
            HeaderValue::from(log.offset),
        ),
    ];
    let pieces = stream::unfold((log, place, door), |(mut log, place, door)| async move {
        let piece = tokio::select! {
            piece = log.next() => piece,
            () = door.shared.supervisor.stopped() => Ok(None),
        };
        match piece {
            Ok(Some(piece)) => Some((Ok(piece.data), (log, place, door))),
            Ok(None) => None,
            // The client sees a transfer that broke off, not an end.
            Err(error) => Some((Err(io::Error::other(error)), (log, place, door))),
        }
    });
    Ok((headers, Body::from_stream(pieces)).into_response())
}

fn problem(error: Error) -> Problem {
    let code = match &error {
        Error::Unknown(_) => Code::TaskNotFound,
        Error::Gone(_) => Code::LogsGone,
        Error::NotStarted(_) => Code::TaskNotStarted,
        Error::WorkerAway(_) => Code::WorkerAway,
        Error::Busy(_) => Code::TooManyStreams,
        Error::Unsupported(_) => Code::LogsUnsupported,
        Error::Unreachable(_) => Code::ClusterUnreachable,
    };
    Problem::new(code, error)
}
