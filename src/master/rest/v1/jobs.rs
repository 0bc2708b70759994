//! `GET /api/v1/jobs` and `GET /api/v1/jobs/{id}`: the history, and one job with all that is known of it.
//!
//! Lists come from the index and show records; nothing here waits for the loop.

use super::super::Door;
use super::filter::Filter;
use super::job::{Beside, Fields, Job, State};
use super::page::{Jobs, Page, Place};
use super::path::Id;
use super::problem::{Code, Problem, quoted};
use super::query::Query;
use super::task::Task;
use crate::machine::Machine;
use crate::machine::content::Content;
use crate::machine::ids::JobId;
use crate::machine::join_key;
use crate::machine::master::records::Job as JobRecord;
use crate::machine::master::{Master, Record};
use crate::master::peers::Peers;
use crate::supervisor::Supervisor;
use axum::Json;
use axum::body::Body;
use axum::extract::State as Of;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// The most tasks shown with a job.
pub(in crate::master::rest) const TASKS_SHOWN: usize = 100;
/// The longest time a request may wait for a job: proxies give up soon after.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// Jobs this party initiated, the newest first
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", operation_id = "list_jobs",
    params(
        ("state" = Option<Vec<State>>, Query, description = "In one of these states"),
        ("job_type" = Option<String>, Query, description = "Of this type"),
        ("label" = Option<Vec<String>>, Query, description = "With all of these labels: `key:value`, or `key` for any value"),
        ("created_after" = Option<String>, Query, description = "Accepted at this time or later, RFC 3339"),
        ("created_before" = Option<String>, Query, description = "Accepted before this time, RFC 3339"),
        ("q" = Option<String>, Query, description = "Whose id begins so"),
        ("order" = Option<String>, Query, description = "`created_desc` or `created_asc`: by the order in which they were accepted"),
        ("fields" = Option<String>, Query, description = "These fields of a job only, with commas between; `config`, `algorithm_config`, `tasks`, `proposal` and `parties` are \
            shown only if they are named"),
        ("limit" = Option<u16>, Query, description = "Items of a page, 1 to 500; 50 if it is not there", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "A page", body = Page<Job>),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn list(Of(door): Of<Door>, mut query: Query) -> Result<Response, Problem> {
    let filter = Filter::take(&mut query)?;
    let descending = match query.one("order")?.as_deref() {
        None | Some("created_desc") => true,
        Some("created_asc") => false,
        Some(other) => {
            let why = format!("{} is none; there are created_desc and created_asc", quoted(other));
            return Err(Problem::parameter("order", why));
        }
    };
    let fields = Fields::parse(query.one("fields")?)?;
    let place = Place::take(query, &door, &format!("jobs {descending} {}", filter.text()))?;
    let (limit, after) = (place.limit, place.number()?);
    let jobs = Jobs { filter, descending, after };
    let (records, next) = jobs.page(&door, limit).await?;
    let mut items = Vec::with_capacity(records.len());
    for record in &records {
        let beside = beside(&door, record, |name| fields.has(name)).await?;
        items.push(fields.pick(&Job::new(record, beside)));
    }
    let page = serde_json::json!({ "items": items, "next_cursor": next.map(|number| place.cursor(&number.to_be_bytes())) });
    Ok(Json(page).into_response())
}

/// One job
#[utoipa::path(get, path = "/api/v1/jobs/{job_id}", tag = "jobs", operation_id = "get_job",
    params(
        ("job_id" = String, Path, description = "Its id"),
        ("fields" = Option<String>, Query, description = "These fields only, with commas between"),
        ("wait" = Option<String>, Query, description = "Answer only once `until` is met, or after this time at most: `30s`, `5m`; 5 minutes at most"),
        ("until" = Option<String>, Query, description = "`terminal`: the job has ended (so it is with `wait` alone); `closed`: it is not `live` any \
            more; `change`: its `ETag` is none of `If-None-Match`"),
        ("If-None-Match" = Option<String>, Header, description = "`ETag`s that are known: 304 if it is one of them"),
    ),
    responses(
        (status = 200, description = "The job", body = Job, headers(("etag" = String, description = "Changes with what is shown"))),
        (status = 304, description = "It is as the client knows it"),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "This party has no such job", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many requests wait", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn get(
    Of(door): Of<Door>,
    Id(id): Id,
    headers: HeaderMap,
    mut query: Query,
) -> Result<Response, Problem> {
    let fields = Fields::parse(query.one("fields")?)?;
    let wait = Wait::take(&mut query)?;
    query.end()?;
    let known = known_tags(&headers)?;
    let Some(wait) = wait else {
        let shown = Shown::of(&door, &find(&door, &id).await?, &fields).await?;
        return Ok(shown.answer(&known));
    };
    let _place = take_wait(&door)?;
    let end = tokio::time::Instant::now() + wait.time;
    // Before the first look, so that no change between them is missed.
    let mut watcher = JobId::parse(id.as_str()).ok().map(|id| door.shared.index.watch(&id));
    loop {
        let record = find(&door, &id).await?;
        let over = |shown: &Shown| match wait.until {
            Until::Terminal => record.state.is_final(),
            Until::Closed => is_closed(&record),
            Until::Change => !shown.is_known(&known),
        };
        let shown = Shown::of(&door, &record, &fields).await?;
        let Some(watcher) = watcher.as_mut().filter(|_| !over(&shown)) else {
            return Ok(shown.answer(&known));
        };
        tokio::select! {
            _ = watcher.changed() => {}
            () = tokio::time::sleep_until(end) => return Ok(shown.answer(&known)),
            () = door.shared.supervisor.stopped() => return Ok(shown.answer(&known)),
        }
    }
}

/// A place for a request that waits for a job.
///
/// # Errors
/// There is none.
pub(in crate::master::rest) fn take_wait(door: &Door) -> Result<OwnedSemaphorePermit, Problem> {
    let too_many = |_| {
        Problem::new(
            Code::TooManyWaits,
            "too many requests wait for jobs; ask again, or follow the events",
        )
    };
    door.waits.clone().try_acquire_owned().map_err(too_many)
}

/// True once nothing more can happen to a job: it has ended, and nothing of it runs.
pub(in crate::master::rest) fn is_closed(job: &JobRecord) -> bool {
    !Master::is_live(&Record::Job(job.clone()))
}

/// What a request waits for.
enum Until {
    Terminal,
    Closed,
    Change,
}

struct Wait {
    time: Duration,
    until: Until,
}

impl Wait {
    fn take(query: &mut Query) -> Result<Option<Self>, Problem> {
        let until = match query.one("until")?.as_deref() {
            None => None,
            Some("terminal") => Some(Until::Terminal),
            Some("closed") => Some(Until::Closed),
            Some("change") => Some(Until::Change),
            Some(other) => {
                return Err(Problem::parameter(
                    "until",
                    format!("{} is none; there are terminal, closed and change", quoted(other)),
                ));
            }
        };
        let Some(time) = time_to_wait(query)? else {
            return match until {
                Some(_) => Err(Problem::parameter("until", "needs wait, the longest time to wait, such as 30s")),
                None => Ok(None),
            };
        };
        let until = until.unwrap_or(Until::Terminal);
        Ok(Some(Self { time, until }))
    }
}

/// The parameter `wait`.
///
/// # Errors
/// It is no time, or too long.
pub(in crate::master::rest) fn time_to_wait(query: &mut Query) -> Result<Option<Duration>, Problem> {
    let bad = |text: &str| Problem::parameter("wait", format!("{} is no time up to 5m, such as 30s", quoted(text)));
    let text = query.one("wait")?;
    text.map(|text| duration(&text).ok_or_else(|| bad(&text))).transpose()
}

/// `500ms`, `30s` or `5m`, up to [`WAIT_MAX`].
fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().ok()?;
    let time = match unit {
        "ms" => Duration::from_millis(number.into()),
        "s" => Duration::from_secs(number.into()),
        "m" => Duration::from_secs(u64::from(number) * 60),
        _ => return None,
    };
    (time <= WAIT_MAX).then_some(time)
}

