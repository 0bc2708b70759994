//! What is derived from the records, so that no command looks at all of them: queues, load and room per worker.
//!
//! Kept by `apply` through [`Index::add_task`] and its like, each of which takes a record out and puts its successor in. Holds nothing that the
//! records do not say; `invariant` compares it with a recount.

use super::placement::{Place, Queues, Rooms};
use super::records::{Lease, LeaseId, LeaseState, Task, TaskState, Worker};
use crate::machine::ids::{TaskKey, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a worker carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Its assigned tasks.
    pub(super) tasks: BTreeSet<Arc<TaskKey>>,
    /// How many of those have a slot of their own, not a lease's.
    pub(super) own: u32,
    /// Leases that take a slot.
    pub(super) leases: BTreeSet<LeaseId>,
    /// Their ports.
    pub(super) ports: BTreeSet<u16>,
}

impl Load {
    /// Slots taken.
    pub(super) fn slots(&self) -> u32 {
        self.own + u32::try_from(self.leases.len()).unwrap_or(u32::MAX)
    }

    fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.leases.is_empty()
    }
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// Waiting tasks.
    pub(super) queues: Queues,
    /// Load of workers that have any.
    pub(super) loads: BTreeMap<WorkerId, Load>,
    /// Attached workers and their room.
    pub(super) rooms: Rooms,
}

fn place_of(task: &Task) -> Place<'_> {
    match (&task.assignee, &task.lease) {
        (None, _) => Place::General,
        (Some(worker), None) => Place::Named(worker),
        (Some(worker), Some(_)) => Place::Leased(worker),
    }
}

impl Index {
    /// What this worker carries, if anything.
    pub(super) fn load(&self, worker: &WorkerId) -> Option<&Load> {
        self.loads.get(worker)
    }

    fn change_load(&mut self, worker: &WorkerId, change: impl FnOnce(&mut Load)) {
        let load = self.loads.entry(worker.clone()).or_default();
        change(load);
        if load.is_empty() {
            self.loads.remove(worker);
        }
    }

    /// Take in a task record; returns the worker whose room may have changed.
    pub(super) fn add_task(&mut self, key: &Arc<TaskKey>, task: &Task) -> Option<WorkerId> {
        match &task.state {
            TaskState::Queued => self.queues.insert(place_of(task), task.number, key.clone()),
            TaskState::Assigned { worker, .. } => {
                self.change_load(worker, |load| {
                    load.tasks.insert(key.clone());
                    load.own += u32::from(task.lease.is_none());
                });
                return Some(worker.clone());
            }
            TaskState::Ended(_) => {}
        }
        None
    }

    /// Take out a task record as it was; returns the worker whose room may have changed.
    pub(super) fn remove_task(&mut self, key: &TaskKey, task: &Task) -> Option<WorkerId> {
        match &task.state {
            TaskState::Queued => self.queues.remove(place_of(task), task.number),
            TaskState::Assigned { worker, .. } => {
                self.change_load(worker, |load| {
                    load.tasks.remove(key);
                    load.own -= u32::from(task.lease.is_none());
                });
                return Some(worker.clone());
            }
            TaskState::Ended(_) => {}
        }
        None
    }

    /// Take in a lease record.
    pub(super) fn add_lease(&mut self, id: &LeaseId, lease: &Lease) {
        if lease.state != LeaseState::Lost {
            self.change_load(&lease.worker, |load| {
                load.leases.insert(id.clone());
                load.ports.extend(&lease.ports);
            });
        }
    }

    /// Take out a lease record as it was.
    pub(super) fn remove_lease(&mut self, id: &LeaseId, lease: &Lease) {
        if lease.state != LeaseState::Lost {
            self.change_load(&lease.worker, |load| {
                load.leases.remove(id);
                for port in &lease.ports {
                    load.ports.remove(port);
                }
            });
        }
    }

    /// Count a worker's room again, after its record or its load changed.
    pub(super) fn refresh(&mut self, id: &WorkerId, worker: Option<&Worker>) {
        let Some(worker) = worker.filter(|worker| worker.is_attached()) else {
            self.rooms.attached.remove(id);
            self.rooms.free.remove(id);
            return;
        };
        if !self.rooms.attached.contains(id) {
            self.rooms.attached.insert(id.clone());
        }
        let taken = self.loads.get(id).map_or(0, Load::slots);
        match u32::from(worker.profile.max_tasks).saturating_sub(taken) {
            0 => {
                self.rooms.free.remove(id);
            }
            free => match self.rooms.free.get_mut(id) {
                Some(known) => *known = free,
                None => {
                    self.rooms.free.insert(id.clone(), free);
                }
            },
        }
    }
}
