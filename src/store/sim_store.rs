//! The store in memory, with faults on order.
//!
//! Used by tests and simulations in place of `sled_store`; both pass one contract suite. [`SimDisk`] is what outlives a process: tests
//! keep a clone, let it fail, let the "process" lose its [`SimStore`] and open another one. It must never be kinder than a real disk
//! where the contract is silent: what has no barrier is lost or kept as the test says, and a failed store stays failed.

use super::{Commit, Error, Head, HistoryProof, Page, Seq, Store};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What a crash does to the commit whose barrier is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is gone.
    Lost,
    /// It reached the disk all the same.
    Kept,
}

/// A disk that survives the processes on it. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<Disk>,
    changed: Condvar,
}

#[derive(Default)]
struct Disk {
    durable: Image,
    /// Applied, its barrier still out or failed.
    pending: Option<Pending>,
    /// What the next barrier does; `None` is the normal case.
    order: Option<Order>,
    full: bool,
    /// There is work beside commits, which will find the disk full.
    full_beside: bool,
    /// Counts crashes: a store of an earlier life answers nothing any more.
    life: u64,
}

#[derive(Clone)]
struct Image {
    head: Head,
    /// From `head.first_seq` on.
    events: VecDeque<Vec<u8>>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Default for Image {
    fn default() -> Self {
        Image {
            head: Head {
                epoch: 0,
                batch: 0,
                first_seq: 1,
                next_seq: 1,
            },
            events: VecDeque::new(),
            records: BTreeMap::new(),
        }
    }
}

struct Pending {
    commit: Commit,
    fate: Fate,
}

#[derive(Clone, Copy)]
enum Order {
    Fail(Fate),
    Full(Fate),
    Hold,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// The next commit fails at its barrier; what is found after the next open is given by `fate`.
    pub fn fail_next_barrier(&self, fate: Fate) {
        self.lock().order = Some(Order::Fail(fate));
    }

    /// The next commit finds the disk full at its barrier; what is found after the next open is given by `fate`.
    pub fn fill_at_next_barrier(&self, fate: Fate) {
        self.lock().order = Some(Order::Full(fate));
    }

    /// The next commit leaves work for [`Store::settle`], which finds the disk full.
    pub fn fill_beside_commits(&self) {
        self.lock().full_beside = true;
    }

    /// The next commit stays at its barrier until [`SimDisk::release`], [`SimDisk::lose`] or [`SimDisk::keep`].
    pub fn hold_next_barrier(&self) {
        self.lock().order = Some(Order::Hold);
    }

    /// Wait until a commit stays at its barrier.
    pub fn wait_for_held(&self) {
        let mut disk = self.lock();
        while disk.pending.is_none() {
            disk = self.shared.changed.wait(disk).expect("see lock");
        }
    }

    /// Let the held commit pass its barrier.
    pub fn release(&self) {
        self.lock().settle(Fate::Kept);
        self.shared.changed.notify_all();
    }

    /// Crash: everything after the last barrier is gone, and so is the process (its stores answer [`Error::Poisoned`]).
    pub fn lose(&self) {
        self.crash(Fate::Lost);
    }

    /// Crash like [`SimDisk::lose`], but a commit whose barrier was out is found afterwards.
    pub fn keep(&self) {
        self.crash(Fate::Kept);
    }

    /// From now on each commit fails because the disk is full, or, with `false`, no more.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// From now on commits succeed: takes back every order not met yet, and the full disk.
    pub fn heal(&self) {
        let mut disk = self.lock();
        disk.order = None;
        disk.full = false;
    }

    /// True while a commit stays at its barrier.
    pub fn is_held(&self) -> bool {
        self.lock().pending.is_some()
    }

    /// The value of a record as a power cut now that loses all without a barrier would leave it. Waits for nothing.
    pub fn durable(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.lock().durable.records.get(key).cloned()
    }

    /// All records like [`SimDisk::durable`], in key order.
    pub fn durable_records(&self) -> Page {
        let disk = self.lock();
        disk.durable
            .records
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Start a process on the disk: the epoch rises by one, which fences every store opened before.
    pub fn open(&self) -> Result<SimStore, Error> {
        let mut disk = self.lock();
        if let Some(pending) = &disk.pending {
            let fate = pending.fate;
            disk.crash(fate);
            self.shared.changed.notify_all();
        }
        if disk.full {
            return Err(full());
        }
        disk.durable.head.epoch += 1;
        disk.durable.head.batch += 1;
        let handle = Handle {
            head: disk.durable.head,
            stopped: Stopped::No,
        };
        Ok(SimStore {
            disk: self.clone(),
            life: disk.life,
            handle: Mutex::new(handle),
        })
    }

    fn crash(&self, fate: Fate) {
        self.lock().crash(fate);
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.shared.state.lock().expect("nothing under this lock panics")
    }
}

impl Disk {
    fn settle(&mut self, fate: Fate) {
        match self.pending.take() {
            Some(pending) if fate == Fate::Kept => self.durable.apply(pending.commit),
            _ => {}
        }
    }

