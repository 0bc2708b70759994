//! The store on disk.
//!
//! Opened by each role that survives a crash, with its [`Directory`]. `disk` is the only file that knows the storage engine, `open`
//! makes or opens a store and proves it whole with `verify`, `journal` holds the newest commits until the engine is durable, `builder` and `migrate` make whole logs, `copy` reads one while it is
//! written, `barrier` keeps readers behind what is durable, `before` what a full disk let fail out of their sight, `high_water` notices a
//! store that went back in time. It must never confirm or show anything that a power cut could still take, and never go on after a
//! failure: what the engine holds in memory is then unknown, so the store stops and only a new process finds out.
//!
//! ```text
//! key            body                                    all values in the envelope of `codec`
//! h              Position: epoch, batch, first and next event, live tally, history tally
//! e<seq>         events of one commit (`block`); seq is that of the last one, 8 bytes, big endian; no gap; history
//! r<key>         record; history if its key begins with `HISTORY`, live otherwise
//! ```
//!
//! A tally is a count and a sum (wrapping, over `codec::fingerprint`) of all values of its part, so a value that is missing, extra or
//! old shows: among the live ones when the store is opened, in the history at latest when its proof has come by.

mod barrier;
mod before;
mod block;
mod builder;
mod copy;
mod disk;
mod high_water;
mod index;
mod journal;
mod known;
pub mod migrate;
mod open;
mod position;
mod proof;
mod reserve;
pub mod salvage;
mod verify;

pub use builder::Builder;
pub(crate) use position::{EVENT_PREFIX, HEAD_KEY, Position, RECORD_PREFIX, Tally};
pub use proof::Proof;

use super::codec::{self, DecodeError};
use super::directory::{Directory, Lock};
use super::{Commit, Error, Head, HistoryProof, Page, Seq, Store, write_cost};
use crate::crash_point;
use crate::metrics::Seconds;
use barrier::{Barrier, View};
use before::Before;
use copy::Copies;
use disk::{Disk, Each};
use high_water::{HighWater, Mark};
use journal::{Journal, Writes};
use known::Known;
use position::{event_key, event_seq, is_history, record_key};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;
use verify::HistoryCheck;

/// Values of the history that are proved in one go, a millisecond's worth.
const HISTORY_PAGE: usize = 256;

/// [`Store`] on the storage engine; one for each data directory.
pub struct SledStore {
    disk: Disk,
    barrier: Barrier,
    /// How long barriers take, once somebody measures it.
    barriers: OnceLock<Seconds>,
    writer: Mutex<Writer>,
    // Released last, after the engine is closed.
    _lock: Arc<Lock>,
}

/// What only the committer touches.
struct Writer {
    position: Position,
    journal: Journal,
    known: Known,
    high_water: HighWater,
    check: HistoryCheck,
    copies: Copies,
}

/// What one commit writes.
struct Plan {
    position: Position,
    writes: Writes,
    before: Before,
}

impl SledStore {
    /// Open the store of a data directory, or make it, or bring it to the current version; prove it whole; take over as its writer (the
    /// epoch rises by one, durably).
    ///
    /// Proves all that is live, and of the history what takes a fraction of a second; [`Store::prove_history`] does the rest. Errors:
    /// [`Error::Damaged`] when anything is not as it was committed, also when the store is older than it has been; nothing is served
    /// then, and a backup is the way back.
    pub fn open(directory: &Directory) -> Result<SledStore, Error> {
        open::open(directory)
    }

    /// Open the store of a data directory for reading, and prove all of it; nobody takes over as its writer.
    ///
    /// Errors: as for [`SledStore::open`]; [`Error::WrongDirectory`] for an older version.
    pub fn inspect(directory: &Directory) -> Result<SledStore, Error> {
        open::inspect(directory)
    }

    /// Write the lost or unreadable high-water file anew, of a store that is whole otherwise. Whether the store is an old one cannot be told
    /// any more. One that can be read is left alone; says whether it was written.
    ///
    /// Errors: [`Error::Damaged`] if the store is not whole, or not what a readable file confirms.
    pub fn rebuild_high_water(directory: &Directory) -> Result<bool, Error> {
        open::rebuild_high_water(directory)
    }

