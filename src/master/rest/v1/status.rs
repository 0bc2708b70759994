//! `GET /api/v1/status`: what this master is, what it is connected to, and what its last start found.

use super::super::{Door, health};
use super::problem::Problem;
use super::query::NoQuery;
use crate::engine::Condition;
use crate::store::space::{FULL, LOW};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A master.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct Status {
    #[schema(example = "0.2.0")]
    version: &'static str,
    #[schema(example = "p1")]
    party: String,
    /// Job types this party takes part in.
    job_types: Vec<&'static str>,
    store: Store,
    disk: Disk,
    coordinator: Coordinator,
    recovery: Recovery,
}

/// Whether the log can be written.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StoreCondition)]
enum Store {
    #[serde(rename = "working")]
    Working,
    /// The disk is full.
    #[serde(rename = "read only")]
    ReadOnly,
    #[serde(rename = "ended")]
    Ended,
}

/// The room on the disk of the data directory.
#[derive(Debug, Serialize, ToSchema)]
struct Disk {
    free_bytes: u64,
    /// `ample`, `low` or `full`.
    level: &'static str,
    /// Below so many bytes an operator should look.
    low_below: u64,
    /// Below so many bytes nothing new is taken.
    refused_below: u64,
}

/// How the subscription stands.
#[derive(Debug, Serialize, ToSchema)]
struct Coordinator {
    subscribed: bool,
    /// Why not, or what the last trouble was.
    trouble: Option<String>,
}

/// What the last start found.
#[derive(Debug, Serialize, ToSchema)]
struct Recovery {
    /// The number of this start.
    epoch: u64,
    /// The sequence that the first event after the start got.
    next_seq: u64,
    /// Live records by kind and state.
    records: BTreeMap<&'static str, u64>,
    /// Payload files in use.
    payloads: u64,
    /// How long it took.
    seconds: f64,
}

/// What this master is, and how it stands
#[utoipa::path(get, path = "/api/v1/status", operation_id = "get_status", tag = "status", responses(
    (status = 200, description = "The status", body = Status),
    (status = 400, description = "A parameter that is not known", body = Problem, content_type = "application/problem+json"),
))]
pub(in crate::master::rest) async fn status(State(door): State<Door>, _: NoQuery) -> Json<Status> {
    let recovery = &door.shared.recovery;
    let subscription = door.shared.subscription.get();
    let room = health::room(&door).await;
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        party: door.shared.party.to_string(),
        job_types: door.shared.registry.enabled().collect(),
        store: match door.shared.handle.condition() {
            Condition::Working => Store::Working,
            Condition::ReadOnly => Store::ReadOnly,
            Condition::Ended => Store::Ended,
        },
        disk: Disk {
            free_bytes: room.free,
            level: health::level_name(room.level),
            low_below: LOW,
            refused_below: FULL,
        },
        coordinator: Coordinator {
            subscribed: subscription.connected,
            trouble: subscription.trouble,
        },
        recovery: Recovery {
            epoch: recovery.epoch,
            next_seq: recovery.next_seq,
            records: recovery.records.iter().copied().collect(),
            payloads: recovery.payloads,
            seconds: recovery.took.as_secs_f64(),
        },
    })
}
