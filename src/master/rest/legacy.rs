//! `/submit` and `/query` as FedVision 0.1 has them; the content type of a request is not asked for.

use super::Door;
use super::intake::{self, NotTaken, Wish};
use super::python_value::{Json, Text};
use super::refusal::{Refused, plain, reply};
use super::request_body::{Fields, fields};
use super::server::Peer;
use super::v1::submit::provenance;
use crate::engine::{Condition, Refusal};
use crate::machine::master::Rejection;
use crate::machine::master::records::JobState;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// `POST /submit`: `{"job_type", "job_config", "algorithm_config"}` to `{"job_id"}`, once the job is durable.
pub(super) async fn submit(State(door): State<Door>, request: Request) -> Response {
    match accept(&door, request).await {
        Ok(id) => {
            let id = Json::Text(Text::Good(id)).dumps();
            reply(StatusCode::OK, format!(r#"{{"job_id": {id}}}"#))
        }
        Err(refused) => refused.into_response(),
    }
}

async fn accept(door: &Door, request: Request) -> Result<String, Refused> {
    let mut provenance = provenance(request.headers(), request.extensions().get::<Peer>());
    if let Some(key) = request.headers().get("idempotency-key") {
        let key = key.to_str().ok().filter(|key| intake::is_key(key));
        let key = key.ok_or_else(|| Refused::bad("idempotency-key: must be 1 to 255 visible characters of ASCII"))?;
        provenance.key = Some(intake::key_hash(key));
    }
    let mut fields = fields(request, door.limits.body).await?;
    let job_type = job_type(&mut fields)?;
    let config = fields.take("job_config").ok_or_else(|| Refused::bad("job_config: is required"))?;
    let config = config.fit("job_config").map_err(Refused::bad)?;
    let algorithm_config = match fields.take("algorithm_config") {
        None | Some(Json::Null) => None,
        Some(Json::Text(Text::Good(text))) => Some(text),
        Some(_) => return Err(Refused::bad("algorithm_config: must be a string, the text of the file")),
    };
    match intake::take(door, Wish::plain(job_type, config, algorithm_config), provenance).await {
        Ok(taken) => Ok(taken.job.to_string()),
        Err(no) => Err(not_taken(door, no)),
    }
}

fn not_taken(door: &Door, no: NotTaken) -> Refused {
    match no {
        NotTaken::BadJob(bad) => Refused::bad(bad),
        NotTaken::BadId(error) => Refused::bad(format!("job_{error}")),
        NotTaken::Disk(error) => {
            let why = format!("the job cannot be stored: {error:#}");
            if intake::no_room(&error) {
                Refused::full(why)
            } else {
                Refused::unavailable(why)
            }
        }
        NotTaken::Refused(Refusal::Rejected(why @ Rejection::Full)) => Refused::unavailable(why),
        NotTaken::Refused(Refusal::Rejected(why @ (Rejection::KeyConflict { .. } | Rejection::KeyPurged { .. }))) => {
            Refused::Cause(StatusCode::CONFLICT, why.to_string())
        }
        NotTaken::Refused(Refusal::Rejected(why)) => Refused::bad(why),
        NotTaken::Refused(refusal @ Refusal::DiskFull) => Refused::full(refusal),
        NotTaken::Refused(refusal @ Refusal::Unknown) if door.shared.handle.condition() == Condition::ReadOnly => {
            Refused::full(format!("the disk is full: {refusal}"))
        }
        NotTaken::Refused(refusal @ (Refusal::Unknown | Refusal::Stopped)) => Refused::unavailable(refusal),
    }
}

/// One that is no string is not supported either, in the words of 0.1.
fn job_type(fields: &mut Fields) -> Result<String, Refused> {
    match fields.take("job_type") {
        Some(Json::Text(Text::Good(name))) => Ok(name),
        Some(other) => Err(Refused::bad(match other.scalar() {
            Some(shown) => format!("job type {shown} not supported"),
            None => "job_type: must be a string".to_owned(),
        })),
        None => Err(Refused::bad("job_type: is required")),
    }
}

/// `POST /query`: `{"job_id"}` to `{"job_id", "status"}`, from durable state.
pub(super) async fn query(State(door): State<Door>, request: Request) -> Response {
    match status(&door, request).await {
        Ok(response) => response,
        Err(refused) => refused.into_response(),
    }
}

async fn status(door: &Door, request: Request) -> Result<Response, Refused> {
    let mut fields = fields(request, door.limits.body).await?;
    let id = match fields.take("job_id") {
        None | Some(Json::Null) => return Err(Refused::Phrase("required `job_id`".to_owned())),
        Some(Json::List(_) | Json::Object(_)) => return Err(Refused::bad("job_id: must be a string")),
        Some(id) => id,
    };
    let job = match &id {
        Json::Text(Text::Good(id)) => door.job(id).await.map_err(|error| Refused::unavailable(error.why))?,
        _ => None,
    };
    let (code, status) = match job {
        Some(job) => (StatusCode::OK, status_text(&job.state)),
        None => (StatusCode::NOT_FOUND, "_JobStatus.NOTFOUND"),
    };
    Ok(reply(code, format!(r#"{{"job_id": {}, "status": "{status}"}}"#, id.dumps())))
}

/// Any other path.
pub(super) fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "404: Not Found".to_owned())
}

/// Any other method; the router adds those there are.
pub(super) async fn not_allowed() -> Response {
    plain(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed".to_owned())
}

/// The words of FedVision 0.1; `SUCCESS` is in its enum, and was never reached.
fn status_text(state: &JobState) -> &'static str {
    match state {
        JobState::Waiting { .. } | JobState::Held | JobState::Leasing | JobState::Preparing => "_JobStatus.WAITING",
        JobState::Proposing { .. } => "_JobStatus.PROPOSAL",
        JobState::Running => "_JobStatus.RUNNING",
        JobState::Succeeded => "_JobStatus.SUCCESS",
        JobState::Failed(_) | JobState::Cancelled { .. } => "_JobStatus.FAILED",
    }
}
