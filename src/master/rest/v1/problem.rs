//! How `/api/v1` says no: RFC 9457 problem+json with a stable code, the place of the fault, and whether asking again is of use.
//!
//! Made by every handler, extractor and fallback below `/api/v1`, and by the health checks for a parameter they do not know; by nothing else. A code is a promise to clients: it is never given another
//! meaning. The text of a problem quotes little of what was sent, and nothing of what the process knows besides.

use super::super::Unreadable;
use crate::store::Seq;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt::Display;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

/// The longest piece of a request that a problem quotes, characters.
const QUOTE_MAX: usize = 100;

/// What the type of a problem begins with; its code follows.
const TYPE: &str = "urn:fedbroker:problem:";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:ident, $title:literal, $retry:expr;)+) => {
        /// Every way in which a request can be refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(in crate::master::rest) enum Code {
            $($(#[$doc])* $name),+
        }

        impl Code {
            /// All of them, for the papers.
            pub(in crate::master::rest) const ALL: &'static [Code] = &[$(Code::$name),+];

            /// The code in answers.
            pub(in crate::master::rest) fn name(self) -> &'static str {
                match self {
                    $(Code::$name => $code),+
                }
            }

            /// Its HTTP status.
            pub(in crate::master::rest) fn status(self) -> StatusCode {
                match self {
                    $(Code::$name => StatusCode::$status),+
                }
            }

            /// The same words for every problem of this code.
            pub(in crate::master::rest) fn title(self) -> &'static str {
                match self {
                    $(Code::$name => $title),+
                }
            }

            /// After how many seconds the same request is worth another try; `None` when it is not.
            pub(in crate::master::rest) fn retry_after(self) -> Option<u16> {
                match self {
                    $(Code::$name => $retry),+
                }
            }
        }
    };
}

