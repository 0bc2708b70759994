//! A proposal as `/api/v1` shows it.
//!
//! Made from durable records only; holds no rules. A name in here is a promise to clients.

use super::time::time;
use crate::machine::master::records::{Participation, ParticipationState};
use serde::Serialize;
use utoipa::ToSchema;

/// A proposal this party made or was asked to join.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct Proposal {
    /// The coordinator's id of it.
    #[schema(example = "p1-20260101120000-7-coo_1")]
    pub proposal_id: String,
    pub job_type: String,
    /// The job it is of, where that is known.
    pub job_id: Option<String>,
    pub state: State,
    /// Why it was declined or missed.
    pub reason: Option<String>,
    /// When it was first announced.
    #[schema(format = DateTime)]
    pub offered_at: String,
    /// When it entered its state.
    #[schema(format = DateTime)]
    pub changed_at: String,
    /// The task that was won.
    pub task_id: Option<String>,
}

/// Where a proposal stands, seen from this party.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ProposalState)]
pub(in crate::master::rest) enum State {
    /// Announced and wanted: its task is being fetched.
    Offered,
    /// A task of it is in this party's queue.
    Won,
    /// This party's rule did not want it.
    Declined,
    /// No task came of it.
    Missed,
}

impl State {
    /// All of them.
    pub(in crate::master::rest) const ALL: [State; 4] = [State::Offered, State::Won, State::Declined, State::Missed];

    /// In answers and filters.
    pub(in crate::master::rest) fn name(self) -> &'static str {
        match self {
            State::Offered => "offered",
            State::Won => "won",
            State::Declined => "declined",
            State::Missed => "missed",
        }
    }
}

impl Proposal {
    /// One this party was asked to join.
    pub(in crate::master::rest) fn joined(record: &Participation) -> Self {
        let (state, reason, key) = match &record.state {
            ParticipationState::Offered => (State::Offered, None, None),
            ParticipationState::Won(key) => (State::Won, None, Some(key)),
            ParticipationState::Declined(reason) => (State::Declined, Some(reason.clone()), None),
            ParticipationState::Missed(reason) => (State::Missed, Some(reason.clone()), None),
        };
        Self {
            proposal_id: record.proposal.to_string(),
            job_type: record.job_type.to_string(),
            job_id: key.map(|key| key.job.to_string()),
            state,
            reason,
            offered_at: time(record.offered_at),
            changed_at: time(record.changed_at),
            task_id: key.map(|key| key.task.to_string()),
        }
    }
}
