//! An event of the log as `/api/v1` shows it.
//!
//! Made from durable events only; holds no rules. A name in here is a promise to clients.

use super::time::time;
use crate::machine::ids::{JobId, ProposalId, TaskKey, Timestamp};
use crate::machine::master::Event as Record;
use crate::machine::outcome::{End, Outcome};
use crate::store::Seq;
use serde::Serialize;
use utoipa::ToSchema;

/// Something that happened. Fields that do not belong to its type are left out.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::master::rest) struct Event {
    /// Its place in the log of this master: later events have higher numbers, with gaps.
    #[schema(example = 42)]
    #[schema(value_type = u64)]
    pub seq: Seq,
    /// When it happened; null for those that change no state.
    #[schema(format = DateTime)]
    pub at: Option<String>,
    #[serde(rename = "type")]
    #[schema(example = "job_accepted")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposal_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_type: Option<String>,
    /// The job that tries again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub successor: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `host:port` each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
    /// How a task ended: `success`, `failed` or `cancelled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<&'static str>,
    /// A party that was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub party: Option<String>,
    /// How a chosen party's task stands: `unknown`, `running`, `success`, `failed` or `cancelled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub party_state: Option<&'static str>,
}

impl Event {
    /// From the log.
    pub(in crate::master::rest) fn new(seq: Seq, event: &Record) -> Self {
        let shown = match event {
            Record::JobAccepted { id, spec, at, .. } => Self {
                job_type: Some(spec.job_type.to_string()),
                ..Self::of_job("job_accepted", id).at(*at)
            },
            Record::JobLeased { job, lease, at } => Self {
                worker: Some(lease.worker.to_string()),
                endpoints: Some(lease.endpoints()),
                ..Self::of_job("job_leased", job).at(*at)
            },
            Record::JobProposing { job, at, .. } => Self::of_job("job_proposing", job).at(*at),
            Record::JobProposedLegacy { job } => Self::of_job("job_proposed_legacy", job),
            Record::JobProposedAgain { job } => Self::of_job("job_proposed_again", job),
            Record::JobRunning { job, at } => Self::of_job("job_running", job).at(*at),
            Record::JobNoted { job, note } => Self::of_job("job_noted", job).because(note),
            Record::JobSucceeded { job, at } => Self::of_job("job_succeeded", job).at(*at),
            Record::JobFailed { job, failure, at, .. } => Self {
                exit_code: failure.exit_code,
                stderr_tail: said(&failure.stderr_tail),
                ..Self::of_job("job_failed", job).at(*at).because(&failure.reason)
            },
            Record::JobCancelled { job, reason, at } => Self::of_job("job_cancelled", job).at(*at).because(reason),
            Record::JobHeld { job, at } => Self::of_job("job_held", job).at(*at),
            Record::JobReleased { job, at } => Self::of_job("job_released", job).at(*at),
            Record::JobWoken { job, at } => Self::of_job("job_woken", job).at(*at),
            Record::JobRepeated { job, successor } => Self {
                successor: Some(successor.to_string()),
                ..Self::of_job("job_repeated", job)
            },
            Record::KeyTaken { job, .. } => Self::of_job("key_taken", job),
            Record::JobPurged { job, at, .. } => Self::of_job("job_purged", job).at(*at),
            Record::ForgetBegun { job, at } => Self::of_job("forget_begun", job).at(*at),
            Record::JobForgotten { job } => Self::of_job("job_forgotten", job),
            Record::TaskPurged { key } => Self::of_task("task_purged", key),
            Record::ProposalPurged { proposal } => Self::of_proposal("proposal_purged", proposal),
            Record::KeyDropped { .. } => Self {
                kind: "key_dropped",
                ..Self::default()
            },
            Record::LeaseReleased { job } => Self::of_job("lease_released", job),
            Record::TaskHeld { key, task_type, at, .. } => Self {
                task_type: Some(task_type.to_string()),
                ..Self::of_task("task_held", key).at(*at)
            },
            Record::TaskReleased { key, at } => Self::of_task("task_released", key).at(*at),
            Record::TaskRefused { key } => Self::of_task("task_refused", key),
            Record::TaskSubmitted { key, at, .. } => Self::of_task("task_submitted", key).at(*at),
            Record::TaskCancelling { key, reason, at } => Self::of_task("task_cancelling", key).at(*at).because(reason),
            Record::TaskEnded { key, outcome, at } => Self::of_task("task_ended", key).at(*at).ended(outcome),
            Record::ProposalOffered { proposal, job_type, at } => Self {
                job_type: Some(job_type.to_string()),
                ..Self::of_proposal("proposal_offered", proposal).at(*at)
            },
            Record::ProposalDeclined {
                proposal,
                job_type,
                reason,
                at,
            } => Self {
                job_type: Some(job_type.to_string()),
                ..Self::of_proposal("proposal_declined", proposal).at(*at).because(reason)
            },
            Record::ProposalWon {
                proposal,
                key,
                task_type,
                at,
                ..
            } => Self {
                proposal_id: Some(proposal.to_string()),
                task_type: Some(task_type.to_string()),
                ..Self::of_task("proposal_won", key).at(*at)
            },
            Record::JobAnnounced { job, announced } => Self {
                proposal_id: announced.proposal.as_ref().map(ToString::to_string),
                ..Self::of_job("job_announced", job).because(&announced.reason)
            },
            Record::PeerChanged { peer } => Self {
                task_id: Some(peer.task.to_string()),
                party: Some(peer.party.to_string()),
                party_state: Some(peer.state.name()),
                ..Self::of_job("party_changed", &peer.job).at(peer.changed_at).because(&peer.reason)
            },
            Record::ReportOwed { proposal, report } => Self {
                proposal_id: Some(proposal.to_string()),
                party_state: Some(report.state.name()),
                ..Self::of_task("report_owed", &report.key).because(&report.reason)
            },
            Record::AnnouncedPurged { job } => Self::of_job("announced_purged", job),
            Record::PeerPurged { job, party } => Self {
                party: Some(party.to_string()),
                ..Self::of_job("party_purged", job)
            },
            Record::WithdrawalOwed { job, withdrawal } => Self::of_job("withdrawal_owed", job).because(&withdrawal.reason),
            Record::WithdrawalSent { job } => Self::of_job("withdrawal_sent", job),
            Record::ReportSent { proposal } => Self::of_proposal("report_sent", proposal),
            Record::ProposalMissed { proposal, reason, at } => Self::of_proposal("proposal_missed", proposal).at(*at).because(reason),
        };
        Self { seq, ..shown }
    }

