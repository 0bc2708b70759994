//! Logs of tasks: asked of the worker that has them, over its stream, and handed to the caller as it reads.
//!
//! `TaskLogs` of the door `fedbroker` comes in here, parts that a worker sends come in from `worker_stream`. A worker sends as many parts as it
//! was allowed; it is allowed one more when the caller has taken one, so that nothing piles up here, and a caller that is slow or gone ends its
//! request only. It must never hold up a worker's stream.

use super::convert;
use super::hub::{NoLine, Order};
use super::parts::Shared;
use crate::machine::cluster::records::{Task, TaskState};
use crate::machine::cluster::{Key, Record};
use crate::machine::ids::{TaskKey, WorkerId};
use crate::supervisor::Policy;
use crate::wire::fedbroker::v1 as ours;
use crate::wire::metadata;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Requests open at once for one worker.
const REQUESTS_MAX: usize = 8;
/// Parts of a request that may be under way: with all requests of a worker, half a MiB that is before its reports on the network.
const WINDOW: u32 = 2;
/// How long a worker may take to answer a request.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a caller may take nothing.
const SLOW_LIMIT: Duration = Duration::from_secs(60);

/// What a caller's stream carries.
pub(super) type Stream = mpsc::Sender<Result<ours::LogChunk, Status>>;

/// Every request that is open.
#[derive(Default)]
pub(super) struct Requests {
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
}

struct Open {
    worker: WorkerId,
    session: u64,
    parts: mpsc::Sender<ours::LogPart>,
}

impl Requests {
    /// No code that can panic runs under the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part came over the stream of a session. One that was not asked for ends its request, one of no request is a late one.
    pub(super) fn deliver(&self, worker: &WorkerId, session: u64, part: ours::LogPart) {
        let mut requests = self.lock();
        let id = part.request_id;
        let asked = requests.get(&id).filter(|open| open.worker == *worker && open.session == session);
        if let Some(open) = asked
            && open.parts.try_send(part).is_err()
        {
            tracing::warn!(worker = %worker, "worker sent more of a log than it was asked for");
            requests.remove(&id);
        }
    }

    /// A session has ended, and its requests with it.
    pub(super) fn lost(&self, worker: &WorkerId, session: u64) {
        self.lock().retain(|_, open| open.worker != *worker || open.session != session);
    }
}

/// An open request; dropping it tells the worker to stop.
struct Request {
    requests: Arc<Requests>,
    id: u64,
    line: mpsc::Sender<Order>,
    parts: mpsc::Receiver<ours::LogPart>,
    ended: bool,
}

impl Drop for Request {
    fn drop(&mut self) {
        self.requests.lock().remove(&self.id);
        if !self.ended {
            // A worker whose queue is full has other trouble; the end of its connection ends the request too.
            let _ = self.line.try_send(Order::StopLogs { id: self.id });
        }
    }
}

/// An error with a word that says more than its code.
fn refused(code: Code, word: &'static str, why: impl Into<String>) -> Status {
    let mut status = Status::new(code, why);
    status.metadata_mut().insert(metadata::LOGS, MetadataValue::from_static(word));
    status
}

fn away(worker: &WorkerId) -> Status {
    let why = format!("worker {worker} is not connected; what its tasks wrote can be read when it is back");
    refused(Code::Unavailable, "worker-away", why)
}

/// Which attempt is asked for, and who may have it: one for sure, or anybody.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    attempt: u32,
    worker: Option<WorkerId>,
}

fn wanted(key: &TaskKey, task: &Task, attempt: u32) -> Result<Wanted, Status> {
    if task.attempts == 0 {
        let why = match task.state {
            TaskState::Ended(_) => format!("task {key} ended before it was started"),
            _ => format!("task {key} waits for a worker and has not been started"),
        };
        return Err(refused(Code::FailedPrecondition, "not-started", why));
    }
    if attempt > task.attempts {
        let why = format!("attempt: task {key} has been started {} times", task.attempts);
        return Err(refused(Code::FailedPrecondition, "not-started", why));
    }
    let attempt = if attempt == 0 { task.attempts } else { attempt };
    let of_record = match &task.state {
        TaskState::Assigned { worker, attempt } => Some((worker, *attempt)),
        TaskState::Ended(outcome) => outcome.worker.as_ref().map(|worker| (worker, outcome.attempt)),
        TaskState::Queued => None,
    };
    let worker = of_record.filter(|(_, of)| *of == attempt).map(|(worker, _)| worker.clone());
    Ok(Wanted { attempt, worker })
}

