//! The master's records: what is stored of a job, a task of the cluster queue and a proposal this party was asked to join.
//!
//! Each encodes to less than the store's value limit of 4 KiB: ids are bounded, contents are inline up to 512 bytes, texts are clipped.

pub use super::spec::{KeyHash, Provenance, Spec};

use crate::machine::Seq;
use crate::machine::content::Content;
use crate::machine::ids::{JobId, ProposalId, TaskKey, Timestamp, TypeName, WorkerId};
use crate::machine::outcome::Outcome;
use serde::{Deserialize, Serialize};

/// A job this party initiated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id, `<party>-<YYYYmmddHHMMSS>-<n>`.
    pub id: JobId,
    /// The `n` of its id; never given twice in a data directory.
    pub number: u64,
    /// What it was asked to be.
    pub spec: Spec,
    /// Where it came from.
    pub provenance: Provenance,
    /// When it was accepted.
    pub submitted_at: Timestamp,
    /// When it entered its state.
    pub changed_at: Timestamp,
    /// Where it stands.
    pub state: JobState,
    /// Raised by every change of state and every new try: an outcome that carries another step is late and void.
    pub step: u32,
    /// How often the present state's call was refused.
    pub tries: u32,
    /// Why it waits, or what is not known about it; empty when there is nothing to say.
    pub note: String,
    /// What it holds at the cluster manager, until it is given back.
    pub lease: Option<Lease>,
    /// Something of it may be left that is to be gone before anything else is asked for: endpoints at the cluster manager, also those it may hold
    /// there without knowing, tasks that are stopped, a compile step that ends.
    pub returning: bool,
    /// The packed tasks of its proposal, while they may still have to be sent.
    pub proposal: Option<Content>,
    /// The states it entered, in order; at most [`STEPS_MAX`], the newest.
    pub steps: Vec<Step>,
    /// The job that tries again what this one failed to do.
    pub successor: Option<JobId>,
    /// Number of the last event that changed it.
    pub last_event: Seq,
}

/// The most steps kept with a job: a job has eight unless it is held again and again.
pub const STEPS_MAX: usize = 16;

/// A state that a job entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub state: StepName,
    /// When.
    pub at: Timestamp,
}

/// A [`JobState`] without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "they are those of JobState")]
pub enum StepName {
    Waiting,
    Held,
    Leasing,
    Preparing,
    Proposing,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl StepName {
    /// All, in the order a job may walk through them.
    pub const ALL: [StepName; 9] = [
        StepName::Waiting,
        StepName::Held,
        StepName::Leasing,
        StepName::Preparing,
        StepName::Proposing,
        StepName::Running,
        StepName::Succeeded,
        StepName::Failed,
        StepName::Cancelled,
    ];

    /// The state's name in the API.
    pub fn name(self) -> &'static str {
        match self {
            StepName::Waiting => "waiting",
            StepName::Held => "held",
            StepName::Leasing => "leasing",
            StepName::Preparing => "preparing",
            StepName::Proposing => "proposing",
            StepName::Running => "running",
            StepName::Succeeded => "success",
            StepName::Failed => "failed",
            StepName::Cancelled => "cancelled",
        }
    }

    /// True for the states nothing leads out of.
    pub fn is_final(self) -> bool {
        matches!(self, StepName::Succeeded | StepName::Failed | StepName::Cancelled)
    }
}

/// Where a job stands. `docs/state_machine.md` draws it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Is not to begin yet. A timer moves it on. A crash here sets the timer again.
    Waiting {
        /// When it may begin.
        until: Timestamp,
    },
    /// A user holds it back; what it had at the cluster manager goes back, and its compile step ends. A user moves it on. A crash here changes nothing.
    Held,
    /// Waits for endpoints and a slot at the cluster manager. The submitter moves it on with the lease. A crash here asks again under the
    /// job's id, which our manager answers with the same lease.
    Leasing,
    /// Is compiled and packed. The runner moves it on. A crash here compiles again in a clean directory.
    Preparing,
    /// Is proposed to the other parties. The runner moves it on with the coordinator's verdict. A crash here joins the open proposal at our
    /// coordinator; at a FedVision 0.1 coordinator the outcome is unknown.
    Proposing {
        /// A call to a FedVision 0.1 coordinator may be out: it must not be sent twice.
        legacy_call: bool,
    },
    /// Its tasks are in the cluster queue. The ends of its own tasks move it on. A crash here sends what was not sent and watches the rest.
    Running,
    /// All its own tasks ended well. Final; stays in memory until its lease is given back.
    Succeeded,
    /// It could not be run, or a task of its own failed. Final; stays in memory until its lease is given back.
    Failed(Failure),
    /// A user ended it. What is not at the cluster manager yet never gets there, what is there is stopped. Final; stays in memory until nothing of
    /// it runs and its lease is given back.
    Cancelled {
        /// One line, in the user's words.
        reason: String,
    },
}

impl JobState {
    /// True for the states nothing leads out of.
    pub fn is_final(&self) -> bool {
        self.step_name().is_final()
    }

