//! Decisions about workers: who is attached, who comes back, and what becomes of the tasks of one that does not.
//!
//! Called by `decide`. Changes nothing but through events.

use super::records::{LeaseId, Profile, Worker};
use super::{Attach, Cluster, Effect, Event, Key, Record, Rejection, Reply, STEP_MAX, WORKERS_MAX};
use crate::machine::ids::{TaskKey, Timestamp, WorkerId};
use crate::machine::outcome::{End, Outcome};
use crate::machine::{Input, Out};
use std::collections::BTreeSet;

type Output = Out<Cluster>;

/// Why a worker's tasks are given up.
enum Loss<'a> {
    /// It did not come back in time.
    Lost,
    /// Another process has taken its place, which offers this.
    Restarted(&'a Profile),
}

impl Loss<'_> {
    fn reason(&self, worker: &WorkerId) -> String {
        match self {
            Loss::Lost => format!("worker {worker} was lost"),
            Loss::Restarted(_) => format!("worker {worker} was restarted"),
        }
    }
}

impl Cluster {
    /// The grace timers are in `resume`.
    pub(super) fn started(&mut self, now: Timestamp, out: &mut Output) -> Reply {
        if self.workers.values().any(|worker| !worker.is_lost()) {
            out.emit(self, Event::Started { at: now });
        }
        Reply::Done
    }

    pub(super) fn attach(&mut self, attach: Attach, input: &Input<Key, Record>, out: &mut Output) -> Result<Reply, Rejection> {
        let Attach {
            worker: id,
            profile,
            known,
        } = attach;
        let recalled = match input.recalled(&Key::Worker(id.clone())) {
            Some(Record::Worker(worker)) => Some(worker),
            _ => None,
        };
        let recorded = self.workers.get(&id).or(recalled).cloned();
        let session = recorded.as_ref().map_or(0, |worker| worker.session) + 1;
        let circle_at = recorded.as_ref().map(|worker| worker.next_port);
        match recorded {
            Some(worker) if !worker.is_lost() => {
                if worker.profile.instance == profile.instance {
                    return self.take_over(&id, &worker, profile, &known, out);
                }
                if worker.is_attached() {
                    return Err(Rejection::AlreadyEnrolled(id));
                }
                if !self.give_up(&id, &Loss::Restarted(&profile), input.now, out) {
                    return Ok(Reply::Again);
                }
            }
            _ if self.live_workers() >= WORKERS_MAX => return Err(Rejection::TooManyWorkers),
            _ => {}
        }
        let ports = profile.ports;
        let next_port = circle_at
            .filter(|port| (ports.start..ports.end).contains(port))
            .unwrap_or(ports.start);
        out.emit(
            self,
            Event::WorkerAttached {
                worker: id.clone(),
                profile,
                session,
                next_port,
            },
        );
        self.kill_unassigned(&id, session, &known, out);
        Ok(Reply::Attached { session })
    }

    fn live_workers(&self) -> usize {
        self.workers.values().filter(|worker| !worker.is_lost()).count()
    }

    /// The same process comes back, or over another connection: it keeps its tasks.
    fn take_over(
        &mut self,
        id: &WorkerId,
        recorded: &Worker,
        profile: Profile,
        known: &[(TaskKey, u32)],
        out: &mut Output,
    ) -> Result<Reply, Rejection> {
        if recorded.profile != profile {
            return Err(Rejection::Changed(id.clone()));
        }
        let next_port = recorded.next_port;
        let session = recorded.session + 1;
        out.emit(
            self,
            Event::WorkerAttached {
                worker: id.clone(),
                profile,
                session,
                next_port,
            },
        );
        if recorded.is_attached() {
            out.effect(Effect::DropConnection {
                worker: id.clone(),
                session: recorded.session,
            });
        }
        let has: BTreeSet<(&TaskKey, u32)> = known.iter().map(|(key, attempt)| (key, *attempt)).collect();
        for key in self.index.load(id).iter().flat_map(|load| &load.tasks) {
            let Some(task) = self.tasks.get(key) else { continue };
            let (key, attempt) = (TaskKey::clone(key), task.attempts);
            if !has.contains(&(&key, attempt)) {
                out.effect(Effect::Dispatch {
                    worker: id.clone(),
                    session,
                    key: key.clone(),
                    attempt,
                });
            }
            if let Some(reason) = task.stopping.clone() {
                out.effect(Effect::Kill {
                    worker: id.clone(),
                    session,
                    key,
                    attempt,
                    reason,
                });
            }
        }
        self.kill_unassigned(id, session, known, out);
        Ok(Reply::Attached { session })
    }

    /// What the worker knows and should not.
    fn kill_unassigned(&self, id: &WorkerId, session: u64, known: &[(TaskKey, u32)], out: &mut Output) {
        for (key, attempt) in known {
            let current = self.tasks.get(key).and_then(|task| task.assignment());
            if current != Some((id, *attempt)) {
                let reason = format!("attempt {attempt} is not assigned to worker {id} any more");
                out.effect(Effect::Kill {
                    worker: id.clone(),
                    session,
                    key: key.clone(),
                    attempt: *attempt,
                    reason,
                });
            }
        }
    }

