//! The door of users: HTTP in, commands and durable reads out. Decides nothing.
//!
//! `legacy` is the service of FedVision 0.1 (`/submit`, `/query`; `request_body`, `python_*` and `refusal` are its parts), `v1` what it never had. Bad
//! input is answered with 400 and its reason, never with a 500; a store that fails is a 503, a full disk a 507. `server` has the limits of connections.

mod backup;
mod health;
mod intake;
mod legacy;
mod observe;
mod python_reader;
mod python_value;
mod refusal;
mod request_body;
mod server;
mod v1;

use super::Shared;
use crate::machine::ids::JobId;
use crate::machine::master::records::Job;
use crate::machine::master::{Key, Record};
use crate::supervisor::Supervisor;
use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use server::Limits;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use v1::problem::{Code, Problem};

/// The largest request body, bytes: FedVision 0.1 takes one byte less than 1 MiB.
const BODY_MAX: usize = 1024 * 1024 - 1;

/// How much of a larger body is read before it is refused, bytes: enough for a job file that grew too large, too little to be a burden.
const READ_MAX: usize = 16 * 1024 * 1024;

/// For how long.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// Requests that may wait for a job at once: they cost a connection each, and others must find one.
const WAITS_MAX: usize = 256;

/// Clients that may follow events or logs at once; each has a connection for long.
const STREAMS_MAX: usize = 256;

/// What the handlers share.
#[derive(Clone)]
pub struct Door {
    shared: Shared,
    limits: Limits,
    /// One backup at a time.
    backups: Arc<Semaphore>,
    /// Requests that wait for a job.
    waits: Arc<Semaphore>,
    /// Clients that follow something.
    streams: Arc<Semaphore>,
}

impl Door {
    /// A door to this master.
    pub(super) fn new(shared: Shared) -> Self {
        let limits = Limits::of_process();
        Self {
            shared,
            limits,
            backups: Arc::new(Semaphore::new(1)),
            waits: Arc::new(Semaphore::new(WAITS_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }

    /// A place for a client that follows something.
    fn take_stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let many = || {
            Problem::new(
                Code::TooManyStreams,
                format!("{STREAMS_MAX} clients follow events or logs, which is the most; come back"),
            )
        };
        self.streams.clone().try_acquire_owned().map_err(|_| many())
    }

    async fn read(&self, key: Key) -> Result<Option<Record>, Unreadable> {
        match self.shared.handle.reader().fetch(key).await {
            Ok(Ok(record)) => Ok(record),
            Ok(Err(error)) => Err(Unreadable::now(error)),
            Err(error) => Err(Unreadable::now(error)),
        }
    }

    async fn job(&self, id: &str) -> Result<Option<Job>, Unreadable> {
        let Ok(id) = JobId::parse(id) else { return Ok(None) };
        match self.surely(Key::Job(id)).await? {
            Some(Record::Job(job)) => Ok(Some(job)),
            _ => Ok(None),
        }
    }

    /// A record; `None` only when there is none for sure.
    async fn surely(&self, key: Key) -> Result<Option<Record>, Unreadable> {
        if let Some(record) = self.read(key).await? {
            return Ok(Some(record));
        }
        let reader = self.shared.handle.reader().clone();
        // It waits for a commit under way.
        let proof = Supervisor::blocking(move || reader.history()).await;
        let proof = proof.map_err(Unreadable::now)?;
        if !proof.done {
            // It may be there and lost: only the whole proof can tell.
            let why = format!(
                "it was not found, but the history is still being checked ({} of {} values); ask again",
                proof.checked, proof.of
            );
            return Err(Unreadable { why, unproved: true });
        }
        Ok(None)
    }
}

/// The store cannot be read now.
struct Unreadable {
    why: String,
    /// It can, but what is not found in it may be there all the same.
    unproved: bool,
}

impl Unreadable {
    fn now(why: impl Display) -> Self {
        let (why, unproved) = (why.to_string(), false);
        Self { why, unproved }
    }
}

/// After how many seconds a request that was refused for now is worth another try; `None` for an answer that stands.
fn retry_after(status: StatusCode) -> Option<&'static str> {
    match status {
        // A restart takes seconds.
        StatusCode::SERVICE_UNAVAILABLE => Some("5"),
        // Somebody has to make room.
        StatusCode::INSUFFICIENT_STORAGE => Some("30"),
        _ => None,
    }
}

/// Any other path.
async fn not_found(uri: Uri) -> Response {
    if v1::path::is_below(uri.path()) {
        return v1::path::not_found(&uri).into_response();
    }
    legacy::not_found()
}

/// The contract of `/api/v1`: OpenAPI 3.1, as JSON text.
pub fn contract() -> &'static str {
    v1::openapi::text()
}

/// Serve until the role stops.
pub(super) async fn serve(listener: TcpListener, door: Door) {
    let (limits, supervisor) = (door.limits, door.shared.supervisor.clone());
    let http = supervisor.metrics().http().clone();
    let router = Router::new()
        .route("/submit", post(legacy::submit))
        .route("/query", post(legacy::query))
        .route("/metrics", get(observe::metrics))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .method_not_allowed_fallback(legacy::not_allowed)
        .merge(v1::routes())
        .fallback(not_found)
        .layer(from_fn_with_state(http, observe::measure))
        .with_state(door);
    server::run(listener, router, limits, supervisor).await;
}
