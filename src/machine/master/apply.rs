//! The only place where the master's state changes: one event at a time. Used live and in replay.

use super::records::{Failure, Job, JobState, Origin, Participation, ParticipationState, STEPS_MAX, Step, Task, TaskState};
use super::{Event, Key, Master, Record};
use crate::machine::Changes;
use crate::machine::content::Content;
use crate::machine::ids::{JobId, ProposalId, TaskKey, Timestamp, TypeName};
use crate::machine::outcome::Outcome;

/// Counts towards `ProposalAcceptRule::at_once`. A task whose end will never be known does not: it would count for ever.
pub(super) fn is_under_way(task: &Task) -> bool {
    matches!(task.origin, Origin::Won(_)) && !matches!(task.state, TaskState::Ended(_) | TaskState::Submitted { watched: false })
}

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

fn hold(content: Option<&Content>, changes: &mut Changes<Key>) {
    changes.held.extend(content.and_then(Content::payload));
}

fn release(content: Option<Content>, changes: &mut Changes<Key>) {
    changes.released.extend(content.and_then(|content| content.payload()));
}

impl Master {
    pub(super) fn apply_event(&mut self, event: &Event, changes: &mut Changes<Key>) {
        match event {
            Event::JobAccepted { .. } => self.apply_accepted(event, changes),
            Event::JobLeased { job, lease, at } => self.step(job, JobState::Preparing, Some(*at), changes, |job, _| {
                job.lease = Some(lease.clone());
            }),
            Event::JobProposing { job, proposal, at } => {
                self.step(
                    job,
                    JobState::Proposing { legacy_call: false },
                    Some(*at),
                    changes,
                    |job, changes| {
                        hold(Some(proposal), changes);
                        job.proposal = Some(proposal.clone());
                    },
                );
            }
            Event::JobProposedLegacy { job } => self.with_job(job, changes, |job, _| job.state = JobState::Proposing { legacy_call: true }),
            Event::JobProposedAgain { job } => self.step(job, JobState::Proposing { legacy_call: false }, None, changes, |job, _| {
                job.tries = job.tries.saturating_add(1);
            }),
            Event::JobRunning { job, at } => self.step(job, JobState::Running, Some(*at), changes, |job, changes| {
                release(job.proposal.take(), changes);
            }),
            Event::JobNoted { job, note } => self.with_job(job, changes, |job, _| job.note.clone_from(note)),
            Event::JobSucceeded { job, at } => self.step(job, JobState::Succeeded, Some(*at), changes, |_, _| {}),
            Event::JobFailed { job, failure, at } => self.apply_failed(job, failure, *at, changes),
            Event::LeaseReleased { job } => self.with_job(job, changes, |job, _| job.lease = None),
            _ => self.apply_task_event(event, changes),
        }
    }

    fn apply_task_event(&mut self, event: &Event, changes: &mut Changes<Key>) {
        match event {
            Event::TaskHeld {
                key,
                task_type,
                content,
                at,
            } => self.add_task(key, task_type, content, Origin::Own, TaskState::Held, *at, changes),
            Event::TaskReleased { key, at } => self.with_task(key, changes, |task, _| {
                task.state = TaskState::Queued;
                task.changed_at = *at;
            }),
            Event::TaskRefused { key } => self.with_task(key, changes, |task, _| task.tries = task.tries.saturating_add(1)),
            Event::TaskSubmitted { key, watched, at } => self.with_task(key, changes, |task, _| {
                task.state = TaskState::Submitted { watched: *watched };
                task.changed_at = *at;
            }),
            Event::TaskCancelling { key, reason, at } => self.with_task(key, changes, |task, _| {
                task.state = TaskState::Cancelling { reason: reason.clone() };
                task.changed_at = *at;
            }),
            Event::TaskEnded { key, outcome, at } => self.end_task(key, outcome, *at, changes),
            Event::ProposalOffered { proposal, job_type, at } => {
                self.under_way += 1;
                self.add_participation(proposal, job_type, ParticipationState::Offered, *at, changes);
            }
            Event::ProposalDeclined {
                proposal,
                job_type,
                reason,
                at,
            } => {
                self.add_participation(proposal, job_type, ParticipationState::Declined(reason.clone()), *at, changes);
            }
            Event::ProposalWon {
                proposal,
                key,
                task_type,
                content,
                at,
            } => {
                self.end_participation(proposal, ParticipationState::Won(key.clone()), *at, changes);
                self.under_way += 1;
                self.add_task(
                    key,
                    task_type,
                    content,
                    Origin::Won(proposal.clone()),
                    TaskState::Queued,
                    *at,
                    changes,
                );
            }
            Event::ProposalMissed { proposal, reason, at } => {
                self.end_participation(proposal, ParticipationState::Missed(reason.clone()), *at, changes);
            }
            _ => unreachable!("job events are applied by the caller"),
        }
    }

