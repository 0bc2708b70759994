//! `/submit` and `/query` as FedVision 0.1 has them; the content type of a request is not asked for.

use super::{BODY_MAX, Door, READ_LIMIT, READ_MAX, retry_after};
use crate::engine::{Condition, Refusal};
use crate::machine::ids::TypeName;
use crate::machine::master::records::JobState;
use crate::machine::master::{Command, Rejection, Reply};
use crate::store::Error as StoreError;
use crate::wire::python_json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;

/// A submission that cannot be taken, with the words for its user.
struct Bad(StatusCode, String);

impl IntoResponse for Bad {
    fn into_response(self) -> Response {
        reply(self.0, &json!({ "exception": self.1 }))
    }
}

fn bad(why: impl Into<String>) -> Bad {
    Bad(StatusCode::BAD_REQUEST, why.into())
}

fn unavailable(why: impl std::fmt::Display) -> Bad {
    Bad(StatusCode::SERVICE_UNAVAILABLE, why.to_string())
}

fn full(why: impl std::fmt::Display) -> Bad {
    Bad(StatusCode::INSUFFICIENT_STORAGE, why.to_string())
}

fn reply(status: StatusCode, body: &Value) -> Response {
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    let mut response = (status, [(header::CONTENT_TYPE, json)], python_json::text(body)).into_response();
    if let Some(seconds) = retry_after(status) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    response
}

/// `POST /submit`: `{"job_type", "job_config", "algorithm_config"}` to `{"job_id"}`, once the job is durable.
pub(super) async fn submit(State(door): State<Door>, request: Request) -> Response {
    match accept(&door, request).await {
        Ok(id) => reply(StatusCode::OK, &json!({ "job_id": id })),
        Err(bad) => bad.into_response(),
    }
}

async fn accept(door: &Door, request: Request) -> Result<String, Bad> {
    let mut fields = object(request, door.limits.body).await?;
    let job_type = match fields.remove("job_type") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(bad("job_type: must be a string")),
        None => return Err(bad("job_type: is required")),
    };
    let config = fields.remove("job_config").ok_or_else(|| bad("job_config: is required"))?;
    let algorithm_config = match fields.remove("algorithm_config") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(_) => return Err(bad("algorithm_config: must be a string, the text of the file")),
    };
    let plan = door
        .shared
        .registry
        .plan(&job_type, &config, algorithm_config.as_deref())
        .map_err(|error| bad(error.to_string()))?;
    let job_type = TypeName::parse(job_type).map_err(|error| bad(format!("job_{error}")))?;
    let disk = |error: anyhow::Error| {
        let no_room = error.downcast_ref::<StoreError>().is_some_and(StoreError::is_full);
        let why = format!("the job cannot be stored: {error:#}");
        if no_room { full(why) } else { unavailable(why) }
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
        job_type,
        config,
        algorithm_config,
        plan,
    };
    let pins = config_pin.into_iter().chain(pin).collect();
    match door.shared.handle.send_pinned(command, pins).await {
        Ok(Reply::Accepted(id)) => {
            tracing::info!(job = %id, "accepted");
            Ok(id.as_str().to_owned())
        }
        Ok(other) => Err(unavailable(format!("unexpected {other:?}"))),
        Err(Refusal::Rejected(why @ Rejection::Full)) => Err(unavailable(why)),
        Err(Refusal::Rejected(why)) => Err(bad(why.to_string())),
        Err(refusal @ Refusal::DiskFull) => Err(full(refusal)),
        Err(refusal @ Refusal::Unknown) if door.shared.handle.condition() == Condition::ReadOnly => {
            Err(full(format!("the disk is full: {refusal}")))
        }
        Err(refusal @ (Refusal::Unknown | Refusal::Stopped)) => Err(unavailable(refusal)),
    }
}

/// `POST /query`: `{"job_id"}` to `{"job_id", "status"}`, from durable state.
pub(super) async fn query(State(door): State<Door>, request: Request) -> Response {
    let mut fields = match object(request, door.limits.body).await {
        Ok(fields) => fields,
        Err(bad) => return bad.into_response(),
    };
    let id = match fields.remove("job_id") {
        None | Some(Value::Null) => return bad("job_id: is required").into_response(),
        Some(id @ (Value::Array(_) | Value::Object(_))) => return bad(format!("job_id: must be a string, not {id}")).into_response(),
        Some(id) => id,
    };
    let job = match door.job(id.as_str().unwrap_or_default()).await {
        Ok(job) => job,
        Err(error) => return unavailable(error.0).into_response(),
    };
    match job {
        Some(job) => reply(StatusCode::OK, &json!({ "job_id": id, "status": status_text(&job.state) })),
        None => reply(StatusCode::NOT_FOUND, &json!({ "job_id": id, "status": "_JobStatus.NOTFOUND" })),
    }
}

/// The words of FedVision 0.1; `SUCCESS` is in its enum, and was never reached.
fn status_text(state: &JobState) -> &'static str {
    match state {
        JobState::Leasing | JobState::Preparing => "_JobStatus.WAITING",
        JobState::Proposing { .. } => "_JobStatus.PROPOSAL",
        JobState::Running => "_JobStatus.RUNNING",
        JobState::Succeeded => "_JobStatus.SUCCESS",
        JobState::Failed(_) => "_JobStatus.FAILED",
    }
}

/// The JSON object a request brings.
async fn object(request: Request, limit: Duration) -> Result<serde_json::Map<String, Value>, Bad> {
    let body = match tokio::time::timeout(limit, read(request)).await {
        Ok(body) => body?,
        Err(_) => {
            let why = format!("the request body was not there within {limit:?}");
            return Err(Bad(StatusCode::REQUEST_TIMEOUT, why));
        }
    };
    match serde_json::from_slice(&body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(bad("the request body must be a JSON object")),
        Err(error) => Err(bad(format!("the request body is not JSON: {error}"))),
    }
}

/// The whole body. One that is too large is read on for a while: a client that is still sending when the connection closes would see it break
/// instead of the answer. One that waits to be asked for its body (`Expect: 100-continue`) is not asked for it.
async fn read(request: Request) -> Result<Vec<u8>, Bad> {
    let too_large = || {
        let why = format!("the request body is larger than {BODY_MAX} bytes");
        Bad(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let waits = request.headers().contains_key(header::EXPECT);
    if announced.is_some_and(|length| length > READ_MAX as u64 || (waits && length > BODY_MAX as u64)) {
        return Err(too_large());
    }
    let mut pieces = request.into_body().into_data_stream();
    let mut body = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| bad(format!("the request body broke off: {error}")))?;
        if body.len() + piece.len() > BODY_MAX {
            let mut rest = READ_MAX;
            let drain = async {
                while let Some(Ok(piece)) = pieces.next().await {
                    rest = rest.saturating_sub(piece.len());
                    if rest == 0 {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(READ_LIMIT, drain).await;
            return Err(too_large());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, Bytes};
    use futures_util::stream;

    #[tokio::test]
    async fn a_body_that_never_ends_is_not_waited_for() {
        let begun = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{\"job_type\": "))]);
        let body = Body::from_stream(begun.chain(stream::pending()));
        let Err(Bad(status, why)) = object(Request::new(body), Duration::from_millis(10)).await else {
            panic!("taken")
        };
        assert_eq!(
            (status, why.as_str()),
            (StatusCode::REQUEST_TIMEOUT, "the request body was not there within 10ms")
        );
    }
}