/// The door: check, find the worker, and let the parts go to the caller.
pub(super) async fn open(shared: &Shared, request: ours::TaskLogsRequest, out: Stream) -> Result<(), Status> {
    let key = convert::key(request.job_id.clone(), request.task_id.clone())?;
    let stream = ours::LogStream::try_from(request.stream).map_err(|_| convert::bad("stream", "must be STDOUT or STDERR"))?;
    let Some(Record::Task(task)) = shared.record(Key::Task(key.clone())).await? else {
        return Err(refused(Code::NotFound, "unknown", format!("task {key} is not known here")));
    };
    let Wanted { attempt, worker } = wanted(&key, &task, request.attempt)?;
    let fetch = |id| Order::FetchLogs {
        id,
        key: key.clone(),
        attempt,
        stream,
        tail_lines: request.tail_lines,
        follow: request.follow,
        window: WINDOW,
    };
    let (open, first) = match worker {
        Some(worker) => ask(shared, &worker, fetch).await?,
        None => ask_anybody(shared, &key, attempt, fetch).await?,
    };
    let life = forward(open, first, attempt, out);
    shared.supervisor.spawn("log stream", Policy::Ordinary, life);
    Ok(())
}

/// The record names the worker of the latest attempt only; a worker that was lost may be back, with what the earlier ones left there.
async fn ask_anybody(
    shared: &Shared,
    key: &TaskKey,
    attempt: u32,
    fetch: impl Fn(u64) -> Order,
) -> Result<(Request, ours::LogPart), Status> {
    for worker in shared.hub.workers_with_logs() {
        match ask(shared, &worker, &fetch).await {
            Ok(found) => return Ok(found),
            Err(status) => tracing::debug!(worker = %worker, task = %key, why = status.message(), "no logs there"),
        }
    }
    let why = format!("no worker that is connected has logs of attempt {attempt} of task {key}");
    Err(refused(Code::NotFound, "gone", why))
}

/// Ask one worker; the request and its first part, which has no data.
async fn ask(shared: &Shared, worker: &WorkerId, fetch: impl Fn(u64) -> Order) -> Result<(Request, ours::LogPart), Status> {
    let (session, line) = shared.hub.log_line(worker).map_err(|why| match why {
        NoLine::Away => away(worker),
        NoLine::Old => refused(
            Code::Unimplemented,
            "unsupported",
            format!("worker {worker} is of a release that does not send logs"),
        ),
        NoLine::Busy => {
            let why = format!("worker {worker} does not keep up with its orders; try again later");
            refused(Code::ResourceExhausted, "busy", why)
        }
    })?;
    let mut open = register(shared, worker, session, line)?;
    open.line.try_send(fetch(open.id)).map_err(|_| busy(worker))?;
    match tokio::time::timeout(ANSWER_LIMIT, open.parts.recv()).await {
        Ok(Some(part)) if !part.end => Ok((open, part)),
        Ok(Some(part)) => {
            open.ended = true;
            Err(match part.failure() {
                ours::LogFailure::Busy => busy(worker),
                _ => refused(Code::NotFound, "gone", format!("at worker {worker}: {}", part.reason)),
            })
        }
        Ok(None) => Err(away(worker)),
        Err(_) => Err(refused(
            Code::Unavailable,
            "worker-away",
            format!("worker {worker} does not answer"),
        )),
    }
}

fn busy(worker: &WorkerId) -> Status {
    let why = format!("{REQUESTS_MAX} logs of worker {worker} are being read already; try again later");
    refused(Code::ResourceExhausted, "busy", why)
}

