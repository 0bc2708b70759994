//! The store on disk.
//!
//! Opened by each role that survives a crash, with its [`Directory`]. `disk` is the only file that knows the storage engine, and that it has neighbouring keys in `group`s; `open`
//! makes or opens a store and proves it whole with `verify`, `journal` holds the newest commits on disk and `recent` in memory until somebody (`rounds`, `settling`) has seen to it that the engine
//! has them durably, `builder` and `migrate` make whole logs, `copy` reads one while it is written, `barrier` says what is confirmed, `high_water` notices a
//! store that went back in time. It must never confirm or show anything that a power cut could still take, and never go on after a
//! failure: what the engine holds in memory is then unknown, so the store stops and only a new process finds out.
//!
//! ```text
//! key            body                                    all values in the envelope of `codec`; in `group`s in the engine
//! h              Position: epoch, batch, first and next event, live tally, history tally
//! e<seq>         events of one commit (`block`); seq is that of the last one, 8 bytes, big endian; no gap; history
//! r<key>         record; history if its key begins with `HISTORY`, live otherwise
//! ```
//!
//! A tally is a count and a sum (wrapping, over `codec::fingerprint`) of all values of its part, so a value that is missing, extra or
//! old shows: among the live ones when the store is opened, in the history at latest when its proof has come by.

mod barrier;
mod block;
mod builder;
mod copy;
mod disk;
mod frame;
mod group;
mod high_water;
mod index;
mod journal;
mod known;
pub mod migrate;
mod open;
mod past;
mod position;
mod proof;
mod recent;
mod reserve;
mod rounds;
pub mod salvage;
mod settling;
mod verify;

pub use builder::Builder;
pub(crate) use position::{EVENT_PREFIX, HEAD_KEY, Position, RECORD_PREFIX, Tally};
pub use proof::Proof;

use super::codec::{self, DecodeError};
use super::directory::{Directory, Lock};
use super::{Commit, Error, Head, HistoryProof, Page, Seq, Store};
use crate::crash_point;
use crate::metrics::Seconds;
use barrier::Barrier;
use copy::Copies;
use disk::Disk;
use frame::Draft;
use high_water::{HighWater, Mark};
use journal::Journal;
use known::Known;
use past::Past;
use position::{event_key, event_seq, is_history, record_key};
use settling::Settling;
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
    settling: Settling,
    /// How long barriers take, once somebody measures it.
    barriers: OnceLock<Seconds>,
    past: Arc<Past>,
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
    draft: Draft,
}

impl SledStore {
    /// Open the store of a data directory, or make it, or bring it to the current version; prove it whole; take over as its writer (the
    /// epoch rises by one, durably).
    ///
    /// Proves all that is live, and of the history what takes a fraction of a second; [`Store::prove_history`] does the rest. Errors:
    /// [`Error::Damaged`] when anything is not as it was committed, also when the store is older than it has been; nothing is served
    /// then, and a backup is the way back.
    pub fn open(directory: &Directory) -> Result<SledStore, Error> {
        Self::open_with(directory, &mut |_, _| {})
    }

