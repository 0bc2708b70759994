//! The cluster task queue: submitted, watched, ended or stopped.

use super::federation::PeerState;
use super::records::{Failure, Job, JobState, Task, TaskState};
use super::{Ctx, Effect, Event, Master, Rejection, Reply, SubmitAnswer};
use crate::machine::ids::TaskKey;
use crate::machine::outcome::{End, Outcome};

/// What a job says whose tasks are at a manager that never tells how they end.
pub const UNWATCHED: &str = "the cluster manager is a FedVision 0.1 one, which does not tell how tasks end";

impl Master {
    pub(super) fn submitted(&mut self, key: TaskKey, tries: u32, answer: SubmitAnswer, (input, out): Ctx<'_>) -> Result<Reply, Rejection> {
        let fits = |task: &&Task| task.state == TaskState::Queued && task.tries == tries;
        if self.task(&key).filter(fits).is_none() {
            return Err(Rejection::Late(format!("task {key}")));
        }
        match answer {
            SubmitAnswer::Taken | SubmitAnswer::TakenUnwatched => {
                let watched = answer == SubmitAnswer::Taken;
                out.emit(
                    self,
                    Event::TaskSubmitted {
                        key: key.clone(),
                        watched,
                        at: input.now,
                    },
                );
                self.owe_report(&key, PeerState::Running, "", out);
                // Whatever the job waited for is there again; what is not known about it stays.
                let note = if watched { "" } else { UNWATCHED };
                if self
                    .jobs
                    .get(&key.job)
                    .is_some_and(|job| job.state == JobState::Running && job.note != note)
                {
                    out.emit(
                        self,
                        Event::JobNoted {
                            job: key.job.clone(),
                            note: note.to_owned(),
                        },
                    );
                }
                // Watched all the same: the manager may be replaced by one that tells.
                out.effect(Effect::Watch { key });
            }
            SubmitAnswer::Refused if tries + 1 >= self.rules.submit_tries => {
                let reason = format!("the cluster manager refused the task {} times", tries + 1);
                self.end_and_settle(key, Outcome::without_process(End::Failed, reason), (input, out));
            }
            SubmitAnswer::Refused => {
                let (refused, tries_in_all) = (tries + 1, self.rules.submit_tries);
                let note = format!(
                    "the cluster manager does not take task {} now, {refused} of {tries_in_all} tries",
                    key.task
                );
                out.emit(self, Event::TaskRefused { key: key.clone() });
                if self.jobs.get(&key.job).is_some_and(|job| job.state == JobState::Running) {
                    let job = key.job.clone();
                    out.emit(self, Event::JobNoted { job, note });
                }
                out.effect(Effect::Submit { key, tries: tries + 1 });
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn task_ended(&mut self, key: TaskKey, outcome: Outcome, ctx: Ctx<'_>) -> Result<Reply, Rejection> {
        let open = |task: &&Task| {
            matches!(
                task.state,
                TaskState::Queued | TaskState::Submitted { .. } | TaskState::Cancelling { .. }
            )
        };
        if self.task(&key).filter(open).is_none() {
            return Err(Rejection::Late(format!("task {key}")));
        }
        self.end_and_settle(key, outcome.clipped(), ctx);
        Ok(Reply::Done)
    }

    fn end_and_settle(&mut self, key: TaskKey, outcome: Outcome, (input, out): Ctx<'_>) {
        out.emit(
            self,
            Event::TaskEnded {
                key: key.clone(),
                outcome: outcome.clone(),
                at: input.now,
            },
        );
        self.owe_report(&key, PeerState::Ended(outcome.end), &outcome.reason, out);
        // A task of the job's own proposal may end before its verdict is known here, after a crash while it was open.
        let under_way = |job: &Job| matches!(job.state, JobState::Proposing { .. } | JobState::Running);
        if !self.job(&key.job).is_some_and(under_way) {
            self.close(&key.job, out);
            return;
        }
        match outcome.end {
            End::Succeeded => self.settle_job(&key.job, (input, out)),
            End::Failed | End::Cancelled => {
                let how = if outcome.end == End::Failed { "failed" } else { "was cancelled" };
                let reason = format!("task {} {how}: {}", key.task, outcome.reason);
                let failure = Failure {
                    reason,
                    exit_code: outcome.exit_code,
                    stderr_tail: outcome.stderr_tail,
                };
                self.fail(&key.job, failure, (input, out));
            }
        }
    }

    /// What a task's record justifies doing now.
    pub(super) fn effect_of_task(task: &Task) -> Option<Effect> {
        let key = task.key.clone();
        match &task.state {
            TaskState::Held | TaskState::Ended(_) => None,
            TaskState::Queued => Some(Effect::Submit { key, tries: task.tries }),
            TaskState::Submitted { .. } => Some(Effect::Watch { key }),
            TaskState::Cancelling { reason } => Some(Effect::Cancel {
                key,
                reason: reason.clone(),
            }),
        }
    }
}
