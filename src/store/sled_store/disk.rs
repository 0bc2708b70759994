//! The storage engine, made to keep its word, and what it is yet to be given. The only file that names sled; `grouped` reads and writes its groups.
//!
//! Called by `SledStore`, `open` and `verify`. What sled 0.34.7 does, and what is done about it here and in `open`:
//!
//! - `flush` ends in `sync_file_range`, which reaches neither the disk's cache nor the file's length: a power cut after it loses
//!   confirmed batches. So `flush` is followed by `fdatasync` on a descriptor of our own (flock and fdatasync are tied to the
//!   inode, and sled never replaces the file).
//! - A log segment or more that was written since the last barrier can make recovery drop the whole log. So sled's own flusher is off, segments
//!   are of 8 MiB, and whenever one is begun what was written before is synced (`keep_up`). What a value costs is no bound: sled writes a page
//!   of up to 80 KB anew at every tenth change of it, or splits it, and a read does that too.
//! - A value above a quarter of a segment goes to a file in `blobs/`, outside the log. Values end at 4 KiB; a file there is damage.
//! - Its index files `snap.*` are not a cache: an open without one can empty the log. `open` refuses that, removes only half-written
//!   ones, has the file system sync their names in order where it can, and keeps the old one until the new one is durable (`index`).
//! - After a write that found the disk full it fails every later one, and reads too: a read may split a page, which is a write. So the space
//!   is reserved before the engine is asked, with each commit and each segment it begins (`reserve`).
//! - A look to the left of a page panics if a whole other page is of keys that end the one before with four bytes 0xff and more behind them. Keys are
//!   text, numbers that would have to come to 2^40, and hashes, of which hundreds would have to be made for it.
//! - On damaged files it panics, or opens without complaint with values missing. Panics are caught here, missing values are found by
//!   `verify`. So the program must be built to unwind.
//! - After any failure its memory may show what is not on disk, every later write fails, and its destructor panics on a failing disk. So a
//!   failed engine is never written to again and never dropped; the process is expected to end. Only when the disk was full in spite of
//!   the reserve it is still read, as far as it can, under what it was to be given.

mod grouped;

use super::super::{COST_MAX, Error};
use super::frame::Writes;
use super::recent::Recent;
use super::reserve::Reserve;
use crate::crash_point;
use std::fs::{self, File};
use std::io;
use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes of pages kept in memory, as they are in the log: in memory they take three times that. What falls out is still in the system's own cache. The
/// page table comes on top, some 35 bytes for each value.
const CACHE: u64 = 8 * 1024 * 1024;
/// Every so manieth key of a range is looked up once more. The engine notes accesses to pages in 256 queues and lets pages go only when a queue has 64: a
/// walk, which comes to each page once, would keep 16,000 pages beyond the cache, 100 MB of events. Not the first key: most ranges are of one.
const LOOK_AGAIN: usize = 2;
/// Bytes of a log segment; fixed at creation. A commit must stay below it; that more is not written between two syncs `keep_up` sees to.
pub(super) const SEGMENT: usize = 8 * 1024 * 1024;
const _: () = assert!(COST_MAX < SEGMENT);
/// So many values that the engine does not have are looked at together at first, so many at most.
const PAGE: usize = 16;
const PAGE_MAX: usize = 256;
/// After a close in this process the engine's lock can stay for some milliseconds.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A sealed value as the engine hands it on: bytes that nobody changes.
pub(super) type Value = sled::IVec;

/// Sees one key and value of a range; says whether to go on.
pub(super) type Each<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Error> + 'a;

type EngineResult<T> = sled::Result<T>;

/// An open engine. Any error it gives is final.
pub(super) struct Disk {
    recent: Recent,
    db: Option<sled::Db>,
    log: File,
    path: PathBuf,
    failed: AtomicBool,
    pub(super) reserve: Reserve,
    /// The last byte of the engine's log when it was synced last.
    synced: AtomicI64,
    /// Why what the engine wrote may be lost.
    unsynced: Mutex<Option<io::ErrorKind>>,
    /// Raised between what a group gives away being with others and being gone from it.
    moved: AtomicU64,
    /// Raised before a fence goes.
    removed: AtomicU64,
    #[cfg(test)]
    pub(super) fault: Mutex<Option<Fault>>,
    /// Called before each sync.
    #[cfg(test)]
    cut: Mutex<Option<Box<dyn FnMut() + Send>>>,
    /// So many writes to the engine are made, all others are not.
    #[cfg(test)]
    writes_left: Mutex<Option<usize>>,
}

/// A disk that is full, or a process that is slow, on order.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing can be reserved.
    Reserve,
    /// The file system says at the barrier of the journal that it has no room.
    Barrier,
    /// The engine finds none when it is given commits that were confirmed.
    Apply,
    /// Not full: a commit that is seen takes its time to end.
    Slow,
}

