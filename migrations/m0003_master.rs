//! What the master's events and records of release 0.1.0 are in version 3.
//!
//! Called by `m0003_stories` only. What 0.1.0 did not know gets the value of somebody who asked for nothing.

use super::m0003_master_0_1_0 as old;
use crate::machine::content::{Content, PayloadRef};
use crate::machine::ids::{BadId, JobId, ProposalId, TaskKey, Timestamp, TypeName, WorkerId};
use crate::machine::master::records::{
    Failure, Job, JobState, Lease, Origin, Participation, ParticipationState, Provenance, Spec, Step, StepName, Task, TaskState,
};
use crate::machine::master::{Event, Record};
use crate::machine::outcome::{End, Outcome};
use crate::machine::plan::Plan;

pub(super) fn event(event: old::Event) -> Result<Event, BadId> {
    Ok(match event {
        old::Event::JobAccepted {
            id,
            number,
            job_type,
            config,
            algorithm_config,
            plan,
            at,
        } => Event::JobAccepted {
            id: JobId::parse(id)?,
            number,
            spec: spec(job_type, config, algorithm_config, plan)?,
            provenance: Provenance::unknown(),
            at: Timestamp(at),
        },
        old::Event::JobLeased { job, lease, at } => Event::JobLeased {
            job: JobId::parse(job)?,
            lease: self::lease(lease)?,
            at: Timestamp(at),
        },
        old::Event::JobProposing { job, proposal, at } => Event::JobProposing {
            job: JobId::parse(job)?,
            proposal: content(proposal),
            at: Timestamp(at),
        },
        old::Event::JobProposedLegacy { job } => Event::JobProposedLegacy { job: JobId::parse(job)? },
        old::Event::JobProposedAgain { job } => Event::JobProposedAgain { job: JobId::parse(job)? },
        old::Event::JobRunning { job, at } => Event::JobRunning {
            job: JobId::parse(job)?,
            at: Timestamp(at),
        },
        old::Event::JobNoted { job, note } => Event::JobNoted {
            job: JobId::parse(job)?,
            note,
        },
        old::Event::JobSucceeded { job, at } => Event::JobSucceeded {
            job: JobId::parse(job)?,
            at: Timestamp(at),
        },
        old::Event::JobFailed { job, failure, at } => Event::JobFailed {
            job: JobId::parse(job)?,
            failure: self::failure(failure),
            at: Timestamp(at),
            // It let go of a job at once, whatever still ran of it.
            lingers: false,
        },
        old::Event::LeaseReleased { job } => Event::LeaseReleased { job: JobId::parse(job)? },
        other => task_event(other)?,
    })
}

fn task_event(event: old::Event) -> Result<Event, BadId> {
    Ok(match event {
        old::Event::TaskHeld {
            key,
            task_type,
            content,
            at,
        } => Event::TaskHeld {
            key: task_key(key)?,
            task_type: TypeName::parse(task_type)?,
            content: self::content(content),
            at: Timestamp(at),
        },
        old::Event::TaskReleased { key, at } => Event::TaskReleased {
            key: task_key(key)?,
            at: Timestamp(at),
        },
        old::Event::TaskRefused { key } => Event::TaskRefused { key: task_key(key)? },
        old::Event::TaskSubmitted { key, watched, at } => Event::TaskSubmitted {
            key: task_key(key)?,
            watched,
            at: Timestamp(at),
        },
        old::Event::TaskCancelling { key, reason, at } => Event::TaskCancelling {
            key: task_key(key)?,
            reason,
            at: Timestamp(at),
        },
        old::Event::TaskEnded { key, outcome, at } => Event::TaskEnded {
            key: task_key(key)?,
            outcome: self::outcome(outcome)?,
            at: Timestamp(at),
        },
        other => proposal_event(other)?,
    })
}

fn proposal_event(event: old::Event) -> Result<Event, BadId> {
    Ok(match event {
        old::Event::ProposalOffered { proposal, job_type, at } => Event::ProposalOffered {
            proposal: ProposalId::parse(proposal)?,
            job_type: TypeName::parse(job_type)?,
            at: Timestamp(at),
        },
        old::Event::ProposalDeclined {
            proposal,
            job_type,
            reason,
            at,
        } => Event::ProposalDeclined {
            proposal: ProposalId::parse(proposal)?,
            job_type: TypeName::parse(job_type)?,
            reason,
            at: Timestamp(at),
        },
        old::Event::ProposalWon {
            proposal,
            key,
            task_type,
            content,
            at,
        } => Event::ProposalWon {
            proposal: ProposalId::parse(proposal)?,
            key: task_key(key)?,
            task_type: TypeName::parse(task_type)?,
            content: self::content(content),
            at: Timestamp(at),
        },
        old::Event::ProposalMissed { proposal, reason, at } => Event::ProposalMissed {
            proposal: ProposalId::parse(proposal)?,
            reason,
            at: Timestamp(at),
        },
        _ => unreachable!("the other events are those of the callers"),
    })
}

