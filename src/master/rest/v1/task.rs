//! A task of this party's cluster queue as `/api/v1` shows it.
//!
//! Made from durable records only; holds no rules. A name in here is a promise to clients.

use super::time::time;
use crate::machine::master::records::{Origin, Task as Record, TaskState};
use crate::machine::outcome::End;
use serde::Serialize;
use utoipa::ToSchema;

/// A task in the queue towards this party's cluster.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct Task {
    #[schema(example = "p1-20260101120000-7")]
    pub job_id: String,
    /// Within its job.
    #[schema(example = "trainer_0")]
    pub task_id: String,
    #[schema(example = "program_trainer")]
    pub task_type: String,
    pub state: State,
    pub origin: From,
    /// The proposal it was won in.
    pub proposal_id: Option<String>,
    #[schema(format = DateTime)]
    pub queued_at: String,
    /// When it entered its state.
    #[schema(format = DateTime)]
    pub changed_at: String,
    /// Who ran it.
    pub worker: Option<String>,
    /// Which attempt ended, from 1.
    pub attempt: Option<u32>,
    pub exit_code: Option<i32>,
    /// The last lines of its stderr.
    pub stderr_tail: Option<String>,
    /// Why it is stopped, or ended badly.
    pub reason: Option<String>,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TaskState)]
pub(in crate::master::rest) enum State {
    /// Packed; waits for the verdict on its job's proposal.
    Held,
    /// To be submitted to the cluster manager.
    Queued,
    /// The cluster manager has it.
    Submitted,
    /// To be stopped.
    Cancelling,
    Success,
    Failed,
    Cancelled,
}

impl State {
    /// All of them, in the order of a task's life.
    pub(in crate::master::rest) const ALL: [State; 7] = [
        State::Held,
        State::Queued,
        State::Submitted,
        State::Cancelling,
        State::Success,
        State::Failed,
        State::Cancelled,
    ];

    /// In answers and filters.
    pub(in crate::master::rest) fn name(self) -> &'static str {
        match self {
            State::Held => "held",
            State::Queued => "queued",
            State::Submitted => "submitted",
            State::Cancelling => "cancelling",
            State::Success => "success",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    /// True while a record of this state is in memory.
    pub(in crate::master::rest) fn is_live(self) -> bool {
        matches!(self, State::Held | State::Queued | State::Submitted | State::Cancelling)
    }
}

impl std::convert::From<&TaskState> for State {
    fn from(state: &TaskState) -> Self {
        match state {
            TaskState::Held => State::Held,
            TaskState::Queued => State::Queued,
            TaskState::Submitted { .. } => State::Submitted,
            TaskState::Cancelling { .. } => State::Cancelling,
            TaskState::Ended(outcome) => match outcome.end {
                End::Succeeded => State::Success,
                End::Failed => State::Failed,
                End::Cancelled => State::Cancelled,
            },
        }
    }
}

/// Where a task came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TaskOrigin)]
pub(in crate::master::rest) enum From {
    /// A job of this party, for its own cluster.
    Own,
    /// Won in a proposal, of this or another party.
    Proposal,
}

impl Task {
    /// From its record.
    pub(in crate::master::rest) fn new(task: &Record) -> Self {
        let (origin, proposal) = match &task.origin {
            Origin::Own => (From::Own, None),
            Origin::Won(proposal) => (From::Proposal, Some(proposal.to_string())),
        };
        let ended = match &task.state {
            TaskState::Ended(outcome) => Some(outcome),
            _ => None,
        };
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        Self {
            job_id: task.key.job.to_string(),
            task_id: task.key.task.to_string(),
            task_type: task.task_type.to_string(),
            state: State::from(&task.state),
            origin,
            proposal_id: proposal,
            queued_at: time(task.queued_at),
            changed_at: time(task.changed_at),
            worker: ended.and_then(|outcome| outcome.worker.as_ref()).map(ToString::to_string),
            attempt: ended.map(|outcome| outcome.attempt).filter(|attempt| *attempt > 0),
            exit_code: ended.and_then(|outcome| outcome.exit_code),
            stderr_tail: ended.map(|outcome| outcome.stderr_tail.clone()),
            reason: match &task.state {
                TaskState::Cancelling { reason } => said(reason),
                TaskState::Ended(outcome) => said(&outcome.reason),
                _ => None,
            },
        }
    }
}
