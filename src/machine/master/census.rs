//! What the master's records are counted as: in the recovery report, in the metrics.
//!
//! Called by the machine's `census` and `ending`. Decides nothing.

use super::Record;
use super::federation::PeerState;
use super::records::{JobState, ParticipationState, TaskState};
use crate::machine::outcome::End;

pub(super) fn census_name(state: &JobState) -> &'static str {
    match state {
        JobState::Waiting { .. } => "job waiting",
        JobState::Held => "job held",
        JobState::Leasing => "job leasing",
        JobState::Preparing => "job preparing",
        JobState::Proposing { .. } => "job proposing",
        JobState::Running => "job running",
        JobState::Succeeded | JobState::Failed(_) | JobState::Cancelled { .. } => "job closing",
    }
}

pub(super) fn census_task(state: &TaskState) -> &'static str {
    match state {
        TaskState::Held => "task held",
        TaskState::Queued => "task queued",
        TaskState::Submitted { .. } => "task submitted",
        TaskState::Cancelling { .. } => "task cancelling",
        TaskState::Ended(_) => "task ended",
    }
}

/// For the metrics.
pub(super) fn ending(record: &Record) -> &'static str {
    match record {
        Record::Counter(_) => "counter ended",
        Record::Job(job) => match job.state {
            JobState::Succeeded => "job success",
            JobState::Failed(_) => "job failed",
            JobState::Cancelled { .. } => "job cancelled",
            JobState::Waiting { .. }
            | JobState::Held
            | JobState::Leasing
            | JobState::Preparing
            | JobState::Proposing { .. }
            | JobState::Running => "job live",
        },
        Record::Submission(_) => "submission ended",
        Record::Purge(_) => "purge live",
        Record::Announced(_) => "follow ended",
        Record::Report(_) => "report ended",
        Record::Withdrawal(_) => "withdrawal ended",
        // A peer is history in every state: each counts as often as it is entered.
        Record::Peer(peer) => match peer.state {
            PeerState::Unknown => "peer unknown",
            PeerState::Running => "peer running",
            PeerState::Ended(End::Succeeded) => "peer success",
            PeerState::Ended(End::Failed) => "peer failed",
            PeerState::Ended(End::Cancelled) => "peer cancelled",
        },
        Record::Task(task) => match &task.state {
            TaskState::Ended(outcome) => outcome.end.of_task(),
            TaskState::Held | TaskState::Queued | TaskState::Submitted { .. } | TaskState::Cancelling { .. } => "task live",
        },
        Record::Participation(participation) => match participation.state {
            ParticipationState::Offered => "proposal fetching",
            ParticipationState::Won(_) => "proposal won",
            ParticipationState::Declined(_) => "proposal declined",
            ParticipationState::Missed(_) => "proposal missed",
        },
    }
}
