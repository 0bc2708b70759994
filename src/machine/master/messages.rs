//! What the master is told, what it records, what it asks for and what it answers.
//!
//! Plain data, made and read by `decide`, `apply` and the doors; the events are stored. Holds no rules.

use super::JOBS_MAX;
use super::federation::{Announced, News, Peer, Report, Withdrawal};
use super::records::{Failure, Lease};
use super::spec::{KeyHash, Provenance, Spec};
use crate::machine::content::{Content, PayloadRef};
use crate::machine::ids::{JobId, PartyId, ProposalId, TaskId, TaskKey, Timestamp, TypeName};
use crate::machine::outcome::Outcome;
use serde::{Deserialize, Serialize};

/// Requests and outcomes.
#[derive(Clone, Debug)]
pub enum Command {
    /// Accept a job. Its config is checked already, its plan made; config and algorithm config have at most
    /// [`crate::machine::content::INLINE_MAX`] bytes inline together.
    Submit {
        /// What it is.
        spec: Spec,
        /// Where it comes from.
        provenance: Provenance,
        /// SHA-256 of what was submitted, when there is a key.
        fingerprint: [u8; 32],
    },
    /// Run an ended job again, as a new one that names it.
    Rerun {
        /// Which.
        job: JobId,
        /// Where the request comes from; its parent and attempt are filled in.
        provenance: Provenance,
        /// SHA-256 of the request, when there is a key.
        fingerprint: [u8; 32],
    },
    /// End a job: nothing of it starts any more, what runs is stopped.
    Cancel {
        /// Which.
        job: JobId,
        /// One line.
        reason: String,
    },
    /// Hold a job back that has no tasks yet.
    Hold {
        /// Which.
        job: JobId,
    },
    /// Let a held job go on.
    Release {
        /// Which.
        job: JobId,
    },
    /// The time has come before which a job was not to begin.
    Wake {
        /// Whose.
        job: JobId,
        /// The step that set the timer.
        step: u32,
    },
    /// A job's deadline has passed.
    DeadlinePassed {
        /// Whose.
        job: JobId,
    },
    /// Remove an ended job.
    Purge {
        /// Which.
        job: JobId,
        /// All its tasks, as the store has them.
        tasks: Vec<TaskKey>,
        /// All parties that were chosen for it, as the store has them.
        parties: Vec<PartyId>,
    },
    /// What a purged job left elsewhere is gone.
    Forgotten {
        /// Of which.
        job: JobId,
    },
    /// Remove ended participations.
    PurgeProposals {
        /// Each with the task that was won, at most [`super::purge::SWEEP_MAX`].
        proposals: Vec<(ProposalId, Option<TaskKey>)>,
    },
    /// Remove used keys of purged jobs.
    SweepTombstones {
        /// Which, at most [`super::purge::SWEEP_MAX`].
        keys: Vec<KeyHash>,
        /// Only those whose job was purged before.
        before: Timestamp,
    },
    /// The cluster manager's answer about endpoints; `Err` is its reason never to grant them.
    Leased {
        /// Whose.
        job: JobId,
        /// The step that asked.
        step: u32,
        /// The answer.
        result: Result<Lease, String>,
    },
    /// The lease is back at the manager, and nothing of the job is left here.
    LeaseReleased {
        /// Whose.
        job: JobId,
    },
    /// Compiling and packing has ended.
    Prepared {
        /// Of what.
        job: JobId,
        /// The step that asked.
        step: u32,
        /// The packed tasks, or why there are none.
        result: Result<Packed, Failure>,
    },
    /// The coordinator is a FedVision 0.1 one; the call goes out once this is answered.
    LegacyProposal {
        /// Of what.
        job: JobId,
        /// The step that asked.
        step: u32,
    },
    /// The coordinator's verdict.
    Verdict {
        /// On what.
        job: JobId,
        /// The step that asked.
        step: u32,
        /// The verdict.
        verdict: Verdict,
    },
    /// Say why a job waits; refused once the step is over, so that who waits gives up.
    Note {
        /// Which.
        job: JobId,
        /// The step that waits.
        step: u32,
        /// One line.
        note: String,
    },
    /// The coordinator announced a proposal.
    Offered {
        /// Which.
        proposal: ProposalId,
        /// Of what type.
        job_type: TypeName,
    },
    /// What fetching came to.
    Fetched {
        /// Which.
        proposal: ProposalId,
        /// The task, or why there is none.
        result: Result<WonTask, String>,
    },
    /// The cluster manager answered a submission.
    Submitted {
        /// Which task.
        key: TaskKey,
        /// The `tries` of the submission.
        tries: u32,
        /// What it said.
        answer: SubmitAnswer,
    },
    /// A task has ended.
    TaskEnded {
        /// Which.
        key: TaskKey,
        /// How.
        outcome: Outcome,
    },
    /// The coordinator told how a job's proposal and the chosen parties stand.
    News {
        /// Whose.
        job: JobId,
        /// What.
        news: News,
    },
    /// The coordinator has the report on a task of this proposal, or will never take it.
    Reported {
        /// The proposal.
        proposal: ProposalId,
        /// The number of the report.
        number: u64,
    },
    /// The coordinator knows that a job is no longer wanted, or will never hear it.
    Withdrawn {
        /// Which.
        job: JobId,
    },
    /// The coordinator says that a task is no longer wanted by its initiator.
    StopOrdered {
        /// The proposal.
        proposal: ProposalId,
        /// The task.
        key: TaskKey,
        /// Why.
        reason: String,
    },
}

