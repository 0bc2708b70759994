//! What the cluster manager knows only while it runs: who is connected, and who waits for which task.
//!
//! The loop's effects come in here from a task of the runtime ([`Hub::dispatch`] and its like never block), the streams in `worker_stream` and
//! `watch` take them out. Nothing here is state: a crash loses connections and waiters, and both come back by themselves.

use crate::machine::ids::{JobId, TaskKey, WorkerId};
use crate::wire::fedbroker::v1::LogStream;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Orders and acknowledgements that may wait for one worker's stream: twice all its slots, with a kill for each. They are names only; a worker
/// that lets more pile up does not read its stream and is cut off.
const ORDERS_MAX: usize = 4096;

/// Something to be written to a worker's stream. Contents are read when it is its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Run this attempt.
    Run { key: TaskKey, attempt: u32 },
    /// End this attempt.
    Kill { key: TaskKey, attempt: u32, reason: String },
    /// The report of this attempt is durable or void.
    Acknowledge { key: TaskKey, attempt: u32 },
    /// Send what a task has written.
    FetchLogs {
        id: u64,
        key: TaskKey,
        attempt: u32,
        stream: LogStream,
        tail_lines: u32,
        follow: bool,
        window: u32,
    },
    /// Go on sending.
    MoreLogs { id: u64, parts: u32 },
    /// Send no more.
    StopLogs { id: u64 },
    /// Remove what is left of a job.
    RemoveJob { job: JobId },
}

impl Order {
    /// Run an attempt.
    pub(super) fn run(key: &TaskKey, attempt: u32) -> Self {
        let key = key.clone();
        Self::Run { key, attempt }
    }
}

/// Why no log can be asked of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLine {
    /// It has no stream now.
    Away,
    /// It is of FedVision 0.1, or of Fedbroker 0.1.
    Old,
    /// Too much waits for it already.
    Busy,
}

/// The stream's end of a connection.
pub(super) struct Connection {
    /// What is to be written, in order.
    pub(super) orders: mpsc::Receiver<Order>,
    /// The same queue's other end, for acknowledgements.
    pub(super) line: mpsc::Sender<Order>,
    /// Notified at each sign of life that comes another way than over this stream.
    pub(super) seen: Arc<Notify>,
    /// Cancelled when the stream is to be closed.
    pub(super) closed: CancellationToken,
}

struct Slot {
    session: u64,
    state: SlotState,
}

enum SlotState {
    /// The session is durable, and its stream has not registered yet: orders wait here.
    Expected(Vec<Order>),
    Open {
        line: mpsc::Sender<Order>,
        seen: Arc<Notify>,
        closed: CancellationToken,
        /// It understands orders about logs.
        logs: bool,
    },
    Closed,
}

/// Where a watch stream hears of the tasks it waits for. At most one message for each task it registered.
pub(super) type Bell = mpsc::UnboundedSender<TaskKey>;

/// All of it.
#[derive(Default)]
pub(super) struct Hub {
    workers: Mutex<HashMap<WorkerId, Slot>>,
    watchers: Mutex<HashMap<TaskKey, Vec<(u64, Bell)>>>,
    next_watch: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A stream takes its session; orders that came before it are waiting in the connection. `logs`: it understands orders about logs.
    pub(super) fn open(&self, worker: &WorkerId, session: u64, logs: bool) -> Connection {
        let (line, orders) = mpsc::channel(ORDERS_MAX);
        let (seen, closed) = (Arc::new(Notify::new()), CancellationToken::new());
        let mut workers = lock(&self.workers);
        match workers.get_mut(worker) {
            Some(slot) if slot.session > session => closed.cancel(),
            known => {
                let state = SlotState::Open {
                    line: line.clone(),
                    seen: seen.clone(),
                    closed: closed.clone(),
                    logs,
                };
                let before = match known {
                    Some(slot) => std::mem::replace(slot, Slot { session, state }).state,
                    None => {
                        workers.insert(worker.clone(), Slot { session, state });
                        SlotState::Closed
                    }
                };
                match before {
                    SlotState::Expected(waiting) => {
                        if waiting.into_iter().any(|order| line.try_send(order).is_err()) {
                            closed.cancel();
                        }
                    }
                    SlotState::Open { closed: earlier, .. } => earlier.cancel(),
                    SlotState::Closed => {}
                }
            }
        }
        Connection {
            orders,
            line,
            seen,
            closed,
        }
    }

    /// A stream has ended.
    pub(super) fn close(&self, worker: &WorkerId, session: u64) {
        if let Some(slot) = lock(&self.workers).get_mut(worker)
            && slot.session == session
        {
            slot.state = SlotState::Closed;
        }
    }

    /// A worker was given up: nothing more will be said to this session.
    pub(super) fn forget(&self, worker: &WorkerId, session: u64) {
        let mut workers = lock(&self.workers);
        if workers.get(worker).is_some_and(|slot| slot.session <= session) {
            workers.remove(worker);
        }
    }

    /// Hand an order to the stream of a session, or keep it until that opens. Orders of older sessions are void.
    pub(super) fn dispatch(&self, worker: WorkerId, session: u64, order: Order) {
        let mut workers = lock(&self.workers);
        let slot = workers.entry(worker).or_insert_with(|| Slot {
            session,
            state: SlotState::Expected(Vec::new()),
        });
        if slot.session < session {
            if let SlotState::Open { closed, .. } = &slot.state {
                closed.cancel();
            }
            let state = SlotState::Expected(Vec::new());
            *slot = Slot { session, state };
        } else if slot.session > session {
            return;
        }
        match &mut slot.state {
            SlotState::Expected(waiting) => waiting.push(order),
            SlotState::Open { line, closed, .. } => {
                if line.try_send(order).is_err() {
                    closed.cancel();
                }
            }
            SlotState::Closed => {}
        }
    }

