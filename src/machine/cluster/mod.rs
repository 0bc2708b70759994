//! The cluster manager's state machine: workers, the tasks that wait for them or run on them, and the leases jobs hold.
//!
//! Run by `engine`, spoken to by the doors in `crate::cluster`. [`records`] says what is stored and which states there are; the
//! decisions are in `workers`, `tasks` and `leases`, the changes in `apply`, the choice of worker in [`placement`], and what must always
//! hold in [`invariant`]. Pure: no clock, no randomness, no I/O. The role sends [`Command::Started`] before any other command.

mod apply;
mod contract;
mod index;
pub mod invariant;
mod leases;

mod names;
pub mod placement;
#[cfg(test)]
mod property;
pub mod records;
mod table;
mod tasks;
#[cfg(test)]
mod tests;
mod workers;

use crate::machine::content::PayloadRef;
use crate::machine::ids::{JobId, TaskId, TaskKey, Timestamp, WorkerId};
use crate::machine::{Changes, Input, Machine, Out, join_key, split_key};
pub use contract::{Attach, Command, Effect, Event, Rejection, Reply, Rules, Submission};
use index::Index;
use records::{Counters, Lease, LeaseId, Task, TaskState, Worker, WorkerState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use table::Tasks;

/// The most workers known at once: a start and a placement look at each.
pub const WORKERS_MAX: usize = 1024;
/// The most assignments of one command, and the most tasks and leases one command gives up. With the longest ids each costs up to
/// 16 KiB in a store batch, so that a command that does both stays below 2 MiB; the rest follows in commands of its own.
pub const STEP_MAX: usize = 64;

/// Name of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The counters.
    Counters,
    /// A lease.
    Lease(LeaseId),
    /// A task.
    Task(TaskKey),
    /// A worker.
    Worker(WorkerId),
}

/// A stored record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The counters.
    Counters(Counters),
    /// A lease.
    Lease(Lease),
    /// A task.
    Task(Arc<Task>),
    /// A worker.
    Worker(Worker),
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Cluster {
    rules: Rules,
    counters: Counters,
    workers: BTreeMap<WorkerId, Worker>,
    /// The key of a waiting task is in its queue as well, and there may be a million of them.
    tasks: Tasks,
    leases: BTreeMap<LeaseId, Lease>,
    index: Index,
    /// The next task's place in the queue; above that of every live task, which is all that the order needs.
    next_number: u64,
}

impl Cluster {
    /// An empty cluster.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            counters: Counters::default(),
            workers: BTreeMap::new(),
            tasks: Tasks::default(),
            leases: BTreeMap::new(),
            index: Index::default(),
            next_number: 1,
        }
    }
}

const COUNTERS: u8 = b'c';
const LEASE: u8 = b'l';
const TASK: u8 = b't';
const WORKER: u8 = b'w';

/// The beginning of the key bytes of all tasks, for a scan.
pub fn all_tasks() -> Vec<u8> {
    vec![TASK]
}

/// The beginning of the key bytes of all tasks of a job, for a scan.
pub fn tasks_of(job: &JobId) -> Vec<u8> {
    join_key(TASK, &[job.as_str(), ""])
}

impl Machine for Cluster {
    const ROLE: &'static str = "cluster";

    type Command = Command;
    type Event = Event;
    type Effect = Effect;
    type Reply = Reply;
    type Rejection = Rejection;
    type Key = Key;
    type Record = Record;

    fn recall(&self, command: &Command) -> Vec<Key> {
        match command {
            Command::Submit(submission) => vec![Key::Task(submission.key.clone())],
            Command::Cancel { key, .. } => vec![Key::Task(key.clone())],
            Command::Attach(attach) => vec![Key::Worker(attach.worker.clone())],
            Command::Forget { tasks, .. } => tasks.iter().take(STEP_MAX).cloned().map(Key::Task).collect(),
            _ => Vec::new(),
        }
    }

    fn brings_work(&self, command: &Command, input: &Input<Key, Record>) -> bool {
        match command {
            Command::Submit(submission) => self.known_task(&submission.key, input).is_none(),
            Command::Attach(attach) => input.recalled.is_empty() && !self.workers.contains_key(&attach.worker),
            Command::AcquireLease { job: Some(job), .. } => !self.leases.contains_key(&LeaseId::Job(job.clone())),
            Command::AcquireLease { job: None, .. } => true,
            _ => false,
        }
    }

    fn decide(&mut self, command: Command, input: &Input<Key, Record>, out: &mut Out<Self>) -> Result<Reply, Rejection> {
        let now = input.now;
        let reply = match command {
            Command::Started => Ok(self.started(now, out)),
            Command::Attach(attach) => self.attach(attach, input, out),
            Command::ConnectionLost { worker, session } => Ok(self.connection_lost(worker, session, now, out)),
            Command::WorkerLost { worker, session } => Ok(self.worker_lost(worker, session, now, out)),
            Command::Submit(submission) => self.submit(submission, input, out),
            Command::Report {
                worker,
                key,
                attempt,
                outcome,
            } => self.report(&worker, &key, attempt, outcome, now, out),
            Command::Cancel { key, reason } => Ok(self.cancel(&key, reason, input, out)),
            Command::AcquireLease { job, endpoints } => self.acquire(job, endpoints, now, out),
            Command::ReleaseLease { job } => Ok(self.release(job, out)),
            Command::LeaseExpired { lease } => Ok(self.expire(lease, out)),
            Command::Place => Ok(Reply::Done),
            Command::Forget { job, tasks } => self.forget_tasks(job.as_ref(), tasks, input, out),
        }?;
        self.place_waiting(now, out);
        Ok(reply)
    }

