//! `POST /api/v1/jobs` and `POST /api/v1/jobs:batch`: jobs are durable before they are answered, and a key makes asking again safe.

use super::super::intake::{self, NotTaken, Taken, Wish};
use super::super::server::Peer;
use super::super::{BODY_MAX, Door, READ_MAX};
use super::body::{Limit, parse, read};
use super::job::{Fields, Job};
use super::jobs;
use super::once::{self, Object};
use super::problem::{Code, Problem, pointer_part};
use super::query::NoQuery;
use super::time;
use crate::engine::{Condition, Refusal};
use crate::job_types::BadJob;
use crate::machine::ids::{JobId, Timestamp};
use crate::machine::master::Rejection;
use crate::machine::master::spec::{ADDRESS_MAX, AGENT_MAX, ATTEMPTS_MAX, PRIORITY_MAX, Provenance, TRACEPARENT_LEN, check_labels};
use crate::machine::outcome::{clip, one_line};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, value::RawValue};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The most jobs of one batch: as many as one commit takes.
const BATCH_MAX: usize = 1000;
/// The header that makes a submission safe to repeat.
const KEY: &str = "idempotency-key";

/// A job to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::master::rest) struct Submit {
    #[schema(example = "program")]
    job_type: String,
    /// What its type wants.
    #[schema(value_type = Object)]
    #[serde(deserialize_with = "once::value")]
    job_config: Value,
    /// The text of a file, for types that take one.
    algorithm_config: Option<String>,
    /// -100 to 100: higher goes first where jobs wait; age raises it.
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100, default = 0)]
    priority: i64,
    /// It does not begin before.
    #[schema(value_type = Option<String>, format = DateTime)]
    not_before: Option<Time>,
    /// It has failed when it has not ended by then; after `not_before`.
    #[schema(value_type = Option<String>, format = DateTime)]
    deadline: Option<Time>,
    /// How often it is tried in all, each time as a job of its own.
    #[serde(default = "once")]
    #[schema(minimum = 1, maximum = 100, default = 1)]
    max_attempts: u64,
    /// At most 16; keys of 1 to 63 and values of at most 63 of `A-Z a-z 0-9 . _ / -`, 512 bytes together.
    #[serde(default, deserialize_with = "once::map")]
    labels: BTreeMap<String, String>,
}

/// A job of a batch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the shape of an item, for the contract; `item` reads it")]
pub(in crate::master::rest) struct BatchItem {
    #[schema(inline)]
    #[serde(flatten)]
    submit: Submit,
    /// As the header `Idempotency-Key`, for this item.
    idempotency_key: Option<String>,
}

/// Jobs to be made, each for itself.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::master::rest) struct Batch {
    /// At most 1000.
    #[schema(value_type = Vec<BatchItem>)]
    items: Vec<Box<RawValue>>,
}

/// What became of a batch, item by item.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct BatchAnswer {
    items: Vec<ItemAnswer>,
}

/// What became of an item: a job, or a problem.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct ItemAnswer {
    /// As a request of its own would have been answered.
    #[schema(example = 201)]
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Job>)]
    job: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

fn once() -> u64 {
    1
}

