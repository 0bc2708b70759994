//! From event to records: the only place where the state changes.
//!
//! Called through `Machine::apply`, live and in replay. Total: an event about something that is not there changes nothing. Reads no
//! rules and decides nothing.

use super::records::{Lease, LeaseId, LeaseState, Task, TaskState, Worker, WorkerState};
use super::{Cluster, Event, Key};
use crate::machine::Changes;
use crate::machine::content::Content;
use crate::machine::ids::{TaskKey, Timestamp, WorkerId};
use std::sync::Arc;

type Changed = Changes<Key>;

impl Cluster {
    pub(super) fn apply_event(&mut self, event: &Event, changes: &mut Changed) {
        match event {
            Event::Started { at } => self.apply_started(*at, changes),
            Event::WorkerAttached {
                worker,
                profile,
                session,
                next_port,
            } => {
                let (session, next_port) = (*session, *next_port);
                let record = Worker {
                    profile: profile.clone(),
                    session,
                    next_port,
                    state: WorkerState::Attached,
                };
                self.put_worker(worker, record);
                changes.keys.insert(Key::Worker(worker.clone()));
            }
            Event::WorkerAway { worker, at } => self.change_worker(worker, changes, |w| w.state = WorkerState::Away { since: *at }),
            Event::WorkerLost { worker, at } => self.change_worker(worker, changes, |w| w.state = WorkerState::Lost { at: *at }),
            Event::TaskSubmitted { key, task } => self.apply_submitted(key, task, changes),
            Event::TaskAssigned { key, worker, at } => self.change_task(key, changes, |task| {
                task.attempts += 1;
                task.state = TaskState::Assigned {
                    worker: worker.clone(),
                    attempt: task.attempts,
                };
                task.changed_at = *at;
            }),
            Event::TaskRequeued { key, at } => self.change_task(key, changes, |task| {
                task.state = TaskState::Queued;
                task.changed_at = *at;
            }),
            Event::TaskStopping { key, reason } => self.change_task(key, changes, |task| task.stopping = Some(reason.clone())),
            Event::TaskEnded { key, outcome, at } => {
                let lease = self.tasks.get(key).and_then(|task| task.lease.clone());
                self.change_task(key, changes, |task| {
                    task.state = TaskState::Ended(outcome.clone());
                    task.stopping = None;
                    task.lease = None;
                    task.content = Content::default();
                    task.changed_at = *at;
                });
                if let Some(lease) = lease {
                    self.free_lease(&lease, changes);
                }
            }
            Event::LeaseGranted { lease, worker, ports, at } => self.apply_granted(lease, worker, ports, *at, changes),
            Event::LeaseReleased { lease } => {
                self.unbind(lease, changes);
                self.put_lease(lease, None);
                changes.keys.insert(Key::Lease(lease.clone()));
            }
            Event::TaskForgotten { key } => {
                self.forget_task(key);
                changes.keys.insert(Key::Task(key.clone()));
            }
            Event::LeaseLost { lease } => {
                self.unbind(lease, changes);
                self.change_lease(lease, changes, |lease| {
                    lease.state = LeaseState::Lost;
                    lease.ports = Vec::new();
                });
            }
        }
    }

