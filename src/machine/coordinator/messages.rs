//! What the coordinator is told, what it records, what it asks for and what it answers.
//!
//! Plain data, made and read by `decide`, `apply` and the doors; the rules are in the files beside this one.

use super::{
    Assignment, AssignmentState, Course, INSTANCE_MAX, Leftover, ORDERS_MAX, Order, PARTICIPANTS_MAX, PARTIES_MAX, PROPOSALS_MAX, Proposal,
    ProposalTask, TYPES_BYTES_MAX, TYPES_MAX, Verdict,
};
use crate::machine::content::Content;
use crate::machine::ids::{JobId, PartyId, ProposalId, TaskId, Timestamp, TypeName};
use serde::{Deserialize, Serialize};

/// A request, or the end of a timer or stream.
#[derive(Clone, Debug)]
pub enum Command {
    /// The process has started: no stream of before is there any more. Sent by the door before anything else.
    Started,
    /// A party wants offers of these types on a stream.
    Subscribe {
        /// The party.
        party: PartyId,
        /// The door's number of the stream, never used before in this data directory.
        session: u64,
        /// What it takes part in; replaces what an earlier stream named.
        job_types: Vec<TypeName>,
        /// Identity of the party's data directory, when it is one of ours.
        instance: Option<String>,
    },
    /// A stream has ended.
    StreamBroken {
        /// The party.
        party: PartyId,
        /// Its stream.
        session: u64,
    },
    /// A party goes for good.
    Leave {
        /// The party.
        party: PartyId,
    },
    /// Find parties for the tasks of a job.
    Propose {
        /// The job; at most one proposal is ever made for it.
        job_id: JobId,
        /// Who is asked: parties of this type.
        job_type: TypeName,
        /// The tasks, each an encoded `fedvision.framework.Task`.
        tasks: Vec<(TaskId, Content)>,
        /// Length of the window, seconds.
        wait_s: u32,
        /// Acceptances needed.
        min: u32,
        /// Parties chosen at most.
        max: u32,
        /// SHA-256 of the whole request: tells a repetition from another request under the same job id.
        fingerprint: [u8; 32],
        /// Identity of the initiator's data directory, when it is one of ours.
        owner: Option<String>,
    },
    /// A party accepts an offer, or asks again what came of it.
    Fetch {
        /// The party.
        party: PartyId,
        /// The proposal.
        proposal: ProposalId,
    },
    /// The window of a job's proposal is over.
    Close {
        /// The job.
        job: JobId,
    },
    /// The tasks of a closed proposal are no longer kept.
    Expire {
        /// The job.
        job: JobId,
    },
    /// Verdicts of expired proposals are not wanted any more. What has not expired stays, and what is more than one of [`super::shares`].
    Forget {
        /// Their jobs, with what the store has of each.
        jobs: Vec<Leftover>,
    },
    /// A chosen party tells how its task stands.
    Report {
        /// The party.
        party: PartyId,
        /// The job.
        job: JobId,
        /// The proposal.
        proposal: ProposalId,
        /// The task.
        task: TaskId,
        /// Identity of the party's data directory.
        instance: String,
        /// How it stands.
        state: AssignmentState,
        /// What went wrong.
        reason: String,
    },
    /// The initiator does not want its job any more.
    Cancel {
        /// The job.
        job: JobId,
        /// Its type.
        job_type: TypeName,
        /// Identity of the initiator's data directory.
        owner: String,
        /// Why.
        reason: String,
    },
    /// A party is to stop its task of a cancelled job.
    Stop {
        /// The job.
        job: JobId,
        /// The party.
        party: PartyId,
        /// Why.
        reason: String,
    },
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The process started; all streams of before are gone.
    Started {
        /// Number of this run.
        run: u64,
        /// When.
        at: Timestamp,
    },
    /// A party has a stream.
    Subscribed {
        /// The party.
        party: PartyId,
        /// Its stream.
        session: u64,
        /// What it takes part in, sorted, each once.
        job_types: Vec<TypeName>,
        /// Identity of its data directory.
        instance: Option<String>,
        /// When.
        at: Timestamp,
    },
    /// A party's stream ended.
    Disconnected {
        /// The party.
        party: PartyId,
        /// When.
        at: Timestamp,
    },
    /// A party left for good.
    Left {
        /// The party.
        party: PartyId,
        /// When.
        at: Timestamp,
    },
    /// A proposal was made: open, or refused at once and so ended already.
    Proposed(Box<Proposal>),
    /// A task of a proposal just made.
    TaskAdded {
        /// The job.
        job: JobId,
        /// Position in the proposal.
        index: u32,
        /// The task.
        task: ProposalTask,
    },
    /// A party accepted.
    Accepted {
        /// The job.
        job: JobId,
        /// The party.
        party: PartyId,
        /// When.
        at: Timestamp,
    },
    /// A party was drawn for a task, as release 0.1.0 recorded it: nobody may report on it.
    Chosen {
        /// The job.
        job: JobId,
        /// The party.
        party: PartyId,
        /// Position of the task in the proposal.
        index: u32,
    },
    /// The window closed. What became of acceptances that were not chosen follows from the verdict.
    Closed {
        /// The job.
        job: JobId,
        /// The verdict.
        verdict: Verdict,
        /// Why, for verdicts other than success.
        reason: String,
        /// When.
        at: Timestamp,
    },
    /// A task is no longer kept.
    TaskReleased {
        /// The job.
        job: JobId,
        /// Position in the proposal.
        index: u32,
    },
    /// An acceptance is no longer kept.
    ParticipantReleased {
        /// The job.
        job: JobId,
        /// The party.
        party: PartyId,
    },
    /// All of it is let go but the proposal and its verdict.
    Expired {
        /// The job.
        job: JobId,
    },
    /// Nothing is kept of an expired proposal any more.
    Forgotten {
        /// The job.
        job: JobId,
    },
    /// Nothing is kept of what a party did for a proposal that is forgotten.
    AssignmentForgotten {
        /// The job.
        job: JobId,
        /// The party.
        party: PartyId,
    },
    /// A party was drawn for a task.
    Assigned {
        /// The job.
        job: JobId,
        /// The party.
        party: PartyId,
        /// Position of the task in the proposal.
        index: u32,
        /// When.
        at: Timestamp,
    },
    /// A party told how its task stands.
    Reported {
        /// The job.
        job: JobId,
        /// The party.
        party: PartyId,
        /// As it stands now.
        assignment: Box<Assignment>,
    },
    /// Who asked for a proposal, and, at its close, how many took part.
    CourseKept {
        /// The job.
        job: JobId,
        /// All that is known.
        course: Course,
    },
    /// A proposal is no longer wanted.
    Cancelled(Box<Proposal>),
    /// A party is to stop its task.
    Ordered {
        /// The party.
        party: PartyId,
        /// The job.
        job: JobId,
        /// The order.
        order: Box<Order>,
    },
    /// An order is met, or given up.
    OrderMet {
        /// The party.
        party: PartyId,
        /// The job.
        job: JobId,
    },
}

