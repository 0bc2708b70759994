//! What goes in and out of the cluster manager's machine: rules, commands, replies, rejections, events and effects.
//!
//! Made and read by the doors in `crate::cluster`; the events are stored. Holds no rules.

use super::WORKERS_MAX;
use super::records::{LeaseId, Profile, Task};
use crate::machine::content::Content;
use crate::machine::ids::{JobId, TaskKey, Timestamp, TypeName, WorkerId};
use crate::machine::outcome::Outcome;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How long a worker without a connection keeps its tasks, ms.
    pub grace_ms: u64,
    /// How long an anonymous lease waits for its task, ms.
    pub unbound_ms: u64,
    /// How long a job's lease may be without a task, ms. Its master gives it back; this is for masters that never come back, and longer than a job
    /// can take from its lease to its task.
    pub job_unbound_ms: u64,
    /// How often a task is begun when workers are lost, at least 1.
    pub max_attempts: u32,
    /// The most tasks that wait. Each takes about 1 KiB of memory and may bring 1 KiB of content.
    pub queue_max: usize,
}

impl Default for Rules {
    /// 10 s as FedVision 0.1 at most has; 10 min; 2 days, of which the longest proposal takes one; one attempt; 2 million.
    fn default() -> Self {
        Self {
            grace_ms: 10_000,
            unbound_ms: 600_000,
            job_unbound_ms: 2 * 24 * 3_600_000,
            max_attempts: 1,
            queue_max: 2_000_000,
        }
    }
}

/// A worker introduces itself.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Its name.
    pub worker: WorkerId,
    /// The rest of what it says about itself.
    pub profile: Profile,
    /// Tasks and attempts it has accepted and whose reports were not acknowledged.
    pub known: Vec<(TaskKey, u32)>,
}

/// A task to be run.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Its name.
    pub key: TaskKey,
    /// What kind of task.
    pub task_type: TypeName,
    /// The encoded `fedvision.framework.Task`.
    pub content: Content,
    /// SHA-256 of it.
    pub fingerprint: [u8; 32],
    /// The worker it must run on, if any.
    pub assignee: Option<WorkerId>,
}

/// A request or an outcome.
#[derive(Clone, Debug)]
pub enum Command {
    /// The manager has started: nobody is connected. The first command of a process.
    Started,
    /// A worker has opened its stream. Repeat while the answer is [`Reply::Again`].
    Attach(Attach),
    /// A worker's stream has ended or fallen silent.
    ConnectionLost {
        /// The worker.
        worker: WorkerId,
        /// The session of that stream.
        session: u64,
    },
    /// A worker's grace time is over. Repeat while the answer is [`Reply::Again`].
    WorkerLost {
        /// The worker.
        worker: WorkerId,
        /// Its session when the grace time began.
        session: u64,
    },
    /// A master hands a task over.
    Submit(Submission),
    /// A worker says how an attempt ended.
    Report {
        /// The worker.
        worker: WorkerId,
        /// The task.
        key: TaskKey,
        /// The attempt; a FedVision 0.1 worker knows none and means its current one.
        attempt: Option<u32>,
        /// How it ended.
        outcome: Outcome,
    },
    /// A task is not wanted any more.
    Cancel {
        /// The task.
        key: TaskKey,
        /// Why, one line.
        reason: String,
    },
    /// A job wants a slot and endpoints.
    AcquireLease {
        /// The job; `None` for a FedVision 0.1 master, which does not say.
        job: Option<JobId>,
        /// How many endpoints.
        endpoints: u16,
    },
    /// A job gives its lease back.
    ReleaseLease {
        /// The job.
        job: JobId,
    },
    /// An anonymous lease has waited long enough for its task.
    LeaseExpired {
        /// The lease.
        lease: LeaseId,
    },
    /// Go on with placement, see [`Effect::PlaceMore`].
    Place,
    /// Records of ended tasks are not wanted any more. What has not ended stays; [`super::STEP_MAX`] tasks at most.
    Forget {
        /// All tasks of this job must have ended.
        job: Option<JobId>,
        /// The tasks.
        tasks: Vec<TaskKey>,
    },
}

/// The answer to a command that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Taken.
    Done,
    /// Nothing changed, since it speaks of something that is over.
    Void,
    /// A part is done; send the same command again.
    Again,
    /// The worker is attached.
    Attached {
        /// The session of this stream.
        session: u64,
    },
    /// The task is in the queue, on a worker, or over.
    Submitted {
        /// True when it was known before.
        repeated: bool,
    },
    /// Whether the task to be cancelled was submitted before. If not, it never starts, whatever comes later.
    Cancelled {
        /// True when it was.
        known: bool,
    },
    /// The lease.
    Lease {
        /// Where it is.
        worker: WorkerId,
        /// `<worker ip>:<port>`, as many as asked for.
        endpoints: Vec<String>,
    },
}

