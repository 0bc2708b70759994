//! What happens to a job: accepted, leased, prepared, proposed, run, ended.

use super::records::{Failure, Job, JobState, Lease, TaskState};
use super::spec::{Provenance, Spec};
use super::{Command, Ctx, Effect, Event, JOBS_MAX, Master, Packed, Rejection, Reply, Verdict};
use crate::machine::Out;
use crate::machine::ids::{JobId, TaskKey};
use crate::machine::outcome::{End, Outcome, REASON_MAX, clip, one_line};

/// Tasks for the initiator's own cluster that one job may have; a job's end touches them all in one commit.
pub const LOCAL_TASKS_MAX: usize = 16;

impl Master {
    pub(super) fn submit(&mut self, spec: Spec, provenance: Provenance, (input, out): Ctx<'_>) -> Result<Reply, Rejection> {
        if self.jobs.len() >= JOBS_MAX {
            return Err(Rejection::Full);
        }
        let number = self.last_number + 1;
        let id = JobId::parse(format!("{}-{}-{number}", self.rules.party, input.stamp))
            .expect("a party id is checked to leave room for the rest");
        let event = Event::JobAccepted {
            id: id.clone(),
            number,
            spec,
            provenance,
            at: input.now,
        };
        out.emit(self, event);
        out.effects.extend(self.jobs.get(&id).and_then(|job| self.effect_of_job(job)));
        Ok(Reply::Accepted(id))
    }

    pub(super) fn leased(
        &mut self,
        id: JobId,
        step: u32,
        result: Result<Lease, String>,
        (input, out): Ctx<'_>,
    ) -> Result<Reply, Rejection> {
        self.expect(&id, step, |state| *state == JobState::Leasing)?;
        match result {
            Ok(lease) => {
                out.emit(
                    self,
                    Event::JobLeased {
                        job: id.clone(),
                        lease,
                        at: input.now,
                    },
                );
                out.effects.extend(self.jobs.get(&id).and_then(|job| self.effect_of_job(job)));
            }
            Err(reason) => self.fail(&id, Failure::because(reason), (input, out)),
        }
        Ok(Reply::Done)
    }

    pub(super) fn lease_released(&mut self, id: JobId, (_, out): Ctx<'_>) -> Result<Reply, Rejection> {
        match self.jobs.get(&id) {
            Some(job) if job.state.is_final() && job.lease.is_some() => {
                out.emit(self, Event::LeaseReleased { job: id });
                Ok(Reply::Done)
            }
            _ => Err(Rejection::Late(format!("the lease of job {id}"))),
        }
    }

    pub(super) fn prepared(
        &mut self,
        id: JobId,
        step: u32,
        result: Result<Packed, Failure>,
        (input, out): Ctx<'_>,
    ) -> Result<Reply, Rejection> {
        self.expect(&id, step, |state| *state == JobState::Preparing)?;
        let packed = match result.and_then(|packed| self.check_packed(&id, packed)) {
            Ok(packed) => packed,
            Err(failure) => {
                self.fail(&id, failure, (input, out));
                return Ok(Reply::Done);
            }
        };
        for local in packed.local {
            let key = TaskKey {
                job: id.clone(),
                task: local.task,
            };
            out.emit(
                self,
                Event::TaskHeld {
                    key,
                    task_type: local.task_type,
                    content: local.content,
                    at: input.now,
                },
            );
        }
        match packed.proposal {
            Some(proposal) => {
                out.emit(
                    self,
                    Event::JobProposing {
                        job: id.clone(),
                        proposal,
                        at: input.now,
                    },
                );
                out.effects.extend(self.jobs.get(&id).and_then(|job| self.effect_of_job(job)));
            }
            None => self.run(&id, (input, out)),
        }
        Ok(Reply::Done)
    }

    fn check_packed(&self, id: &JobId, packed: Packed) -> Result<Packed, Failure> {
        if packed.local.len() > LOCAL_TASKS_MAX {
            return Err(Failure::because(format!(
                "{} local tasks are more than {LOCAL_TASKS_MAX}",
                packed.local.len()
            )));
        }
        let taken = |task: &super::LocalTask| {
            self.tasks.contains_key(&TaskKey {
                job: id.clone(),
                task: task.task.clone(),
            })
        };
        match packed.local.iter().find(|task| taken(task)) {
            Some(task) => Err(Failure::because(format!(
                "a task {} of this job was already fetched from elsewhere",
                task.task
            ))),
            None => Ok(packed),
        }
    }

    pub(super) fn legacy_proposal(&mut self, id: JobId, step: u32, (_, out): Ctx<'_>) -> Result<Reply, Rejection> {
        self.expect(&id, step, |state| *state == JobState::Proposing { legacy_call: false })?;
        out.emit(self, Event::JobProposedLegacy { job: id });
        Ok(Reply::Done)
    }

    pub(super) fn verdict(&mut self, id: JobId, step: u32, verdict: Verdict, (input, out): Ctx<'_>) -> Result<Reply, Rejection> {
        self.expect(&id, step, |state| matches!(state, JobState::Proposing { .. }))?;
        match verdict {
            Verdict::Accepted => self.run(&id, (input, out)),
            Verdict::Refused(reason) => self.fail(&id, Failure::because(clip(one_line(&reason), REASON_MAX)), (input, out)),
            Verdict::Unknown if self.rules.propose_again => {
                out.emit(self, Event::JobProposedAgain { job: id.clone() });
                out.effects.extend(self.jobs.get(&id).and_then(|job| self.effect_of_job(job)));
            }
            Verdict::Unknown => self.fail(&id, Failure::because("proposal outcome unknown"), (input, out)),
        }
        Ok(Reply::Done)
    }

