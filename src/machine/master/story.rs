//! When an event happened, and whose story it belongs to.
//!
//! Asked by the loop for the threads of the log, and by whoever shows or trims them.

use super::{Event, Key};
use crate::machine::ids::Timestamp;

impl Event {
    /// When it happened; `None` for those that change no state.
    pub fn at(&self) -> Option<Timestamp> {
        match self {
            Event::JobAccepted { at, .. }
            | Event::JobLeased { at, .. }
            | Event::JobProposing { at, .. }
            | Event::JobRunning { at, .. }
            | Event::JobSucceeded { at, .. }
            | Event::JobFailed { at, .. }
            | Event::JobCancelled { at, .. }
            | Event::JobHeld { at, .. }
            | Event::JobReleased { at, .. }
            | Event::JobWoken { at, .. }
            | Event::JobPurged { at, .. }
            | Event::ForgetBegun { at, .. }
            | Event::TaskHeld { at, .. }
            | Event::TaskReleased { at, .. }
            | Event::TaskSubmitted { at, .. }
            | Event::TaskCancelling { at, .. }
            | Event::TaskEnded { at, .. }
            | Event::ProposalOffered { at, .. }
            | Event::ProposalDeclined { at, .. }
            | Event::ProposalWon { at, .. }
            | Event::ProposalMissed { at, .. } => Some(*at),
            _ => None,
        }
    }

    /// See [`Machine::thread`](crate::machine::Machine::thread). A proposal that was won goes on as the task: the story of the task begins with that of
    /// the proposal.
    pub(super) fn thread(&self) -> Option<Key> {
        match self {
            Event::JobAccepted { .. } | Event::TaskHeld { .. } | Event::ProposalOffered { .. } | Event::ProposalDeclined { .. } => None,
            Event::JobLeased { job, .. }
            | Event::JobProposing { job, .. }
            | Event::JobProposedLegacy { job }
            | Event::JobProposedAgain { job }
            | Event::JobRunning { job, .. }
            | Event::JobNoted { job, .. }
            | Event::JobSucceeded { job, .. }
            | Event::JobFailed { job, .. }
            | Event::JobCancelled { job, .. }
            | Event::JobHeld { job, .. }
            | Event::JobReleased { job, .. }
            | Event::JobWoken { job, .. }
            | Event::JobRepeated { job, .. }
            | Event::LeaseReleased { job } => Some(Key::Job(job.clone())),
            // What is purged has no story any more.
            Event::KeyTaken { .. }
            | Event::JobPurged { .. }
            | Event::ForgetBegun { .. }
            | Event::JobForgotten { .. }
            | Event::TaskPurged { .. }
            | Event::ProposalPurged { .. }
            | Event::KeyDropped { .. } => None,
            Event::TaskReleased { key, .. }
            | Event::TaskRefused { key }
            | Event::TaskSubmitted { key, .. }
            | Event::TaskCancelling { key, .. }
            | Event::TaskEnded { key, .. } => Some(Key::Task(key.clone())),
            // They are about other parties, and may come when the job's record is history: a story beside the job's own.
            Event::JobAnnounced { job, .. } => Some(Key::Announced(job.clone())),
            Event::PeerChanged { peer } => Some(Key::Announced(peer.job.clone())),
            // What the coordinator is told is between it and this party; what is purged has no story any more.
            Event::AnnouncedPurged { .. }
            | Event::PeerPurged { .. }
            | Event::ReportOwed { .. }
            | Event::ReportSent { .. }
            | Event::WithdrawalOwed { .. }
            | Event::WithdrawalSent { .. } => None,
            Event::ProposalWon { proposal, .. } | Event::ProposalMissed { proposal, .. } => Some(Key::Participation(proposal.clone())),
        }
    }
}