/// Something to do outside. Streams are volatile: an effect for one that is gone is void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a party an offer.
    Offer {
        /// The party.
        party: PartyId,
        /// Its stream.
        session: u64,
        /// The proposal.
        proposal: ProposalId,
        /// Its job type.
        job_type: TypeName,
    },
    /// End a stream.
    CloseStream {
        /// The party.
        party: PartyId,
        /// The stream.
        session: u64,
    },
    /// Send [`Command::Close`] at that time.
    CloseAt {
        /// The job.
        job: JobId,
        /// When.
        at: Timestamp,
    },
    /// Wake the calls that wait for the close.
    Closed {
        /// The job.
        job: JobId,
    },
    /// Send [`Command::Expire`] at that time.
    ExpireAt {
        /// The job.
        job: JobId,
        /// When.
        at: Timestamp,
    },
    /// Tell those who follow the job.
    Changed {
        /// The job.
        job: JobId,
    },
    /// Tell a party to stop its task.
    Order {
        /// The party.
        party: PartyId,
        /// The job.
        job: JobId,
        /// The order.
        order: Box<Order>,
    },
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is so.
    Done,
    /// Leave or Fetch: no such party or proposal.
    NotFound,
    /// Propose: the window is open; wait for its close.
    Open {
        /// The proposal.
        proposal: ProposalId,
    },
    /// Propose: the recorded verdict.
    Verdict {
        /// The verdict.
        verdict: Verdict,
        /// Why, for verdicts other than success.
        reason: String,
    },
    /// Fetch: accepted; wait for the close and ask again.
    Wait,
    /// Fetch: the party has this task.
    Ready(Content),
    /// Fetch: not enrolled, or the proposal is none of its types.
    NotAllow,
    /// Fetch: the window had closed before the first fetch, or the task is no longer kept.
    Timeout,
    /// Fetch: the proposal failed.
    Canceled,
    /// Fetch: others were drawn.
    RandomOut,
}

/// What the rules do not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The party has a live stream already.
    #[error("party {0} is subscribed already")]
    Duplicate(PartyId),
    /// The job id is taken by a different proposal.
    #[error("job {0} was proposed before with other contents")]
    OtherProposal(JobId),
    /// The coordinator has just started: parties may still be on their way, so it is too early for a verdict. Ask again.
    #[error("the coordinator has just started; {here} parties of job type {job_type} are back, {needed} are needed")]
    Settling {
        /// Of this type.
        job_type: TypeName,
        /// Parties with a stream in this run.
        here: usize,
        /// The proposal's minimum.
        needed: u32,
    },
    /// The job id leaves no room for a proposal id.
    #[error("job_id: {0} is too long to be proposed")]
    LongJobId(JobId),
    /// More or longer job types than a party may have.
    #[error("job_types: at most {TYPES_MAX} and {TYPES_BYTES_MAX} bytes in all")]
    TooManyTypes,
    /// The instance text is too long.
    #[error("instance: at most {INSTANCE_MAX} bytes")]
    LongInstance,
    /// No room for one more party.
    #[error("{PARTIES_MAX} parties are enrolled; parties that are gone for good must Leave")]
    TooManyParties,
    /// No more proposals are kept.
    #[error("{PROPOSALS_MAX} proposals are open or closed not long ago, which is the most; try again later")]
    TooManyProposals,
    /// No room for one more acceptance.
    #[error("the proposal has {PARTICIPANTS_MAX} acceptances already")]
    TooManyParticipants,
    /// A report of a party that has no task of the proposal.
    #[error("party {0} was not chosen in proposal {1}")]
    NotChosen(PartyId, ProposalId),
    /// A report for another task than the party's.
    #[error("party {0} has task {1} of that proposal")]
    OtherTask(PartyId, TaskId),
    /// The caller is not who it says: another data directory is known under that name.
    #[error("{0} {1}: fedbroker-instance is not the identity known for it")]
    NotTheOne(&'static str, String),
    /// The task has ended, and otherwise.
    #[error("party {0} has reported another end of task {1} before")]
    OtherEnd(PartyId, TaskId),
    /// No more orders are kept.
    #[error("{ORDERS_MAX} orders to stop a task are open, which is the most; try again later")]
    TooManyOrders,
}