/// What is answered, and its tag.
struct Shown {
    body: Vec<u8>,
    tag: String,
}

impl Shown {
    async fn of(door: &Door, record: &JobRecord, fields: &Fields) -> Result<Self, Problem> {
        let beside = beside(door, record, |name| fields.shows(name)).await?;
        let body = fields.pick(&Job::new(record, beside)).to_string().into_bytes();
        let hash = Sha256::digest(&body);
        let tag = hash[..12].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let tag = format!("\"{tag}\"");
        Ok(Self { body, tag })
    }

    fn is_known(&self, known: &[String]) -> bool {
        known.iter().any(|tag| *tag == self.tag || tag == "*")
    }

    fn answer(self, known: &[String]) -> Response {
        let not_modified = self.is_known(known);
        let mut response = if not_modified {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, "application/json")], Body::from(self.body)).into_response()
        };
        let tag = HeaderValue::from_str(&self.tag).expect("hexadecimal digits between quotes");
        response.headers_mut().insert(header::ETAG, tag);
        response
    }
}

/// The tags of `If-None-Match`; weak ones compare like strong ones (RFC 9110, 13.1.2).
fn known_tags(headers: &HeaderMap) -> Result<Vec<String>, Problem> {
    let mut tags = Vec::new();
    for value in headers.get_all(header::IF_NONE_MATCH) {
        let text = value
            .to_str()
            .map_err(|_| Problem::new(Code::InvalidHeader, "if-none-match: is not ASCII"))?;
        for tag in text.split(',').map(str::trim) {
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            let quoted = tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"');
            if !quoted && tag != "*" {
                return Err(Problem::new(
                    Code::InvalidHeader,
                    "if-none-match: a tag stands between double quotes",
                ));
            }
            tags.push(tag.to_owned());
        }
    }
    Ok(tags)
}

