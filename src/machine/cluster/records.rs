//! The records of the cluster manager: what is stored of workers, tasks and leases, and the states each goes through.
//!
//! Used by the rest of this machine, read by the doors through `engine::reader`. Holds no rules. Every record stays below 3 KiB
//! encoded, since ids are at most 200 bytes, inline content 1 KiB and an outcome 2 KiB (an ended task keeps no content).

use crate::machine::content::Content;
use crate::machine::ids::{JobId, TaskKey, Timestamp, TypeName, WorkerId};
use crate::machine::outcome::Outcome;
use serde::{Deserialize, Serialize};

/// The most tasks one worker may run at once. Re-attaching asks for that many dispatches at once, and they wait in memory; more
/// processes than this on one machine is a mistake in its configuration.
pub const TASKS_MAX: u16 = 512;
/// The longest `worker_ip`, bytes: a host name's longest label, or any address.
pub const IP_MAX: usize = 64;
/// The longest `instance`, bytes: 32 random bytes in hexadecimal.
pub const INSTANCE_MAX: usize = 64;
/// The most endpoints of one lease: they and the ids around them must fit one record.
pub const ENDPOINTS_MAX: u16 = 256;
/// The longest reason of a cancellation that waits in a task's record, bytes; the record holds the task's content too.
pub const CANCEL_REASON_MAX: usize = 256;
/// The fingerprint of a task that was cancelled before it was submitted: no content has it.
const BARRED: [u8; 32] = [0; 32];

/// The ports a worker lends to jobs: `start <= port < end`. Empty when `end <= start`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The first port.
    pub start: u32,
    /// One past the last port, at most 65536.
    pub end: u32,
}

impl Ports {
    /// How many there are.
    pub fn len(self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// True when there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// True when the port is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.start..self.end).contains(&u32::from(port))
    }
}

/// What a worker says about itself when it attaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Address under which other parties reach its endpoints.
    pub ip: String,
    /// Task slots, 1 to [`TASKS_MAX`].
    pub max_tasks: u16,
    /// Ports it lends to jobs.
    pub ports: Ports,
    /// Random per worker process; made up by the door for a FedVision 0.1 worker, which sends none.
    pub instance: String,
    /// True for a FedVision 0.1 worker: it cannot kill a task, does not come back, and reports no attempts.
    pub legacy: bool,
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// It has a connection. Moved on by `ConnectionLost` (the door saw the stream end or fall silent) or by the next start of the
    /// manager. A crash in it leads to `Away`: connections do not survive the process.
    Attached,
    /// It has none and keeps its tasks. Moved on by `Attach` (it came back) or by `WorkerLost` (its grace time is over). A crash in
    /// it begins the grace time again.
    Away {
        /// When the connection was lost, or the manager started.
        since: Timestamp,
    },
    /// Its tasks and leases are gone; the record is history, kept for its session number. Moved on by `Attach` only.
    Lost {
        /// When it was given up.
        at: Timestamp,
    },
}

/// A worker of the cluster; its id is its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// What it said about itself.
    pub profile: Profile,
    /// Raised at every attach: what carries an older one is void.
    pub session: u64,
    /// Where the circle of ports goes on.
    pub next_port: u32,
    /// Where it stands.
    pub state: WorkerState,
}

impl Worker {
    /// True when it has a connection.
    pub fn is_attached(&self) -> bool {
        self.state == WorkerState::Attached
    }

    /// True when it was given up.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, WorkerState::Lost { .. })
    }
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    /// It waits for a slot. Moved on by placement or `Cancel`. A crash in it changes nothing.
    Queued,
    /// It is on a worker, or on its way there. Moved on by the worker's `Report`, or by the loss of the worker. A crash in it leads to
    /// another dispatch of the same attempt if the worker comes back without knowing it.
    Assigned {
        /// The worker.
        worker: WorkerId,
        /// Which attempt, from 1.
        attempt: u32,
    },
    /// It is over; the record is history.
    Ended(Outcome),
}

/// A task; its key is not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// What kind of task.
    pub task_type: TypeName,
    /// The encoded `fedvision.framework.Task`; empty once it has ended.
    pub content: Content,
    /// SHA-256 of the content: tells a repeated submit from another task under the same name. All zero for a task that was cancelled before
    /// it was submitted: such a record only says that it must not start.
    pub fingerprint: [u8; 32],
    /// The only worker it may run on, if it names one.
    pub assignee: Option<WorkerId>,
    /// Where it stands.
    pub state: TaskState,
    /// Why it is to end, when that was asked for while it ran; a lost worker's task then counts as cancelled.
    pub stopping: Option<String>,
    /// Attempts begun.
    pub attempts: u32,
    /// Attempts allowed when workers are lost.
    pub max_attempts: u32,
    /// Its place in the queue, kept when it is queued again.
    pub number: u64,
    /// When it was submitted.
    pub queued_at: Timestamp,
    /// When its state last changed.
    pub changed_at: Timestamp,
    /// The lease whose slot it uses.
    pub lease: Option<LeaseId>,
}

impl Task {
    /// True when it is over.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, TaskState::Ended(_))
    }

    /// A task that is cancelled before it was submitted, to be ended at once.
    pub(super) fn barred(number: u64, now: Timestamp) -> Self {
        Self {
            task_type: TypeName::parse("not_submitted").expect("a short word is a name"),
            content: Content::default(),
            fingerprint: BARRED,
            assignee: None,
            state: TaskState::Queued,
            stopping: None,
            attempts: 0,
            max_attempts: 1,
            number,
            queued_at: now,
            changed_at: now,
            lease: None,
        }
    }

    /// True when it was cancelled before it was submitted.
    pub fn is_barred(&self) -> bool {
        self.fingerprint == BARRED
    }

    /// Worker and attempt, when it is on one.
    pub fn assignment(&self) -> Option<(&WorkerId, u32)> {
        match &self.state {
            TaskState::Assigned { worker, attempt } => Some((worker, *attempt)),
            TaskState::Queued | TaskState::Ended(_) => None,
        }
    }
}

/// Who holds a lease: its name. Anonymous ones sort by age.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LeaseId {
    /// A FedVision 0.1 master, which does not say for which job.
    Anonymous(u64),
    /// A job.
    Job(JobId),
}

/// Where a lease stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseState {
    /// It takes a slot and its ports. Moved on by `ReleaseLease`, by the end of its task or `LeaseExpired` (anonymous ones), by another
    /// `AcquireLease` that finds no room once it is days old and has no task, or by the loss of its worker. A crash in it changes nothing.
    Held {
        /// The task that uses its slot.
        bound: Option<TaskKey>,
    },
    /// Its worker was lost: it takes nothing, and only says why the job's next task for that worker cannot run. Moved on by
    /// `ReleaseLease` or a new `AcquireLease`.
    Lost,
}

/// A slot and ports on a worker, held for a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Where the slot and the ports are.
    pub worker: WorkerId,
    /// The ports, at most [`ENDPOINTS_MAX`]; none once it is lost.
    pub ports: Vec<u16>,
    /// When it was granted.
    pub granted_at: Timestamp,
    /// Where it stands.
    pub state: LeaseState,
}

impl Lease {
    /// True when it takes a slot and no task uses it.
    pub fn is_unbound(&self) -> bool {
        self.state == LeaseState::Held { bound: None }
    }

    /// The task that uses its slot.
    pub fn bound(&self) -> Option<&TaskKey> {
        match &self.state {
            LeaseState::Held { bound } => bound.as_ref(),
            LeaseState::Lost => None,
        }
    }
}

/// What must not be given out twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Anonymous leases granted so far.
    pub anonymous: u64,
}
