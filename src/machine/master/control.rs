//! What users and time do to a job: cancel, hold, release, run again; the hour it may begin, its deadline, its next attempt.
//!
//! Called by `decide`. Changes nothing but through events.

use super::records::{Failure, Job, JobState, TaskState};
use super::spec::{ATTEMPTS_MAX, PRIORITY_MAX, Provenance, Spec, check_labels};
use super::{Ctx, Effect, Event, JOBS_MAX, Key, Master, Record, Rejection, Reply};
use crate::machine::content::{Content, INLINE_MAX};
use crate::machine::ids::{JobId, TaskKey, Timestamp};
use crate::machine::outcome::{End, Outcome, REASON_MAX, clip, one_line};

/// The pause before a second attempt, ms; it doubles with each attempt.
const RETRY_MS: u64 = 1_000;
/// The longest pause before an attempt, ms.
const RETRY_MAX_MS: u64 = 300_000;

/// The state a job with this spec begins in, or goes on in once it is released.
pub(super) fn first_state(spec: &Spec, now: Timestamp) -> JobState {
    match spec.not_before {
        Some(until) if until > now => JobState::Waiting { until },
        _ if spec.plan.endpoints > 0 => JobState::Leasing,
        _ => JobState::Preparing,
    }
}

/// What a spec must keep to, so that the job's record fits the store.
fn check_spec(spec: &Spec) -> Result<(), Rejection> {
    let malformed = |what: String| Err(Rejection::Malformed(what));
    if spec.priority < -PRIORITY_MAX || spec.priority > PRIORITY_MAX {
        return malformed(format!(
            "priority: {} is not between -{PRIORITY_MAX} and {PRIORITY_MAX}",
            spec.priority
        ));
    }
    if spec.max_attempts == 0 || spec.max_attempts > ATTEMPTS_MAX {
        return malformed(format!("max_attempts: {} is not between 1 and {ATTEMPTS_MAX}", spec.max_attempts));
    }
    let inline = |content: &Content| if let Content::Inline(bytes) = content { bytes.len() } else { 0 };
    let total = inline(&spec.config) + spec.algorithm_config.as_ref().map_or(0, inline);
    if total > INLINE_MAX {
        return malformed(format!(
            "job_config and algorithm_config: {total} bytes inline are more than {INLINE_MAX}"
        ));
    }
    check_labels(&spec.labels).map_err(|bad| Rejection::Malformed(bad.why))
}

impl Master {
    pub(super) fn submit(
        &mut self,
        spec: Spec,
        provenance: Provenance,
        fingerprint: [u8; 32],
        (input, out): Ctx<'_>,
    ) -> Result<Reply, Rejection> {
        if let Some(key) = &provenance.key {
            let recalled = match input.recalled(&Key::Submission(*key)) {
                Some(Record::Submission(submission)) => Some(submission),
                _ => None,
            };
            if let Some(known) = self.submissions.get(key).or(recalled) {
                let first = known.job.clone();
                return match known.purged_at {
                    Some(_) => Err(Rejection::KeyPurged { first }),
                    None if known.fingerprint == fingerprint => Ok(Reply::Replayed(first)),
                    None => Err(Rejection::KeyConflict { first }),
                };
            }
        }
        check_spec(&spec)?;
        if self.jobs.len() >= JOBS_MAX {
            return Err(Rejection::Full);
        }
        Ok(Reply::Accepted(self.accept(spec, provenance, fingerprint, (input, out))))
    }

    /// Make a job, with the effects that begin it.
    fn accept(&mut self, spec: Spec, provenance: Provenance, fingerprint: [u8; 32], (input, out): Ctx<'_>) -> JobId {
        let number = self.last_number + 1;
        let id = JobId::parse(format!("{}-{}-{number}", self.rules.party, input.stamp))
            .expect("a party id is checked to leave room for the rest");
        let (key, at) = (provenance.key, input.now);
        out.emit(
            self,
            Event::JobAccepted {
                id: id.clone(),
                number,
                spec,
                provenance,
                at,
            },
        );
        if let Some(key) = key {
            out.emit(
                self,
                Event::KeyTaken {
                    key,
                    job: id.clone(),
                    fingerprint,
                },
            );
        }
        if let Some(job) = self.jobs.get(&id) {
            out.effects.extend(self.effect_of_job(job).into_iter().chain(deadline_of(job)));
        }
        id
    }