/// The record of a job.
///
/// # Errors
/// There is none, or it cannot be read now.
pub(in crate::master::rest) async fn find(door: &Door, id: &str) -> Result<JobRecord, Problem> {
    let shown = || id.chars().take(200).collect::<String>();
    let missing = || Problem::new(Code::JobNotFound, format!("this party has no job {}", shown())).of_job(shown());
    door.job(id).await?.ok_or_else(missing)
}

/// What is not in the record, as far as it is wanted.
///
/// # Errors
/// It cannot be read now.
pub(in crate::master::rest) async fn beside(door: &Door, job: &JobRecord, wanted: impl Fn(&str) -> bool) -> Result<Beside, Problem> {
    let mut beside = Beside::default();
    if wanted("config") {
        let bytes = content(door, &job.spec.config).await?;
        let broken = |error| Problem::new(Code::StoreUnavailable, format!("the config of job {}: {error}", job.id));
        beside.config = Some(serde_json::from_slice(&bytes).map_err(broken)?);
    }
    if wanted("algorithm_config") {
        beside.algorithm_config = Some(match &job.spec.algorithm_config {
            None => None,
            Some(kept) => Some(String::from_utf8_lossy(&content(door, kept).await?).into_owned()),
        });
    }
    if wanted("tasks") {
        beside.tasks = Some(tasks(door, &job.id).await?);
    }
    let (proposal, parties) = (wanted("proposal"), wanted("parties"));
    if proposal || parties {
        let (reader, id) = (door.shared.handle.reader().clone(), job.id.clone());
        let unreadable = |why: String| Problem::new(Code::StoreUnavailable, why);
        let peers = Supervisor::blocking(move || Peers::of(&reader, &id)).await;
        let peers = peers.map_err(|error| unreadable(error.to_string()))?;
        beside.tell(&peers.map_err(|error| unreadable(error.to_string()))?, proposal, parties);
    }
    Ok(beside)
}

async fn content(door: &Door, content: &Content) -> Result<Vec<u8>, Problem> {
    if let Content::Inline(bytes) = content {
        return Ok(bytes.clone());
    }
    let (payloads, content) = (door.shared.payloads.clone(), content.clone());
    let loaded = Supervisor::blocking(move || payloads.load(&content)).await;
    let unreadable = |why: String| Problem::new(Code::StoreUnavailable, why);
    match loaded {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(unreadable("the job went away while it was read".to_owned())),
        Ok(Err(error)) => Err(unreadable(error.to_string())),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

/// Tasks of a job, the first [`TASKS_SHOWN`] by id.
async fn tasks(door: &Door, job: &JobId) -> Result<Vec<Task>, Problem> {
    let reader = door.shared.handle.reader().clone();
    // The trailing empty part ends the prefix with the separator, so that job `a-1` does not find the tasks of `a-10`.
    let prefix = join_key(b't', &[job.as_str(), ""]);
    let scan = move || {
        let mut tasks = std::collections::BTreeMap::new();
        // A task that ends during the scan is seen live and ended; the later look counts.
        let each = |_, record| {
            if let Record::Task(task) = record {
                tasks.insert(task.key.task.clone(), Task::new(&task));
            }
            tasks.len() < TASKS_SHOWN
        };
        reader.scan(&prefix, each).map(|()| tasks)
    };
    let unreadable = |why: String| Problem::new(Code::StoreUnavailable, why);
    let tasks = Supervisor::blocking(scan).await.map_err(|error| unreadable(error.to_string()))?;
    Ok(tasks.map_err(|error| unreadable(error.to_string()))?.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait_are_bounded() {
        assert_eq!(duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Some(WAIT_MAX));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        for text in ["", "s", "30", "6m", "301s", "-1s", "1h", "1 s", "99999999999s", "1sé"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
