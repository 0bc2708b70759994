//! History that goes: jobs, proposals and used keys that nobody may ask for any more.
//!
//! Called by `decide`. Changes nothing but through events. What a purged job left elsewhere (logs at the cluster, its compile directory)
//! is removed by an effect, for which a live record stands until it is done.

use super::records::{Job, ParticipationState, TaskState};
use super::spec::KeyHash;
use super::{Ctx, Effect, Event, Key, Master, Record, Rejection, Reply};
use crate::machine::content::Content;
use crate::machine::ids::{JobId, PartyId, ProposalId, TaskKey, Timestamp};

/// Tasks that one purge takes with the job: all that a job can have.
pub const PURGE_TASKS_MAX: usize = super::jobs::LOCAL_TASKS_MAX + 1;
/// Proposals or keys that one command takes: a small batch, so that users do not wait behind it.
pub const SWEEP_MAX: usize = 64;

impl Master {
    /// Remove an ended job with all its tasks, and what is known of the parties that were chosen for it.
    pub(super) fn purge(
        &mut self,
        id: &JobId,
        (tasks, parties): (Vec<TaskKey>, Vec<PartyId>),
        (input, out): Ctx<'_>,
    ) -> Result<Reply, Rejection> {
        let job = match (self.job(id), input.recalled(&Key::Job(id.clone()))) {
            (Some(job), _) | (None, Some(Record::Job(job))) => job,
            _ => return Err(Rejection::NotFound(id.clone())),
        };
        let closed = !Master::owes(job) && job.state.is_final() && !self.has_open_task(id) && !self.fetches_for(id);
        if !closed {
            return Err(Rejection::NotEnded {
                job: id.clone(),
                state: job.state.name(),
            });
        }
        if tasks.len() > PURGE_TASKS_MAX || tasks.iter().any(|key| key.job != *id) {
            return Err(Rejection::Malformed(format!(
                "a job has at most {PURGE_TASKS_MAX} tasks, all of its own"
            )));
        }
        let state = job.state.name();
        let (number, key, payloads, at) = (job.number, job.provenance.key, payloads_of(job), input.now);
        if !self.purge_announced(id, parties, (input, out)) {
            return Err(Rejection::NotEnded { job: id.clone(), state });
        }
        for key in tasks {
            if self.tasks.contains_key(&key) || input.recalled(&Key::Task(key.clone())).is_some() {
                out.emit(self, Event::TaskPurged { key });
            }
        }
        out.emit(
            self,
            Event::JobPurged {
                job: id.clone(),
                number,
                key,
                payloads,
                at,
            },
        );
        out.effect(Effect::Forget {
            job: id.clone(),
            number: Some(number),
        });
        Ok(Reply::Done)
    }

    pub(super) fn forgotten(&mut self, id: &JobId, (_, out): Ctx<'_>) -> Result<Reply, Rejection> {
        if !self.purges.contains_key(id) {
            return Err(Rejection::Late(format!("job {id}")));
        }
        out.emit(self, Event::JobForgotten { job: id.clone() });
        Ok(Reply::Done)
    }

    /// Remove ended participations, and with one the task that came of it when its job is not of this party (that one goes with its job).
    pub(super) fn purge_proposals(&mut self, proposals: Vec<(ProposalId, Option<TaskKey>)>, (input, out): Ctx<'_>) -> Reply {
        let mut reply = Reply::Known;
        for (proposal, task) in proposals.into_iter().take(SWEEP_MAX) {
            let Some(Record::Participation(participation)) = input.recalled(&Key::Participation(proposal.clone())) else {
                continue;
            };
            let won = match &participation.state {
                ParticipationState::Offered => continue,
                ParticipationState::Won(key) if !self.is_own(&key.job) => Some(key),
                _ => None,
            };
            if let Some(key) = won {
                if task.as_ref() != Some(key) || self.tasks.contains_key(key) {
                    // It is not the task that was looked up, or has not ended.
                    continue;
                }
                if let Some(Record::Task(ended)) = input.recalled(&Key::Task(key.clone())) {
                    debug_assert!(matches!(ended.state, TaskState::Ended(_)), "only ended records are recalled");
                    out.emit(self, Event::TaskPurged { key: key.clone() });
                    let job = key.job.clone();
                    if !self.purges.contains_key(&job) {
                        out.emit(
                            self,
                            Event::ForgetBegun {
                                job: job.clone(),
                                at: input.now,
                            },
                        );
                        out.effect(Effect::Forget { job, number: None });
                    }
                }
            }
            out.emit(self, Event::ProposalPurged { proposal });
            reply = Reply::Done;
        }
        reply
    }

    /// Remove used keys whose jobs were purged before a time.
    pub(super) fn sweep_tombstones(&mut self, keys: Vec<KeyHash>, before: Timestamp, (input, out): Ctx<'_>) -> Reply {
        let old = |key: &KeyHash| match input.recalled(&Key::Submission(*key)) {
            Some(Record::Submission(submission)) => submission.purged_at.is_some_and(|at| at < before),
            _ => false,
        };
        let keys: Vec<KeyHash> = keys.into_iter().take(SWEEP_MAX).filter(old).collect();
        if keys.is_empty() {
            return Reply::Known;
        }
        for key in keys {
            out.emit(self, Event::KeyDropped { key });
        }
        Reply::Done
    }
}

fn payloads_of(job: &Job) -> Vec<crate::machine::content::PayloadRef> {
    let contents = [Some(&job.spec.config), job.spec.algorithm_config.as_ref(), job.proposal.as_ref()];
    contents.into_iter().flatten().filter_map(Content::payload).collect()
}