    /// [`SledStore::open`], which reads each live record for its proof: `each` gets key and body, in the order of the keys. They count only if
    /// the store is given.
    pub fn open_with(directory: &Directory, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<SledStore, Error> {
        open::open(directory, each)
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
            settling: Settling::default(),
            barriers: OnceLock::new(),
            past: writer.check.past(),
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
        let mut position = writer.position;
        position.epoch += 1;
        position.batch += 1;
        let draft = writer.journal.draft(position.batch);
        self.write(&mut writer, Plan { position, draft })
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
        let mut draft = writer.journal.draft(position.batch);
        for (last, body) in block::pack(position.next_seq, &commit.events) {
            let (key, sealed) = draft.put(event_key(last), Some(&body));
            sealed.iter().for_each(|sealed| position.history.add(key, sealed));
            writer.check.changed(&self.disk, key, None, sealed)?;
            position.next_seq = last + 1;
        }
        let trims = commit.trims(&writer.position.head());
        while position.first_seq < trims.end {
            let (key, old) = block::holding(&self.disk, position.first_seq)?;
            let left = block::let_go(&self.disk, (&key, &old), trims.end, &mut position)?;
            position.history.remove(&key, &old);
            let (key, sealed) = draft.put(key, left.as_deref());
            sealed.iter().for_each(|sealed| position.history.add(key, sealed));
            writer.check.changed(&self.disk, key, Some(&old), sealed)?;
        }
        for (key, body) in last_words(&commit.changes) {
            let key = record_key(key);
            let old = self.old(&writer.known, &key)?;
            if let Some(old) = &old {
                // A damaged value must not be subtracted and so made to look right.
                codec::unseal(&key, old).map_err(|e| damaged(&self.disk, &key, &e))?;
                position.tally(&key).remove(&key, old);
            }
            if old.is_none() && body.is_none() {
                continue;
            }
            let (key, sealed) = draft.put(key, body);
            sealed.iter().for_each(|sealed| position.tally(key).add(key, sealed));
            writer.check.changed(&self.disk, key, old.as_deref(), sealed)?;
            match (&old, sealed) {
                _ if is_history(key) => {}
                (None, Some(_)) => writer.known.add(key),
                (Some(_), None) => writer.known.remove(key),
                _ => {}
            }
        }
        Ok(Plan { position, draft })
    }

    /// The value that a commit writes over, if there is one.
    fn old(&self, known: &Known, key: &[u8]) -> Result<Option<disk::Value>, Error> {
        let may_have = if is_history(key) {
            self.past.may_have(key)
        } else {
            known.may_have(key)
        };
        if may_have {
            return self.disk.get(key);
        }
        debug_assert!(!matches!(self.disk.get(key), Ok(Some(_))), "a key is not known");
        Ok(None)
    }

    /// The sealed value of a record.
    fn look(&self, key: &[u8]) -> Result<Option<disk::Value>, Error> {
        if is_history(key) && !self.past.may_have(key) {
            return Ok(None);
        }
        self.disk.get(key)
    }

    /// The one way anything gets on disk: journal, barrier, and only then where readers see it.
    fn write(&self, writer: &mut Writer, plan: Plan) -> Result<Head, Error> {
        let Plan { position, mut draft } = plan;
        draft.put(HEAD_KEY.to_vec(), Some(&codec::encode(&position)));
        self.make_room(writer, &draft).inspect_err(|error| {
            if error.is_full() {
                self.barrier.full();
            }
        })?;
        // From here on an early return poisons the store: what is on disk is not known.
        let pending = self.barrier.begin()?;
        writer.copies.changed(draft.keys());
        crash_point::reach("store.begun");
        let written = match writer.journal.append(draft, |file| self.sync(file)) {
            Ok(written) => written,
            Err(error) => {
                if error.is_full() {
                    pending.full();
                }
                return Err(error);
            }
        };
        crash_point::reach("store.synced");
        writer.position = position;
        pending.durable(position.head(), || self.disk.put(position.batch, written.values()));
        crash_point::reach("store.applied");
        writer.high_water.record(Mark::of(&position));
        Ok(position.head())
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

    /// What may be read is confirmed. After a full disk nothing is concluded from a read that fails: the engine's memory is not what it should be.
    fn read<T>(&self, read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.barrier.readable()?;
        match read() {
            Err(error) if self.barrier.is_full() => {
                tracing::error!(%error, "not readable while the disk is full");
                Err(Error::Io {
                    what: format!("not readable since the disk is full, until a restart: {error}"),
                    source: io::ErrorKind::StorageFull.into(),
                })
            }
            read => self.or_poison(read),
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
        self.read(|| self.look(&key)?.map(|sealed| self.body(&key, &sealed)).transpose())
    }

    fn peek(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let key = record_key(key);
        self.read(|| self.disk.peek(&key).map(|sealed| self.body(&key, &sealed)).transpose())
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, Error> {
        let prefix = record_key(prefix);
        let after = after.map(record_key).filter(|after| *after >= prefix);
        let from = after.as_deref().map_or(Bound::Included(&prefix[..]), Bound::Excluded);
        let mut page = Page::new();
        self.read_range(from, limit, |key, body| {
            let ours = key.starts_with(&prefix);
            if ours {
                page.push((key[1..].to_vec(), body.to_vec()));
            }
            Ok(ours)
        })?;
        Ok(page)
    }

    fn events(&self, from: Seq, limit: usize) -> Result<Vec<(Seq, Vec<u8>)>, Error> {
        let mut events = Vec::new();
        // A block has one event at least.
        self.read_range(Bound::Included(&event_key(from)), limit, |key, body| {
            let ours = event_seq(key).is_some() && events.len() < limit;
            if ours {
                let found = block::open(&self.disk, key, body)?.into_iter().filter(|(seq, _)| *seq >= from);
                events.extend(found.take(limit - events.len()).map(|(seq, event)| (seq, event.to_vec())));
            }
            Ok(ours)
        })?;
        Ok(events)
    }

    fn is_behind(&self) -> bool {
        self.has_round()
    }

    fn settle(&self) -> Result<(), Error> {
        self.give_round()
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
    fn body(&self, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let (_, body) = codec::unseal(key, sealed).map_err(|e| damaged(&self.disk, key, &e))?;
        Ok(body.to_vec())
    }

    /// Hand at most `limit` values to `take` until it says no.
    fn read_range(&self, from: Bound<&[u8]>, limit: usize, mut take: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>) -> Result<(), Error> {
        let mut left = limit;
        if limit == 0 {
            return Ok(());
        }
        self.read(|| {
            self.disk.range(from, &mut |key, sealed| {
                let (_, body) = codec::unseal(key, sealed).map_err(|e| damaged(&self.disk, key, &e))?;
                if !take(key, body)? {
                    return Ok(ControlFlow::Break(()));
                }
                left -= 1;
                Ok(if left == 0 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                })
            })
        })
    }
}

/// The changes in the order of their keys, each key once.
fn last_words(changes: &[(Vec<u8>, Option<Vec<u8>>)]) -> Vec<(&[u8], Option<&[u8]>)> {
    let mut words: Vec<_> = changes.iter().map(|(key, body)| (key.as_slice(), body.as_deref())).collect();
    // Where a key comes again, what came later goes first and stays.
    words.reverse();
    words.sort_by_key(|(key, _)| *key);
    words.dedup_by_key(|(key, _)| *key);
    words
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
mod tests;