    fn apply_accepted(&mut self, event: &Event, changes: &mut Changes<Key>) {
        let Event::JobAccepted {
            id,
            number,
            spec,
            provenance,
            at,
        } = event
        else {
            return;
        };
        hold(Some(&spec.config), changes);
        hold(spec.algorithm_config.as_ref(), changes);
        self.last_number = *number;
        let state = if spec.plan.endpoints > 0 {
            JobState::Leasing
        } else {
            JobState::Preparing
        };
        let first = Step {
            state: state.step_name(),
            at: *at,
        };
        let job = Job {
            id: id.clone(),
            number: *number,
            spec: spec.clone(),
            provenance: provenance.clone(),
            submitted_at: *at,
            changed_at: *at,
            state,
            step: 0,
            tries: 0,
            note: String::new(),
            lease: None,
            returning: false,
            proposal: None,
            steps: vec![first],
            successor: None,
            last_event: changes.seq,
        };
        self.jobs.insert(id.clone(), job);
        changes.keys.insert(Key::Counter);
        changes.keys.insert(Key::Job(id.clone()));
    }

    fn apply_failed(&mut self, job: &JobId, failure: &Failure, at: Timestamp, changes: &mut Changes<Key>) {
        self.step(job, JobState::Failed(failure.clone()), Some(at), changes, |job, changes| {
            release(job.proposal.take(), changes)
        });
    }

    fn with_job(&mut self, id: &JobId, changes: &mut Changes<Key>, change: impl FnOnce(&mut Job, &mut Changes<Key>)) {
        if let Some(job) = self.jobs.get_mut(id) {
            change(job, changes);
            job.last_event = changes.seq;
            changes.keys.insert(Key::Job(id.clone()));
        }
    }

    /// Enter a state (or try it again, when there is no time): the step rises, so that outcomes of earlier steps are void.
    fn step(
        &mut self,
        id: &JobId,
        state: JobState,
        at: Option<Timestamp>,
        changes: &mut Changes<Key>,
        change: impl FnOnce(&mut Job, &mut Changes<Key>),
    ) {
        self.with_job(id, changes, |job, changes| {
            job.step += 1;
            job.state = state;
            if let Some(at) = at {
                if job.steps.len() >= STEPS_MAX {
                    job.steps.remove(0);
                }
                let state = job.state.step_name();
                job.steps.push(Step { state, at });
                job.changed_at = at;
                job.tries = 0;
                job.note.clear();
            }
            change(job, changes);
        });
    }

    fn with_task(&mut self, key: &TaskKey, changes: &mut Changes<Key>, change: impl FnOnce(&mut Task, &mut Changes<Key>)) {
        if let Some(task) = self.tasks.get_mut(key) {
            let before = is_under_way(task);
            change(task, changes);
            task.last_event = changes.seq;
            let after = is_under_way(task);
            self.under_way = self.under_way + u32::from(after) - u32::from(before);
            changes.keys.insert(Key::Task(key.clone()));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a new task")]
    fn add_task(
        &mut self,
        key: &TaskKey,
        task_type: &TypeName,
        content: &Content,
        origin: Origin,
        state: TaskState,
        at: Timestamp,
        changes: &mut Changes<Key>,
    ) {
        hold(Some(content), changes);
        let task = Task {
            key: key.clone(),
            task_type: task_type.clone(),
            content: Some(content.clone()),
            origin,
            queued_at: at,
            changed_at: at,
            tries: 0,
            state,
            last_event: changes.seq,
        };
        self.tasks.insert(key.clone(), task);
        changes.keys.insert(Key::Task(key.clone()));
    }

    fn end_task(&mut self, key: &TaskKey, outcome: &Outcome, at: Timestamp, changes: &mut Changes<Key>) {
        self.with_task(key, changes, |task, changes| {
            release(task.content.take(), changes);
            task.state = TaskState::Ended(outcome.clone());
            task.changed_at = at;
        });
    }

    fn add_participation(
        &mut self,
        proposal: &ProposalId,
        job_type: &TypeName,
        state: ParticipationState,
        at: Timestamp,
        changes: &mut Changes<Key>,
    ) {
        let participation = Participation {
            proposal: proposal.clone(),
            job_type: job_type.clone(),
            offered_at: at,
            changed_at: at,
            state,
            last_event: changes.seq,
        };
        self.participations.insert(proposal.clone(), participation);
        changes.keys.insert(Key::Participation(proposal.clone()));
    }

    fn end_participation(&mut self, proposal: &ProposalId, state: ParticipationState, at: Timestamp, changes: &mut Changes<Key>) {
        if let Some(participation) = self.participations.get_mut(proposal) {
            self.under_way -= u32::from(participation.state == ParticipationState::Offered);
            participation.state = state;
            participation.changed_at = at;
            participation.last_event = changes.seq;
            changes.keys.insert(Key::Participation(proposal.clone()));
        }
    }
}
