//! Which waiting task goes to which worker: from data to data.
//!
//! Called by `tasks` after every command that freed or added room. Oldest task first; attached workers only; the worker with the most
//! free slots, of equals the first by name; a task that names a worker runs there or waits, and holds up nobody else. A task on a
//! lease brings its slot with it. Costs a step per worker with room and per assignment, never one per waiting task.

use crate::machine::ids::{TaskKey, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Waiting tasks by their number, which is their age.
type Line = BTreeMap<u64, Arc<TaskKey>>;

/// Everything that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// Tasks for any worker.
    general: Line,
    /// Tasks for one worker, in need of a slot there. No empty lines.
    named: BTreeMap<WorkerId, Line>,
    /// Tasks on a lease of one worker, by its slot. No empty lines.
    leased: BTreeMap<WorkerId, Line>,
    len: usize,
}

/// Where a waiting task stands in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Any worker will do.
    General,
    /// This worker only.
    Named(&'a WorkerId),
    /// This worker only, in the slot of a lease.
    Leased(&'a WorkerId),
}

impl Queues {
    /// Tasks that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Put a task in line.
    pub fn insert(&mut self, place: Place<'_>, number: u64, key: Arc<TaskKey>) {
        let line = match place {
            Place::General => &mut self.general,
            Place::Named(worker) => self.named.entry(worker.clone()).or_default(),
            Place::Leased(worker) => self.leased.entry(worker.clone()).or_default(),
        };
        if line.insert(number, key).is_none() {
            self.len += 1;
        }
    }

    /// Take a task out of line.
    pub fn remove(&mut self, place: Place<'_>, number: u64) {
        let removed = match place {
            Place::General => self.general.remove(&number).is_some(),
            Place::Named(worker) => Self::remove_from(&mut self.named, worker, number),
            Place::Leased(worker) => Self::remove_from(&mut self.leased, worker, number),
        };
        if removed {
            self.len -= 1;
        }
    }

    fn remove_from(lines: &mut BTreeMap<WorkerId, Line>, worker: &WorkerId, number: u64) -> bool {
        let Some(line) = lines.get_mut(worker) else { return false };
        let removed = line.remove(&number).is_some();
        if line.is_empty() {
            lines.remove(worker);
        }
        removed
    }

    /// Tasks that wait for a slot of this worker by name, oldest first.
    pub fn named(&self, worker: &WorkerId) -> impl Iterator<Item = &TaskKey> {
        self.named.get(worker).into_iter().flat_map(BTreeMap::values).map(Arc::as_ref)
    }
}

/// The attached workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rooms {
    /// All of them.
    pub attached: BTreeSet<WorkerId>,
    /// Free slots of those that have any.
    pub free: BTreeMap<WorkerId, u32>,
}

/// At most `limit` assignments, in the order in which they are to be made.
pub fn place(queues: &Queues, rooms: &Rooms, limit: usize) -> Vec<(TaskKey, WorkerId)> {
    let mut placed = Vec::new();
    for (worker, line) in &queues.leased {
        if rooms.attached.contains(worker) {
            let room = limit - placed.len();
            placed.extend(line.values().take(room).map(|key| (TaskKey::clone(key), worker.clone())));
        }
    }
    if rooms.free.is_empty() {
        return placed;
    }
    let mut free: BTreeMap<&WorkerId, u32> = rooms.free.iter().map(|(worker, n)| (worker, *n)).collect();
    let mut general = queues.general.iter().peekable();
    let mut named: BTreeMap<&WorkerId, _> = queues
        .named
        .iter()
        .filter(|(worker, _)| free.contains_key(worker))
        .map(|(worker, line)| (worker, line.iter().peekable()))
        .collect();
    while placed.len() < limit && !free.is_empty() {
        let by_name = named
            .iter_mut()
            .filter_map(|(worker, line)| line.peek().map(|(n, _)| (**n, *worker)))
            .min();
        let any = general.peek().map(|(n, _)| **n);
        let (key, worker) = match (by_name, any) {
            (Some((number, worker)), any) if any.is_none_or(|other| number < other) => {
                (named.get_mut(worker).and_then(Iterator::next), worker)
            }
            (_, Some(_)) => (general.next(), roomiest(&free)),
            (_, None) => break,
        };
        let Some((_, key)) = key else { break };
        placed.push((TaskKey::clone(key), worker.clone()));
        match free.get_mut(worker) {
            Some(n) if *n > 1 => *n -= 1,
            _ => {
                free.remove(worker);
                named.remove(worker);
            }
        }
    }
    placed
}

