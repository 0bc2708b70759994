//! The way of a job by itself: leased, prepared, proposed, run, ended. What users and time do to it is in `control`.

use super::records::{Failure, Job, JobState, Lease, Task, TaskState};
use super::{Command, Ctx, Effect, Event, Master, Packed, Rejection, Reply, Verdict};
use crate::machine::Out;
use crate::machine::ids::{JobId, TaskKey};
use crate::machine::outcome::{REASON_MAX, clip, clip_front, one_line};

/// Tasks for the initiator's own cluster that one job may have; a job's end touches them all in one commit.
pub const LOCAL_TASKS_MAX: usize = 16;

/// The longest piece of stderr kept with a job, bytes: with all else a job may carry, its record stays below the store's value limit. The task
/// that failed keeps more.
pub const JOB_TAIL_MAX: usize = 768;

impl Master {
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
        if !self.job(&id).is_some_and(Master::owes) {
            return Err(Rejection::Late(format!("the lease of job {id}")));
        }
        out.emit(self, Event::LeaseReleased { job: id.clone() });
        // A job that was released meanwhile goes on from here.
        out.effects.extend(self.jobs.get(&id).and_then(|job| self.effect_of_job(job)));
        Ok(Reply::Done)
    }

    /// True while something is to go back to the cluster manager before anything else is asked for.
    pub(super) fn owes(job: &Job) -> bool {
        job.returning || (job.state.is_final() && job.lease.is_some())
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
                self.begin_following(&id, out);
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
        self.stop_following(&id, out);
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

    pub(super) fn note(&mut self, id: JobId, step: u32, note: String, (_, out): Ctx<'_>) -> Result<Reply, Rejection> {
        let note = clip(one_line(&note), REASON_MAX);
        match self.jobs.get(&id) {
            Some(job) if job.state.is_final() || job.step != step => Err(Rejection::Late(format!("job {id}"))),
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
            self.give_up_late(id, out);
            self.close(id, out);
        }
    }

    /// The job failed, and is tried again if it may be.
    pub(super) fn fail(&mut self, id: &JobId, failure: Failure, (input, out): Ctx<'_>) {
        self.fail_for_good(id, failure, (input, out));
        self.succeed(id, (input, out));
    }

    /// The job failed: its own tasks are stopped, its endpoints given back.
    pub(super) fn fail_for_good(&mut self, id: &JobId, failure: Failure, (input, out): Ctx<'_>) {
        // A coordinator that never heard of it is asked no more.
        self.ask_for_news(id, 0, out);
        let failure = Failure {
            reason: clip(one_line(&failure.reason), REASON_MAX),
            exit_code: failure.exit_code,
            stderr_tail: clip_front(failure.stderr_tail, JOB_TAIL_MAX),
        };
        let lingers = self.lingers(id);
        out.emit(
            self,
            Event::JobFailed {
                job: id.clone(),
                failure,
                at: input.now,
                lingers,
            },
        );
        self.give_up_late(id, out);
        self.stop_tasks(id, "the job failed", (input, out));
        self.close(id, out);
    }

    /// A job that ended by itself has nobody at work but a clock, if it has one.
    fn give_up_late(&self, id: &JobId, out: &mut Out<Master>) {
        if self.jobs.get(id).is_some_and(|job| job.spec.deadline.is_some()) {
            self.give_up(id, out);
        }
    }

    /// Endpoints go back once nothing of the job can use them any more.
    pub(super) fn close(&self, id: &JobId, out: &mut Out<Master>) {
        let closing = self.jobs.get(id).filter(|job| job.state.is_final());
        out.effects.extend(closing.and_then(|job| self.effect_of_job(job)));
    }

    /// True when something of a job may still run once it is taken out of its way: a compile step, a task that was not held back.
    pub(super) fn lingers(&self, id: &JobId) -> bool {
        let may_run = |task: &Task| !matches!(task.state, TaskState::Held | TaskState::Ended(_));
        self.jobs.get(id).is_some_and(|job| job.state == JobState::Preparing) || self.tasks_of(id).any(may_run)
    }

    pub(super) fn has_open_task(&self, id: &JobId) -> bool {
        self.tasks_of(id).any(|task| !matches!(task.state, TaskState::Ended(_)))
    }

    pub(super) fn expect(&self, id: &JobId, step: u32, fits: impl FnOnce(&JobState) -> bool) -> Result<&Job, Rejection> {
        match self.jobs.get(id) {
            Some(job) if job.step == step && fits(&job.state) && !job.returning => Ok(job),
            _ => Err(Rejection::Late(format!("job {id}"))),
        }
    }

    /// What a job's record justifies doing now: asked when it enters the state, and again after every restart.
    pub(super) fn effect_of_job(&self, job: &Job) -> Option<Effect> {
        let (id, step) = (job.id.clone(), job.step);
        if Master::owes(job) {
            return (!self.has_open_task(&job.id)).then_some(Effect::ReleaseLease { job: id });
        }
        match &job.state {
            JobState::Waiting { until } => Some(Effect::WakeAt { job: id, step, at: *until }),
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
            JobState::Held | JobState::Running | JobState::Succeeded | JobState::Failed(_) | JobState::Cancelled { .. } => None,
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
            | Command::Note { job, .. }
            | Command::Rerun { job, .. }
            | Command::Cancel { job, .. }
            | Command::Hold { job }
            | Command::Release { job }
            | Command::Wake { job, .. }
            | Command::DeadlinePassed { job }
            | Command::Purge { job, .. }
            | Command::Forgotten { job }
            | Command::Withdrawn { job }
            | Command::News { job, .. } => Some(job),
            Command::Submitted { key, .. } | Command::TaskEnded { key, .. } | Command::StopOrdered { key, .. } => Some(&key.job),
            Command::Submit { .. }
            | Command::Offered { .. }
            | Command::Fetched { .. }
            | Command::Reported { .. }
            | Command::PurgeProposals { .. }
            | Command::SweepTombstones { .. } => None,
        }
    }
}
