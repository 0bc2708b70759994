//! `/submit` and `/query` as FedVision 0.1 has them; the content type of a request is not asked for.

use super::Door;
use super::python_value::{Json, Text};
use super::refusal::{Refused, plain, reply};
use super::request_body::{Fields, fields};
use crate::engine::{Condition, Refusal};
use crate::machine::ids::TypeName;
use crate::machine::master::records::JobState;
use crate::machine::master::spec::{Provenance, Spec};
use crate::machine::master::{Command, Rejection, Reply};
use crate::store::Error as StoreError;
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
    let mut fields = fields(request, door.limits.body).await?;
    let job_type = job_type(&mut fields)?;
    let config = fields.take("job_config").ok_or_else(|| Refused::bad("job_config: is required"))?;
    let config = config.fit("job_config").map_err(Refused::bad)?;
    let algorithm_config = match fields.take("algorithm_config") {
        None | Some(Json::Null) => None,
        Some(Json::Text(Text::Good(text))) => Some(text),
        Some(_) => return Err(Refused::bad("algorithm_config: must be a string, the text of the file")),
    };
    let plan = door
        .shared
        .registry
        .plan(&job_type, &config, algorithm_config.as_deref())
        .map_err(Refused::bad)?;
    let job_type = TypeName::parse(job_type).map_err(|error| Refused::bad(format!("job_{error}")))?;
    let disk = |error: anyhow::Error| {
        let no_room = error.downcast_ref::<StoreError>().is_some_and(StoreError::is_full);
        let why = format!("the job cannot be stored: {error:#}");
        if no_room { Refused::full(why) } else { Refused::unavailable(why) }
    };
    let (config, config_pin) = door.shared.keep(config.to_string().into_bytes()).await.map_err(disk)?;
    let (algorithm_config, pin) = match algorithm_config {
        None => (None, None),
        Some(text) => {
            let (content, pin) = door.shared.keep(text.into_bytes()).await.map_err(disk)?;
            (Some(content), pin)
        }
    };
    let command = Command::Submit {
        spec: Spec::plain(job_type, config, algorithm_config, plan),
        provenance: Provenance::unknown(),
        fingerprint: [0; 32],
    };
    let pins = config_pin.into_iter().chain(pin).collect();
    match door.shared.handle.send_pinned(command, pins).await {
        Ok(Reply::Accepted(id)) => {
            tracing::info!(job = %id, "accepted");
            Ok(id.as_str().to_owned())
        }
        Ok(other) => Err(Refused::unavailable(format!("unexpected {other:?}"))),
        Err(Refusal::Rejected(why @ Rejection::Full)) => Err(Refused::unavailable(why)),
        Err(Refusal::Rejected(why)) => Err(Refused::bad(why)),
        Err(refusal @ Refusal::DiskFull) => Err(Refused::full(refusal)),
        Err(refusal @ Refusal::Unknown) if door.shared.handle.condition() == Condition::ReadOnly => {
            Err(Refused::full(format!("the disk is full: {refusal}")))
        }
        Err(refusal @ (Refusal::Unknown | Refusal::Stopped)) => Err(Refused::unavailable(refusal)),
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
        Json::Text(Text::Good(id)) => door.job(id).await.map_err(|error| Refused::unavailable(error.0))?,
        _ => None,
    };
    let (code, status) = match job {
        Some(job) => (StatusCode::OK, status_text(&job.state)),
        None => (StatusCode::NOT_FOUND, "_JobStatus.NOTFOUND"),
    };
    Ok(reply(code, format!(r#"{{"job_id": {}, "status": "{status}"}}"#, id.dumps())))
}

/// Any other path.
pub(super) async fn not_found() -> Response {
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
