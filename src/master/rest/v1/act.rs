//! What users do with jobs: `:cancel`, `:rerun`, `:hold`, `:release`, `DELETE`, and `jobs:cancel` for many. Each is durable before it is answered.
//!
//! Turns requests into commands; the machine decides. All but a rerun without a key are safe to send again.

use super::super::intake::{self, Taken};
use super::super::server::Peer;
use super::super::{BODY_MAX, Door};
use super::body::{Limit, read};
use super::filter::{Filter, FilterBody};
use super::job::Job;
use super::jobs;
use super::page::Jobs;
use super::path::Id;
use super::problem::{Code, Problem, quoted};
use super::query::{NoQuery, Query};
use super::submit::{answer, key_of, provenance, refused, shown};
use crate::machine::ids::{JobId, PartyId, TaskKey};
use crate::machine::join_key;
use crate::machine::master::{Command, Record, Reply};
use crate::machine::outcome::REASON_MAX;
use crate::master::peers::parties_of;
use crate::store::Error;
use crate::supervisor::Supervisor;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::Duration;
use utoipa::ToSchema;

/// Jobs that one bulk cancel ends: a second or two of commits.
const BULK_MAX: usize = 5000;
/// Of them at once.
const BULK_PIECE: usize = 250;

/// Why a job is ended.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::master::rest) struct Cancel {
    /// One line of at most 512 bytes; shown with the job.
    #[serde(default)]
    reason: String,
}

/// Nothing.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::master::rest) struct Nothing {}

/// Which jobs are to be ended.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::master::rest) struct BulkCancel {
    /// Those that have not ended, of these; it must say something.
    filter: FilterBody,
    /// Only tell which.
    #[serde(default)]
    dry_run: bool,
    /// One line of at most 512 bytes; shown with the jobs.
    #[serde(default)]
    reason: String,
}

/// It is stored as it is given, or not at all.
fn check_reason(reason: &str) -> Result<(), Problem> {
    if reason.len() > REASON_MAX {
        return Err(Problem::field("/reason", format!("{} bytes; at most {REASON_MAX}", reason.len())));
    }
    Ok(())
}

/// What became of a bulk cancel.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct BulkAnswer {
    dry_run: bool,
    /// Those that were ended, or would be.
    job_ids: Vec<String>,
    /// Those that ended by themselves meanwhile.
    skipped: u64,
    /// There are more: send it again.
    more: bool,
}

/// `POST /api/v1/jobs/{id}:<action>`: the router knows no such paths.
pub(in crate::master::rest) async fn act(state: State<Door>, Id(text): Id, query: Query, request: Request) -> Result<Response, Problem> {
    let (id, action) = text.rsplit_once(':').unwrap_or((&text, ""));
    let id = Id(id.to_owned());
    if action == "cancel" {
        return cancel(state, id, query, request).await;
    }
    let none = query.end().map(|()| NoQuery)?;
    match action {
        "rerun" => rerun(state, id, none, request).await,
        "hold" => hold(state, id, none, request).await,
        "release" => release(state, id, none, request).await,
        _ => {
            let known = "POST is for :cancel, :rerun, :hold and :release behind the id of a job";
            Err(Problem::new(Code::MethodNotAllowed, format!("{}: {known}", quoted(&text))))
        }
    }
}

/// End a job, wherever it stands
///
/// What of it is not at the cluster manager yet never gets there, and what is there is stopped. With `wait`, the answer comes once that is done: when
/// the job is not `live` any more, nothing of it runs at this party and nothing can start. Again, it is the same.
#[utoipa::path(post, path = "/api/v1/jobs/{job_id}:cancel", tag = "jobs", operation_id = "cancel_job", request_body = Cancel,
    params(
        ("job_id" = String, Path, description = "Its id"),
        ("wait" = Option<String>, Query, description = "Answer only once it is not `live` any more, or after this time at most: `30s`, `5m`; 5 minutes at most"),
    ),
    responses(
        (status = 200, description = "It is cancelled; `live` tells whether something of it may still run", body = Job),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "This party has no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has ended otherwise", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many requests wait; it is not cancelled", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn cancel(
    State(door): State<Door>,
    Id(id): Id,
    mut query: Query,
    request: Request,
) -> Result<Response, Problem> {
    let wait = jobs::time_to_wait(&mut query)?;
    query.end()?;
    let _place = wait.map(|_| jobs::take_wait(&door)).transpose()?;
    let Cancel { reason } = read(request, limit(&door)).await?;
    check_reason(&reason)?;
    let job = known(&door, &id).await?;
    let command = Command::Cancel { job: job.clone(), reason };
    door.shared.handle.send(command).await.map_err(|refusal| refused(&door, refusal))?;
    if let Some(time) = wait {
        closed(&door, &job, time).await?;
    }
    Ok(Json(shown(&door, &job).await?).into_response())
}

