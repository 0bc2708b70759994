//! One worker's connection, from attach to loss: what is written to its stream, and how its silence is noticed.
//!
//! Run as tasks of their own by the doors `fedvision` (0.1 workers) and `fedbroker` (ours), so that a client that goes away in the middle
//! cannot leave a session without an end. It must never decide: it carries commands in and orders out.

use super::convert;
use super::dispatch::{Orders, Part};
use super::hub::{Connection, Order};
use super::parts::Shared;
use crate::engine::Refusal;
use crate::machine::cluster::{Attach, Command, Rejection, Reply};
use crate::machine::ids::{TaskKey, WorkerId};
use crate::machine::outcome::Outcome;
use crate::supervisor::Policy;
use crate::wire::fedbroker::v1 as ours;
use crate::wire::fedvision::framework::Task;
use crate::wire::fedvision::framework::cluster::enroll;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;

/// Messages between the reading of payloads and the network: one may be a task of 512 MiB, for a worker that takes no pieces.
pub(super) const MESSAGES: usize = 1;
/// Reports of one worker that may wait for their barrier together.
const REPORTS: usize = 64;

/// What a worker's stream carries.
pub(super) type Stream<T> = mpsc::Sender<Result<T, Status>>;

/// How orders look to a kind of worker; `None` for what it does not understand.
pub(super) trait Dialect: Send + 'static {
    /// A message of its stream.
    fn run(task: Task, attempt: u32) -> Self;
    /// A message that ends a task.
    fn kill(key: TaskKey, attempt: u32, reason: String) -> Option<Self>
    where
        Self: Sized;
    /// A message that acknowledges a report.
    fn acknowledge(key: TaskKey, attempt: u32) -> Option<Self>
    where
        Self: Sized;
    /// Any other message.
    fn other(order: Order) -> Option<Self>
    where
        Self: Sized;
    /// A message of a task that goes in pieces; only asked of a worker that takes them.
    fn part(part: Part) -> Option<Self>
    where
        Self: Sized;
}

impl Dialect for enroll::Rep {
    fn run(task: Task, _: u32) -> Self {
        let status = enroll_status(true);
        Self { status, task: Some(task) }
    }
    fn kill(_: TaskKey, _: u32, _: String) -> Option<Self> {
        None
    }
    fn acknowledge(_: TaskKey, _: u32) -> Option<Self> {
        None
    }
    fn other(_: Order) -> Option<Self> {
        None
    }
    fn part(_: Part) -> Option<Self> {
        None
    }
}

fn enroll_status(task: bool) -> i32 {
    use crate::wire::fedvision::framework::cluster::enroll::Status;
    if task {
        Status::TaskReady.into()
    } else {
        Status::EnrollSuccess.into()
    }
}

/// The first message of a 0.1 worker's stream.
pub(super) fn enrolled() -> enroll::Rep {
    let status = enroll_status(false);
    enroll::Rep { status, task: None }
}

pub(super) fn to_worker(message: ours::to_worker::Message) -> ours::ToWorker {
    ours::ToWorker { message: Some(message) }
}

impl Dialect for ours::ToWorker {
    fn run(task: Task, attempt: u32) -> Self {
        let task = Some(task);
        to_worker(ours::to_worker::Message::Run(ours::RunTask {
            task,
            attempt,
            content_bytes: 0,
        }))
    }
    fn kill(key: TaskKey, attempt: u32, reason: String) -> Option<Self> {
        let task = Some(convert::attempt_message(key, attempt));
        Some(to_worker(ours::to_worker::Message::Kill(ours::KillTask { task, reason })))
    }
    fn acknowledge(key: TaskKey, attempt: u32) -> Option<Self> {
        let task = convert::attempt_message(key, attempt);
        Some(to_worker(ours::to_worker::Message::Acknowledged(task)))
    }
    fn other(order: Order) -> Option<Self> {
        convert::order_message(order).map(to_worker)
    }
    fn part(part: Part) -> Option<Self> {
        Some(to_worker(convert::part_message(part)))
    }
}

/// What its attach says of a worker of ours.
#[derive(Clone, Copy)]
struct Takes {
    /// It understands orders about logs.
    logs: bool,
    /// It takes the content of a task in pieces.
    pieces: bool,
}

