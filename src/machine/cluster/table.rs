//! The tasks in memory, found by their names.
//!
//! Kept by `apply` and read by the decisions. In the order of hashes, which lie beside each other: names are long, alike at their
//! beginnings and each at a place of its own in memory, and with many tasks a map in their order spends most of a commit reading them. It
//! never trusts a hash: where two are equal the names decide.

use super::records::Task;
use crate::machine::ids::{JobId, TaskKey};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::iter;
use std::ops::Bound;
use std::sync::Arc;

/// Tasks by name; those of a job are neighbours, in no order that means anything.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks(BTreeMap<Hashes, Link>);

/// A task, and those whose names have the same hashes: hardly ever one.
#[derive(Clone, Debug)]
struct Link {
    key: Arc<TaskKey>,
    task: Arc<Task>,
    next: Option<Box<Link>>,
}

/// Of the job and of the task's own id. The same in every process, so that a history can be replayed exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hashes(u64, u64);

impl Hashes {
    fn of(key: &TaskKey) -> Self {
        Self(hash(&key.job), hash(&key.task))
    }
}

fn hash(id: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

impl Link {
    /// This one and those behind it.
    fn all(&self) -> impl Iterator<Item = (&Arc<TaskKey>, &Arc<Task>)> {
        iter::successors(Some(self), |link| link.next.as_deref()).map(|link| (&link.key, &link.task))
    }

    fn find_mut(&mut self, key: &TaskKey) -> Option<&mut Self> {
        if *self.key == *key {
            return Some(self);
        }
        self.next.as_mut()?.find_mut(key)
    }
}

impl Tasks {
    pub(super) fn get(&self, key: &TaskKey) -> Option<&Arc<Task>> {
        self.at(Hashes::of(key), key)
    }

    fn at(&self, hashes: Hashes, key: &TaskKey) -> Option<&Arc<Task>> {
        let mut all = self.0.get(&hashes)?.all();
        all.find_map(|(name, task)| (**name == *key).then_some(task))
    }

    /// The task to be changed, and its name.
    pub(super) fn get_mut(&mut self, key: &TaskKey) -> Option<(&Arc<TaskKey>, &mut Arc<Task>)> {
        let link = self.0.get_mut(&Hashes::of(key))?.find_mut(key)?;
        Some((&link.key, &mut link.task))
    }

    /// Put a task in; gives the one that was there.
    pub(super) fn insert(&mut self, key: Arc<TaskKey>, task: Arc<Task>) -> Option<Arc<Task>> {
        self.put(Hashes::of(&key), key, task)
    }

    fn put(&mut self, hashes: Hashes, key: Arc<TaskKey>, task: Arc<Task>) -> Option<Arc<Task>> {
        match self.0.entry(hashes) {
            Entry::Vacant(vacant) => {
                vacant.insert(Link { key, task, next: None });
                None
            }
            Entry::Occupied(mut occupied) => {
                let first = occupied.get_mut();
                if let Some(link) = first.find_mut(&key) {
                    return Some(std::mem::replace(&mut link.task, task));
                }
                let next = first.next.take();
                first.next = Some(Box::new(Link { key, task, next }));
                None
            }
        }
    }

    /// Take a task out, with its name.
    pub(super) fn remove(&mut self, key: &TaskKey) -> Option<(Arc<TaskKey>, Arc<Task>)> {
        self.take(Hashes::of(key), key)
    }

    fn take(&mut self, hashes: Hashes, key: &TaskKey) -> Option<(Arc<TaskKey>, Arc<Task>)> {
        let Entry::Occupied(mut occupied) = self.0.entry(hashes) else {
            return None;
        };
        let first = occupied.get_mut();
        if *first.key != *key {
            let mut place = &mut first.next;
            while place.as_ref().is_some_and(|link| *link.key != *key) {
                place = &mut place.as_mut()?.next;
            }
            let link = *place.take()?;
            *place = link.next;
            return Some((link.key, link.task));
        }
        let link = match first.next.take() {
            Some(next) => std::mem::replace(first, *next),
            None => occupied.remove(),
        };
        Some((link.key, link.task))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<TaskKey>, &Task)> {
        self.0.values().flat_map(Link::all).map(|(key, task)| (key, task.as_ref()))
    }

    /// Those of a job.
    pub(super) fn of_job(&self, job: &JobId) -> impl Iterator<Item = (&Arc<TaskKey>, &Task)> {
        let hashed = hash(job);
        let neighbours = self
            .0
            .range((Bound::Included(Hashes(hashed, 0)), Bound::Included(Hashes(hashed, u64::MAX))));
        let tasks = neighbours.flat_map(|(_, link)| link.all());
        tasks
            .filter(move |(name, _)| name.job == *job)
            .map(|(name, task)| (name, task.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ids::Timestamp;

    fn key(job: &str, task: &str) -> Arc<TaskKey> {
        Arc::new(TaskKey::parse(job, task).unwrap())
    }

    fn task(number: u64) -> Arc<Task> {
        Arc::new(Task::barred(number, Timestamp(0)))
    }

    fn numbers<'a>(tasks: impl Iterator<Item = (&'a Arc<TaskKey>, &'a Task)>) -> Vec<u64> {
        let mut numbers: Vec<u64> = tasks.map(|(_, task)| task.number).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn tasks_are_found_by_name_and_by_job() {
        let mut tasks = Tasks::default();
        for (number, (job, id)) in (1..).zip([("a", "1"), ("b", "1"), ("a", "2"), ("ab", "2")]) {
            assert_eq!(tasks.insert(key(job, id), task(number)), None);
        }
        assert_eq!(tasks.get(&key("a", "2")).map(|task| task.number), Some(3));
        let (name, changed) = tasks.get_mut(&key("b", "1")).unwrap();
        assert_eq!((name.to_string(), changed.number), ("b/1".to_owned(), 2));
        assert_eq!(tasks.get(&key("b", "2")), None);
        assert_eq!(numbers(tasks.of_job(&key("a", "1").job)), [1, 3]);
        assert_eq!(tasks.of_job(&key("c", "1").job).count(), 0);
        assert_eq!(tasks.insert(key("a", "1"), task(5)).map(|task| task.number), Some(1));
        assert_eq!(
            tasks.remove(&key("a", "1")).map(|(key, task)| (key.to_string(), task.number)),
            Some(("a/1".to_owned(), 5))
        );
        assert_eq!(tasks.remove(&key("a", "1")), None);
        assert_eq!(numbers(tasks.iter()), [2, 3, 4]);
    }

    #[test]
    fn names_with_the_same_hashes_are_told_apart() {
        let hashes = Hashes(7, 7);
        // Whichever goes first, in the middle and last.
        for order in [["1", "2", "3"], ["2", "3", "1"], ["3", "1", "2"], ["1", "3", "2"]] {
            let mut tasks = Tasks::default();
            for (number, id) in (1..).zip(["1", "2", "3"]) {
                assert_eq!(tasks.put(hashes, key("a", id), task(number)), None);
            }
            assert_eq!(tasks.put(hashes, key("a", "2"), task(5)).map(|task| task.number), Some(2));
            let mut left = vec![("1", 1), ("2", 5), ("3", 3)];
            for gone in order {
                for (id, number) in &left {
                    let link = tasks.0.get_mut(&hashes).unwrap().find_mut(&key("a", id)).unwrap();
                    assert_eq!(link.task.number, *number);
                }
                assert_eq!(tasks.iter().count(), left.len());
                let number = left.iter().position(|(id, _)| *id == gone).map(|at| left.remove(at).1);
                assert_eq!(tasks.take(hashes, &key("a", gone)).map(|(_, task)| task.number), number);
                assert_eq!(tasks.at(hashes, &key("a", gone)), None);
                assert_eq!(tasks.take(hashes, &key("a", gone)), None);
            }
            assert!(tasks.0.is_empty());
        }
    }
}