/// Returns once nothing of an ended job runs any more, or after a time.
async fn closed(door: &Door, job: &JobId, time: Duration) -> Result<(), Problem> {
    // Before the first look, so that no change between them is missed.
    let mut watcher = door.shared.index.watch(job);
    let end = tokio::time::sleep(time);
    tokio::pin!(end);
    while !jobs::is_closed(&jobs::find(door, job.as_str()).await?) {
        tokio::select! {
            _ = watcher.changed() => {}
            () = &mut end => break,
            () = door.shared.supervisor.stopped() => break,
        }
    }
    Ok(())
}

/// Run an ended job again, as a new one that names it
#[utoipa::path(post, path = "/api/v1/jobs/{job_id}:rerun", tag = "jobs", operation_id = "rerun_job", request_body = Nothing,
    params(
        ("job_id" = String, Path, description = "Its id"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to send again"),
    ),
    responses(
        (status = 201, description = "The new job", body = Job, headers(("location" = String, description = "Its path"))),
        (status = 200, description = "The job that the same request made before", body = Job),
        (status = 404, description = "This party has no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has not ended, or the key was used otherwise", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn rerun(
    State(door): State<Door>,
    Id(id): Id,
    _: NoQuery,
    request: Request,
) -> Result<Response, Problem> {
    let mut provenance = provenance(request.headers(), request.extensions().get::<Peer>());
    provenance.key = key_of(request.headers())?.map(|key| intake::key_hash(&key));
    let Nothing {} = read(request, limit(&door)).await?;
    let job = known(&door, &id).await?;
    let fingerprint = Sha256::digest(format!("rerun {job}")).into();
    let command = Command::Rerun {
        job,
        provenance,
        fingerprint,
    };
    let taken = match door.shared.handle.send(command).await {
        Ok(Reply::Accepted(job)) => Taken { job, replayed: false },
        Ok(Reply::Replayed(job)) => Taken { job, replayed: true },
        Ok(other) => return Err(Problem::new(Code::OutcomeUnknown, format!("a strange answer: {other:?}"))),
        Err(refusal) => return Err(refused(&door, refusal)),
    };
    answer(&door, &taken).await
}

/// Hold a job back that has not been proposed yet
///
/// What it had at the cluster manager goes back. Again, it is the same.
#[utoipa::path(post, path = "/api/v1/jobs/{job_id}:hold", tag = "jobs", operation_id = "hold_job", request_body = Nothing,
    params(("job_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is held", body = Job),
        (status = 404, description = "This party has no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is past that, or has ended", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn hold(State(door): State<Door>, Id(id): Id, _: NoQuery, request: Request) -> Result<Response, Problem> {
    let Nothing {} = read(request, limit(&door)).await?;
    let job = known(&door, &id).await?;
    done(&door, job.clone(), Command::Hold { job }).await
}

/// Let a held job go on
#[utoipa::path(post, path = "/api/v1/jobs/{job_id}:release", tag = "jobs", operation_id = "release_job", request_body = Nothing,
    params(("job_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It goes on", body = Job),
        (status = 404, description = "This party has no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is not held", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn release(
    State(door): State<Door>,
    Id(id): Id,
    _: NoQuery,
    request: Request,
) -> Result<Response, Problem> {
    let Nothing {} = read(request, limit(&door)).await?;
    let job = known(&door, &id).await?;
    done(&door, job.clone(), Command::Release { job }).await
}

/// Remove an ended job from history, with its tasks and what is kept of them
#[utoipa::path(delete, path = "/api/v1/jobs/{job_id}", tag = "jobs", operation_id = "purge_job",
    params(("job_id" = String, Path, description = "Its id")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "This party has no such job", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has not ended, or its end is not complete", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn purge(State(door): State<Door>, Id(id): Id, _: NoQuery) -> Result<StatusCode, Problem> {
    let job = known(&door, &id).await?;
    let (tasks, parties) = kept_of(&door, &job).await?;
    match door.shared.handle.send(Command::Purge { job, tasks, parties }).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(refusal) => Err(refused(&door, refusal)),
    }
}

/// End many jobs
///
/// All that fit the filter and have not ended, at most 5000 of them at once. Again, it is the same.
#[utoipa::path(post, path = "/api/v1/jobs:cancel", tag = "jobs", operation_id = "cancel_jobs", request_body = BulkCancel,
    responses(
        (status = 200, description = "They are cancelled, or would be", body = BulkAnswer),
        (status = 400, description = "The body is not right", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn cancel_many(
    State(door): State<Door>,
    _: NoQuery,
    request: Request,
) -> Result<Json<BulkAnswer>, Problem> {
    let BulkCancel { filter, dry_run, reason } = read(request, limit(&door)).await?;
    check_reason(&reason)?;
    let filter = Filter::of_body(filter)?;
    if filter.is_empty() {
        return Err(Problem::field("/filter", "says nothing; to end all jobs, name the states"));
    }
    let mut answer = BulkAnswer {
        dry_run,
        job_ids: Vec::new(),
        skipped: 0,
        more: false,
    };
    let Some(filter) = filter.not_ended() else {
        return Ok(Json(answer));
    };
    let mut after = None;
    loop {
        let walk = Jobs {
            filter: filter.clone(),
            descending: false,
            after,
        };
        let (records, next) = walk.page(&door, BULK_PIECE).await?;
        let cancel = |job: JobId| {
            let (door, reason) = (&door, reason.clone());
            async move {
                let ended = dry_run || door.shared.handle.send(Command::Cancel { job: job.clone(), reason }).await.is_ok();
                (job, ended)
            }
        };
        for (job, ended) in futures_util::future::join_all(records.into_iter().map(|record| cancel(record.id))).await {
            if ended {
                answer.job_ids.push(job.to_string());
            } else {
                answer.skipped += 1;
            }
        }
        match next {
            None => return Ok(Json(answer)),
            Some(_) if answer.job_ids.len() >= BULK_MAX => {
                answer.more = true;
                return Ok(Json(answer));
            }
            Some(_) => after = next,
        }
    }
}

fn limit(door: &Door) -> Limit {
    Limit {
        bytes: BODY_MAX,
        time: door.limits.body,
    }
}

/// The id of a job there is: a refusal of the machine cannot tell one that is lost from one that never was.
async fn known(door: &Door, id: &str) -> Result<JobId, Problem> {
    jobs::find(door, id).await.map(|job| job.id)
}

async fn done(door: &Door, job: JobId, command: Command) -> Result<Response, Problem> {
    match door.shared.handle.send(command).await {
        Ok(_) => Ok(Json(shown(door, &job).await?).into_response()),
        Err(refusal) => Err(refused(door, refusal)),
    }
}

/// The tasks and the chosen parties of a job.
async fn kept_of(door: &Door, job: &JobId) -> Result<(Vec<TaskKey>, Vec<PartyId>), Problem> {
    let (reader, job) = (door.shared.handle.reader().clone(), job.clone());
    // The trailing empty part ends the prefix with the separator, so that job `a-1` does not find the tasks of `a-10`.
    let prefix = join_key(b't', &[job.as_str(), ""]);
    let scan = move || {
        let mut keys = std::collections::BTreeSet::new();
        let each = |_, record| {
            if let Record::Task(task) = record {
                keys.insert(task.key);
            }
            true
        };
        reader.scan(&prefix, each)?;
        Ok((keys.into_iter().collect(), parties_of(&reader, &job)?))
    };
    let unreadable = |why: String| Problem::new(Code::StoreUnavailable, why);
    let kept: Result<_, Error> = Supervisor::blocking(scan).await.map_err(|error| unreadable(error.to_string()))?;
    kept.map_err(|error| unreadable(error.to_string()))
}