/// Attach until it is done; the answer is `Attached`.
pub(super) async fn attach(shared: &Shared, attach: Attach) -> Result<u64, Refusal<Rejection>> {
    loop {
        if let Reply::Attached { session } = shared.handle.send(Command::Attach(attach.clone())).await? {
            return Ok(session);
        }
    }
}

/// Say that a connection is gone; the machine starts the grace time.
pub(super) async fn lost(shared: &Shared, worker: WorkerId, session: u64) {
    shared.hub.close(&worker, session);
    shared.logs.lost(&worker, session);
    tracing::info!(worker = %worker, session, "worker connection lost");
    if let Err(error) = shared.handle.send(Command::ConnectionLost { worker, session }).await {
        tracing::warn!(%error, "could not record that a worker's connection is lost");
    }
}

/// Serve a 0.1 worker's stream until it ends or the worker falls silent. Its signs of life come as calls of their own.
pub(super) async fn serve_legacy(shared: Shared, worker: WorkerId, session: u64, out: Stream<enroll::Rep>) {
    let Connection { orders, seen, closed, .. } = shared.hub.open(&worker, session, false);
    let writer = Orders::new(&shared, &worker, orders, out.clone(), false).write();
    let silence = async { while tokio::time::timeout(shared.silence, seen.notified()).await.is_ok() {} };
    tokio::select! {
        () = writer => {}
        () = silence => tracing::warn!(worker = %worker, "worker is silent"),
        () = out.closed() => {}
        () = closed.cancelled() => {}
    }
    drop(out);
    lost(&shared, worker, session).await;
}

/// Serve the stream of one of our workers until it ends, falls silent or is replaced.
async fn serve_ours(
    shared: Shared,
    worker: WorkerId,
    session: u64,
    inbound: tonic::Streaming<ours::FromWorker>,
    out: Stream<ours::ToWorker>,
    takes: Takes,
) {
    let Connection { orders, line, closed, .. } = shared.hub.open(&worker, session, takes.logs);
    let writer = Orders::new(&shared, &worker, orders, out.clone(), takes.pieces).write();
    tokio::select! {
        () = writer => {}
        end = read_reports(&shared, &worker, session, inbound, line) => if let Err(status) = end {
            tracing::warn!(worker = %worker, error = status.message(), "worker stream failed");
            // The one message it may still read; a stream that takes nothing is closed without it.
            let _ = out.try_send(Err(status));
        },
        () = out.closed() => {}
        () = closed.cancelled() => {}
    }
    drop(out);
    lost(&shared, worker, session).await;
}

async fn read_reports(
    shared: &Shared,
    worker: &WorkerId,
    session: u64,
    mut inbound: tonic::Streaming<ours::FromWorker>,
    line: mpsc::Sender<Order>,
) -> Result<(), Status> {
    let mut waiting = FuturesUnordered::new();
    loop {
        tokio::select! {
            message = tokio::time::timeout(shared.silence, inbound.message()), if waiting.len() < REPORTS => {
                let message = message.map_err(|_| Status::deadline_exceeded("no heartbeat came in time"))??;
                match message.map(|message| message.message) {
                    None => return Ok(()),
                    Some(Some(ours::from_worker::Message::Heartbeat(_))) => {}
                    Some(Some(ours::from_worker::Message::Report(report))) => {
                        let (key, attempt) = convert::attempt(report.task)?;
                        waiting.push(report_one(shared, worker, key, attempt, convert::outcome(report.outcome)?));
                    }
                    Some(Some(ours::from_worker::Message::Logs(part))) => shared.logs.deliver(worker, session, part),
                    Some(Some(ours::from_worker::Message::Attach(_))) => return Err(convert::bad("attach", "must be the first message only")),
                    Some(None) => return Err(convert::bad("message", "must be set")),
                }
            }
            Some(reported) = waiting.next() => {
                let (key, attempt): (TaskKey, u32) = reported?;
                line.try_send(Order::Acknowledge { key, attempt }).map_err(|_| Status::resource_exhausted("the stream is not read"))?;
            }
        }
    }
}