/// The result of compiling and packing.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The encoded `Proposal.REQ`, when there is a proposal.
    pub proposal: Option<Content>,
    /// Tasks for this party's own cluster.
    pub local: Vec<LocalTask>,
}

/// A task for this party's own cluster.
#[derive(Clone, Debug)]
pub struct LocalTask {
    /// Its id.
    pub task: TaskId,
    /// Its type.
    pub task_type: TypeName,
    /// The encoded `fedvision.framework.Task`.
    pub content: Content,
}

/// A task won in a proposal.
#[derive(Clone, Debug)]
pub struct WonTask {
    /// Its ids.
    pub key: TaskKey,
    /// Its type.
    pub task_type: TypeName,
    /// The encoded `fedvision.framework.Task`, unchanged.
    pub content: Content,
}

/// What a proposal came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Enough parties; the chosen ones have their tasks.
    Accepted,
    /// It was refused, in words.
    Refused(String),
    /// A FedVision 0.1 coordinator may or may not have seen it.
    Unknown,
}

/// What the cluster manager said to a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitAnswer {
    /// It has the task, durably, and tells how it ends.
    Taken,
    /// A FedVision 0.1 manager has it: its end will never be known.
    TakenUnwatched,
    /// It does not take it now.
    Refused,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are those of the records they change")]
#[expect(
    clippy::large_enum_variant,
    reason = "an event is written and dropped; a box would cost an allocation to save a copy"
)]
pub enum Event {
    /// A job was accepted.
    JobAccepted {
        id: JobId,
        number: u64,
        spec: Spec,
        provenance: Provenance,
        at: Timestamp,
    },
    /// It has its endpoints.
    JobLeased { job: JobId, lease: Lease, at: Timestamp },
    /// It is compiled and packed, and is proposed now.
    JobProposing { job: JobId, proposal: Content, at: Timestamp },
    /// The call to a FedVision 0.1 coordinator goes out.
    JobProposedLegacy { job: JobId },
    /// It is proposed again.
    JobProposedAgain { job: JobId },
    /// Its tasks may run.
    JobRunning { job: JobId, at: Timestamp },
    /// Why it waits, or what is not known about it.
    JobNoted { job: JobId, note: String },
    /// All its own tasks ended well.
    JobSucceeded { job: JobId, at: Timestamp },
    /// It failed; something of it may still run. (0.1.0 did not wait for that.)
    JobFailed {
        job: JobId,
        failure: Failure,
        at: Timestamp,
        lingers: bool,
    },
    /// A user ended it.
    JobCancelled { job: JobId, reason: String, at: Timestamp },
    /// A user holds it back.
    JobHeld { job: JobId, at: Timestamp },
    /// A user let it go on.
    JobReleased { job: JobId, at: Timestamp },
    /// It may begin now.
    JobWoken { job: JobId, at: Timestamp },
    /// Another job tries again what it failed to do.
    JobRepeated { job: JobId, successor: JobId },
    /// A submission's key is taken by the job it made.
    KeyTaken { key: KeyHash, job: JobId, fingerprint: [u8; 32] },
    /// It is removed from history; its key is kept a while.
    JobPurged {
        job: JobId,
        number: u64,
        key: Option<KeyHash>,
        payloads: Vec<PayloadRef>,
        at: Timestamp,
    },
    /// What another party's job left at the cluster is to go.
    ForgetBegun { job: JobId, at: Timestamp },
    /// What a purged job left elsewhere is gone.
    JobForgotten { job: JobId },
    /// A task is removed from history.
    TaskPurged { key: TaskKey },
    /// A participation is removed from history.
    ProposalPurged { proposal: ProposalId },
    /// The key of a purged job is free again.
    KeyDropped { key: KeyHash },
    /// Its endpoints are given back.
    LeaseReleased { job: JobId },
    /// A task was packed and waits for the verdict.
    TaskHeld {
        key: TaskKey,
        task_type: TypeName,
        content: Content,
        at: Timestamp,
    },
    /// A packed task may go.
    TaskReleased { key: TaskKey, at: Timestamp },
    /// The manager refused it for now.
    TaskRefused { key: TaskKey },
    /// The manager has it.
    TaskSubmitted { key: TaskKey, watched: bool, at: Timestamp },
    /// It is to be stopped.
    TaskCancelling { key: TaskKey, reason: String, at: Timestamp },
    /// It has ended.
    TaskEnded { key: TaskKey, outcome: Outcome, at: Timestamp },
    /// A proposal was announced and is wanted.
    ProposalOffered {
        proposal: ProposalId,
        job_type: TypeName,
        at: Timestamp,
    },
    /// A proposal was announced and is not wanted.
    ProposalDeclined {
        proposal: ProposalId,
        job_type: TypeName,
        reason: String,
        at: Timestamp,
    },
    /// A task was won; it is queued.
    ProposalWon {
        proposal: ProposalId,
        key: TaskKey,
        task_type: TypeName,
        content: Content,
        at: Timestamp,
    },
    /// No task came of it.
    ProposalMissed {
        proposal: ProposalId,
        reason: String,
        at: Timestamp,
    },
    /// What is known of a job's proposal.
    JobAnnounced { job: JobId, announced: Box<Announced> },
    /// How a chosen party stands.
    PeerChanged { peer: Box<Peer> },
    /// What was known of a purged job's proposal is removed.
    AnnouncedPurged { job: JobId },
    /// So is a party that was chosen for it.
    PeerPurged { job: JobId, party: PartyId },
    /// The coordinator is to be told of a task.
    ReportOwed { proposal: ProposalId, report: Box<Report> },
    /// It was told, or will never take it.
    ReportSent { proposal: ProposalId },
    /// The coordinator is to be told that a job is no longer wanted.
    WithdrawalOwed { job: JobId, withdrawal: Box<Withdrawal> },
    /// It was told, or will never take it.
    WithdrawalSent { job: JobId },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "fields are those of the records that justify them")]