    pub(super) fn rerun(&mut self, id: &JobId, provenance: Provenance, fingerprint: [u8; 32], ctx: Ctx<'_>) -> Result<Reply, Rejection> {
        let job = self.known_job(id, ctx.0).ok_or_else(|| Rejection::NotFound(id.clone()))?;
        if !job.state.is_final() {
            return Err(Rejection::NotEnded {
                job: id.clone(),
                state: job.state.name(),
            });
        }
        // Its times were those of the first run.
        let spec = Spec {
            not_before: None,
            deadline: None,
            ..job.spec.clone()
        };
        let provenance = Provenance {
            parent: Some(id.clone()),
            attempt: 1,
            ..provenance
        };
        self.submit(spec, provenance, fingerprint, ctx)
    }

    pub(super) fn cancel(&mut self, id: &JobId, reason: &str, ctx: Ctx<'_>) -> Result<Reply, Rejection> {
        if let Some(JobState::Cancelled { .. }) = self.known_job(id, ctx.0).map(|job| &job.state) {
            return Ok(Reply::Known);
        }
        self.open_job(id, ctx.0)?;
        let (input, out) = ctx;
        let reason = clip(one_line(reason), REASON_MAX);
        let unwanted = if reason.is_empty() { "the job was cancelled" } else { &reason }.to_owned();
        let told = if reason.is_empty() {
            "the job was cancelled".to_owned()
        } else {
            format!("the job was cancelled: {reason}")
        };
        out.emit(
            self,
            Event::JobCancelled {
                job: id.clone(),
                reason,
                at: input.now,
            },
        );
        self.give_up(id, out);
        self.stop_tasks(id, &clip(told, REASON_MAX), (input, out));
        self.withdraw(id, unwanted, out);
        self.close(id, out);
        Ok(Reply::Done)
    }

    pub(super) fn hold(&mut self, id: &JobId, ctx: Ctx<'_>) -> Result<Reply, Rejection> {
        let job = self.open_job(id, ctx.0)?;
        match job.state {
            JobState::Held => return Ok(Reply::Known),
            JobState::Waiting { .. } | JobState::Leasing | JobState::Preparing => {}
            _ => {
                return Err(Rejection::NotHoldable {
                    job: id.clone(),
                    state: job.state.name(),
                });
            }
        }
        let was_returning = job.returning;
        let (input, out) = ctx;
        out.emit(
            self,
            Event::JobHeld {
                job: id.clone(),
                at: input.now,
            },
        );
        out.effect(Effect::GiveUp {
            job: id.clone(),
            ended: false,
        });
        if !was_returning {
            out.effects.extend(self.jobs.get(id).and_then(|job| self.effect_of_job(job)));
        }
        Ok(Reply::Done)
    }

    pub(super) fn release(&mut self, id: &JobId, ctx: Ctx<'_>) -> Result<Reply, Rejection> {
        let job = self.open_job(id, ctx.0)?;
        if job.state != JobState::Held {
            return Err(Rejection::NotHeld {
                job: id.clone(),
                state: job.state.name(),
            });
        }
        let (input, out) = ctx;
        out.emit(
            self,
            Event::JobReleased {
                job: id.clone(),
                at: input.now,
            },
        );
        // While its endpoints are still going back, the next step begins once they are there.
        let next = self.jobs.get(id).filter(|job| !job.returning);
        out.effects.extend(next.and_then(|job| self.effect_of_job(job)));
        Ok(Reply::Done)
    }

    pub(super) fn wake(&mut self, id: &JobId, step: u32, (input, out): Ctx<'_>) -> Result<Reply, Rejection> {
        let job = self.expect(id, step, |state| matches!(state, JobState::Waiting { .. }))?;
        if matches!(job.state, JobState::Waiting { until } if until > input.now) {
            // The clock was set back.
            out.effects.extend(self.effect_of_job(job));
            return Ok(Reply::Known);
        }
        out.emit(
            self,
            Event::JobWoken {
                job: id.clone(),
                at: input.now,
            },
        );
        let next = self.jobs.get(id).filter(|job| !job.returning);
        out.effects.extend(next.and_then(|job| self.effect_of_job(job)));
        Ok(Reply::Done)
    }