/// The worker with the most free slots, of equals the first by name. The map is not empty.
fn roomiest<'a>(free: &BTreeMap<&'a WorkerId, u32>) -> &'a WorkerId {
    let best = free
        .iter()
        .max_by(|(a_name, a), (b_name, b)| a.cmp(b).then_with(|| b_name.cmp(a_name)));
    best.map(|(worker, _)| *worker).expect("the caller checked that a worker has room")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str) -> WorkerId {
        WorkerId::parse(name).unwrap()
    }

    fn rooms(free: &[(&str, u32)]) -> Rooms {
        Rooms {
            attached: free.iter().map(|(name, _)| worker(name)).collect(),
            free: free.iter().filter(|(_, n)| *n > 0).map(|(name, n)| (worker(name), *n)).collect(),
        }
    }

    fn queues(tasks: &[(u64, &str, Option<&str>, bool)]) -> Queues {
        let mut queues = Queues::default();
        for (number, task, assignee, leased) in tasks {
            let assignee = assignee.map(worker);
            let place = match &assignee {
                None => Place::General,
                Some(worker) if *leased => Place::Leased(worker),
                Some(worker) => Place::Named(worker),
            };
            queues.insert(place, *number, Arc::new(TaskKey::parse("j", *task).unwrap()));
        }
        queues
    }

    fn names(placed: Vec<(TaskKey, WorkerId)>) -> Vec<(String, String)> {
        placed
            .into_iter()
            .map(|(key, worker)| (key.task.to_string(), worker.to_string()))
            .collect()
    }

    fn expect(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn oldest_first_to_the_roomiest_worker() {
        let queues = queues(&[
            (1, "a", None, false),
            (2, "b", None, false),
            (3, "c", None, false),
            (4, "d", None, false),
        ]);
        let placed = place(&queues, &rooms(&[("w1", 1), ("w2", 2)]), 64);
        assert_eq!(names(placed), expect(&[("a", "w2"), ("b", "w1"), ("c", "w2")]));
    }

    #[test]
    fn a_named_task_waits_without_holding_up_others() {
        let queues = queues(&[(1, "a", Some("full"), false), (2, "b", None, false), (3, "c", Some("w1"), false)]);
        let placed = place(&queues, &rooms(&[("full", 0), ("w1", 2)]), 64);
        assert_eq!(names(placed), expect(&[("b", "w1"), ("c", "w1")]));
    }

    #[test]
    fn a_named_task_goes_before_a_younger_general_one() {
        let queues = queues(&[(1, "a", Some("w1"), false), (2, "b", None, false)]);
        assert_eq!(names(place(&queues, &rooms(&[("w1", 1)]), 64)), expect(&[("a", "w1")]));
    }

    #[test]
    fn a_leased_task_needs_no_free_slot_but_an_attached_worker() {
        let queues = queues(&[(1, "a", Some("w1"), true), (2, "b", Some("away"), true)]);
        assert_eq!(names(place(&queues, &rooms(&[("w1", 0)]), 64)), expect(&[("a", "w1")]));
    }

    #[test]
    fn the_limit_holds_and_a_taken_out_task_is_gone() {
        let mut queues = queues(&[(1, "a", Some("w1"), true), (2, "b", None, false), (3, "c", None, false)]);
        assert_eq!(place(&queues, &rooms(&[("w1", 9)]), 2).len(), 2);
        queues.remove(Place::Leased(&worker("w1")), 1);
        queues.remove(Place::Leased(&worker("w1")), 1);
        queues.remove(Place::General, 2);
        assert_eq!(queues.len(), 1);
        assert_eq!(names(place(&queues, &rooms(&[("w1", 9)]), 64)), expect(&[("c", "w1")]));
    }
}