    /// Every raw key and sealed value at one commit, while commits go on; gives that commit's position.
    ///
    /// A key may be handed on again later, with a newer value or with `None` where it is gone: the last word counts. The head value comes
    /// last. [`Builder`] makes a log of it.
    pub fn copy(&self, each: &mut copy::Each<'_>) -> Result<Head, Error> {
        copy::copy(self, each)
    }

    fn new(disk: Disk, writer: Writer, lock: Arc<Lock>) -> SledStore {
        SledStore {
            disk,
            barrier: Barrier::new(writer.position.head()),
            barriers: OnceLock::new(),
            writer: Mutex::new(writer),
            _lock: lock,
        }
    }

    /// Let the barriers of later commits be measured.
    pub fn measure(&self, barriers: Seconds) {
        let _ = self.barriers.set(barriers);
    }

    fn raise_epoch(&self) -> Result<Head, Error> {
        let mut writer = self.lock_writer();
        let mut plan = Plan {
            position: writer.position,
            writes: Vec::new(),
            before: Before::default(),
        };
        plan.position.epoch += 1;
        plan.position.batch += 1;
        self.write(&mut writer, plan)
    }

    fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer
            .lock()
            .expect("panics of the engine are caught in disk, and nothing else under this lock panics")
    }

    /// Seal the new values and carry the count and the sum on. Overwritten values are read for it, events never have one.
    fn plan(&self, writer: &mut Writer, commit: &Commit) -> Result<Plan, Error> {
        let mut position = Position {
            batch: writer.position.batch + 1,
            ..writer.position
        };
        let mut before_it = Before::default();
        let mut writes = Vec::with_capacity(commit.events.len() + commit.changes.len() + 1);
        for (last, body) in block::pack(position.next_seq, &commit.events) {
            let key = event_key(last);
            let sealed = codec::seal(&key, position.batch, &body);
            position.history.add(&key, &sealed);
            writer.check.changed(&self.disk, &key, None, Some(&sealed))?;
            position.next_seq = last + 1;
            before_it.keep(&key, None);
            writes.push((key, Some(sealed)));
        }
        let trims = commit.trims(&writer.position.head());
        while position.first_seq < trims.end {
            let (key, old) = block::holding(&self.disk, position.first_seq)?;
            let sealed = block::let_go(&self.disk, (&key, &old), trims.end, &mut position)?;
            position.history.remove(&key, &old);
            if let Some(sealed) = &sealed {
                position.history.add(&key, sealed);
            }
            writer.check.changed(&self.disk, &key, Some(&old), sealed.as_deref())?;
            before_it.keep(&key, Some(&old));
            writes.push((key, sealed));
        }
        // Keyed, so that a key given twice is counted once.
        let changes: BTreeMap<&[u8], Option<&[u8]>> = commit.changes.iter().map(|(k, v)| (k.as_slice(), v.as_deref())).collect();
        for (key, body) in changes {
            let key = record_key(key);
            let old = self.old(&writer.known, &key)?;
            if let Some(old) = &old {
                // A damaged value must not be subtracted and so made to look right.
                codec::unseal(&key, old).map_err(|e| damaged(&self.disk, &key, &e))?;
                position.tally(&key).remove(&key, old);
            }
            let sealed = body.map(|body| codec::seal(&key, position.batch, body));
            if let Some(sealed) = &sealed {
                position.tally(&key).add(&key, sealed);
            }
            writer.check.changed(&self.disk, &key, old.as_deref(), sealed.as_deref())?;
            match (&old, &sealed) {
                _ if is_history(&key) => {}
                (None, Some(_)) => writer.known.add(&key),
                (Some(_), None) => writer.known.remove(&key),
                _ => {}
            }
            if old.is_some() || sealed.is_some() {
                before_it.keep(&key, old.as_deref());
                writes.push((key, sealed));
            }
        }
        Ok(Plan {
            position,
            writes,
            before: before_it,
        })
    }

    /// The value that a commit writes over, if there is one.
    fn old(&self, known: &Known, key: &[u8]) -> Result<Option<disk::Value>, Error> {
        if is_history(key) || known.may_have(key) {
            return self.disk.get(key);
        }
        debug_assert!(self.disk.get(key).is_ok_and(|old| old.is_none()), "a live key is not known");
        Ok(None)
    }

    /// The one way anything gets on disk: journal, barrier, engine, and only then the watermark that lets readers see it.
    fn write(&self, writer: &mut Writer, plan: Plan) -> Result<Head, Error> {
        let Plan {
            position,
            mut writes,
            before,
        } = plan;
        let deleted = writes
            .iter()
            .filter(|(_, value)| value.is_none())
            .map(|(key, _)| key.clone())
            .collect();
        writes.push((
            HEAD_KEY.to_vec(),
            Some(codec::seal(HEAD_KEY, position.batch, &codec::encode(&position))),
        ));
        let cost = writes
            .iter()
            .map(|(key, value)| write_cost(key.len() + value.as_ref().map_or(0, Vec::len)))
            .sum();
        self.make_room(writer, cost).inspect_err(|error| {
            if error.is_full() {
                self.barrier.full(Before::default());
            }
        })?;
        // From here on an early return poisons the store: what it holds in memory may be more than what is on disk.
        let pending = self.barrier.begin(deleted)?;
        writer.copies.changed(writes.iter().map(|(key, _)| key.as_slice()));
        crash_point::reach("store.begun");
        let written = writer.journal.append(position.batch, cost, &writes, |file| self.sync(file));
        let applied = written.and_then(|()| {
            crash_point::reach("store.synced");
            self.disk.apply(writes)
        });
        if let Err(error) = applied {
            if error.is_full() {
                pending.full(before);
            }
            return Err(error);
        }
        crash_point::reach("store.applied");
        writer.position = position;
        pending.durable(position.head());
        writer.high_water.record(Mark::of(&position));
        Ok(position.head())
    }

    /// See to it that a commit finds space in the engine's log and in the journal; an error leaves what was confirmed as it was.
    fn make_room(&self, writer: &mut Writer, cost: usize) -> Result<(), Error> {
        self.disk.reserve()?;
        if writer.journal.is_full(cost) {
            self.disk.sync()?;
            writer.journal.restart()?;
        }
        Ok(())
    }

    /// The barrier of a commit.
    fn sync(&self, journal: &File) -> io::Result<()> {
        #[cfg(test)]
        if *self.disk.fault.lock().unwrap() == Some(disk::Fault::Barrier) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let began = Instant::now();
        journal.sync_data()?;
        self.barriers.get().iter().for_each(|barriers| barriers.observe(began.elapsed()));
        Ok(())
    }

    /// Damage found while serving stops the store like a failed commit: nothing may be confirmed on top of it. A full disk does not: what
    /// was durable can still be read.
    fn or_poison<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result {
            tracing::error!(%error, "the store stops");
            if !error.is_full() {
                self.barrier.poison();
            }
        }
        result
    }

    /// A failed read. After a full disk nothing is concluded from it: the engine's memory is not what it should be.
    fn or_poison_live<T>(&self, view: &View, result: Result<T, Error>) -> Result<T, Error> {
        match (view, result) {
            (View::Live, result) => self.or_poison(result),
            (View::Before(_), Err(error)) => {
                tracing::error!(%error, "not readable while the disk is full");
                Err(Error::Io {
                    what: format!("not readable since the disk is full, until a restart: {error}"),
                    source: io::ErrorKind::StorageFull.into(),
                })
            }
            (View::Before(_), read) => read,
        }
    }

    /// Read until what was read is durable.
    fn read<T>(&self, mut read: impl FnMut(&View) -> Result<(u64, T), Error>, missed: impl Fn(&[u8], &T) -> bool) -> Result<T, Error> {
        loop {
            let view = self.barrier.view()?;
            let (batch, value) = self.or_poison_live(&view, read(&view))?;
            if matches!(view, View::Before(_)) || self.barrier.wait(batch, |key| missed(key, &value))? {
                return Ok(value);
            }
        }
    }

    fn range(&self, view: &View, from: Bound<&[u8]>, each: &mut Each<'_>) -> Result<(), Error> {
        match view {
            View::Live => self.disk.range(from, each),
            View::Before(before) => before.range(&self.disk, from, each),
        }
    }
}

