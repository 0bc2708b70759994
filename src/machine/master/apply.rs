//! The only place where the master's state changes: one event at a time. Used live and in replay.

use super::control::first_state;
use super::federation::{Announced, Report};
use super::records::{
    Job, JobState, KeyHash, Origin, Participation, ParticipationState, Purge, STEPS_MAX, Step, Submission, Task, TaskState,
};
use super::{Event, Key, Master};
use crate::machine::Changes;
use crate::machine::content::Content;
use crate::machine::ids::{JobId, ProposalId, TaskKey, Timestamp, TypeName};
use crate::machine::outcome::Outcome;

/// Counts towards `ProposalAcceptRule::at_once`. A task whose end will never be known does not: it would count for ever.
pub(super) fn is_under_way(task: &Task) -> bool {
    matches!(task.origin, Origin::Won(_)) && !matches!(task.state, TaskState::Ended(_) | TaskState::Submitted { watched: false })
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
            Event::JobSucceeded { job, at } => self.apply_end(job, JobState::Succeeded, *at, false, changes),
            Event::JobFailed { job, failure, at, lingers } => {
                self.apply_end(job, JobState::Failed(failure.clone()), *at, *lingers, changes)
            }
            Event::JobCancelled { job, reason, at } => {
                let reason = reason.clone();
                let lingers = self.lingers(job);
                self.apply_end(job, JobState::Cancelled { reason }, *at, lingers, changes);
            }
            Event::JobHeld { job, at } => {
                let lingers = self.lingers(job);
                self.leave(job, JobState::Held, *at, lingers, changes);
            }
            Event::JobReleased { job, at } | Event::JobWoken { job, at } => {
                if let Some(next) = self.jobs.get(job).map(|job| first_state(&job.spec, *at)) {
                    self.step(job, next, Some(*at), changes, |_, _| {});
                }
            }
            Event::JobRepeated { job, successor } => self.with_job(job, changes, |job, _| job.successor = Some(successor.clone())),
            Event::LeaseReleased { job } => self.with_job(job, changes, |job, _| {
                job.lease = None;
                job.returning = false;
            }),
            Event::KeyTaken { .. }
            | Event::JobPurged { .. }
            | Event::ForgetBegun { .. }
            | Event::JobForgotten { .. }
            | Event::TaskPurged { .. }
            | Event::ProposalPurged { .. }
            | Event::KeyDropped { .. } => self.apply_purge(event, changes),
            Event::JobAnnounced { .. }
            | Event::PeerChanged { .. }
            | Event::AnnouncedPurged { .. }
            | Event::PeerPurged { .. }
            | Event::ReportOwed { .. }
            | Event::ReportSent { .. }
            | Event::WithdrawalOwed { .. }
            | Event::WithdrawalSent { .. } => {
                self.apply_federation(event, changes);
            }
            _ => self.apply_task_event(event, changes),
        }
    }

    fn apply_federation(&mut self, event: &Event, changes: &mut Changes<Key>) {
        match event {
            Event::JobAnnounced { job, announced } => {
                let last_event = changes.seq;
                let announced = (**announced).clone();
                self.announced.insert(job.clone(), Announced { last_event, ..announced });
                changes.keys.insert(Key::Announced(job.clone()));
            }
            Event::PeerChanged { peer } => {
                let (job, party) = (peer.job.clone(), peer.party.clone());
                self.peers.insert((job.clone(), party.clone()), (**peer).clone());
                if let Some(announced) = self.announced.get_mut(&job) {
                    announced.last_event = changes.seq;
                    changes.keys.insert(Key::Announced(job.clone()));
                }
                changes.keys.insert(Key::Peer(job, party));
            }
            Event::AnnouncedPurged { job } => {
                self.announced.remove(job);
                changes.keys.insert(Key::Announced(job.clone()));
            }
            Event::PeerPurged { job, party } => {
                let peer = (job.clone(), party.clone());
                self.peers.remove(&peer);
                changes.keys.insert(Key::Peer(peer.0, peer.1));
            }
            Event::WithdrawalOwed { job, withdrawal } => {
                self.withdrawals.insert(job.clone(), (**withdrawal).clone());
                changes.keys.insert(Key::Withdrawal(job.clone()));
            }
            Event::WithdrawalSent { job } => {
                self.withdrawals.remove(job);
                changes.keys.insert(Key::Withdrawal(job.clone()));
            }
            Event::ReportOwed { proposal, report } => {
                let number = changes.seq;
                self.reports.insert(
                    proposal.clone(),
                    Report {
                        number,
                        ..(**report).clone()
                    },
                );
                changes.keys.insert(Key::Report(proposal.clone()));
            }
            Event::ReportSent { proposal } => {
                self.reports.remove(proposal);
                changes.keys.insert(Key::Report(proposal.clone()));
            }
            _ => unreachable!("other events are applied by the caller"),
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
        let state = first_state(spec, *at);
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
        self.jobs.insert(id.clone(), Box::new(job));
        changes.keys.insert(Key::Counter);
        changes.keys.insert(Key::Job(id.clone()));
    }

    /// Into a final state: what was packed goes, and of the lease only the name of the worker is kept until it is back.
    fn apply_end(&mut self, job: &JobId, state: JobState, at: Timestamp, lingers: bool, changes: &mut Changes<Key>) {
        self.leave(job, state, at, lingers, changes);
        self.with_job(job, changes, |job, changes| {
            release(job.proposal.take(), changes);
            if let Some(lease) = &mut job.lease {
                lease.host.clear();
                lease.ports.clear();
            }
        });
    }

    /// Out of the way of a job by itself: what it has of the cluster manager goes back, also what was granted and not told, once nothing of it that
    /// lingers here runs any more.
    fn leave(&mut self, job: &JobId, state: JobState, at: Timestamp, lingers: bool, changes: &mut Changes<Key>) {
        let has_lease = |job: &Job| job.state == JobState::Leasing || job.lease.is_some();
        let leaves = lingers || self.job(job).is_some_and(has_lease);
        self.step(job, state, Some(at), changes, |job, _| job.returning |= leaves);
    }

    fn apply_purge(&mut self, event: &Event, changes: &mut Changes<Key>) {
        match event {
            Event::KeyTaken { key, job, fingerprint } => self.put_submission(*key, job, *fingerprint, None, changes),
            Event::JobPurged {
                job,
                number,
                key,
                payloads,
                at,
            } => {
                self.jobs.remove(job);
                changes.keys.insert(Key::Job(job.clone()));
                changes.released.extend(payloads);
                if let Some(key) = key {
                    self.put_submission(*key, job, [0; 32], Some(*at), changes);
                }
                self.put_purge(job, Some(*number), *at, changes);
            }
            Event::ForgetBegun { job, at } => self.put_purge(job, None, *at, changes),
            Event::JobForgotten { job } => {
                self.purges.remove(job);
                changes.keys.insert(Key::Purge(job.clone()));
            }
            Event::TaskPurged { key } => {
                self.tasks.remove(key);
                changes.keys.insert(Key::Task(key.clone()));
            }
            Event::ProposalPurged { proposal } => {
                self.participations.remove(proposal);
                changes.keys.insert(Key::Participation(proposal.clone()));
            }
            Event::KeyDropped { key } => {
                self.submissions.remove(key);
                changes.keys.insert(Key::Submission(*key));
            }
            _ => unreachable!("other events are applied by the caller"),
        }
    }

    fn put_submission(
        &mut self,
        key: KeyHash,
        job: &JobId,
        fingerprint: [u8; 32],
        purged_at: Option<Timestamp>,
        changes: &mut Changes<Key>,
    ) {
        let submission = Submission {
            job: job.clone(),
            fingerprint,
            purged_at,
        };
        self.submissions.insert(key, submission);
        changes.keys.insert(Key::Submission(key));
    }

    fn put_purge(&mut self, job: &JobId, number: Option<u64>, at: Timestamp, changes: &mut Changes<Key>) {
        let purge = Purge {
            job: job.clone(),
            number,
            at,
        };
        self.purges.insert(job.clone(), purge);
        changes.keys.insert(Key::Purge(job.clone()));
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
        self.tasks.insert(key.clone(), Box::new(task));
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
