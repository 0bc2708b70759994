//! `GET /api/v1/status`: what this master is, what it is connected to, what waits, and what its last start found.
//!
//! Takes as long as a peer that is silent is waited for, two seconds at most. Reads no records and asks the loop nothing.

use super::super::{Door, health};
use super::job::State as JobState;
use super::problem::Problem;
use super::query::NoQuery;
use super::time::time;
use crate::engine::Condition;
use crate::engine::clock::{Clock, SystemClock};
use crate::engine::open::taken_by;
use crate::machine::ids::Timestamp;
use crate::machine::master::records::StepName;
use crate::master::SubscriptionState;
use crate::master::index::{Columns, state_number};
use crate::master::waiting::Line;
use crate::store::space::{FULL, LOW};
use crate::supervisor::Supervisor;
use crate::wire::connect::PeerKind;
use crate::wire::contact::Known;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
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
    #[schema(format = DateTime)]
    started_at: String,
    store: Store,
    disk: Disk,
    log: Log,
    coordinator: Coordinator,
    /// Whom this master needs: its coordinator and its cluster manager.
    peers: Vec<Peer>,
    queues: Queues,
    /// Jobs by state; null while the index of the jobs is being made.
    jobs: Option<Jobs>,
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

/// What is stored.
#[derive(Debug, Serialize, ToSchema)]
struct Log {
    /// What its files take on the disk.
    bytes: u64,
    /// The oldest event there is; older ones were removed.
    first_seq: u64,
    /// The sequence that the next event gets.
    next_seq: u64,
    /// Payload files in use.
    payloads: u64,
    payload_bytes: u64,
    /// How much of the history has been proved since the start, in values; until all is, what is not found is answered 503.
    proved: u64,
    /// Of so many.
    to_prove: u64,
}

/// Whom this master needs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StatusPeer)]
struct Peer {
    /// `coordinator` or `cluster_manager`.
    role: &'static str,
    /// As it was given at the start.
    #[schema(example = "127.0.0.1:10000")]
    address: String,
    state: Connection,
    /// `fedbroker` or `fedvision` (0.1), as it said when it was asked last.
    kind: Option<&'static str>,
    /// When it last answered a call.
    #[schema(format = DateTime)]
    answered_at: Option<String>,
    /// What went wrong last, also when it has passed.
    last_error: Option<LastError>,
}

/// Whether a peer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Connection {
    /// It answers; at the coordinator this party is subscribed.
    Connected,
    /// It answers, and this party is not subscribed: it tries.
    NotSubscribed,
    /// It answers, and does not let this party in.
    Refused,
    /// It does not answer.
    Unreachable,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
struct LastError {
    #[schema(format = DateTime)]
    at: String,
    what: String,
}

/// What waits, and for how long the first.
#[derive(Debug, Serialize, ToSchema)]
struct Queues {
    /// Requests and outcomes, for the loop.
    commands: Queue,
    /// Jobs, for endpoints at the cluster manager.
    leases: Queue,
    /// Jobs, for their turn to compile.
    compile_turns: Queue,
    /// Jobs that compile.
    compiling: Queue,
    /// Jobs that are proposed, for the verdict.
    proposals: Queue,
    /// Proposals this party takes part in, for the task or the draw.
    fetches: Queue,
    /// Calls to the cluster manager: tasks that are submitted or stopped, endpoints that go back.
    cluster_calls: Queue,
}

/// What waits for one thing.
#[derive(Debug, Serialize, ToSchema)]
struct Queue {
    waiting: u64,
    /// How long the first has.
    oldest_seconds: Option<f64>,
}

/// How many there are.
#[derive(Debug, Serialize, ToSchema)]
struct Jobs {
    waiting: u64,
    held: u64,
    leasing: u64,
    preparing: u64,
    proposing: u64,
    running: u64,
    success: u64,
    failed: u64,
    cancelled: u64,
    /// The first accepted of those that wait for something that is not their hour or their user: leasing, preparing or proposing.
    oldest_waiting: Option<Oldest>,
}

