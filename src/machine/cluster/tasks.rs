//! Decisions about tasks: taken once, run where there is room, ended once.
//!
//! Called by `decide`. Changes nothing but through events.

use super::records::{CANCEL_REASON_MAX, LeaseId, Task, TaskState};
use super::{Cluster, Effect, Event, Key, Record, Rejection, Reply, STEP_MAX, Submission, placement};
use crate::machine::ids::{JobId, TaskKey, Timestamp, WorkerId};
use crate::machine::outcome::{End, Outcome, clip, one_line};
use crate::machine::{Input, Out};
use std::sync::Arc;

type Output = Out<Cluster>;

impl Cluster {
    /// The task: in memory, or ended and recalled.
    pub(super) fn known_task<'a>(&'a self, key: &TaskKey, input: &'a Input<Key, Record>) -> Option<&'a Task> {
        if let Some(task) = self.tasks.get(key) {
            return Some(task);
        }
        match input.recalled(&Key::Task(key.clone())) {
            Some(Record::Task(task)) => Some(task),
            _ => None,
        }
    }

    pub(super) fn submit(&mut self, submission: Submission, input: &Input<Key, Record>, out: &mut Output) -> Result<Reply, Rejection> {
        let Submission {
            key,
            task_type,
            content,
            fingerprint,
            assignee,
        } = submission;
        if let Some(known) = self.known_task(&key, input) {
            if known.fingerprint != fingerprint && !known.is_barred() {
                return Err(Rejection::Conflict(key));
            }
            return Ok(Reply::Submitted { repeated: true });
        }
        let waiting = self.index.queues.len();
        if waiting >= self.rules.queue_max {
            return Err(Rejection::QueueFull(waiting));
        }
        let lease = match &assignee {
            Some(worker) if self.live_worker(worker).is_none() => {
                self.check_lease(&key.job, worker)?;
                return Err(Rejection::UnknownAssignee(worker.clone()));
            }
            Some(worker) => {
                self.check_lease(&key.job, worker)?;
                self.lease_for(&key.job, worker)
            }
            None => None,
        };
        let task = Task {
            task_type,
            content,
            fingerprint,
            assignee,
            state: TaskState::Queued,
            stopping: None,
            attempts: 0,
            max_attempts: self.rules.max_attempts.max(1),
            number: self.next_number,
            queued_at: input.now,
            changed_at: input.now,
            lease,
        };
        out.emit(self, Event::TaskSubmitted { key, task: Arc::new(task) });
        Ok(Reply::Submitted { repeated: false })
    }

