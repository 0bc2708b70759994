//! Which machine reads a directory's records and events, and which jobs they are about.
//!
//! Used by the store commands only. The machines made here decide nothing, so the rules they get do not matter.

use crate::machine::Machine;
use crate::machine::cluster::records::LeaseId;
use crate::machine::cluster::{self, Cluster};
use crate::machine::coordinator::{self, Coordinator, job_of};
use crate::machine::ids::{JobId, PartyId};
use crate::machine::master::rule::ProposalAcceptRule;
use crate::machine::master::{self, Master};

/// A machine whose store can be looked at.
pub(super) trait Role: Machine {
    /// Without records.
    fn empty() -> Self;
    /// The job a record belongs to.
    fn job_of_key(key: &Self::Key) -> Option<JobId>;
    /// The job an event is about.
    fn job_of_event(event: &Self::Event) -> Option<JobId>;
    /// True for the first event of its job here, as far as one event tells.
    fn begins_job(event: &Self::Event) -> bool;
}

/// Something to do with a directory once its machine is known.
pub(super) trait Task {
    /// What comes of it.
    type Output;
    /// Do it.
    fn run<M: Role>(self) -> Self::Output;
}

/// Do it with the machine of this role.
///
/// # Errors
/// There is no such role.
pub(super) fn with_machine<T: Task>(role: &str, task: T) -> anyhow::Result<T::Output> {
    match role {
        "master" => Ok(task.run::<Master>()),
        "coordinator" => Ok(task.run::<Coordinator>()),
        "cluster-manager" => Ok(task.run::<Cluster>()),
        other => anyhow::bail!("FORMAT names the role {other}, which this release does not know; use the release that wrote it"),
    }
}

impl Role for Master {
    fn empty() -> Self {
        Master::new(master::Rules {
            party: PartyId::parse("nobody").expect("it is short and printable"),
            accept: ProposalAcceptRule::default(),
            propose_again: false,
            submit_tries: 1,
        })
    }

    fn job_of_key(key: &master::Key) -> Option<JobId> {
        match key {
            master::Key::Counter | master::Key::Submission(_) => None,
            master::Key::Job(job) => Some(job.clone()),
            master::Key::Task(key) => Some(key.job.clone()),
            master::Key::Announced(job) | master::Key::Peer(job, _) | master::Key::Purge(job) | master::Key::Withdrawal(job) => {
                Some(job.clone())
            }
            master::Key::Participation(proposal) | master::Key::Report(proposal) => job_of(proposal),
        }
    }

    fn job_of_event(event: &master::Event) -> Option<JobId> {
        use master::Event as E;
        match event {
            E::JobAccepted { id: job, .. }
            | E::JobLeased { job, .. }
            | E::JobProposing { job, .. }
            | E::JobProposedLegacy { job }
            | E::JobProposedAgain { job }
            | E::JobRunning { job, .. }
            | E::JobNoted { job, .. }
            | E::JobSucceeded { job, .. }
            | E::JobFailed { job, .. }
            | E::JobCancelled { job, .. }
            | E::JobHeld { job, .. }
            | E::JobReleased { job, .. }
            | E::JobWoken { job, .. }
            | E::JobRepeated { job, .. }
            | E::KeyTaken { job, .. }
            | E::JobPurged { job, .. }
            | E::ForgetBegun { job, .. }
            | E::JobForgotten { job }
            | E::LeaseReleased { job } => Some(job.clone()),
            E::KeyDropped { .. } => None,
            E::TaskPurged { key } => Some(key.job.clone()),
            E::TaskHeld { key, .. }
            | E::TaskReleased { key, .. }
            | E::TaskRefused { key }
            | E::TaskSubmitted { key, .. }
            | E::TaskCancelling { key, .. }
            | E::TaskEnded { key, .. }
            | E::ProposalWon { key, .. } => Some(key.job.clone()),
            E::JobAnnounced { job, .. }
            | E::AnnouncedPurged { job }
            | E::PeerPurged { job, .. }
            | E::WithdrawalOwed { job, .. }
            | E::WithdrawalSent { job } => Some(job.clone()),
            E::PeerChanged { peer } => Some(peer.job.clone()),
            E::ReportOwed { proposal, .. }
            | E::ReportSent { proposal }
            | E::ProposalOffered { proposal, .. }
            | E::ProposalDeclined { proposal, .. }
            | E::ProposalMissed { proposal, .. }
            | E::ProposalPurged { proposal } => job_of(proposal),
        }
    }