/// The state that an event let a job enter, and when.
pub(super) fn step(event: &old::Event) -> Option<Step> {
    let (state, at) = match event {
        old::Event::JobAccepted { plan, at, .. } if plan.endpoints > 0 => (StepName::Leasing, at),
        old::Event::JobAccepted { at, .. } | old::Event::JobLeased { at, .. } => (StepName::Preparing, at),
        old::Event::JobProposing { at, .. } => (StepName::Proposing, at),
        old::Event::JobRunning { at, .. } => (StepName::Running, at),
        old::Event::JobSucceeded { at, .. } => (StepName::Succeeded, at),
        old::Event::JobFailed { at, .. } => (StepName::Failed, at),
        _ => return None,
    };
    Some(Step { state, at: Timestamp(*at) })
}

/// A record whose last event is `last`; `steps` are those of a job.
pub(super) fn record(record: old::Record, last: u64, steps: Vec<Step>) -> Result<Record, BadId> {
    Ok(match record {
        old::Record::Counter(number) => Record::Counter(number),
        old::Record::Job(job) => Record::Job(self::job(job, last, steps)?),
        old::Record::Task(task) => Record::Task(self::task(task, last)?),
        old::Record::Participation(participation) => Record::Participation(Participation {
            proposal: ProposalId::parse(participation.proposal)?,
            job_type: TypeName::parse(participation.job_type)?,
            offered_at: Timestamp(participation.offered_at),
            changed_at: Timestamp(participation.changed_at),
            state: match participation.state {
                old::ParticipationState::Offered => ParticipationState::Offered,
                old::ParticipationState::Won(key) => ParticipationState::Won(task_key(key)?),
                old::ParticipationState::Declined(reason) => ParticipationState::Declined(reason),
                old::ParticipationState::Missed(reason) => ParticipationState::Missed(reason),
            },
            last_event: last,
        }),
    })
}

fn job(job: old::Job, last: u64, steps: Vec<Step>) -> Result<Job, BadId> {
    Ok(Job {
        id: JobId::parse(job.id)?,
        number: job.number,
        spec: spec(job.job_type, job.config, job.algorithm_config, job.plan)?,
        provenance: Provenance::unknown(),
        submitted_at: Timestamp(job.submitted_at),
        changed_at: Timestamp(job.changed_at),
        state: match job.state {
            old::JobState::Leasing => JobState::Leasing,
            old::JobState::Preparing => JobState::Preparing,
            old::JobState::Proposing { legacy_call } => JobState::Proposing { legacy_call },
            old::JobState::Running => JobState::Running,
            old::JobState::Succeeded => JobState::Succeeded,
            old::JobState::Failed(failure) => JobState::Failed(self::failure(failure)),
        },
        step: job.step,
        tries: job.tries,
        note: job.note,
        lease: job.lease.map(lease).transpose()?,
        returning: false,
        proposal: job.proposal.map(content),
        steps,
        successor: None,
        last_event: last,
    })
}

fn task(task: old::Task, last: u64) -> Result<Task, BadId> {
    Ok(Task {
        key: task_key(task.key)?,
        task_type: TypeName::parse(task.task_type)?,
        content: task.content.map(content),
        origin: match task.origin {
            old::Origin::Own => Origin::Own,
            old::Origin::Won(proposal) => Origin::Won(ProposalId::parse(proposal)?),
        },
        queued_at: Timestamp(task.queued_at),
        changed_at: Timestamp(task.changed_at),
        tries: task.tries,
        state: match task.state {
            old::TaskState::Held => TaskState::Held,
            old::TaskState::Queued => TaskState::Queued,
            old::TaskState::Submitted { watched } => TaskState::Submitted { watched },
            old::TaskState::Cancelling { reason } => TaskState::Cancelling { reason },
            old::TaskState::Ended(outcome) => TaskState::Ended(self::outcome(outcome)?),
        },
        last_event: last,
    })
}

fn spec(job_type: String, config: old::Content, algorithm_config: Option<old::Content>, plan: old::Plan) -> Result<Spec, BadId> {
    let plan = Plan {
        endpoints: plan.endpoints,
        workers: plan.workers,
        wait_s: plan.wait_s,
    };
    Ok(Spec::plain(
        TypeName::parse(job_type)?,
        content(config),
        algorithm_config.map(content),
        plan,
    ))
}

fn content(content: old::Content) -> Content {
    match content {
        old::Content::Inline(bytes) => Content::Inline(bytes),
        old::Content::Stored(old::PayloadRef { hash, len }) => Content::Stored(PayloadRef { hash, len }),
    }
}

fn task_key(key: old::TaskKey) -> Result<TaskKey, BadId> {
    TaskKey::parse(key.job, key.task)
}

fn lease(lease: old::Lease) -> Result<Lease, BadId> {
    Ok(Lease {
        worker: WorkerId::parse(lease.worker)?,
        host: lease.host,
        ports: lease.ports,
    })
}

fn failure(failure: old::Failure) -> Failure {
    Failure {
        reason: failure.reason,
        exit_code: failure.exit_code,
        stderr_tail: failure.stderr_tail,
    }
}

fn outcome(outcome: old::Outcome) -> Result<Outcome, BadId> {
    Ok(Outcome {
        end: match outcome.end {
            old::End::Succeeded => End::Succeeded,
            old::End::Failed => End::Failed,
            old::End::Cancelled => End::Cancelled,
        },
        reason: outcome.reason,
        exit_code: outcome.exit_code,
        stderr_tail: outcome.stderr_tail,
        worker: outcome.worker.map(WorkerId::parse).transpose()?,
        attempt: outcome.attempt,
    })
}