    fn apply_started(&mut self, at: Timestamp, changes: &mut Changed) {
        let known: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, w)| !w.is_lost())
            .map(|(id, _)| id.clone())
            .collect();
        for id in known {
            self.change_worker(&id, changes, |worker| worker.state = WorkerState::Away { since: at });
        }
    }

    fn apply_submitted(&mut self, key: &TaskKey, task: &Arc<Task>, changes: &mut Changed) {
        if let Some(lease) = &task.lease {
            self.change_lease(lease, changes, |lease| lease.state = LeaseState::Held { bound: Some(key.clone()) });
        }
        changes.held.extend(task.content.payload());
        changes.keys.insert(Key::Task(key.clone()));
        self.put_task(Arc::new(key.clone()), Arc::clone(task));
    }

    fn apply_granted(&mut self, id: &LeaseId, worker: &WorkerId, ports: &[u16], at: Timestamp, changes: &mut Changed) {
        if let LeaseId::Anonymous(n) = id {
            self.counters.anonymous = self.counters.anonymous.max(*n);
            changes.keys.insert(Key::Counters);
        }
        if let Some(last) = ports.last() {
            self.change_worker(worker, changes, |worker| {
                let next = u32::from(*last) + 1;
                worker.next_port = if next < worker.profile.ports.end {
                    next
                } else {
                    worker.profile.ports.start
                };
            });
        }
        let state = LeaseState::Held { bound: None };
        self.put_lease(
            id,
            Some(Lease {
                worker: worker.clone(),
                ports: ports.to_vec(),
                granted_at: at,
                state,
            }),
        );
        changes.keys.insert(Key::Lease(id.clone()));
    }

    /// The lease's task is over: an anonymous lease goes with it, a job's waits for the job.
    fn free_lease(&mut self, id: &LeaseId, changes: &mut Changed) {
        match id {
            LeaseId::Anonymous(_) => {
                self.put_lease(id, None);
                changes.keys.insert(Key::Lease(id.clone()));
            }
            LeaseId::Job(_) => self.change_lease(id, changes, |lease| lease.state = LeaseState::Held { bound: None }),
        }
    }

    /// The task that used the lease's slot takes one of its own.
    fn unbind(&mut self, id: &LeaseId, changes: &mut Changed) {
        if let Some(key) = self.leases.get(id).and_then(|lease| lease.bound()).cloned() {
            self.change_task(&key, changes, |task| task.lease = None);
        }
    }

    fn change_task(&mut self, key: &TaskKey, changes: &mut Changed, change: impl FnOnce(&mut Task)) {
        let Some((name, task)) = self.tasks.get_mut(key) else { return };
        let left = self.index.remove_task(key, task);
        let before = task.content.payload();
        change(Arc::make_mut(task));
        if before != task.content.payload() {
            changes.released.extend(before);
            changes.held.extend(task.content.payload());
        }
        let touched = self.index.add_task(name, task);
        for worker in [left, touched].into_iter().flatten() {
            self.refresh(&worker);
        }
        changes.keys.insert(Key::Task(key.clone()));
    }

    fn change_lease(&mut self, id: &LeaseId, changes: &mut Changed, change: impl FnOnce(&mut Lease)) {
        let Some(mut lease) = self.leases.get(id).cloned() else { return };
        change(&mut lease);
        self.put_lease(id, Some(lease));
        changes.keys.insert(Key::Lease(id.clone()));
    }

    fn change_worker(&mut self, id: &WorkerId, changes: &mut Changed, change: impl FnOnce(&mut Worker)) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        change(worker);
        self.refresh(id);
        changes.keys.insert(Key::Worker(id.clone()));
    }

    fn forget_task(&mut self, key: &TaskKey) {
        let left = self.tasks.remove(key).and_then(|(_, task)| self.index.remove_task(key, &task));
        if let Some(worker) = left {
            self.refresh(&worker);
        }
    }

    /// Put a task's record in, in place of what is there.
    pub(super) fn put_task(&mut self, key: Arc<TaskKey>, task: Arc<Task>) {
        self.next_number = self.next_number.max(task.number + 1);
        let before = self.tasks.insert(Arc::clone(&key), Arc::clone(&task));
        let left = before.and_then(|before| self.index.remove_task(&key, &before));
        let touched = self.index.add_task(&key, &task);
        for worker in [left, touched].into_iter().flatten() {
            self.refresh(&worker);
        }
    }

    /// Put a lease's record in, in place of what is there.
    pub(super) fn put_lease(&mut self, id: &LeaseId, lease: Option<Lease>) {
        if let Some(old) = self.leases.remove(id) {
            self.index.remove_lease(id, &old);
            self.refresh(&old.worker);
        }
        if let Some(lease) = lease {
            self.index.add_lease(id, &lease);
            let worker = lease.worker.clone();
            self.leases.insert(id.clone(), lease);
            self.refresh(&worker);
        }
    }

    /// Put a worker's record in, in place of what is there.
    pub(super) fn put_worker(&mut self, id: &WorkerId, worker: Worker) {
        self.workers.insert(id.clone(), worker);
        self.refresh(id);
    }

    fn refresh(&mut self, id: &WorkerId) {
        self.index.refresh(id, self.workers.get(id));
    }
}