    pub(super) fn deadline_passed(&mut self, id: &JobId, (input, out): Ctx<'_>) -> Result<Reply, Rejection> {
        let open = self.jobs.get(id).filter(|job| !job.state.is_final());
        let job = open.ok_or_else(|| Rejection::Late(format!("job {id}")))?;
        match job.spec.deadline {
            Some(deadline) if deadline <= input.now => {}
            // The clock was set back.
            _ => {
                out.effects.extend(deadline_of(job));
                return Ok(Reply::Known);
            }
        }
        let failure = Failure::because(format!("the deadline passed while the job was {}", job.state.name()));
        let unwanted = failure.reason.clone();
        self.fail_for_good(id, failure, (input, out));
        self.withdraw(id, unwanted, out);
        Ok(Reply::Done)
    }

    /// The job that tries again what this one failed to do, if it may be tried again.
    pub(super) fn succeed(&mut self, id: &JobId, (input, out): Ctx<'_>) {
        let Some(job) = self.jobs.get(id) else { return };
        let attempt = job.provenance.attempt;
        let too_late = job.spec.deadline.is_some_and(|deadline| deadline <= input.now);
        if attempt >= job.spec.max_attempts || too_late {
            return;
        }
        let pause = RETRY_MS.saturating_mul(1 << (attempt - 1).min(20)).min(RETRY_MAX_MS);
        let spec = Spec {
            not_before: Some(input.now.plus_ms(pause)),
            ..job.spec.clone()
        };
        let provenance = Provenance {
            parent: Some(id.clone()),
            attempt: attempt + 1,
            key: None,
            ..job.provenance.clone()
        };
        let successor = self.accept(spec, provenance, [0; 32], (input, out));
        out.emit(
            self,
            Event::JobRepeated {
                job: id.clone(),
                successor,
            },
        );
    }

    /// Stop what the job has in the cluster queue: what is still held has ended, the rest is stopped at the cluster manager, which may have
    /// it though nobody here knows.
    pub(super) fn stop_tasks(&mut self, id: &JobId, reason: &str, (input, out): Ctx<'_>) {
        let may_run = |state: &TaskState| matches!(state, TaskState::Held | TaskState::Queued | TaskState::Submitted { .. });
        let open: Vec<(TaskKey, bool)> = self
            .tasks_of(id)
            .filter(|task| may_run(&task.state))
            .map(|task| (task.key.clone(), task.state == TaskState::Held))
            .collect();
        for (key, held) in open {
            let (reason, at) = (reason.to_owned(), input.now);
            if held {
                let outcome = Outcome::without_process(End::Cancelled, reason);
                out.emit(self, Event::TaskEnded { key, outcome, at });
            } else {
                out.emit(
                    self,
                    Event::TaskCancelling {
                        key: key.clone(),
                        reason: reason.clone(),
                        at,
                    },
                );
                out.effect(Effect::Cancel { key, reason });
            }
        }
    }

    /// Who works for a job that has ended gives up, and its clock.
    pub(super) fn give_up(&self, id: &JobId, out: &mut crate::machine::Out<Master>) {
        out.effect(Effect::GiveUp {
            job: id.clone(),
            ended: true,
        });
    }

    /// The job, live or ended.
    fn known_job<'a>(&'a self, id: &JobId, input: &'a crate::machine::Input<Key, Record>) -> Option<&'a Job> {
        self.job(id).or_else(|| match input.recalled(&Key::Job(id.clone())) {
            Some(Record::Job(job)) => Some(job),
            _ => None,
        })
    }

    /// The job, which has not ended.
    fn open_job<'a>(&'a self, id: &JobId, input: &'a crate::machine::Input<Key, Record>) -> Result<&'a Job, Rejection> {
        match self.known_job(id, input) {
            None => Err(Rejection::NotFound(id.clone())),
            Some(job) if job.state.is_final() => Err(Rejection::Ended {
                job: id.clone(),
                state: job.state.name(),
            }),
            Some(job) => Ok(job),
        }
    }
}

/// The timer of a job's deadline, while it has not ended.
pub(super) fn deadline_of(job: &Job) -> Option<Effect> {
    let at = job.spec.deadline.filter(|_| !job.state.is_final())?;
    Some(Effect::DeadlineAt { job: job.id.clone(), at })
}