    /// The state's name in the API.
    pub fn name(&self) -> &'static str {
        self.step_name().name()
    }

    /// The state without what it carries.
    pub fn step_name(&self) -> StepName {
        match self {
            JobState::Waiting { .. } => StepName::Waiting,
            JobState::Held => StepName::Held,
            JobState::Leasing => StepName::Leasing,
            JobState::Preparing => StepName::Preparing,
            JobState::Proposing { .. } => StepName::Proposing,
            JobState::Running => StepName::Running,
            JobState::Succeeded => StepName::Succeeded,
            JobState::Failed(_) => StepName::Failed,
            JobState::Cancelled { .. } => StepName::Cancelled,
        }
    }
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One line.
    pub reason: String,
    /// Exit code of the process that failed, if one did.
    pub exit_code: Option<i32>,
    /// Its last lines of stderr.
    pub stderr_tail: String,
}

impl Failure {
    /// A failure without a process.
    pub fn because(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            exit_code: None,
            stderr_tail: String::new(),
        }
    }
}

/// Endpoints and a slot at the cluster manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The worker that lends them; the job's own tasks are assigned to it.
    pub worker: WorkerId,
    /// Host of the endpoints.
    pub host: String,
    /// Their ports.
    pub ports: Vec<u16>,
}

impl Lease {
    /// The longest host taken, bytes.
    pub const HOST_MAX: usize = 64;
    /// The most endpoints a job can have.
    pub const PORTS_MAX: usize = 64;

    /// From the manager's answer.
    ///
    /// # Errors
    /// What is wrong with it: no endpoint may lack a port, all must be on one host, sizes are bounded.
    pub fn parse(worker: &str, endpoints: &[String]) -> Result<Self, String> {
        let worker = WorkerId::parse(worker).map_err(|error| error.to_string())?;
        if endpoints.len() > Self::PORTS_MAX {
            return Err(format!("{} endpoints are more than {}", endpoints.len(), Self::PORTS_MAX));
        }
        let mut lease = Lease {
            worker,
            host: String::new(),
            ports: Vec::new(),
        };
        for endpoint in endpoints {
            let (host, port) = endpoint
                .rsplit_once(':')
                .ok_or_else(|| format!("endpoint {endpoint:?} has no port"))?;
            let port: u16 = port.parse().map_err(|_| format!("endpoint {endpoint:?} has no valid port"))?;
            if host.len() > Self::HOST_MAX || host.chars().any(char::is_control) {
                return Err("the host of an endpoint is too long or not printable".to_owned());
            }
            if !lease.ports.is_empty() && lease.host != host {
                return Err("the endpoints are on different hosts".to_owned());
            }
            host.clone_into(&mut lease.host);
            lease.ports.push(port);
        }
        Ok(lease)
    }

    /// `host:port` each.
    pub fn endpoints(&self) -> Vec<String> {
        self.ports.iter().map(|port| format!("{}:{port}", self.host)).collect()
    }
}

/// A task in the queue towards this party's cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Job and task id.
    pub key: TaskKey,
    /// What the worker must know to run it.
    pub task_type: TypeName,
    /// The encoded `fedvision.framework.Task`, until it has ended.
    pub content: Option<Content>,
    /// Where it came from.
    pub origin: Origin,
    /// When it came into the queue.
    pub queued_at: Timestamp,
    /// When it entered its state.
    pub changed_at: Timestamp,
    /// How often its submission was refused.
    pub tries: u32,
    /// Where it stands.
    pub state: TaskState,
    /// Number of the last event that changed it.
    pub last_event: Seq,
}

/// Where a task came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A local task of a job of this party.
    Own,
    /// Won in a proposal, of this or another party.
    Won(ProposalId),
}

/// Where a task of the cluster queue stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    /// Packed, waits for the verdict on its job's proposal. Moved on by the verdict. A crash changes nothing.
    Held,
    /// To be submitted. The submitter moves it on. A crash submits it again; our manager takes it once.
    Queued,
    /// The cluster manager has it. The watch moves it on. A crash watches again.
    Submitted {
        /// False at a FedVision 0.1 manager, which does not tell how tasks end.
        watched: bool,
    },
    /// To be stopped. The submitter moves it on. A crash asks again.
    Cancelling {
        /// Why.
        reason: String,
    },
    /// It has ended. Final.
    Ended(Outcome),
}

/// A proposal this party was asked to take part in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participation {
    /// The coordinator's id of it.
    pub proposal: ProposalId,
    /// The job's type.
    pub job_type: TypeName,
    /// When it was first announced.
    pub offered_at: Timestamp,
    /// When it entered its state.
    pub changed_at: Timestamp,
    /// Where it stands.
    pub state: ParticipationState,
    /// Number of the last event that changed it.
    pub last_event: Seq,
}

/// Where a participation stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParticipationState {
    /// Announced and wanted: the task is being fetched. The subscriber moves it on. A crash fetches again.
    Offered,
    /// A task was won; it is in the cluster queue. Final.
    Won(TaskKey),
    /// This party's rule did not want it. Final.
    Declined(String),
    /// No task came of it: drawn out, cancelled, closed meanwhile. Final.
    Missed(String),
}

/// What a submission with an `Idempotency-Key` came to. Never live: it is read when the key comes again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The job it made.
    pub job: JobId,
    /// SHA-256 of what was submitted: the same key with something else is a mistake.
    pub fingerprint: [u8; 32],
    /// When the job was purged; the key is kept a while after that.
    pub purged_at: Option<Timestamp>,
}

/// A purged job that has left something elsewhere: logs at the cluster manager, a compile directory. Live until it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// Which.
    pub job: JobId,
    /// Its number, the name of its compile directory; none for another party's job.
    pub number: Option<u64>,
    /// When it was purged.
    pub at: Timestamp,
}