    /// Close the stream of a session.
    pub(super) fn drop_connection(&self, worker: &WorkerId, session: u64) {
        if let Some(slot) = lock(&self.workers).get(worker)
            && slot.session == session
            && let SlotState::Open { closed, .. } = &slot.state
        {
            closed.cancel();
        }
    }

    /// The session of a worker, and its queue, for orders about logs. They take half of it at most: what is left is for tasks.
    pub(super) fn log_line(&self, worker: &WorkerId) -> Result<(u64, mpsc::Sender<Order>), NoLine> {
        let workers = lock(&self.workers);
        let slot = workers.get(worker).ok_or(NoLine::Away)?;
        match &slot.state {
            SlotState::Open { logs: false, .. } => Err(NoLine::Old),
            SlotState::Open { line, .. } if line.capacity() < ORDERS_MAX / 2 => Err(NoLine::Busy),
            SlotState::Open { line, .. } => Ok((slot.session, line.clone())),
            SlotState::Expected(_) | SlotState::Closed => Err(NoLine::Away),
        }
    }

    /// Connected workers that can be asked for logs, in order of name.
    pub(super) fn workers_with_logs(&self) -> Vec<WorkerId> {
        let workers = lock(&self.workers);
        let with_logs = workers
            .iter()
            .filter(|(_, slot)| matches!(slot.state, SlotState::Open { logs: true, .. }));
        let mut names: Vec<WorkerId> = with_logs.map(|(worker, _)| worker.clone()).collect();
        names.sort();
        names
    }

    /// Have all workers that are connected remove what is left of a job.
    pub(super) fn remove_job(&self, job: &JobId) {
        for slot in lock(&self.workers).values() {
            if let SlotState::Open { line, logs: true, .. } = &slot.state {
                // One that has too much waiting for it does it in its own time.
                let _ = line.try_send(Order::RemoveJob { job: job.clone() });
            }
        }
    }

    /// A sign of life; false when the worker has no stream.
    pub(super) fn seen(&self, worker: &WorkerId) -> bool {
        match lock(&self.workers).get(worker).map(|slot| &slot.state) {
            Some(SlotState::Open { seen, .. }) => {
                seen.notify_one();
                true
            }
            _ => false,
        }
    }

    /// A name for a watch stream.
    pub(super) fn watch_id(&self) -> u64 {
        self.next_watch.fetch_add(1, Ordering::Relaxed)
    }

    /// Ring this bell when one of the tasks ends.
    pub(super) fn watch<'a>(&self, id: u64, bell: &Bell, keys: impl Iterator<Item = &'a TaskKey>) {
        let mut watchers = lock(&self.watchers);
        for key in keys {
            watchers.entry(key.clone()).or_default().push((id, bell.clone()));
        }
    }

    /// A stream does not wait for these any more.
    pub(super) fn unwatch<'a>(&self, id: u64, keys: impl Iterator<Item = &'a TaskKey>) {
        let mut watchers = lock(&self.watchers);
        for key in keys {
            if let Some(waiting) = watchers.get_mut(key) {
                waiting.retain(|(other, _)| *other != id);
                if waiting.is_empty() {
                    watchers.remove(key);
                }
            }
        }
    }

    /// A task has ended, durably.
    pub(super) fn ended(&self, key: &TaskKey) {
        for (_, bell) in lock(&self.watchers).remove(key).unwrap_or_default() {
            let _ = bell.send(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(task: &str) -> Order {
        let key = TaskKey::parse("j", task).unwrap();
        Order::Run { key, attempt: 1 }
    }

    #[test]
    fn orders_wait_for_their_stream_and_old_ones_are_void() {
        let hub = Hub::default();
        let worker = WorkerId::parse("w").unwrap();
        hub.dispatch(worker.clone(), 2, run("a"));
        hub.dispatch(worker.clone(), 1, run("old"));
        let mut second = hub.open(&worker, 2, true);
        hub.dispatch(worker.clone(), 2, run("b"));
        assert_eq!(second.orders.try_recv(), Ok(run("a")));
        assert_eq!(second.orders.try_recv(), Ok(run("b")));
        hub.dispatch(worker.clone(), 3, run("c"));
        assert!(second.closed.is_cancelled());
        hub.close(&worker, 2);
        let mut third = hub.open(&worker, 3, true);
        assert_eq!(third.orders.try_recv(), Ok(run("c")));
        assert!(hub.open(&worker, 2, true).closed.is_cancelled());
        assert!(hub.seen(&worker));
        assert_eq!(hub.log_line(&worker).unwrap().0, 3);
        hub.close(&worker, 3);
        assert!(!hub.seen(&worker));
        assert_eq!(hub.log_line(&worker).unwrap_err(), NoLine::Away);
    }

    #[test]
    fn a_bell_rings_once_and_only_for_those_who_wait() {
        let hub = Hub::default();
        let (bell, mut rings) = mpsc::unbounded_channel();
        let keys = [TaskKey::parse("j", "a").unwrap(), TaskKey::parse("j", "b").unwrap()];
        hub.watch(1, &bell, keys.iter());
        hub.unwatch(1, [&keys[1]].into_iter());
        for key in keys.iter().chain(&keys) {
            hub.ended(key);
        }
        assert_eq!(rings.try_recv(), Ok(keys[0].clone()));
        assert!(rings.try_recv().is_err());
    }
}