    fn crash(&mut self, fate: Fate) {
        self.settle(fate);
        self.life += 1;
    }
}

impl Image {
    fn apply(&mut self, commit: Commit) {
        let trimmed = commit.trims(&self.head);
        self.head.first_seq = trimmed.end;
        self.events.drain(..trimmed.count());
        self.head.batch += 1;
        self.head.next_seq += commit.events.len() as u64;
        self.events.extend(commit.events);
        for (key, value) in commit.changes {
            match value {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
    }
}

/// [`Store`] on a [`SimDisk`]; one "process".
pub struct SimStore {
    disk: SimDisk,
    life: u64,
    handle: Mutex<Handle>,
}

struct Handle {
    head: Head,
    stopped: Stopped,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    No,
    /// Read only.
    Full,
    Failed,
}

impl SimStore {
    fn handle(&self) -> MutexGuard<'_, Handle> {
        self.handle.lock().expect("nothing under this lock panics")
    }

    /// The disk, if this process still lives.
    fn live(&self) -> Result<MutexGuard<'_, Disk>, Error> {
        // Looked at under the disk's lock, like it is set, so that no reader goes to wait after the last notice.
        let disk = self.disk.lock();
        if self.handle().stopped == Stopped::Failed || disk.life != self.life {
            Err(Error::Poisoned)
        } else {
            Ok(disk)
        }
    }

    /// The disk once no commit whose barrier is out touches what the caller reads.
    fn settled(&self, touches: impl Fn(&Disk, &Commit) -> bool) -> Result<MutexGuard<'_, Disk>, Error> {
        let mut disk = self.live()?;
        // The commit that found the disk full is at no barrier: it is as if it had never been.
        while self.handle().stopped == Stopped::No && disk.pending.as_ref().is_some_and(|pending| touches(&disk, &pending.commit)) {
            drop(self.disk.shared.changed.wait(disk).expect("see lock"));
            disk = self.live()?;
        }
        Ok(disk)
    }

    fn stop(&self, disk: MutexGuard<'_, Disk>, error: Error) -> Error {
        self.handle().stopped = if error.is_full() { Stopped::Full } else { Stopped::Failed };
        drop(disk);
        self.disk.shared.changed.notify_all();
        error
    }

    /// Stay at the barrier until the test says what happens.
    fn hold(&self, mut disk: MutexGuard<'_, Disk>) -> Result<Head, Error> {
        let before = disk.durable.head.batch;
        self.disk.shared.changed.notify_all();
        while disk.pending.is_some() {
            disk = self.disk.shared.changed.wait(disk).expect("see lock");
        }
        if disk.life != self.life || disk.durable.head.batch == before {
            return Err(Error::Poisoned);
        }
        Ok(disk.durable.head)
    }
}

impl Store for SimStore {
    fn head(&self) -> Head {
        self.handle().head
    }

    fn commit(&self, commit: &Commit) -> Result<Head, Error> {
        let mut disk = self.live()?;
        let head = disk.durable.head;
        if commit.epoch != head.epoch {
            return Err(Error::Fenced {
                given: commit.epoch,
                actual: head.epoch,
            });
        }
        if commit.expected != head.next_seq {
            return Err(Error::Conflict {
                expected: commit.expected,
                actual: head.next_seq,
            });
        }
        commit.check_size()?;
        if disk.full || self.handle().stopped == Stopped::Full {
            return Err(self.stop(disk, full()));
        }
        let head = match disk.order.take() {
            None => {
                disk.durable.apply(commit.clone());
                disk.durable.head
            }
            Some(Order::Fail(fate)) => {
                disk.pending = Some(Pending {
                    commit: commit.clone(),
                    fate,
                });
                let source = io::Error::other("the barrier failed on order");
                return Err(self.stop(
                    disk,
                    Error::Io {
                        what: "cannot commit to the simulated disk".to_owned(),
                        source,
                    },
                ));
            }
            Some(Order::Full(fate)) => {
                disk.pending = Some(Pending {
                    commit: commit.clone(),
                    fate,
                });
                return Err(self.stop(disk, full()));
            }
            Some(Order::Hold) => {
                disk.pending = Some(Pending {
                    commit: commit.clone(),
                    fate: Fate::Lost,
                });
                self.hold(disk)?
            }
        };
        self.handle().head = head;
        Ok(head)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let disk = self.settled(|_, commit| commit.changes.iter().any(|(k, _)| k == key))?;
        Ok(disk.durable.records.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, Error> {
        let matches = |key: &[u8]| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        let disk = self.settled(|_, commit| commit.changes.iter().any(|(k, _)| matches(k)))?;
        let from = match after.filter(|after| *after >= prefix) {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let records = disk.durable.records.range::<[u8], _>((from, Bound::Unbounded));
        Ok(records
            .take_while(|(k, _)| k.starts_with(prefix))
            .take(limit)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect())
    }

    fn events(&self, from: Seq, limit: usize) -> Result<Vec<(Seq, Vec<u8>)>, Error> {
        let reaches = |head: &Head| from.max(head.first_seq).saturating_add(limit as u64) > head.next_seq;
        let appends = |disk: &Disk, commit: &Commit| !commit.events.is_empty() && reaches(&disk.durable.head);
        let trims = |disk: &Disk, commit: &Commit| from < commit.trims(&disk.durable.head).end;
        let disk = self.settled(|disk, commit| appends(disk, commit) || trims(disk, commit))?;
        let first = disk.durable.head.first_seq;
        let from = from.max(first);
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        Ok((from..).zip(disk.durable.events.iter().skip(skip).take(limit).cloned()).collect())
    }

    fn is_behind(&self) -> bool {
        self.disk.lock().full_beside
    }

    fn settle(&self) -> Result<(), Error> {
        let mut disk = self.live()?;
        match std::mem::take(&mut disk.full_beside) {
            true => Err(self.stop(disk, full())),
            false => Ok(()),
        }
    }

    fn history(&self) -> HistoryProof {
        HistoryProof {
            checked: 0,
            of: 0,
            done: true,
        }
    }

    fn prove_history(&self) -> Result<HistoryProof, Error> {
        Ok(self.history())
    }
}

fn full() -> Error {
    Error::Io {
        what: "cannot commit to the simulated disk".to_owned(),
        source: io::ErrorKind::StorageFull.into(),
    }
}
