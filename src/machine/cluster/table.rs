//! The tasks in memory, found by their names.
//!
//! Kept by `apply` and read by the decisions. In the order of hashes, which lie beside each other: names are long, alike at their
//! beginnings and each at a place of its own in memory, and with many tasks a map in their order spends most of a commit reading them. It
//! never trusts a hash: where two are equal the names decide.

use super::records::Task;
use crate::machine::ids::{JobId, TaskKey};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;
use std::sync::Arc;

/// Tasks by name; those of a job are neighbours, in no order that means anything.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks(BTreeMap<Name, Arc<Task>>);

#[derive(Clone, Debug)]
struct Name {
    hashes: Hashes,
    key: Arc<TaskKey>,
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

/// What is looked for: a name that need not be shared.
trait Ordered {
    fn place(&self) -> (Hashes, &TaskKey);
}

impl Ordered for Name {
    fn place(&self) -> (Hashes, &TaskKey) {
        (self.hashes, &self.key)
    }
}

impl Ordered for (Hashes, &TaskKey) {
    fn place(&self) -> (Hashes, &TaskKey) {
        *self
    }
}

impl<'a> Borrow<dyn Ordered + 'a> for Name {
    fn borrow(&self) -> &(dyn Ordered + 'a) {
        self
    }
}

impl Ord for dyn Ordered + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for dyn Ordered + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Ordered + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn Ordered + '_ {}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Name {}

impl Tasks {
    pub(super) fn get(&self, key: &TaskKey) -> Option<&Arc<Task>> {
        let place = (Hashes::of(key), key);
        self.0.get(&place as &dyn Ordered)
    }

    /// A task that is to be changed, with its name.
    pub(super) fn get_mut(&mut self, key: &TaskKey) -> Option<(&Arc<TaskKey>, &mut Arc<Task>)> {
        let place = (Hashes::of(key), key);
        let only = Bound::Included(&place as &dyn Ordered);
        let (name, task) = self.0.range_mut::<dyn Ordered + '_, _>((only, only)).next()?;
        Some((&name.key, task))
    }

    /// Put a task in; gives the one that was there.
    pub(super) fn insert(&mut self, key: Arc<TaskKey>, task: Arc<Task>) -> Option<Arc<Task>> {
        let hashes = Hashes::of(&key);
        self.0.insert(Name { hashes, key }, task)
    }

    /// Take a task out, with its name.
    pub(super) fn remove(&mut self, key: &TaskKey) -> Option<(Arc<TaskKey>, Arc<Task>)> {
        let place = (Hashes::of(key), key);
        let (name, task) = self.0.remove_entry(&place as &dyn Ordered)?;
        Some((name.key, task))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<TaskKey>, &Task)> {
        self.0.iter().map(|(name, task)| (&name.key, task.as_ref()))
    }

    /// Those of a job.
    pub(super) fn of_job(&self, job: &JobId) -> impl Iterator<Item = (&Arc<TaskKey>, &Task)> {
        let hashed = hash(job);
        // No id is less than one space.
        let least = TaskKey::parse(job.as_str(), " ").expect("a space is an id, and the job has one already");
        let place = (Hashes(hashed, 0), &least);
        let neighbours = self
            .0
            .range::<dyn Ordered + '_, _>((Bound::Included(&place as &dyn Ordered), Bound::Unbounded));
        let neighbours = neighbours.take_while(move |(name, _)| name.hashes.0 == hashed);
        neighbours
            .filter(move |(name, _)| name.key.job == *job)
            .map(|(name, task)| (&name.key, task.as_ref()))
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
        let mut tasks = Tasks::default();
        for (number, id) in (1..).zip(["1", "2", "3"]) {
            tasks.0.insert(Name { hashes, key: key("a", id) }, task(number));
        }
        let found = |id: &str| {
            let key = key("a", id);
            tasks.0.get(&(hashes, key.as_ref()) as &dyn Ordered).map(|task| task.number)
        };
        assert_eq!(["1", "2", "3", "4"].map(found), [Some(1), Some(2), Some(3), None]);
    }
}
