//! The master's stored types as release 0.1.0 wrote them, in stored-format versions 1 and 2.
//!
//! Frozen copies, for the step to version 3; ids and times are plain here (a newtype encodes as what is in it). Never edited: they are what
//! the bytes of old directories mean. Nothing else may use them.
#![expect(missing_docs, reason = "the fields are those of the live types of the same name, as they were")]

use serde::{Deserialize, Serialize};

/// `machine::content::PayloadRef`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadRef {
    pub hash: [u8; 32],
    pub len: u64,
}

/// `machine::content::Content`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    Inline(Vec<u8>),
    Stored(PayloadRef),
}

/// `machine::plan::Plan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub endpoints: u16,
    pub workers: u32,
    pub wait_s: u32,
}

/// `machine::outcome::End`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Succeeded,
    Failed,
    Cancelled,
}

/// `machine::outcome::Outcome`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub end: End,
    pub reason: String,
    pub exit_code: Option<i32>,
    pub stderr_tail: String,
    pub worker: Option<String>,
    pub attempt: u32,
}

/// `machine::ids::TaskKey`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskKey {
    pub job: String,
    pub task: String,
}

/// `machine::master::Record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    Counter(u64),
    Job(Job),
    Task(Task),
    Participation(Participation),
}

/// `machine::master::records::Job`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub id: String,
    pub number: u64,
    pub job_type: String,
    pub config: Content,
    pub algorithm_config: Option<Content>,
    pub plan: Plan,
    pub submitted_at: u64,
    pub changed_at: u64,
    pub state: JobState,
    pub step: u32,
    pub tries: u32,
    pub note: String,
    pub lease: Option<Lease>,
    pub proposal: Option<Content>,
}

/// `machine::master::records::JobState`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    Leasing,
    Preparing,
    Proposing { legacy_call: bool },
    Running,
    Succeeded,
    Failed(Failure),
}

/// `machine::master::records::Failure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub reason: String,
    pub exit_code: Option<i32>,
    pub stderr_tail: String,
}

/// `machine::master::records::Lease`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub worker: String,
    pub host: String,
    pub ports: Vec<u16>,
}

/// `machine::master::records::Task`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub key: TaskKey,
    pub task_type: String,
    pub content: Option<Content>,
    pub origin: Origin,
    pub queued_at: u64,
    pub changed_at: u64,
    pub tries: u32,
    pub state: TaskState,
}

/// `machine::master::records::Origin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    Own,
    Won(String),
}

/// `machine::master::records::TaskState`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    Held,
    Queued,
    Submitted { watched: bool },
    Cancelling { reason: String },
    Ended(Outcome),
}

/// `machine::master::records::Participation`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participation {
    pub proposal: String,
    pub job_type: String,
    pub offered_at: u64,
    pub changed_at: u64,
    pub state: ParticipationState,
}

/// `machine::master::records::ParticipationState`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParticipationState {
    Offered,
    Won(TaskKey),
    Declined(String),
    Missed(String),
}

/// `machine::master::Event`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    JobAccepted {
        id: String,
        number: u64,
        job_type: String,
        config: Content,
        algorithm_config: Option<Content>,
        plan: Plan,
        at: u64,
    },
    JobLeased {
        job: String,
        lease: Lease,
        at: u64,
    },
    JobProposing {
        job: String,
        proposal: Content,
        at: u64,
    },
    JobProposedLegacy {
        job: String,
    },
    JobProposedAgain {
        job: String,
    },
    JobRunning {
        job: String,
        at: u64,
    },
    JobNoted {
        job: String,
        note: String,
    },
    JobSucceeded {
        job: String,
        at: u64,
    },
    JobFailed {
        job: String,
        failure: Failure,
        at: u64,
    },
    LeaseReleased {
        job: String,
    },
    TaskHeld {
        key: TaskKey,
        task_type: String,
        content: Content,
        at: u64,
    },
    TaskReleased {
        key: TaskKey,
        at: u64,
    },
    TaskRefused {
        key: TaskKey,
    },
    TaskSubmitted {
        key: TaskKey,
        watched: bool,
        at: u64,
    },
    TaskCancelling {
        key: TaskKey,
        reason: String,
        at: u64,
    },
    TaskEnded {
        key: TaskKey,
        outcome: Outcome,
        at: u64,
    },
    ProposalOffered {
        proposal: String,
        job_type: String,
        at: u64,
    },
    ProposalDeclined {
        proposal: String,
        job_type: String,
        reason: String,
        at: u64,
    },
    ProposalWon {
        proposal: String,
        key: TaskKey,
        task_type: String,
        content: Content,
        at: u64,
    },
    ProposalMissed {
        proposal: String,
        reason: String,
        at: u64,
    },
}