/// A time in a body.
#[derive(Clone, Copy, Debug)]
struct Time(Timestamp);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        time::read(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Make a job
///
/// With an `Idempotency-Key` the same request can be sent again until it is answered, and makes one job.
#[utoipa::path(post, path = "/api/v1/jobs", tag = "jobs", operation_id = "submit_job", request_body = Submit,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters of ASCII: the same key with the same body is the same job"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context, kept with the job"),
    ),
    responses(
        (status = 201, description = "The job is durable", body = Job, headers(("location" = String, description = "Its path"))),
        (status = 200, description = "The job that the same request made before", body = Job, headers(("location" = String, description = "Its path"))),
        (status = 400, description = "A field is not right", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The key came with another body before", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn submit(State(door): State<Door>, _: NoQuery, request: Request) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let mut provenance = provenance(&headers, request.extensions().get::<Peer>());
    provenance.key = key_of(&headers)?.map(|key| intake::key_hash(&key));
    let limit = Limit {
        bytes: BODY_MAX,
        time: door.limits.body,
    };
    let wish = wish(read(request, limit).await?)?;
    let taken = intake::take(&door, wish, provenance).await.map_err(|no| not_taken(&door, no))?;
    answer(&door, &taken).await
}

/// Make many jobs, each answered for itself
#[utoipa::path(post, path = "/api/v1/jobs:batch", tag = "jobs", operation_id = "submit_batch", request_body = Batch,
    responses(
        (status = 200, description = "What became of each item, in order", body = BatchAnswer),
        (status = 400, description = "The body is not right", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not JSON", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn batch(State(door): State<Door>, _: NoQuery, request: Request) -> Result<Json<BatchAnswer>, Problem> {
    let provenance = provenance(request.headers(), request.extensions().get::<Peer>());
    let limit = Limit {
        bytes: READ_MAX,
        time: door.limits.body,
    };
    if request.headers().contains_key(KEY) {
        let what = "idempotency-key: a batch has none; give each item its idempotency_key";
        return Err(Problem::new(Code::InvalidHeader, what));
    }
    let Batch { items } = read(request, limit).await?;
    if items.len() > BATCH_MAX {
        return Err(Problem::field("/items", format!("{} are more than {BATCH_MAX}", items.len())));
    }
    let answers = items.iter().map(|text| item(&door, text.get(), provenance.clone()));
    // All at once: they go into one commit.
    let items = futures_util::future::join_all(answers).await;
    Ok(Json(BatchAnswer { items }))
}

async fn item(door: &Door, text: &str, mut provenance: Provenance) -> ItemAnswer {
    let taken = async {
        let Object(mut fields) = parse(text.as_bytes())?;
        match fields.remove("idempotency_key") {
            None | Some(Value::Null) => {}
            Some(Value::String(key)) if intake::is_key(&key) => provenance.key = Some(intake::key_hash(&key)),
            Some(_) => return Err(Problem::field("/idempotency_key", "is 1 to 255 visible characters of ASCII")),
        }
        let wish = wish(parse(Value::Object(fields).to_string().as_bytes())?)?;
        let taken = intake::take(door, wish, provenance).await.map_err(|no| not_taken(door, no))?;
        let status = if taken.replayed { StatusCode::OK } else { StatusCode::CREATED };
        Ok((status, shown(door, &taken.job).await?))
    };
    match taken.await {
        Ok((status, job)) => ItemAnswer {
            status: status.as_u16(),
            job: Some(job),
            problem: None,
        },
        Err(problem) => ItemAnswer {
            status: problem.code().status().as_u16(),
            job: None,
            problem: Some(problem),
        },
    }
}

/// Within the limits that its type does not know of.
fn wish(submit: Submit) -> Result<Wish, Problem> {
    let most = i64::from(PRIORITY_MAX);
    let priority = submit.priority;
    let out = || Problem::field("/priority", format!("{priority} is not within -{most} and {most}"));
    let priority = i8::try_from(priority)
        .ok()
        .filter(|priority| (-PRIORITY_MAX..=PRIORITY_MAX).contains(priority))
        .ok_or_else(out)?;
    let attempts = submit.max_attempts;
    let out = || Problem::field("/max_attempts", format!("{attempts} is not within 1 and {ATTEMPTS_MAX}"));
    let max_attempts = u32::try_from(attempts)
        .ok()
        .filter(|attempts| (1..=ATTEMPTS_MAX).contains(attempts))
        .ok_or_else(out)?;
    check_labels(&submit.labels).map_err(|bad| {
        let place = bad.label.as_deref().map(|label| format!("/{}", pointer_part(label)));
        Problem::new(Code::InvalidField, &bad).at(format!("/labels{}", place.unwrap_or_default()))
    })?;
    if let (Some(begin), Some(end)) = (submit.not_before, submit.deadline)
        && end.0 <= begin.0
    {
        let (begin, end) = (time::time(begin.0), time::time(end.0));
        let why = format!("{end} is not after not_before, {begin}: the job would fail before it may begin");
        return Err(Problem::field("/deadline", why));
    }
    Ok(Wish {
        job_type: submit.job_type,
        config: submit.job_config,
        algorithm_config: submit.algorithm_config,
        priority,
        not_before: submit.not_before.map(|time| time.0),
        deadline: submit.deadline.map(|time| time.0),
        max_attempts,
        labels: submit.labels,
    })
}

/// The `Idempotency-Key` of a request.
///
/// # Errors
/// It is none that can be taken, or is there twice.
pub(in crate::master::rest) fn key_of(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    if headers.get_all(KEY).iter().count() > 1 || !intake::is_key(key) {
        let what = "idempotency-key: once, 1 to 255 visible characters of ASCII";
        return Err(Problem::new(Code::InvalidHeader, what));
    }
    Ok(Some(key.to_owned()))
}

/// Who asks.
pub(in crate::master::rest) fn provenance(headers: &HeaderMap, peer: Option<&Peer>) -> Provenance {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let traceparent = text("traceparent");
    Provenance {
        address: clip(
            peer.map(|peer| peer.0.ip().to_canonical().to_string()).unwrap_or_default(),
            ADDRESS_MAX,
        ),
        agent: clip(one_line(text(header::USER_AGENT.as_str())), AGENT_MAX),
        // One that is not right is as if it were not there (W3C Trace Context, 3.2.2).
        traceparent: is_traceparent(traceparent).then(|| traceparent.to_owned()),
        ..Provenance::unknown()
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`
fn is_traceparent(text: &str) -> bool {
    let lengths = [2, 32, 16, 2];
    let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let parts: Vec<&str> = text.split('-').collect();
    text.len() == TRACEPARENT_LEN
        && parts.len() == lengths.len()
        && parts.iter().zip(lengths).all(|(part, length)| part.len() == length && hex(part))
        && parts[0] == "00"
        && !zero(parts[1])
        && !zero(parts[2])
}

/// 201 or 200, with the job as it is by now.
pub(in crate::master::rest) async fn answer(door: &Door, taken: &Taken) -> Result<Response, Problem> {
    let job = shown(door, &taken.job).await?;
    let status = if taken.replayed { StatusCode::OK } else { StatusCode::CREATED };
    let mut response = (status, Json(job)).into_response();
    if let Ok(path) = HeaderValue::from_str(&path_of(&taken.job)) {
        response.headers_mut().insert(header::LOCATION, path);
    }
    Ok(response)
}

pub(in crate::master::rest) async fn shown(door: &Door, id: &JobId) -> Result<Value, Problem> {
    let fields = Fields::all();
    let record = jobs::find(door, id.as_str()).await?;
    let beside = jobs::beside(door, &record, |name| fields.shows(name)).await?;
    Ok(fields.pick(&Job::new(&record, beside)))
}

/// The path of a job; what is not plain in its id is escaped.
pub(in crate::master::rest) fn path_of(id: &JobId) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let escaped = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    format!("/api/v1/jobs/{}", id.as_str().bytes().map(escaped).collect::<String>())
}

fn not_taken(door: &Door, no: NotTaken) -> Problem {
    match no {
        NotTaken::BadJob(bad) => bad_job(&bad),
        NotTaken::BadId(bad) => Problem::field("/job_type", bad.why),
        NotTaken::Disk(error) if intake::no_room(&error) => Problem::new(Code::DiskFull, format!("the job cannot be stored: {error:#}")),
        NotTaken::Disk(error) => Problem::new(Code::StoreUnavailable, format!("the job cannot be stored: {error:#}")),
        NotTaken::Refused(refusal) => refused(door, refusal),
    }
}

fn bad_job(bad: &BadJob) -> Problem {
    let pointer = match bad {
        BadJob::UnknownType(_) => "/job_type",
        BadJob::Config { pointer, .. } => pointer,
    };
    Problem::new(Code::InvalidField, bad).at(pointer)
}

/// Why the machine, or its store, did not take a command.
pub(in crate::master::rest) fn refused(door: &Door, refusal: Refusal<Rejection>) -> Problem {
    match refusal {
        Refusal::Rejected(why) => rejected(why),
        refusal @ Refusal::DiskFull => Problem::new(Code::DiskFull, refusal),
        refusal @ Refusal::Unknown if door.shared.handle.condition() == Condition::ReadOnly => {
            Problem::new(Code::DiskFull, format!("the disk is full: {refusal}"))
        }
        refusal @ Refusal::Unknown => Problem::new(Code::OutcomeUnknown, refusal),
        refusal @ Refusal::Stopped => Problem::new(Code::Stopping, refusal),
    }
}

fn rejected(why: Rejection) -> Problem {
    let (code, job) = match &why {
        Rejection::KeyConflict { first } => (Code::KeyConflict, Some(first.clone())),
        Rejection::KeyPurged { first } => (Code::KeyPurged, Some(first.clone())),
        Rejection::NotFound(job) => (Code::JobNotFound, Some(job.clone())),
        Rejection::Ended { job, .. } => (Code::JobEnded, Some(job.clone())),
        Rejection::NotEnded { job, .. } => (Code::JobNotEnded, Some(job.clone())),
        Rejection::NotHoldable { job, .. } => (Code::JobNotHoldable, Some(job.clone())),
        Rejection::NotHeld { job, .. } => (Code::JobNotHeld, Some(job.clone())),
        Rejection::Malformed(_) => (Code::InvalidField, None),
        Rejection::Full => (Code::TooManyJobs, None),
        Rejection::Late(_) => (Code::Refused, None),
    };
    let problem = Problem::new(code, &why);
    match job {
        Some(job) => problem.of_job(job),
        None => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_right_traceparent_is_kept() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(good));
        for bad in [
            "",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319cb-7ad6b7169203331-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }

    #[test]
    fn a_path_is_plain_ascii() {
        assert_eq!(path_of(&JobId::parse("p/1 é-1").unwrap()), "/api/v1/jobs/p%2F1%20%C3%A9-1");
    }
}