fn register(shared: &Shared, worker: &WorkerId, session: u64, line: mpsc::Sender<Order>) -> Result<Request, Status> {
    let requests = shared.logs.clone();
    // What was allowed, and the parts without data at both ends.
    let (sender, parts) = mpsc::channel(WINDOW as usize + 2);
    let id = requests.next.fetch_add(1, Ordering::Relaxed);
    let mut open = requests.lock();
    if open.values().filter(|open| open.worker == *worker).count() >= REQUESTS_MAX {
        return Err(busy(worker));
    }
    open.insert(
        id,
        Open {
            worker: worker.clone(),
            session,
            parts: sender,
        },
    );
    drop(open);
    Ok(Request {
        requests,
        id,
        line,
        parts,
        ended: false,
    })
}

/// From the worker to the caller, until either has enough.
async fn forward(mut request: Request, first: ours::LogPart, attempt: u32, out: Stream) {
    let mut part = first;
    loop {
        let (end, has_data) = (part.end, !part.data.is_empty());
        request.ended = end;
        let item = match part.failure() {
            ours::LogFailure::None => Ok(ours::LogChunk {
                data: part.data,
                offset: part.offset,
                attempt,
                end,
            }),
            _ => Err(refused(Code::NotFound, "gone", part.reason)),
        };
        match tokio::time::timeout(SLOW_LIMIT, out.send(item)).await {
            Ok(Ok(())) => {}
            // The caller is gone.
            Ok(Err(_)) => return,
            Err(_) => {
                tracing::info!("a caller does not read the log it asked for, cut off");
                return;
            }
        }
        if end {
            return;
        }
        if has_data {
            let _ = request.line.try_send(Order::MoreLogs { id: request.id, parts: 1 });
        }
        let next = tokio::select! {
            next = request.parts.recv() => next,
            () = out.closed() => return,
        };
        match next {
            Some(next) => part = next,
            None => {
                let lost = refused(Code::Unavailable, "worker-away", "the connection to the worker was lost");
                let _ = tokio::time::timeout(SLOW_LIMIT, out.send(Err(lost))).await;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::content::Content;
    use crate::machine::ids::{Timestamp, TypeName};
    use crate::machine::outcome::{End, Outcome};

    fn task(state: TaskState, attempts: u32) -> Task {
        Task {
            task_type: TypeName::parse("t").unwrap(),
            content: Content::default(),
            fingerprint: [0; 32],
            assignee: None,
            state,
            stopping: None,
            attempts,
            max_attempts: 5,
            number: 1,
            queued_at: Timestamp(0),
            changed_at: Timestamp(0),
            lease: None,
        }
    }

    #[test]
    fn the_latest_attempt_has_a_worker_and_earlier_ones_are_looked_for() {
        let key = TaskKey::parse("j", "t").unwrap();
        let w = || WorkerId::parse("w").unwrap();
        let mut outcome = Outcome::without_process(End::Failed, "x");
        (outcome.worker, outcome.attempt) = (Some(w()), 3);
        let ended = task(TaskState::Ended(outcome), 3);
        let running = task(TaskState::Assigned { worker: w(), attempt: 3 }, 3);
        for task in [&ended, &running] {
            for (asked, attempt, worker) in [(0, 3, Some(w())), (3, 3, Some(w())), (2, 2, None), (1, 1, None)] {
                assert_eq!(wanted(&key, task, asked).unwrap(), Wanted { attempt, worker });
            }
            assert_eq!(wanted(&key, task, 4).unwrap_err().code(), Code::FailedPrecondition);
        }
        let again = Wanted { attempt: 2, worker: None };
        assert_eq!(wanted(&key, &task(TaskState::Queued, 2), 0).unwrap(), again);
        let never = Outcome::without_process(End::Cancelled, "x");
        for (state, says) in [(TaskState::Queued, "waits"), (TaskState::Ended(never), "before it was started")] {
            let status = wanted(&key, &task(state, 0), 0).unwrap_err();
            assert!(status.message().contains(says) && status.metadata().get(metadata::LOGS).unwrap() == "not-started");
        }
    }
}