    fn of_job(kind: &'static str, job: &JobId) -> Self {
        Self {
            kind,
            job_id: Some(job.to_string()),
            ..Self::default()
        }
    }

    fn of_task(kind: &'static str, key: &TaskKey) -> Self {
        Self {
            task_id: Some(key.task.to_string()),
            ..Self::of_job(kind, &key.job)
        }
    }

    fn of_proposal(kind: &'static str, proposal: &ProposalId) -> Self {
        Self {
            kind,
            proposal_id: Some(proposal.to_string()),
            ..Self::default()
        }
    }

    fn at(self, at: Timestamp) -> Self {
        Self {
            at: Some(time(at)),
            ..self
        }
    }

    fn because(self, reason: &str) -> Self {
        Self {
            reason: said(reason),
            ..self
        }
    }

    fn ended(self, outcome: &Outcome) -> Self {
        Self {
            worker: outcome.worker.as_ref().map(ToString::to_string),
            attempt: Some(outcome.attempt).filter(|attempt| *attempt > 0),
            exit_code: outcome.exit_code,
            stderr_tail: said(&outcome.stderr_tail),
            end: Some(match outcome.end {
                End::Succeeded => "success",
                End::Failed => "failed",
                End::Cancelled => "cancelled",
            }),
            ..self.because(&outcome.reason)
        }
    }
}

fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