/// Why the rules do not allow a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Another task has this name.
    #[error("task {0} is known with other content")]
    Conflict(TaskKey),
    /// The task names a worker that is not here.
    #[error("assignee {0} is not a worker of this cluster")]
    UnknownAssignee(WorkerId),
    /// The task's endpoints are gone.
    #[error("the lease of job {job} was lost with worker {worker}")]
    LeaseLost {
        /// The job.
        job: JobId,
        /// The worker.
        worker: WorkerId,
    },
    /// Too many tasks wait.
    #[error("{0} tasks wait already")]
    QueueFull(usize),
    /// A live worker has this name.
    #[error("worker {0} is attached already; stop the other process or use another name")]
    AlreadyEnrolled(WorkerId),
    /// The same process says something else about itself.
    #[error("worker {0} came back with other slots, ports or address")]
    Changed(WorkerId),
    /// Too many workers.
    #[error("{WORKERS_MAX} workers are known already")]
    TooManyWorkers,
    /// A report of a worker that is not here.
    #[error("worker {0} is not known")]
    UnknownWorker(WorkerId),
    /// A job cannot be forgotten yet.
    #[error("task {0} has not ended")]
    NotEnded(TaskKey),
    /// No lease as long as no other worker comes, and why.
    #[error("{0}")]
    NotGranted(String),
    /// No lease until others go back, and why.
    #[error("{0}")]
    Busy(String),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The manager started; every worker is away.
    Started {
        /// When.
        at: Timestamp,
    },
    /// A worker has a connection.
    WorkerAttached {
        /// The worker.
        worker: WorkerId,
        /// What it said about itself.
        profile: Profile,
        /// The session of the connection.
        session: u64,
        /// Where its circle of ports goes on.
        next_port: u32,
    },
    /// A worker's connection is gone.
    WorkerAway {
        /// The worker.
        worker: WorkerId,
        /// When.
        at: Timestamp,
    },
    /// A worker was given up; it holds nothing any more.
    WorkerLost {
        /// The worker.
        worker: WorkerId,
        /// When.
        at: Timestamp,
    },
    /// A task is in the queue.
    TaskSubmitted {
        /// Its name.
        key: TaskKey,
        /// Its record.
        task: Arc<Task>,
    },
    /// A task has a worker.
    TaskAssigned {
        /// The task.
        key: TaskKey,
        /// The worker.
        worker: WorkerId,
        /// When.
        at: Timestamp,
    },
    /// A task has lost its worker and waits for another attempt.
    TaskRequeued {
        /// The task.
        key: TaskKey,
        /// When.
        at: Timestamp,
    },
    /// A running task is to end.
    TaskStopping {
        /// The task.
        key: TaskKey,
        /// Why.
        reason: String,
    },
    /// A task is over.
    TaskEnded {
        /// The task.
        key: TaskKey,
        /// How it ended.
        outcome: Outcome,
        /// When.
        at: Timestamp,
    },
    /// A job has a slot and ports.
    LeaseGranted {
        /// Its name.
        lease: LeaseId,
        /// Where.
        worker: WorkerId,
        /// The ports.
        ports: Vec<u16>,
        /// When.
        at: Timestamp,
    },
    /// A lease was given back or has expired.
    LeaseReleased {
        /// Its name.
        lease: LeaseId,
    },
    /// A job's lease went with its worker.
    LeaseLost {
        /// Its name.
        lease: LeaseId,
    },
    /// Nothing is kept of an ended task any more.
    TaskForgotten {
        /// The task.
        key: TaskKey,
    },
}

/// Something to be done outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send the task to its worker. Lost in a crash: the worker's next attach asks again.
    Dispatch {
        /// The worker.
        worker: WorkerId,
        /// Its connection.
        session: u64,
        /// The task.
        key: TaskKey,
        /// The attempt.
        attempt: u32,
    },
    /// Have the worker end the task. Lost in a crash: the worker's next attach asks again.
    Kill {
        /// The worker.
        worker: WorkerId,
        /// Its connection.
        session: u64,
        /// The task.
        key: TaskKey,
        /// The attempt.
        attempt: u32,
        /// Why, one line.
        reason: String,
    },
    /// Close a connection that another one has replaced. Lost in a crash together with the connection.
    DropConnection {
        /// The worker.
        worker: WorkerId,
        /// The connection.
        session: u64,
    },
    /// Tell those who wait for the task. Lost in a crash together with their streams.
    Ended {
        /// The task.
        key: TaskKey,
    },
    /// Send [`Command::WorkerLost`] at this time.
    GraceAt {
        /// The worker.
        worker: WorkerId,
        /// Its session.
        session: u64,
        /// When.
        at: Timestamp,
    },
    /// Send [`Command::LeaseExpired`] at this time.
    LeaseExpiryAt {
        /// The lease.
        lease: LeaseId,
        /// When.
        at: Timestamp,
    },
    /// Send [`Command::Place`]: one command's share of assignments is used up. Lost in a crash: every attach places.
    PlaceMore,
}