impl Disk {
    /// Open the engine in `dir`, or make one there.
    pub(super) fn open(dir: &Path) -> Result<Disk, Error> {
        let path = dir.join("db");
        let db = open_locked(dir, &path)?;
        let log = File::options().write(true).open(&path).map_err(Error::at("open", &path))?;
        Ok(Disk {
            recent: Recent::default(),
            db: Some(db),
            log,
            path,
            failed: AtomicBool::new(false),
            reserve: Reserve::default(),
            synced: AtomicI64::new(0),
            unsynced: Mutex::default(),
            moved: AtomicU64::new(0),
            removed: AtomicU64::new(0),
            #[cfg(test)]
            fault: Mutex::default(),
            #[cfg(test)]
            cut: Mutex::default(),
            #[cfg(test)]
            writes_left: Mutex::default(),
        })
    }

    /// Check the engine's own files by their checksums: its index at `index`, and the parameters it was made with. It only says that
    /// something is corrupted.
    pub(super) fn check_files(dir: &Path, index: &Path) -> Result<(), Error> {
        let damaged = |file: &Path| Error::Damaged {
            file: file.to_owned(),
            what: "its checksum does not fit".to_owned(),
        };
        // Snapshot, its length in 8 bytes, CRC-32.
        let bytes = fs::read(index).map_err(Error::at("read", index))?;
        let snapshot = bytes
            .split_last_chunk::<4>()
            .and_then(|(rest, crc)| Some((rest.split_last_chunk::<8>()?.0, crc)));
        if snapshot.is_none_or(|(snapshot, crc)| crc32fast::hash(snapshot).to_le_bytes() != *crc) {
            return Err(damaged(index));
        }
        // Text, CRC-32. Without the file the engine writes it again as it was.
        let conf = dir.join("conf");
        let bytes = match fs::read(&conf) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::at("read", &conf)(e)),
        };
        match bytes.split_last_chunk::<4>() {
            Some((text, crc)) if crc32fast::hash(text).to_le_bytes() == *crc => Ok(()),
            _ => Err(damaged(&conf)),
        }
    }

    /// The log file, to be named in errors.
    pub(super) fn file(&self) -> &Path {
        &self.path
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Value>, Error> {
        match self.recent.get(key) {
            Some(value) => Ok(value),
            None => self.look(key),
        }
    }

    /// The value of a key that the engine need not be asked for.
    pub(super) fn peek(&self, key: &[u8]) -> Option<Value> {
        self.recent.get(key).flatten()
    }

    /// Go through keys and values in key order. Not a snapshot: what is put meanwhile may show or not.
    pub(super) fn range(&self, from: Bound<&[u8]>, each: &mut Each<'_>) -> Result<(), Error> {
        let (mut from, mut limit) = (from.map(<[u8]>::to_vec), PAGE);
        loop {
            let recent = self.recent.page(from.as_ref().map(Vec::as_slice), limit);
            let until = (recent.len() == limit).then(|| recent[limit - 1].0.clone());
            let flow = self.range_with(recent, (from, until.as_deref()), each)?;
            match until {
                Some(until) if flow.is_continue() => from = Bound::Excluded(until),
                _ => return Ok(()),
            }
            limit = PAGE_MAX.min(2 * limit);
        }
    }

    /// The keys of a span, with `recent` before what the engine has.
    fn range_with(
        &self,
        recent: Vec<(Vec<u8>, Option<Value>)>,
        (from, until): (Bound<Vec<u8>>, Option<&[u8]>),
        each: &mut Each<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        let mut recent = recent.into_iter().peekable();
        let mut flow = ControlFlow::Continue(());
        self.engine_range((from, until), &mut |key, sealed| {
            while let Some((new, value)) = recent.next_if(|(new, _)| flow.is_continue() && new.as_slice() < key) {
                if let Some(value) = value {
                    flow = each(&new, &value)?;
                }
            }
            if flow.is_continue() {
                match recent.next_if(|(new, _)| new.as_slice() == key) {
                    Some((_, Some(value))) => flow = each(key, &value)?,
                    Some((_, None)) => {}
                    None => flow = each(key, sealed)?,
                }
            }
            Ok(flow)
        })?;
        for (new, value) in recent {
            if flow.is_continue()
                && let Some(value) = value
            {
                flow = each(&new, &value)?;
            }
        }
        Ok(flow)
    }

    /// See to it that the next commit finds room; an error leaves the engine as it was.
    pub(super) fn reserve(&self) -> Result<(), Error> {
        #[cfg(test)]
        self.refuse_to_reserve()?;
        self.reserve.ensure(&self.log, &self.path)
    }

    /// [`Disk::reserve`], by who gives the engine a round, so that commits need not ask.
    fn reserve_more(&self) -> Result<(), Error> {
        #[cfg(test)]
        self.refuse_to_reserve()?;
        self.reserve.ensure_more(&self.log, &self.path)
    }

    #[cfg(test)]
    fn refuse_to_reserve(&self) -> Result<(), Error> {
        match *self.fault.lock().unwrap() {
            Some(Fault::Reserve) => Err(Error::at("reserve space for", &self.path)(io::ErrorKind::StorageFull.into())),
            _ => Ok(()),
        }
    }

    /// Let a commit be seen, all at once. It must be durable in the journal; the engine gets it later.
    pub(super) fn put(&self, batch: u64, writes: impl Iterator<Item = (Vec<u8>, Option<Value>)>) {
        self.recent.put(batch, writes);
        #[cfg(test)]
        if *self.fault.lock().unwrap() == Some(Fault::Slow) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the engine will be cost by what was put since the last [`Disk::freeze`].
    pub(super) fn cost(&self) -> usize {
        self.recent.cost()
    }

    /// What was put so far is to be given to the engine with the next [`Disk::settle`]; what was frozen before must have been. Gives the last commit
    /// of it.
    pub(super) fn freeze(&self) -> u64 {
        self.recent.freeze()
    }

    /// Give the engine what was frozen, and return when that survives a power cut.
    pub(super) fn settle(&self) -> Result<(), Error> {
        self.apply(&self.recent.frozen())?;
        crash_point::reach("store.given");
        self.sync()?;
        self.recent.thaw();
        Ok(())
    }

    /// Return when everything the engine has survives a power cut.
    fn sync(&self) -> Result<(), Error> {
        self.guard("sync", || {
            self.db().flush()?;
            crash_point::reach("store.flushed");
            self.sync_log()?;
            Ok(())
        })
    }

    /// Sync what the engine has written, if that has come to another segment since the last time; says whether it had. To be asked after whatever
    /// may write, and a read may. Not when a segment is full: when its first bytes are written, as the next one's header may say that it is there.
    fn keep_up(&self) -> sled::Result<bool> {
        let segment = |at: i64| at / SEGMENT as i64;
        let behind = segment(self.written()) > segment(self.synced.load(Ordering::Relaxed));
        if behind {
            self.sync_log()?;
        }
        Ok(behind)
    }

    /// One at a time: of a write that failed the system tells whoever syncs first, and nobody else.
    fn sync_log(&self) -> io::Result<()> {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = *unsynced {
            return Err(io::Error::new(kind, "an earlier sync failed"));
        }
        #[cfg(test)]
        if let Some(cut) = &mut *self.cut.lock().unwrap() {
            cut();
        }
        let written = self.written();
        self.log.sync_data().inspect_err(|error| *unsynced = Some(error.kind()))?;
        self.synced.fetch_max(written, Ordering::Relaxed);
        Ok(())
    }

    /// The last byte that the engine has written, to the file and not for certain to the disk, by its own count.
    fn written(&self) -> i64 {
        self.db().context.pagecache.log.stable_offset()
    }

    /// Write these values, and return when they survive a power cut. A power cut before that may leave some of them.
    pub(super) fn commit(&self, writes: Writes) -> Result<(), Error> {
        self.put(0, values(writes));
        self.freeze();
        self.settle()
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("only drop takes it")
    }

    fn guard<T>(&self, doing: &str, run: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
        let result = guard(doing, &self.path, run);
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// As the engine has them.
pub(super) fn values(writes: Writes) -> impl Iterator<Item = (Vec<u8>, Option<Value>)> {
    writes.into_iter().map(|(key, value)| (key, value.map(Value::from)))
}

impl Drop for Disk {
    fn drop(&mut self) {
        let db = self.db.take();
        if *self.failed.get_mut() {
            std::mem::forget(db);
        } else if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::error!(file = %self.path.display(), "the storage engine panicked while it was closed");
        }
    }
}

fn open_locked(dir: &Path, path: &Path) -> Result<sled::Db, Error> {
    for _ in 0..LOCK_TRIES {
        let config = sled::Config::new()
            .path(dir)
            .flush_every_ms(None)
            .cache_capacity(CACHE)
            .segment_size(SEGMENT);
        match guard("open", path, || Ok(config.open())) {
            Ok(Err(sled::Error::Io(e))) if e.to_string().contains("could not acquire lock") => std::thread::sleep(LOCK_PAUSE),
            Ok(opened) => return opened.map_err(|e| engine_error("open", path, e)),
            Err(panicked) => return Err(panicked),
        }
    }
    Err(Error::Held {
        dir: dir.to_owned(),
        holder: "a process that has the storage engine's own lock".to_owned(),
    })
}

/// Run the engine; a panic becomes an error. Its panics come from damaged pages, on the thread that reads them.
fn guard<T>(doing: &str, path: &Path, run: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| engine_error(doing, path, e)),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            let what = format!("the storage engine panicked on it: {}", text.unwrap_or("without a message"));
            Err(Error::Damaged {
                file: path.to_owned(),
                what,
            })
        }
    }
}

fn engine_error(doing: &str, path: &Path, error: sled::Error) -> Error {
    match error {
        sled::Error::Io(e) => Error::at(doing, path)(e),
        sled::Error::Corruption { .. } => Error::Damaged {
            file: path.to_owned(),
            what: "the storage engine finds it corrupted".to_owned(),
        },
        other => Error::Engine(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
