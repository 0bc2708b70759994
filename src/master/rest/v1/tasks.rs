//! `GET /api/v1/tasks`, `GET /api/v1/jobs/{id}/tasks/{task}`: the queue towards this party's cluster, and what became of it.

use super::super::Door;
use super::jobs;
use super::page::{EVERYWHERE, Page, Place, UNDER_WAY, page};
use super::path::{Id, Ids};
use super::problem::{Code, Problem, quoted};
use super::query::{NoQuery, Query};
use super::task::{State, Task};
use crate::machine::ids::TaskKey;
use crate::machine::join_key;
use crate::machine::master::{Key, Record};
use crate::supervisor::Supervisor;
use axum::Json;
use axum::extract::State as Of;
use std::collections::BTreeSet;

/// Tasks of this party's cluster queue, in the order of their ids: those of its own jobs, and those it won in proposals
#[utoipa::path(get, path = "/api/v1/tasks", operation_id = "list_tasks", tag = "tasks",
    params(
        ("state" = Option<Vec<State>>, Query, description = "In one of these states"),
        ("job_id" = Option<String>, Query, description = "Of this job"),
        ("task_type" = Option<String>, Query, description = "Of this type"),
        ("limit" = Option<u16>, Query, description = "Items of a page, 1 to 500", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "A page", body = Page<Task>),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn list(Of(door): Of<Door>, mut query: Query) -> Result<Json<Page<Task>>, Problem> {
    let states = states(query.all("state"))?;
    let job = query.one("job_id")?;
    let task_type = query.one("task_type")?;
    let what = format!("tasks {states:?} {job:?} {task_type:?}");
    let place = Place::take(query, &door, &what)?;
    // The trailing empty part ends the prefix with the separator, so that job `a-1` does not find the tasks of `a-10`.
    let prefix = job.map_or_else(|| vec![b't'], |job| join_key(b't', &[&job, ""]));
    let under_way = !states.is_empty() && states.iter().all(|state| state.is_live());
    let fits = move |record| match record {
        Record::Task(task) => {
            let task = Task::new(&task);
            let of_type = task_type.as_ref().is_none_or(|wanted| *wanted == task.task_type);
            (of_type && (states.is_empty() || states.contains(&task.state))).then_some(task)
        }
        _ => None,
    };
    let parts = if under_way { UNDER_WAY } else { EVERYWHERE };
    page(&door, prefix, parts, place, fits).await.map(Json)
}

fn states(names: Vec<String>) -> Result<BTreeSet<State>, Problem> {
    let parse = |name: String| {
        State::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| {
            let known = State::ALL.map(State::name).join(", ");
            Problem::parameter("state", format!("{} is none; there are {known}", quoted(&name)))
        })
    };
    names.into_iter().map(parse).collect()
}

/// One task
#[utoipa::path(get, path = "/api/v1/jobs/{job_id}/tasks/{task_id}", operation_id = "get_task", tag = "tasks",
    params(("job_id" = String, Path, description = "Id of its job"), ("task_id" = String, Path, description = "Its id within the job")),
    responses(
        (status = 200, description = "The task", body = Task),
        (status = 404, description = "This party has no such task", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn get(Of(door): Of<Door>, Ids(job, task): Ids, _: NoQuery) -> Result<Json<Task>, Problem> {
    if let Ok(key) = TaskKey::parse(job.as_str(), task.as_str())
        && let Some(Record::Task(task)) = door.surely(Key::Task(key)).await?
    {
        return Ok(Json(Task::new(&task)));
    }
    let what = format!("this party has no task {} of job {}", quoted(&task), quoted(&job));
    Err(Problem::new(Code::TaskNotFound, what))
}

/// Tasks of one job
#[utoipa::path(get, path = "/api/v1/jobs/{job_id}/tasks", operation_id = "list_tasks_of_job", tag = "tasks",
    params(
        ("job_id" = String, Path, description = "Id of the job"),
        ("state" = Option<Vec<State>>, Query, description = "In one of these states"),
        ("task_type" = Option<String>, Query, description = "Of this type"),
        ("limit" = Option<u16>, Query, description = "Items of a page, 1 to 500", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "A page", body = Page<Task>),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "This party has no such job, and no task of it", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn of_job(Of(door): Of<Door>, Id(job): Id, query: Query) -> Result<Json<Page<Task>>, Problem> {
    let page = list(Of(door.clone()), query.with("job_id", job.clone())?).await?;
    // A job of another party has no record here, and its tasks have.
    if page.items.is_empty() && page.next_cursor.is_none() && !has_task(&door, &job).await? {
        jobs::find(&door, &job).await?;
    }
    Ok(page)
}

async fn has_task(door: &Door, job: &str) -> Result<bool, Problem> {
    let (reader, prefix) = (door.shared.handle.reader().clone(), join_key(b't', &[job, ""]));
    let look = move || {
        let mut found = false;
        let each = |_, _| {
            found = true;
            false
        };
        reader.scan(&prefix, each).map(|()| found)
    };
    let unreadable = |why: String| Problem::new(Code::StoreUnavailable, why);
    let found = Supervisor::blocking(look).await.map_err(|error| unreadable(error.to_string()))?;
    found.map_err(|error| unreadable(error.to_string()))
}