    fn begins_job(event: &master::Event) -> bool {
        matches!(event, master::Event::JobAccepted { .. } | master::Event::ProposalOffered { .. })
    }
}

impl Role for Coordinator {
    fn empty() -> Self {
        Coordinator::new(coordinator::Rules {
            party_lease_ms: 0,
            keep_closed_ms: 0,
            settle_ms: 0,
        })
    }

    fn job_of_key(key: &coordinator::Key) -> Option<JobId> {
        use coordinator::Key as K;
        match key {
            K::Counters | K::Party(_) => None,
            K::Proposal(job) | K::Task(job, _) | K::Participant(job, _) | K::Assignment(job, _) | K::Course(job) | K::Order(_, job) => {
                Some(job.clone())
            }
        }
    }

    fn job_of_event(event: &coordinator::Event) -> Option<JobId> {
        use coordinator::Event as E;
        match event {
            E::Started { .. } | E::Subscribed { .. } | E::Disconnected { .. } | E::Left { .. } => None,
            E::Proposed(proposal) | E::Cancelled(proposal) => Some(proposal.job_id.clone()),
            E::TaskAdded { job, .. }
            | E::Accepted { job, .. }
            | E::Chosen { job, .. }
            | E::Closed { job, .. }
            | E::TaskReleased { job, .. }
            | E::ParticipantReleased { job, .. }
            | E::Expired { job }
            | E::Forgotten { job }
            | E::AssignmentForgotten { job, .. }
            | E::Assigned { job, .. }
            | E::Reported { job, .. }
            | E::CourseKept { job, .. }
            | E::Ordered { job, .. }
            | E::OrderMet { job, .. } => Some(job.clone()),
        }
    }

    fn begins_job(event: &coordinator::Event) -> bool {
        matches!(event, coordinator::Event::Proposed(_))
    }
}

impl Role for Cluster {
    fn empty() -> Self {
        Cluster::new(cluster::Rules::default())
    }

    fn job_of_key(key: &cluster::Key) -> Option<JobId> {
        use cluster::Key as K;
        match key {
            K::Counters | K::Worker(_) => None,
            K::Lease(lease) => job_of_lease(lease),
            K::Task(key) => Some(key.job.clone()),
        }
    }

    fn job_of_event(event: &cluster::Event) -> Option<JobId> {
        use cluster::Event as E;
        match event {
            E::Started { .. } | E::WorkerAttached { .. } | E::WorkerAway { .. } | E::WorkerLost { .. } => None,
            E::TaskSubmitted { key, .. }
            | E::TaskAssigned { key, .. }
            | E::TaskRequeued { key, .. }
            | E::TaskStopping { key, .. }
            | E::TaskEnded { key, .. }
            | E::TaskForgotten { key } => Some(key.job.clone()),
            E::LeaseGranted { lease, .. } | E::LeaseReleased { lease } | E::LeaseLost { lease } => job_of_lease(lease),
        }
    }

    /// Leases and tasks of a job come in any order.
    fn begins_job(_: &cluster::Event) -> bool {
        false
    }
}

fn job_of_lease(lease: &LeaseId) -> Option<JobId> {
    match lease {
        LeaseId::Anonymous(_) => None,
        LeaseId::Job(job) => Some(job.clone()),
    }
}