codes! {
    /// The body is no JSON.
    MalformedJson = "malformed_json", BAD_REQUEST, "the request body is not JSON", None;
    /// A field that the body may not have.
    UnknownField = "unknown_field", BAD_REQUEST, "a field is not known", None;
    /// A field that the body must have.
    MissingField = "missing_field", BAD_REQUEST, "a field is missing", None;
    /// A field that has no good value.
    InvalidField = "invalid_field", BAD_REQUEST, "a field is not right", None;
    /// A query parameter that this resource does not have.
    UnknownParameter = "unknown_parameter", BAD_REQUEST, "a query parameter is not known", None;
    /// A query parameter that has no good value.
    InvalidParameter = "invalid_parameter", BAD_REQUEST, "a query parameter is not right", None;
    /// A cursor that is damaged, or of another list.
    InvalidCursor = "invalid_cursor", BAD_REQUEST, "the cursor does not belong to this list", None;
    /// A header that has no good value.
    InvalidHeader = "invalid_header", BAD_REQUEST, "a header is not right", None;
    /// The path is none of a resource's.
    InvalidPath = "invalid_path", BAD_REQUEST, "the path is not right", None;
    /// No such path.
    RouteNotFound = "route_not_found", NOT_FOUND, "no such resource", None;
    /// No such job.
    JobNotFound = "job_not_found", NOT_FOUND, "no such job", None;
    /// No such task.
    TaskNotFound = "task_not_found", NOT_FOUND, "no such task", None;
    /// No such proposal.
    ProposalNotFound = "proposal_not_found", NOT_FOUND, "no such proposal", None;
    /// The resource does not have this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "the method is not allowed here", None;
    /// The body did not come in time.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "the request did not come in time", Some(1);
    /// Another backup is made.
    BackupUnderWay = "backup_under_way", CONFLICT, "a backup is under way", Some(30);
    /// The body is too large.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "the request body is too large", None;
    /// The body is not said to be JSON.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "the content type is not supported", None;
    /// The events that are asked for were removed.
    EventsTrimmed = "events_trimmed", GONE, "events were removed", None;
    /// Too many clients follow events.
    TooManyStreams = "too_many_streams", TOO_MANY_REQUESTS, "too many clients follow events or logs", Some(10);
    /// Nothing is kept of what a task printed.
    LogsGone = "logs_gone", NOT_FOUND, "the logs are not there any more", None;
    /// A task has not begun.
    TaskNotStarted = "task_not_started", NOT_FOUND, "the task has not begun", None;
    /// The cluster manager or the worker is of a release that knows no logs.
    LogsUnsupported = "logs_unsupported", NOT_IMPLEMENTED, "there are no logs here", None;
    /// The worker that has the logs is away.
    WorkerAway = "worker_away", SERVICE_UNAVAILABLE, "the worker is away", Some(5);
    /// The cluster manager does not answer.
    ClusterUnreachable = "cluster_unreachable", SERVICE_UNAVAILABLE, "the cluster manager cannot be reached", Some(5);
    /// Too many requests wait for jobs.
    TooManyWaits = "too_many_waits", TOO_MANY_REQUESTS, "too many requests wait", Some(5);
    /// The index of the jobs is being made.
    IndexBuilding = "index_building", SERVICE_UNAVAILABLE, "the index of the jobs is being made", Some(1);
    /// The machine's rules do not allow it.
    Refused = "refused", CONFLICT, "the request is not allowed now", None;
    /// The key came with something else before; `job_id` is what it made.
    KeyConflict = "key_conflict", CONFLICT, "the idempotency key was used otherwise", None;
    /// The job that the key made has been purged.
    KeyPurged = "key_purged", CONFLICT, "the job of the idempotency key has been purged", None;
    /// The job has ended.
    JobEnded = "job_ended", CONFLICT, "the job has ended", None;
    /// The job has not ended, or its end is not complete.
    JobNotEnded = "job_not_ended", CONFLICT, "the job has not ended", None;
    /// The job is past the states in which it can be held.
    JobNotHoldable = "job_not_holdable", CONFLICT, "the job cannot be held any more", None;
    /// The job is not held.
    JobNotHeld = "job_not_held", CONFLICT, "the job is not held", None;
    /// As many jobs are under way as there may be.
    TooManyJobs = "too_many_jobs", SERVICE_UNAVAILABLE, "too many jobs are under way", Some(5);
    /// Whether it was recorded is known after a restart of the master.
    OutcomeUnknown = "outcome_unknown", SERVICE_UNAVAILABLE, "whether it was recorded is not known", Some(5);
    /// The master ends.
    Stopping = "stopping", SERVICE_UNAVAILABLE, "the master is stopping", Some(5);
    /// No room.
    DiskFull = "disk_full", INSUFFICIENT_STORAGE, "the disk is full", Some(30);
    /// The store cannot be read now.
    StoreUnavailable = "store_unavailable", SERVICE_UNAVAILABLE, "the store cannot be read", Some(5);
    /// What was not found may be there: the history is still being checked.
    HistoryUnproved = "history_unproved", SERVICE_UNAVAILABLE, "the history is still being checked", Some(5);
}

/// What is refused.
#[derive(Debug)]
pub(in crate::master::rest) struct Problem {
    code: Code,
    detail: Box<str>,
    pointer: Option<Box<str>>,
    job_id: Option<Box<str>>,
    oldest_seq: Option<Seq>,
}

/// Why a request was refused, in the shape of RFC 9457.
#[derive(Serialize, ToSchema)]
struct Shape<'a> {
    /// `urn:fedbroker:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:fedbroker:problem:job_not_found")]
    kind: String,
    /// The same words for every problem of this code.
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 404)]
    status: u16,
    /// What is wrong with this request, and the mend.
    detail: &'a str,
    /// Stable: for programs.
    #[schema(example = "job_not_found")]
    code: &'static str,
    /// Where: a JSON pointer into the body (`/labels/x`), or `?` and the name of a query parameter.
    pointer: Option<&'a str>,
    /// Whether the same request may be taken later; `Retry-After` says when.
    retryable: bool,
    /// The job it is about, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<&'a str>,
    /// The first event there is, when older ones were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    oldest_seq: Option<Seq>,
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let code = self.code;
        let shape = Shape {
            kind: format!("{TYPE}{}", code.name()),
            title: code.title(),
            status: code.status().as_u16(),
            detail: &self.detail,
            code: code.name(),
            pointer: self.pointer.as_deref(),
            retryable: code.retry_after().is_some(),
            job_id: self.job_id.as_deref(),
            oldest_seq: self.oldest_seq,
        };
        shape.serialize(to)
    }
}

impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        Shape::schema()
    }
}

impl ToSchema for Problem {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Problem")
    }
}

impl Problem {
    /// A problem of this code, with what is wrong and the mend.
    pub(in crate::master::rest) fn new(code: Code, detail: impl Display) -> Self {
        Self {
            code,
            detail: detail.to_string().into(),
            pointer: None,
            job_id: None,
            oldest_seq: None,
        }
    }

    /// Where in the request.
    pub(in crate::master::rest) fn at(mut self, pointer: impl Into<Box<str>>) -> Self {
        self.pointer = Some(pointer.into());
        self
    }

    /// A query parameter without a good value.
    pub(in crate::master::rest) fn parameter(name: &str, why: impl Display) -> Self {
        Self::new(Code::InvalidParameter, format!("{name}: {why}")).at(format!("?{name}"))
    }

    /// A field without a good value; the pointer begins with `/`.
    pub(in crate::master::rest) fn field(pointer: &str, why: impl Display) -> Self {
        let name = pointer.strip_prefix('/').unwrap_or(pointer);
        let name = name.replace('/', ".").replace("~1", "/").replace("~0", "~");
        let name = name.escape_debug();
        Self::new(Code::InvalidField, format!("{name}: {why}")).at(pointer)
    }

    /// The job it is about.
    pub(in crate::master::rest) fn of_job(mut self, id: impl Display) -> Self {
        self.job_id = Some(id.to_string().into());
        self
    }

    /// The first event there is.
    pub(in crate::master::rest) fn since(mut self, oldest: Seq) -> Self {
        self.oldest_seq = Some(oldest);
        self
    }

    /// Which one.
    pub(in crate::master::rest) fn code(&self) -> Code {
        self.code
    }
}

impl From<Unreadable> for Problem {
    fn from(error: Unreadable) -> Self {
        let code = if error.unproved {
            Code::HistoryUnproved
        } else {
            Code::StoreUnavailable
        };
        Self::new(code, error.why)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let code = self.code();
        let mut response = (code.status(), Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = code.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A name as a part of a JSON pointer (RFC 6901): short, and escaped.
pub(in crate::master::rest) fn pointer_part(name: &str) -> String {
    let short: String = name.chars().take(QUOTE_MAX).collect();
    short.replace('~', "~0").replace('/', "~1")
}

/// A piece of a request as a problem quotes it: short, on one line.
pub(in crate::master::rest) fn quoted(text: &str) -> String {
    let mut chars = text.chars();
    let short: String = chars.by_ref().take(QUOTE_MAX).collect();
    let more = if chars.next().is_some() { "..." } else { "" };
    format!("{short:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_words_and_each_is_there_once() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        }
    }

    #[test]
    fn what_is_refused_for_now_says_so_and_when_to_come_back() {
        for code in Code::ALL {
            let problem = Problem::new(*code, "x");
            let retryable = serde_json::to_value(&problem).unwrap()["retryable"] == true;
            let response = problem.into_response();
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), retryable, "{code:?}");
            // What no status of its own tells a client to come back for.
            let for_now = [408, 429, 503, 507].contains(&code.status().as_u16());
            assert!(retryable || !for_now, "{code:?}");
        }
    }

    #[test]
    fn a_quote_is_short_and_on_one_line() {
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert!(quoted(&"🦀".repeat(1000)).chars().count() < 110);
    }
}