    fn apply(&mut self, event: &Event, changes: &mut Changes<Key>) {
        self.apply_event(event, changes);
    }

    fn record(&self, key: &Key) -> Option<Record> {
        match key {
            Key::Counters => Some(Record::Counters(self.counters)),
            Key::Lease(id) => self.leases.get(id).cloned().map(Record::Lease),
            Key::Task(key) => self.tasks.get(key).cloned().map(Record::Task),
            Key::Worker(id) => self.workers.get(id).cloned().map(Record::Worker),
        }
    }

    fn holds(&self, key: &Key) -> bool {
        match key {
            Key::Counters => true,
            Key::Lease(id) => self.leases.contains_key(id),
            Key::Task(key) => self.tasks.get(key).is_some(),
            Key::Worker(id) => self.workers.contains_key(id),
        }
    }

    fn is_live(record: &Record) -> bool {
        match record {
            Record::Counters(_) | Record::Lease(_) => true,
            Record::Task(task) => !task.is_ended(),
            Record::Worker(worker) => !worker.is_lost(),
        }
    }

    fn payloads(record: &Record) -> Vec<PayloadRef> {
        match record {
            Record::Task(task) => task.content.payload().into_iter().collect(),
            Record::Counters(_) | Record::Lease(_) | Record::Worker(_) => Vec::new(),
        }
    }

    fn restore(&mut self, key: &Key, record: Record) {
        match (key, record) {
            (Key::Counters, Record::Counters(counters)) => self.counters = counters,
            (Key::Lease(id), Record::Lease(lease)) => self.put_lease(id, Some(lease)),
            (Key::Task(key), Record::Task(task)) => self.put_task(Arc::new(key.clone()), task),
            (Key::Worker(id), Record::Worker(worker)) => self.put_worker(id, worker),
            (key, record) => debug_assert!(false, "{key:?} cannot name {record:?}"),
        }
    }

    fn forget(&mut self, key: &Key) {
        match key {
            Key::Task(key) => {
                self.tasks.remove(key);
            }
            Key::Worker(id) => {
                self.workers.remove(id);
            }
            Key::Counters | Key::Lease(_) => {}
        }
    }

    fn resume(&self, now: Timestamp) -> Vec<Effect> {
        let grace = self
            .workers
            .iter()
            .filter(|(_, worker)| !worker.is_lost())
            .map(|(id, worker)| Effect::GraceAt {
                worker: id.clone(),
                session: worker.session,
                at: now.plus_ms(self.rules.grace_ms),
            });
        let expiry = self
            .leases
            .iter()
            .filter(|(id, lease)| matches!(id, LeaseId::Anonymous(_)) && lease.is_unbound())
            .map(|(id, lease)| Effect::LeaseExpiryAt {
                lease: id.clone(),
                // A clock that was set back meanwhile must not make it last longer.
                at: lease.granted_at.min(now).plus_ms(self.rules.unbound_ms),
            });
        grace.chain(expiry).collect()
    }

    fn key_bytes(key: &Key) -> Vec<u8> {
        match key {
            Key::Counters => join_key(COUNTERS, &[]),
            Key::Lease(LeaseId::Anonymous(n)) => join_key(LEASE, &["a", &format!("{n:020}")]),
            Key::Lease(LeaseId::Job(job)) => join_key(LEASE, &["j", job.as_str()]),
            Key::Task(key) => join_key(TASK, &[key.job.as_str(), key.task.as_str()]),
            Key::Worker(id) => join_key(WORKER, &[id.as_str()]),
        }
    }

    fn key_from_bytes(bytes: &[u8]) -> Option<Key> {
        let (kind, parts) = split_key(bytes)?;
        match (kind, parts.as_slice()) {
            (COUNTERS, [""]) => Some(Key::Counters),
            (LEASE, ["a", n]) => n.parse().ok().map(|n| Key::Lease(LeaseId::Anonymous(n))),
            (LEASE, ["j", job]) => JobId::parse(*job).ok().map(|job| Key::Lease(LeaseId::Job(job))),
            (TASK, [job, task]) => {
                let (job, task) = (JobId::parse(*job).ok()?, TaskId::parse(*task).ok()?);
                Some(Key::Task(TaskKey { job, task }))
            }
            (WORKER, [worker]) => WorkerId::parse(*worker).ok().map(Key::Worker),
            _ => None,
        }
    }

    fn census(&self) -> Vec<(&'static str, u64)> {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let assigned = self
            .tasks
            .iter()
            .filter(|(_, task)| matches!(task.state, TaskState::Assigned { .. }))
            .count();
        let away = self
            .workers
            .values()
            .filter(|worker| matches!(worker.state, WorkerState::Away { .. }))
            .count();
        let attached = self.workers.values().filter(|worker| worker.is_attached()).count();
        vec![
            ("task queued", count(self.index.queues.len())),
            ("task assigned", count(assigned)),
            ("worker attached", count(attached)),
            ("worker away", count(away)),
            ("lease held", count(self.leases.len())),
        ]
    }

    fn ending(record: &Record) -> &'static str {
        match record {
            Record::Counters(_) => "counters ended",
            Record::Lease(_) => "lease ended",
            Record::Worker(_) => "worker lost",
            Record::Task(task) => match &task.state {
                TaskState::Ended(outcome) => outcome.end.of_task(),
                TaskState::Queued | TaskState::Assigned { .. } => "task live",
            },
        }
    }
}