/// Acknowledged when it is durable, or when it is void for ever.
pub(super) async fn report_one(
    shared: &Shared,
    worker: &WorkerId,
    key: TaskKey,
    attempt: u32,
    outcome: Outcome,
) -> Result<(TaskKey, u32), Status> {
    let command = Command::Report {
        worker: worker.clone(),
        key: key.clone(),
        attempt: Some(attempt),
        outcome,
    };
    match shared.handle.send(command).await {
        Ok(_) | Err(Refusal::Rejected(_)) => Ok((key, attempt)),
        Err(error) => Err(convert::refused(error)),
    }
}

/// The door of `Cluster/Attach`: the whole life of one stream.
pub(super) async fn run_ours(shared: Shared, mut inbound: tonic::Streaming<ours::FromWorker>, out: Stream<ours::ToWorker>) {
    let request = match tokio::time::timeout(shared.silence, inbound.message()).await {
        Ok(Ok(Some(ours::FromWorker {
            message: Some(ours::from_worker::Message::Attach(attach)),
        }))) => {
            let takes = Takes {
                logs: attach.logs,
                pieces: attach.pieces,
            };
            parse_attach(attach).map(|attach| (attach, takes))
        }
        Ok(Ok(Some(_))) => Err(convert::bad("message", "the first must be attach")),
        Ok(Ok(None) | Err(_)) => return,
        Err(_) => Err(Status::deadline_exceeded("no attach came in time")),
    };
    let (request, takes) = match request {
        Ok(request) => request,
        Err(status) => {
            let _ = out.send(Err(status)).await;
            return;
        }
    };
    let worker = request.worker.clone();
    match attach(&shared, request).await {
        Ok(session) => {
            tracing::info!(worker = %worker, session, "worker attached");
            let heartbeat_seconds = u32::try_from(shared.heartbeat.as_secs()).unwrap_or(u32::MAX).max(1);
            let attached = to_worker(ours::to_worker::Message::Attached(ours::Attached { heartbeat_seconds }));
            let _ = out.send(Ok(attached)).await;
            serve_ours(shared, worker, session, inbound, out, takes).await;
        }
        Err(Refusal::Rejected(rejection)) => {
            tracing::info!(worker = %worker, reason = %rejection, "worker refused");
            let reason = rejection.to_string();
            let refused = to_worker(ours::to_worker::Message::Refused(ours::AttachRefused { reason }));
            let _ = out.send(Ok(refused)).await;
        }
        Err(error) => {
            let _ = out.send(Err(convert::refused(error))).await;
        }
    }
}

fn parse_attach(attach: ours::WorkerAttach) -> Result<Attach, Status> {
    if attach.known.len() > convert::KNOWN_MAX {
        return Err(convert::bad("known", &format!("at most {} tasks are taken", convert::KNOWN_MAX)));
    }
    let profile = convert::profile(&attach)?;
    let worker = WorkerId::parse(attach.worker_id).map_err(convert::bad_id)?;
    let known = attach
        .known
        .into_iter()
        .map(|task| convert::attempt(Some(task)))
        .collect::<Result<_, _>>()?;
    Ok(Attach { worker, profile, known })
}

/// The door of `ClusterManager/Enroll`: the whole life of one stream.
pub(super) async fn run_legacy(shared: Shared, request: Attach, out: Stream<enroll::Rep>) {
    let worker = request.worker.clone();
    match attach(&shared, request).await {
        Ok(session) => {
            tracing::info!(worker = %worker, session, "worker enrolled");
            let _ = out.send(Ok(enrolled())).await;
            serve_legacy(shared, worker, session, out).await;
        }
        Err(Refusal::Rejected(Rejection::AlreadyEnrolled(_))) => {
            let status = enroll::Status::AlreadyEnroll.into();
            let _ = out.send(Ok(enroll::Rep { status, task: None })).await;
        }
        Err(error) => {
            let _ = out.send(Err(convert::refused(error))).await;
        }
    }
}

/// Run a stream's life under the supervisor.
pub(super) fn spawn(shared: &Shared, life: impl Future<Output = ()> + Send + 'static) {
    shared.supervisor.spawn("worker stream", Policy::Ordinary, life);
}

/// A third of the silence that means loss, so that two heartbeats may be late.
pub(super) fn heartbeat(silence: Duration) -> Duration {
    silence / 3
}