pub enum Effect {
    /// Ask the cluster manager for endpoints until it grants them.
    AcquireLease { job: JobId, step: u32, endpoints: u16 },
    /// Give them back, if it has any, once nobody here works for it any more.
    ReleaseLease { job: JobId },
    /// Compile and pack.
    Prepare { job: JobId, step: u32 },
    /// Propose. With `legacy_call` a call may be out already, at a coordinator that cannot join it.
    Propose {
        job: JobId,
        step: u32,
        legacy_call: bool,
        tries: u32,
    },
    /// Submit a task to the cluster manager.
    Submit { key: TaskKey, tries: u32 },
    /// Learn how a task ends.
    Watch { key: TaskKey },
    /// Stop a task at the cluster manager.
    Cancel { key: TaskKey, reason: String },
    /// Fetch the task of a proposal.
    Fetch { proposal: ProposalId },
    /// Wake a job at a time.
    WakeAt { job: JobId, step: u32, at: Timestamp },
    /// Say when a job's deadline has passed.
    DeadlineAt { job: JobId, at: Timestamp },
    /// Whoever works for an earlier step of a job gives up; once it has ended, its timers too. Not asked again after a crash: nobody is left
    /// who could work for an earlier step.
    GiveUp { job: JobId, ended: bool },
    /// Remove what a purged job left elsewhere: logs at the cluster manager, and the compile directory of that number.
    Forget { job: JobId, number: Option<u64> },
    /// Bring the news of a job; 0 asks for all there is.
    Follow { job: JobId, after: u64 },
    /// Tell the coordinator how a task stands.
    Report { proposal: ProposalId, number: u64 },
    /// Tell the coordinator that a job is no longer wanted.
    Withdraw { job: JobId },
}

/// The answer to an accepted command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The job is recorded under this id.
    Accepted(JobId),
    /// The submission came before, and made this job.
    Replayed(JobId),
    /// Recorded.
    Done,
    /// Nothing to record: it was known.
    Known,
}

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The outcome of an attempt that is over.
    #[error("{0} has moved on; this outcome is late")]
    Late(String),
    /// Too much is under way; later it may be taken.
    #[error("{JOBS_MAX} jobs are under way, which is the most; try again later")]
    Full,
    /// The key was used for another submission.
    #[error("the idempotency key was used for another submission, which made job {first}; take another key")]
    KeyConflict {
        /// The job it made.
        first: JobId,
    },
    /// The key's job is purged.
    #[error("the idempotency key was used for job {first}, which has been purged; take another key")]
    KeyPurged {
        /// The job it made.
        first: JobId,
    },
    /// There is no such job.
    #[error("this party has no job {0}")]
    NotFound(JobId),
    /// The job has ended.
    #[error("job {job} has ended: {state}")]
    Ended {
        /// Which.
        job: JobId,
        /// How.
        state: &'static str,
    },
    /// The job has not ended, or its end is not complete.
    #[error("job {job} is {state}, and something of it is still under way; cancel it or wait")]
    NotEnded {
        /// Which.
        job: JobId,
        /// Where it stands.
        state: &'static str,
    },
    /// The job is past the states in which it can be held.
    #[error("job {job} is {state}; only a job that is waiting, leasing or preparing can be held")]
    NotHoldable {
        /// Which.
        job: JobId,
        /// Where it stands.
        state: &'static str,
    },
    /// The job is not held.
    #[error("job {job} is {state}, not held")]
    NotHeld {
        /// Which.
        job: JobId,
        /// Where it stands.
        state: &'static str,
    },
    /// A field breaks its limits.
    #[error("{0}")]
    Malformed(String),
}