    /// Refuse a task whose endpoints went with its worker, also if a worker of that name is back.
    fn check_lease(&self, job: &JobId, worker: &WorkerId) -> Result<(), Rejection> {
        match self.leases.get(&LeaseId::Job(job.clone())) {
            Some(lease) if lease.worker == *worker && lease.state == super::records::LeaseState::Lost => Err(Rejection::LeaseLost {
                job: job.clone(),
                worker: worker.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The lease whose slot a new task of this job uses on this worker.
    fn lease_for(&self, job: &JobId, worker: &WorkerId) -> Option<LeaseId> {
        let of_job = LeaseId::Job(job.clone());
        if let Some(lease) = self.leases.get(&of_job).filter(|lease| lease.worker == *worker) {
            return lease.is_unbound().then_some(of_job);
        }
        let mut anonymous = self
            .index
            .load(worker)?
            .leases
            .iter()
            .take_while(|id| matches!(id, LeaseId::Anonymous(_)));
        anonymous
            .find(|id| self.leases.get(id).is_some_and(|lease| lease.is_unbound()))
            .cloned()
    }

    pub(super) fn report(
        &mut self,
        worker: &WorkerId,
        key: &TaskKey,
        attempt: Option<u32>,
        outcome: Outcome,
        now: Timestamp,
        out: &mut Output,
    ) -> Result<Reply, Rejection> {
        let Some(record) = self.live_worker(worker) else {
            return Err(Rejection::UnknownWorker(worker.clone()));
        };
        let legacy = record.profile.legacy;
        let current = self.tasks.get(key).and_then(|task| task.assignment());
        let attempt = match (current, attempt) {
            (Some((on, current)), Some(attempt)) if on == worker && current == attempt => attempt,
            (Some((on, current)), None) if on == worker && legacy => current,
            _ => return Ok(Reply::Void),
        };
        let outcome = Outcome {
            worker: Some(worker.clone()),
            attempt,
            ..outcome.clipped()
        };
        self.end(key, outcome, now, out);
        Ok(Reply::Done)
    }

    pub(super) fn cancel(&mut self, key: &TaskKey, reason: String, input: &Input<Key, Record>, out: &mut Output) -> Reply {
        let reason = clip(one_line(&reason), CANCEL_REASON_MAX);
        let cancelled = Outcome::without_process(End::Cancelled, reason.clone());
        let Some(task) = self.tasks.get(key) else {
            let known = match self.known_task(key, input) {
                Some(task) => !task.is_barred(),
                None => {
                    self.bar(key, cancelled, input.now, out);
                    false
                }
            };
            return Reply::Cancelled { known };
        };
        match &task.state {
            // Barred by a command of the same commit.
            TaskState::Ended(_) => return Reply::Cancelled { known: !task.is_barred() },
            TaskState::Queued => self.end(key, cancelled, input.now, out),
            TaskState::Assigned { worker, attempt } => {
                let (worker, attempt) = (worker.clone(), *attempt);
                let Some(record) = self.workers.get(&worker) else {
                    return Reply::Cancelled { known: true };
                };
                let (session, legacy) = (record.session, record.profile.legacy);
                if legacy {
                    // It knows no way to stop a task; what it reports later is void.
                    self.end(
                        key,
                        Outcome {
                            worker: Some(worker),
                            attempt,
                            ..cancelled
                        },
                        input.now,
                        out,
                    );
                } else {
                    let reason = task.stopping.clone().unwrap_or(reason);
                    if task.stopping.is_none() {
                        out.emit(
                            self,
                            Event::TaskStopping {
                                key: key.clone(),
                                reason: reason.clone(),
                            },
                        );
                    }
                    out.effect(Effect::Kill {
                        worker,
                        session,
                        key: key.clone(),
                        attempt,
                        reason,
                    });
                }
            }
        }
        Reply::Cancelled { known: true }
    }

    /// Keep that this task was cancelled before it came: a TaskSubmit that is still on its way must not start it.
    fn bar(&mut self, key: &TaskKey, cancelled: Outcome, now: Timestamp, out: &mut Output) {
        let task = Arc::new(Task::barred(self.next_number, now));
        out.emit(self, Event::TaskSubmitted { key: key.clone(), task });
        self.end(key, cancelled, now, out);
    }

    pub(super) fn end(&mut self, key: &TaskKey, outcome: Outcome, now: Timestamp, out: &mut Output) {
        out.emit(
            self,
            Event::TaskEnded {
                key: key.clone(),
                outcome,
                at: now,
            },
        );
        out.effect(Effect::Ended { key: key.clone() });
    }

    pub(super) fn forget_tasks(
        &mut self,
        job: Option<&JobId>,
        tasks: Vec<TaskKey>,
        input: &Input<Key, Record>,
        out: &mut Output,
    ) -> Result<Reply, Rejection> {
        if let Some(key) = job.and_then(|job| self.open_task_of(job)) {
            return Err(Rejection::NotEnded(key.clone()));
        }
        for key in tasks.into_iter().take(STEP_MAX) {
            // What was forgotten before, or was submitted anew since it was found in the history, is left as it is.
            if self.known_task(&key, input).is_some_and(Task::is_ended) {
                out.emit(self, Event::TaskForgotten { key });
            }
        }
        Ok(Reply::Done)
    }

    /// A task of this job that has not ended.
    fn open_task_of(&self, job: &JobId) -> Option<&TaskKey> {
        self.tasks
            .of_job(job)
            .find(|(_, task)| !task.is_ended())
            .map(|(key, _)| key.as_ref())
    }

    /// Assign what can be assigned, at most [`STEP_MAX`] tasks; the rest follows with [`Effect::PlaceMore`].
    pub(super) fn place_waiting(&mut self, now: Timestamp, out: &mut Output) {
        if self.index.queues.is_empty() || self.index.rooms.attached.is_empty() {
            return;
        }
        let placed = placement::place(&self.index.queues, &self.index.rooms, STEP_MAX);
        let full = placed.len() == STEP_MAX;
        for (key, worker) in placed {
            out.emit(
                self,
                Event::TaskAssigned {
                    key: key.clone(),
                    worker: worker.clone(),
                    at: now,
                },
            );
            let attempt = self.tasks.get(&key).map_or(0, |task| task.attempts);
            let session = self.workers.get(&worker).map_or(0, |worker| worker.session);
            out.effect(Effect::Dispatch {
                worker,
                session,
                key,
                attempt,
            });
        }
        if full {
            out.effect(Effect::PlaceMore);
        }
    }
}