/// A job that waits.
#[derive(Debug, Serialize, ToSchema)]
struct Oldest {
    job_id: String,
    state: JobState,
    #[schema(format = DateTime)]
    created_at: String,
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
    let contacts = &door.shared.contacts;
    let (room, log, cluster) = tokio::join!(health::room(&door), log(&door), contacts.cluster.ask());
    let subscription = door.shared.subscription.get();
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        party: door.shared.party.to_string(),
        job_types: door.shared.registry.enabled().collect(),
        started_at: time(door.shared.started_at),
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
        log,
        peers: vec![
            peer(
                "coordinator",
                &contacts.coordinator.address,
                contacts.coordinator.known(),
                Some(&subscription),
            ),
            peer("cluster_manager", &contacts.cluster.address, cluster, None),
        ],
        queues: queues(&door),
        jobs: door.shared.index.read(|columns| jobs(columns, door.shared.party.as_str())),
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

async fn log(door: &Door) -> Log {
    let dir = door.shared.log_dir.clone();
    let bytes = Supervisor::blocking(move || taken_by(&dir)).await;
    let head = *door.shared.handle.head().borrow();
    let (payloads, payload_bytes) = door.shared.supervisor.metrics().engine().payloads_now();
    let reader = door.shared.handle.reader().clone();
    // They wait for a commit under way.
    let read = Supervisor::blocking(move || (reader.first_seq(), reader.history())).await;
    let (first_seq, proof) = read.map_or((0, None), |(first, proof)| (first, Some(proof)));
    Log {
        bytes: bytes.ok().and_then(Result::ok).unwrap_or_default(),
        first_seq,
        next_seq: head + 1,
        payloads,
        payload_bytes,
        proved: proof.as_ref().map_or(0, |proof| proof.checked),
        to_prove: proof.as_ref().map_or(0, |proof| proof.of),
    }
}

fn peer(role: &'static str, address: &str, known: Known, subscription: Option<&SubscriptionState>) -> Peer {
    let reached = known.trouble().is_none();
    let state = match subscription {
        Some(subscription) if subscription.connected => Connection::Connected,
        _ if !reached => Connection::Unreachable,
        Some(subscription) if subscription.refused => Connection::Refused,
        Some(_) => Connection::NotSubscribed,
        None => Connection::Connected,
    };
    Peer {
        role,
        address: address.to_owned(),
        state,
        kind: known.kind.map(|kind| match kind {
            PeerKind::Fedbroker { .. } => "fedbroker",
            PeerKind::FedVision => "fedvision",
        }),
        answered_at: known.answered.map(|at| time(clock(at))),
        last_error: known.failed.map(|(at, what)| LastError { at: time(clock(at)), what }),
    }
}

/// What the clock said at an instant that has passed.
fn clock(at: Instant) -> Timestamp {
    let ago = u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX);
    Timestamp(SystemClock.now().0.saturating_sub(ago))
}

fn queues(door: &Door) -> Queues {
    let backlog = door.shared.handle.backlog();
    let queue = |waiting: usize, oldest: Option<Duration>| Queue {
        waiting: waiting as u64,
        oldest_seconds: oldest.map(|oldest| oldest.as_secs_f64()),
    };
    let line = |line| {
        let (waiting, oldest) = door.shared.waiting.look(line);
        queue(waiting, oldest)
    };
    Queues {
        commands: queue(backlog.waiting, (!backlog.oldest.is_zero()).then_some(backlog.oldest)),
        leases: line(Line::Leases),
        compile_turns: line(Line::CompileTurns),
        compiling: line(Line::Compiling),
        proposals: line(Line::Proposals),
        fetches: line(Line::Fetches),
        cluster_calls: line(Line::ClusterCalls),
    }
}

fn jobs(columns: &Columns, party: &str) -> Jobs {
    let count = |state| columns.in_state(state_number(state));
    let stuck = [StepName::Leasing, StepName::Preparing, StepName::Proposing];
    let oldest = columns.oldest(&stuck.map(state_number)).and_then(|number| {
        let (stamp, state) = columns.stamp_and_state(number)?;
        let state = stuck.into_iter().find(|stuck| state_number(*stuck) == state)?;
        Some(Oldest {
            job_id: format!("{party}-{stamp:014}-{number}"),
            state: JobState::from(state),
            created_at: time(columns.created_at(number)?),
        })
    });
    Jobs {
        waiting: count(StepName::Waiting),
        held: count(StepName::Held),
        leasing: count(StepName::Leasing),
        preparing: count(StepName::Preparing),
        proposing: count(StepName::Proposing),
        running: count(StepName::Running),
        success: count(StepName::Succeeded),
        failed: count(StepName::Failed),
        cancelled: count(StepName::Cancelled),
        oldest_waiting: oldest,
    }
}
