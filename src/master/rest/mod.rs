//! The door of users: HTTP in, commands and durable reads out. Decides nothing.
//!
//! `legacy` is the service of FedVision 0.1 (`/submit`, `/query`; `request_body`, `python_*` and `refusal` are its parts), `v1` what it never had. Bad
//! input is answered with 400 and its reason, never with a 500; a store that fails is a 503, a full disk a 507. `server` has the limits of connections.

mod backup;
mod health;
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
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use server::Limits;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The largest request body, bytes: FedVision 0.1 takes one byte less than 1 MiB.
const BODY_MAX: usize = 1024 * 1024 - 1;

/// How much of a larger body is read before it is refused, bytes: enough for a job file that grew too large, too little to be a burden.
const READ_MAX: usize = 16 * 1024 * 1024;

/// For how long.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// What the handlers share.
#[derive(Clone)]
pub struct Door {
    shared: Shared,
    limits: Limits,
    /// One backup at a time.
    backups: Arc<Semaphore>,
}

impl Door {
    /// A door to this master.
    pub(super) fn new(shared: Shared) -> Self {
        let limits = Limits::of_process();
        Self {
            shared,
            limits,
            backups: Arc::new(Semaphore::new(1)),
        }
    }

    async fn read(&self, key: Key) -> Result<Option<Record>, Unreadable> {
        let reader = self.shared.handle.reader().clone();
        match Supervisor::blocking(move || reader.get(&key)).await {
            Ok(Ok(record)) => Ok(record),
            Ok(Err(error)) => Err(Unreadable(error.to_string())),
            Err(error) => Err(Unreadable(error.to_string())),
        }
    }

    async fn job(&self, id: &str) -> Result<Option<Job>, Unreadable> {
        let Ok(id) = JobId::parse(id) else { return Ok(None) };
        if let Some(Record::Job(job)) = self.read(Key::Job(id)).await? {
            return Ok(Some(job));
        }
        let reader = self.shared.handle.reader().clone();
        // It waits for a commit under way.
        let proof = Supervisor::blocking(move || reader.history()).await;
        let proof = proof.map_err(|error| Unreadable(error.to_string()))?;
        if !proof.done {
            // It may be there and lost: only the whole proof can tell.
            let why = format!(
                "no such job was found, but the history is still being checked ({} of {} values); ask again",
                proof.checked, proof.of
            );
            return Err(Unreadable(why));
        }
        Ok(None)
    }
}

/// The store cannot be read now.
struct Unreadable(String);

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

/// Serve until the role stops.
pub(super) async fn serve(listener: TcpListener, door: Door) {
    let (limits, supervisor) = (door.limits, door.shared.supervisor.clone());
    let http = supervisor.metrics().http().clone();
    let router = Router::new()
        .route("/submit", post(legacy::submit))
        .route("/query", post(legacy::query))
        .route("/api/v1/jobs/{id}", get(v1::job))
        .route("/api/v1/status", get(v1::status))
        .route("/metrics", get(observe::metrics))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/api/v1/backup", post(backup::backup))
        .fallback(legacy::not_found)
        .method_not_allowed_fallback(legacy::not_allowed)
        .layer(from_fn_with_state(http, observe::measure))
        .with_state(door);
    server::run(listener, router, limits, supervisor).await;
}