    pub(super) fn connection_lost(&mut self, worker: WorkerId, session: u64, now: Timestamp, out: &mut Output) -> Reply {
        match self.workers.get(&worker) {
            Some(recorded) if recorded.is_attached() && recorded.session == session => {
                out.emit(
                    self,
                    Event::WorkerAway {
                        worker: worker.clone(),
                        at: now,
                    },
                );
                let at = now.plus_ms(self.rules.grace_ms);
                out.effect(Effect::GraceAt { worker, session, at });
                Reply::Done
            }
            _ => Reply::Void,
        }
    }

    /// The session tells whether the worker came back meanwhile, so the clock need not be asked.
    pub(super) fn worker_lost(&mut self, worker: WorkerId, session: u64, now: Timestamp, out: &mut Output) -> Reply {
        match self.workers.get(&worker) {
            Some(recorded) if !recorded.is_attached() && !recorded.is_lost() && recorded.session == session => {}
            _ => return Reply::Void,
        }
        if !self.give_up(&worker, &Loss::Lost, now, out) {
            return Reply::Again;
        }
        out.emit(self, Event::WorkerLost { worker, at: now });
        Reply::Done
    }

    /// Take from a worker what it cannot keep, at most [`STEP_MAX`] things; true when nothing is left.
    fn give_up(&mut self, id: &WorkerId, loss: &Loss<'_>, now: Timestamp, out: &mut Output) -> bool {
        let mut left = STEP_MAX;
        let assigned: Vec<TaskKey> = self
            .index
            .load(id)
            .map(|load| load.tasks.iter().take(left).map(|key| TaskKey::clone(key)).collect())
            .unwrap_or_default();
        for key in assigned {
            self.lose_task(&key, id, loss, now, out);
            left -= 1;
        }
        for lease in self.unfit_leases(id, loss).into_iter().take(left) {
            self.lose_lease(&lease, id, loss, now, out);
            left -= 1;
        }
        if matches!(loss, Loss::Lost) {
            let waiting: Vec<TaskKey> = self.index.queues.named(id).take(left).cloned().collect();
            for key in waiting {
                self.fail(&key, End::Failed, loss.reason(id), now, out);
                left -= 1;
            }
        }
        left > 0
    }

    /// Another attempt, where the task may run again: anywhere if it names no worker, here if here is only restarted.
    fn lose_task(&mut self, key: &TaskKey, id: &WorkerId, loss: &Loss<'_>, now: Timestamp, out: &mut Output) {
        let Some(task) = self.tasks.get(key) else { return };
        let elsewhere = task.assignee.is_none() || matches!(loss, Loss::Restarted(_));
        if let Some(reason) = task.stopping.clone() {
            self.fail(key, End::Cancelled, reason, now, out);
        } else if task.attempts < task.max_attempts && elsewhere {
            out.emit(self, Event::TaskRequeued { key: key.clone(), at: now });
        } else {
            self.fail(key, End::Failed, loss.reason(id), now, out);
        }
    }

    /// Leases that cannot stay: all on a lost worker; on a restarted one those whose endpoints or slots it offers no more.
    fn unfit_leases(&self, id: &WorkerId, loss: &Loss<'_>) -> Vec<LeaseId> {
        let Some(load) = self.index.load(id) else { return Vec::new() };
        let Loss::Restarted(profile) = loss else {
            return load.leases.iter().cloned().collect();
        };
        let same_place = self.workers.get(id).is_some_and(|worker| worker.profile.ip == profile.ip);
        let mut slots = super::leases::share(profile.max_tasks);
        let unfit = load.leases.iter().filter(|lease| {
            let ports_fit = self
                .leases
                .get(lease)
                .is_some_and(|lease| lease.ports.iter().all(|port| profile.ports.contains(*port)));
            let fits = same_place && ports_fit && slots > 0;
            slots -= u32::from(fits);
            !fits
        });
        unfit.cloned().collect()
    }

    fn lose_lease(&mut self, lease: &LeaseId, id: &WorkerId, loss: &Loss<'_>, now: Timestamp, out: &mut Output) {
        if let Some(key) = self.leases.get(lease).and_then(|lease| lease.bound()).cloned() {
            self.fail(&key, End::Failed, loss.reason(id), now, out);
        }
        if self.leases.contains_key(lease) {
            let lease = lease.clone();
            let event = match lease {
                LeaseId::Anonymous(_) => Event::LeaseReleased { lease },
                LeaseId::Job(_) => Event::LeaseLost { lease },
            };
            out.emit(self, event);
        }
    }

    fn fail(&mut self, key: &TaskKey, end: End, reason: String, now: Timestamp, out: &mut Output) {
        let mut outcome = Outcome::without_process(end, reason);
        if let Some((worker, attempt)) = self.tasks.get(key).and_then(|task| task.assignment()) {
            outcome.worker = Some(worker.clone());
            outcome.attempt = attempt;
        }
        self.end(key, outcome, now, out);
    }

    /// The record of a worker that is not lost.
    pub(super) fn live_worker(&self, id: &WorkerId) -> Option<&Worker> {
        self.workers.get(id).filter(|worker| !worker.is_lost())
    }
}
