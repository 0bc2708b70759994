//! From the record of a job to what the index keeps of it.

use super::columns::Entry;
use crate::machine::ids::JobId;
use crate::machine::master::Event;
use crate::machine::master::records::{Job, StepName};

/// A job's state as the index numbers it. The numbers are in checkpoints: a change of them needs another version there.
pub fn state_number(state: StepName) -> u8 {
    match state {
        StepName::Waiting => 0,
        StepName::Held => 1,
        StepName::Leasing => 2,
        StepName::Preparing => 3,
        StepName::Proposing => 4,
        StepName::Running => 5,
        StepName::Succeeded => 6,
        StepName::Failed => 7,
        StepName::Cancelled => 8,
    }
}

/// Whether a state, as the index numbers it, is one that nothing leads out of.
pub fn has_ended(state: u8) -> bool {
    (state_number(StepName::Succeeded)..=state_number(StepName::Cancelled)).contains(&state)
}

impl Entry {
    /// What the index keeps of a job.
    pub fn of(job: &Job) -> Self {
        Self {
            number: job.number,
            stamp: stamp_of(&job.id).unwrap_or_default(),
            created_at: job.submitted_at,
            state: state_number(job.state.step_name()),
            job_type: job.spec.job_type.to_string(),
            labels: job.spec.labels.iter().flat_map(|(key, value)| label_hashes(key, value)).collect(),
        }
    }
}

/// The `n` of an id of this party.
pub(super) fn number_of(job: &JobId) -> Option<u64> {
    job.as_str().rsplit('-').next()?.parse().ok()
}

fn stamp_of(job: &JobId) -> Option<u64> {
    job.as_str().rsplit('-').nth(1)?.parse().ok()
}

/// Hashes of a label: of its key, and of key and value. FNV-1a: stable, since checkpoints hold it; a collision costs a read and nothing more.
pub fn label_hashes(key: &str, value: &str) -> [u64; 2] {
    let hash = |from: u64, text: &str| {
        text.bytes()
            .fold(from, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    let of_key = hash(0xcbf2_9ce4_8422_2325, key);
    [of_key, hash(hash(of_key, "="), value)]
}

/// The job whose record an event changes.
pub(super) fn job_of(event: &Event) -> Option<&JobId> {
    match event {
        Event::JobAccepted { id, .. } => Some(id),
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
        | Event::JobPurged { job, .. }
        | Event::LeaseReleased { job } => Some(job),
        Event::KeyTaken { .. }
        | Event::ForgetBegun { .. }
        | Event::JobForgotten { .. }
        | Event::TaskPurged { .. }
        | Event::ProposalPurged { .. }
        | Event::KeyDropped { .. }
        | Event::TaskHeld { .. }
        | Event::TaskReleased { .. }
        | Event::TaskRefused { .. }
        | Event::TaskSubmitted { .. }
        | Event::TaskCancelling { .. }
        | Event::TaskEnded { .. }
        | Event::ProposalOffered { .. }
        | Event::ProposalDeclined { .. }
        | Event::ProposalWon { .. }
        | Event::ProposalMissed { .. }
        | Event::JobAnnounced { .. }
        | Event::PeerChanged { .. }
        | Event::ReportOwed { .. }
        | Event::ReportSent { .. }
        | Event::AnnouncedPurged { .. }
        | Event::PeerPurged { .. }
        | Event::WithdrawalOwed { .. }
        | Event::WithdrawalSent { .. } => None,
    }
}