    pub(super) fn note(&mut self, id: JobId, note: String, (_, out): Ctx<'_>) -> Result<Reply, Rejection> {
        let note = clip(one_line(&note), REASON_MAX);
        match self.jobs.get(&id) {
            Some(job) if job.state.is_final() => Err(Rejection::Late(format!("job {id}"))),
            Some(job) if job.note == note => Ok(Reply::Known),
            Some(_) => {
                out.emit(self, Event::JobNoted { job: id, note });
                Ok(Reply::Done)
            }
            None => Err(Rejection::Late(format!("job {id}"))),
        }
    }

    /// The verdict is good, or there is none to wait for: the packed tasks may go.
    fn run(&mut self, id: &JobId, (input, out): Ctx<'_>) {
        out.emit(
            self,
            Event::JobRunning {
                job: id.clone(),
                at: input.now,
            },
        );
        let held: Vec<TaskKey> = self
            .tasks_of(id)
            .filter(|task| task.state == TaskState::Held)
            .map(|task| task.key.clone())
            .collect();
        for key in held {
            out.emit(
                self,
                Event::TaskReleased {
                    key: key.clone(),
                    at: input.now,
                },
            );
            out.effect(Effect::Submit { key, tries: 0 });
        }
        self.settle_job(id, (input, out));
    }

    /// A job whose own tasks have all ended well, and that waits for no task of its own proposal any more, is a success.
    pub(super) fn settle_job(&mut self, id: &JobId, (input, out): Ctx<'_>) {
        let running = self.jobs.get(id).is_some_and(|job| job.state == JobState::Running);
        if running && !self.has_open_task(id) && !self.fetches_for(id) {
            out.emit(
                self,
                Event::JobSucceeded {
                    job: id.clone(),
                    at: input.now,
                },
            );
            self.close(id, out);
        }
    }

    /// The job failed: its own tasks are stopped, its endpoints given back.
    pub(super) fn fail(&mut self, id: &JobId, failure: Failure, (input, out): Ctx<'_>) {
        let failure = Failure {
            reason: clip(one_line(&failure.reason), REASON_MAX),
            ..failure
        };
        out.emit(
            self,
            Event::JobFailed {
                job: id.clone(),
                failure,
                at: input.now,
            },
        );
        let open: Vec<(TaskKey, bool)> = self
            .tasks_of(id)
            .filter(|task| matches!(task.state, TaskState::Held | TaskState::Queued | TaskState::Submitted { .. }))
            .map(|task| (task.key.clone(), task.state == TaskState::Held))
            .collect();
        let reason = "the job failed".to_owned();
        for (key, held) in open {
            if held {
                let outcome = Outcome::without_process(End::Cancelled, reason.clone());
                out.emit(
                    self,
                    Event::TaskEnded {
                        key,
                        outcome,
                        at: input.now,
                    },
                );
            } else {
                out.emit(
                    self,
                    Event::TaskCancelling {
                        key: key.clone(),
                        reason: reason.clone(),
                        at: input.now,
                    },
                );
                out.effect(Effect::Cancel {
                    key,
                    reason: reason.clone(),
                });
            }
        }
        self.close(id, out);
    }

    /// Endpoints go back once nothing of the job can use them any more.
    pub(super) fn close(&self, id: &JobId, out: &mut Out<Master>) {
        let closing = self.jobs.get(id).filter(|job| job.state.is_final());
        out.effects.extend(closing.and_then(|job| self.effect_of_job(job)));
    }

    pub(super) fn has_open_task(&self, id: &JobId) -> bool {
        self.tasks_of(id).any(|task| !matches!(task.state, TaskState::Ended(_)))
    }

    fn expect(&self, id: &JobId, step: u32, fits: impl FnOnce(&JobState) -> bool) -> Result<(), Rejection> {
        match self.jobs.get(id) {
            Some(job) if job.step == step && fits(&job.state) => Ok(()),
            _ => Err(Rejection::Late(format!("job {id}"))),
        }
    }

    /// What a job's record justifies doing now: asked when it enters the state, and again after every restart.
    pub(super) fn effect_of_job(&self, job: &Job) -> Option<Effect> {
        let (id, step) = (job.id.clone(), job.step);
        match &job.state {
            JobState::Leasing => Some(Effect::AcquireLease {
                job: id,
                step,
                endpoints: job.spec.plan.endpoints,
            }),
            JobState::Preparing => Some(Effect::Prepare { job: id, step }),
            JobState::Proposing { legacy_call } => Some(Effect::Propose {
                job: id,
                step,
                legacy_call: *legacy_call,
                tries: job.tries,
            }),
            JobState::Waiting { .. } | JobState::Held | JobState::Running => None,
            JobState::Succeeded | JobState::Failed(_) | JobState::Cancelled { .. }
                if job.lease.is_none() || self.has_open_task(&job.id) =>
            {
                None
            }
            JobState::Succeeded | JobState::Failed(_) | JobState::Cancelled { .. } => Some(Effect::ReleaseLease { job: id }),
        }
    }
}

impl Command {
    /// The job a command speaks of, for logs.
    pub fn job(&self) -> Option<&JobId> {
        match self {
            Command::Leased { job, .. }
            | Command::LeaseReleased { job }
            | Command::Prepared { job, .. }
            | Command::LegacyProposal { job, .. }
            | Command::Verdict { job, .. }
            | Command::Note { job, .. } => Some(job),
            Command::Submitted { key, .. } | Command::TaskEnded { key, .. } => Some(&key.job),
            Command::Submit { .. } | Command::Offered { .. } | Command::Fetched { .. } => None,
        }
    }
}