impl Store for SledStore {
    fn head(&self) -> Head {
        self.barrier.head()
    }

    fn commit(&self, commit: &Commit) -> Result<Head, Error> {
        let mut writer = self.lock_writer();
        self.barrier.check()?;
        let position = writer.position;
        if commit.epoch != position.epoch {
            return Err(Error::Fenced {
                given: commit.epoch,
                actual: position.epoch,
            });
        }
        if commit.expected != position.next_seq {
            return Err(Error::Conflict {
                expected: commit.expected,
                actual: position.next_seq,
            });
        }
        commit.check_size()?;
        let written = self.plan(&mut writer, commit).and_then(|plan| self.write(&mut writer, plan));
        self.or_poison(written)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let key = record_key(key);
        let open = |sealed: &[u8]| {
            let (batch, body) = codec::unseal(&key, sealed).map_err(|e| damaged(&self.disk, &key, &e))?;
            Ok((batch, Some(body.to_vec())))
        };
        let read = |view: &View| {
            if let View::Before(before) = view
                && let Some(old) = before.get(&key)
            {
                return old.map_or(Ok((0, None)), open);
            }
            self.disk.get(&key)?.map_or(Ok((0, None)), |sealed| open(&sealed))
        };
        self.read(read, |deleted, value| value.is_none() && deleted == key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, Error> {
        let prefix = record_key(prefix);
        let after = after.map(record_key).filter(|after| *after >= prefix);
        let from = after.as_deref().map_or(Bound::Included(&prefix[..]), Bound::Excluded);
        let read = |view: &View| {
            let mut page = Page::new();
            let newest = self.read_range(view, from, limit, |key, body| {
                let ours = key.starts_with(&prefix);
                if ours {
                    page.push((key[1..].to_vec(), body.to_vec()));
                }
                Ok(ours)
            })?;
            Ok((newest, page))
        };
        let in_range = |key: &[u8]| key.starts_with(&prefix) && after.as_deref().is_none_or(|after| key > after);
        self.read(read, |deleted, _| in_range(deleted))
    }

    fn events(&self, from: Seq, limit: usize) -> Result<Vec<(Seq, Vec<u8>)>, Error> {
        let read = |view: &View| {
            let mut events = Vec::new();
            // A block has one event at least.
            let newest = self.read_range(view, Bound::Included(&event_key(from)), limit, |key, body| {
                let ours = event_seq(key).is_some() && events.len() < limit;
                if ours {
                    let found = block::open(&self.disk, key, body)?.into_iter().filter(|(seq, _)| *seq >= from);
                    events.extend(found.take(limit - events.len()).map(|(seq, event)| (seq, event.to_vec())));
                }
                Ok(ours)
            })?;
            Ok((newest, events))
        };
        self.read(read, |gone, _| event_seq(gone).is_some_and(|seq| seq >= from))
    }

    fn history(&self) -> HistoryProof {
        let writer = self.lock_writer();
        HistoryProof {
            checked: writer.check.checked(),
            of: writer.position.history.count,
            done: writer.check.is_done(),
        }
    }

    fn prove_history(&self) -> Result<HistoryProof, Error> {
        {
            let writer = &mut *self.lock_writer();
            self.barrier.check()?;
            if !writer.check.is_done() {
                let proved = writer.check.page(&self.disk, &writer.position, HISTORY_PAGE);
                self.or_poison(proved)?;
            }
        }
        Ok(self.history())
    }
}

impl SledStore {
    /// Hand at most `limit` values to `take` until it says no; gives the newest batch among those it took.
    fn read_range(
        &self,
        view: &View,
        from: Bound<&[u8]>,
        limit: usize,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<u64, Error> {
        let (mut newest, mut left) = (0, limit);
        if limit == 0 {
            return Ok(newest);
        }
        self.range(view, from, &mut |key, sealed| {
            let (batch, body) = codec::unseal(key, sealed).map_err(|e| damaged(&self.disk, key, &e))?;
            if !take(key, body)? {
                return Ok(ControlFlow::Break(()));
            }
            newest = newest.max(batch);
            left -= 1;
            Ok(if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        Ok(newest)
    }
}

fn damaged(disk: &Disk, key: &[u8], what: &DecodeError) -> Error {
    damaged_key(disk.file(), key, &what.to_string())
}

fn damaged_key(file: &Path, key: &[u8], what: &str) -> Error {
    Error::Damaged {
        file: file.to_owned(),
        what: format!("key {}: {what}", key.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(store: &SledStore) -> Result<Head, Error> {
        let head = store.head();
        store.commit(&Commit {
            epoch: head.epoch,
            expected: head.next_seq,
            // Three to a block.
            events: vec![vec![7; 1000]; 200],
            changes: vec![(b"dold".to_vec(), Some(head.batch.to_be_bytes().to_vec()))],
            trim_to: None,
        })
    }

    /// A store of many events of which nothing is proved yet.
    fn unproved(root: &std::path::Path) -> SledStore {
        let directory = Directory::open(root, "master", [1; 16]).unwrap();
        let store = SledStore::open(&directory).unwrap();
        for _ in 0..20 {
            commit(&store).unwrap();
        }
        {
            let writer = &mut *store.lock_writer();
            writer.check = HistoryCheck::new(&writer.position);
        }
        store
    }

    #[test]
    fn the_history_is_proved_while_commits_go_on() {
        let root = tempfile::tempdir().unwrap();
        let store = unproved(root.path());
        let mut pages = 0;
        while !store.prove_history().unwrap().done {
            pages += 1;
            commit(&store).unwrap();
        }
        assert!(pages > 3, "all was proved at once");
        let proof = store.history();
        assert_eq!(proof.checked, proof.of);
    }

    #[test]
    fn the_history_is_proved_while_events_are_let_go_of() {
        for (step, every) in [(150, 1), (300, 1), (1000, 2)] {
            let root = tempfile::tempdir().unwrap();
            let store = unproved(root.path());
            let mut pages = 0;
            while !store.prove_history().unwrap().done {
                pages += 1;
                let head = store.head();
                let trim = Commit {
                    epoch: head.epoch,
                    expected: head.next_seq,
                    trim_to: (pages % every == 0).then_some(head.first_seq + step),
                    ..Commit::default()
                };
                store.commit(&trim).unwrap();
            }
            assert!(store.head().first_seq > 150 && pages >= 2, "nothing was let go of meanwhile");
            let proof = store.history();
            assert_eq!(proof.checked, proof.of);
            drop(store);
            let directory = Directory::open(root.path(), "master", [1; 16]).unwrap();
            assert!(SledStore::open(&directory).unwrap().history().done);
        }
    }

    #[test]
    fn a_hole_where_events_are_let_go_of_stops_the_store() {
        let root = tempfile::tempdir().unwrap();
        let store = unproved(root.path());
        store.disk.commit(vec![(event_key(3), None)]).unwrap();
        let head = store.head();
        let trim = Commit {
            epoch: head.epoch,
            expected: head.next_seq,
            trim_to: Some(9),
            ..Commit::default()
        };
        let error = store.commit(&trim).unwrap_err().to_string();
        assert!(error.contains("event 1 should come here"), "{error}");
        assert!(matches!(commit(&store), Err(Error::Poisoned)));
    }

    #[test]
    fn a_hole_in_the_history_stops_the_store() {
        let root = tempfile::tempdir().unwrap();
        let store = unproved(root.path());
        store.disk.commit(vec![(event_key(702), None)]).unwrap();
        commit(&store).unwrap();
        let found = loop {
            match store.prove_history() {
                Ok(proof) => assert!(!proof.done, "the hole was not found"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(found.contains("event 700 should come here"), "{found}");
        assert!(matches!(commit(&store), Err(Error::Poisoned)));
    }
}
