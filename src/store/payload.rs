//! Content too large for a record: files named by the hash of what is in them.
//!
//! Doors write a payload before they make the command that refers to it; `engine` tells after each commit which references were gained
//! and lost; runners and doors read. A [`Pinned`] must not exist before its file survives a power cut, a file that a durable record
//! refers to must never be removed, and bytes that are not the content must never be taken for it.
//!
//! ```text
//! payloads/<first two hex digits>/<64 hex digits of the SHA-256>     content
//! payloads/.tmp*                                                     being written; removed at open
//! ```
//!
//! Why a file lives: records that refer to it (counted: [`Payloads::seed`] at start, [`Payloads::settle`] after each commit) and
//! pins, held from the write to the commit and by whoever reads. With neither it is removed by the next `settle`, unless a backup
//! has [`frozen`](Payloads::freeze) all of them.

mod files;
pub mod pieces;

use super::Error;
use super::space::Space;
use crate::crash_point;
use crate::machine::content::{Content, PayloadRef};
use files::Files;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

/// The payload files of one data directory. Clones are cheap and share the counts. All methods block.
#[derive(Clone)]
pub struct Payloads {
    shared: Arc<Shared>,
}

struct Shared {
    files: Files,
    space: Arc<Space>,
    max: u64,
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    entries: HashMap<[u8; 32], Entry>,
    /// Lost their last pin without gaining a record; looked at by the next `settle`.
    idle: HashSet<[u8; 32]>,
    /// While there are any [`Frozen`], nothing is removed.
    frozen: u64,
}

struct Entry {
    records: u64,
    pins: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No file that can be relied on: none yet, or it was found missing or damaged. Whoever brings the content writes it (anew).
    Missing,
    /// Being given its name; the syncs are out. Others who bring the same content wait.
    Publishing,
    Durable,
    /// Being removed; whoever brings it again waits and then writes it anew.
    Removing,
}

/// What [`Payloads::seed`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seeded {
    /// Files that records refer to.
    pub kept: usize,
    /// Files removed because no record refers to them.
    pub removed: usize,
    /// References without a file of the right length: lost content, to be restored from a backup.
    pub missing: Vec<PayloadRef>,
}

impl Payloads {
    /// Use the existing directory `dir`, which nobody else writes to; `max` is the longest payload taken, bytes.
    pub fn open(dir: &Path, max: u64) -> Result<Payloads, Error> {
        Self::open_within(dir, max, Space::of(dir))
    }

    /// [`Payloads::open`] with the space that others of the data directory ask as well. What would leave too little of it is refused before
    /// it is written, with an error that is [`full`](Error::is_full); so is what the disk does not take. Both leave nothing behind.
    pub fn open_within(dir: &Path, max: u64, space: Arc<Space>) -> Result<Payloads, Error> {
        let shared = Shared {
            files: Files::open(dir)?,
            space,
            max,
            table: Mutex::default(),
            changed: Condvar::new(),
        };
        Ok(Payloads { shared: Arc::new(shared) })
    }

    /// At start, before anything else: take the references of all records, one for each record that holds it, and remove the files
    /// that have none. Files that cannot be removed are logged and tried again at the next start.
    pub fn seed(&self, refs: impl IntoIterator<Item = PayloadRef>) -> Result<Seeded, Error> {
        let mut seeded = Seeded::default();
        let mut table = self.shared.lock();
        for payload in refs {
            let known = table.entries.contains_key(&payload.hash);
            let entry = table.entries.entry(payload.hash).or_insert_with(|| Entry::new(State::Durable));
            entry.records += 1;
            if known {
                continue;
            }
            if self.shared.files.is_there(&payload)? {
                seeded.kept += 1;
            } else {
                let file = self.shared.files.path(&payload.hash);
                tracing::error!(file = %file.display(), "a payload that records refer to is missing");
                entry.state = State::Missing;
                seeded.missing.push(payload);
            }
        }
        for hash in self.shared.files.all()? {
            if !table.entries.contains_key(&hash) && self.shared.files.remove(&hash) {
                seeded.removed += 1;
            }
        }
        Ok(seeded)
    }

    /// Store content. On return it survives a power cut, and lives at least as long as the pin.
    pub fn put(&self, content: &[u8]) -> Result<Pinned, Error> {
        self.put_pieces(&[content])
    }

    /// [`Payloads::put`] of content that is in pieces.
    pub fn put_pieces(&self, pieces: &[impl AsRef<[u8]>]) -> Result<Pinned, Error> {
        let mut writer = self.writer()?;
        pieces.iter().try_for_each(|piece| writer.write(piece.as_ref()))?;
        writer.finish()
    }

    /// Make bytes, which come in pieces, fit for a record: few of them inline, many as a file, which the pin keeps until the record that refers to it
    /// is counted.
    pub fn keep(&self, pieces: &[Bytes]) -> Result<(Content, Option<Pinned>), Error> {
        if Content::fits(pieces.iter().map(Bytes::len).sum()) {
            return Ok((Content::Inline(pieces.concat()), None));
        }
        let pinned = self.put_pieces(pieces)?;
        Ok((Content::Stored(*pinned), Some(pinned)))
    }

    /// The bytes of a record's content; `None` if it was released since the record was read.
    pub fn load(&self, content: &Content) -> Result<Option<Vec<u8>>, Error> {
        match content {
            Content::Inline(bytes) => Ok(Some(bytes.clone())),
            Content::Stored(payload) => self.load_stored(payload),
        }
    }

    /// The bytes of a payload file; `None` if it was released since the record was read.
    pub fn load_stored(&self, payload: &PayloadRef) -> Result<Option<Vec<u8>>, Error> {
        match self.pin(payload) {
            Some(_pin) => self.get(payload).map(Some),
            None => Ok(None),
        }
    }

    /// Store content that comes in pieces.
    pub fn writer(&self) -> Result<Writer, Error> {
        Ok(Writer {
            payloads: self.clone(),
            temp: self.shared.files.temp()?,
            hasher: Sha256::new(),
            len: 0,
        })
    }

    /// Pin a payload that a record refers to, so that it stays while it is used; `None` if there is no file to rely on (any more).
    pub fn pin(&self, payload: &PayloadRef) -> Option<Pinned> {
        let mut table = self.shared.lock();
        let entry = table.entries.get_mut(&payload.hash).filter(|entry| entry.state == State::Durable)?;
        entry.pins += 1;
        Some(self.pinned(*payload))
    }

    /// The content, checked against length and hash. [`Error::Damaged`] names a file that is missing or other than it should be.
    ///
    /// A reader whose record may be released meanwhile takes a [`Payloads::pin`] first, to tell removed from damaged.
    pub fn get(&self, payload: &PayloadRef) -> Result<Vec<u8>, Error> {
        let path = self.shared.files.path(&payload.hash);
        let mut reader = self.reader(payload)?;
        // The file has this length, `reader` has looked; a buffer that grew to it would take twice as much.
        let mut content = Vec::with_capacity(usize::try_from(payload.len).unwrap_or_default());
        reader.read_to_end(&mut content).map_err(|error| unreadable(&path, error))?;
        Ok(content)
    }

    /// Read the content once, to see that it is what its name says. Errors: as [`Payloads::get`].
    pub fn prove(&self, payload: &PayloadRef) -> Result<(), Error> {
        let path = self.shared.files.path(&payload.hash);
        io::copy(&mut self.reader(payload)?, &mut io::sink()).map_err(|error| unreadable(&path, error))?;
        Ok(())
    }

    /// The content in pieces; see [`Reader`]. A payload removed meanwhile can be read to its end.
    pub fn reader(&self, payload: &PayloadRef) -> Result<Reader, Error> {
        let file = self.shared.files.open_content(payload).inspect_err(|error| {
            if matches!(error, Error::Damaged { .. }) {
                self.distrust(payload);
            }
        })?;
        Ok(Reader {
            payloads: self.clone(),
            file,
            expected: *payload,
            hasher: Sha256::new(),
            len: 0,
        })
    }

    /// After a commit: `held` are the references its changed records gained, `released` those they lost, one entry for each record.
    ///
    /// Removes the files that nothing holds any more. A removal that fails is logged; the next start tries again.
    pub fn settle(&self, held: &[PayloadRef], released: &[PayloadRef]) {
        let mut table = self.shared.lock();
        for payload in held {
            table
                .entries
                .entry(payload.hash)
                .or_insert_with(|| Entry::new(State::Durable))
                .records += 1;
        }
        for payload in released {
            match table.entries.get_mut(&payload.hash) {
                Some(entry) if entry.records > 0 => entry.records -= 1,
                _ => tracing::error!(?payload, "a payload was released more often than held"),
            }
        }
        let Table { entries, idle, frozen } = &mut *table;
        idle.extend(released.iter().map(|payload| payload.hash));
        if *frozen > 0 {
            return;
        }
        let unheld = |hash: &[u8; 32]| entries.get(hash).is_some_and(Entry::is_unheld);
        let garbage: Vec<[u8; 32]> = idle.drain().filter(unheld).collect();
        for hash in &garbage {
            entries.entry(*hash).and_modify(|entry| entry.state = State::Removing);
        }
        // Removing a long file takes the file system a while; nobody else waits for it.
        drop(table);
        for hash in &garbage {
            self.shared.files.remove(hash);
            self.shared.lock().entries.remove(hash);
            self.shared.changed.notify_all();
        }
    }

    /// Where the payload directory `dir` has the file of a payload.
    pub fn path(dir: &Path, payload: &PayloadRef) -> PathBuf {
        files::path_in(dir, &payload.hash)
    }

    /// Whether the file in the payload directory `dir` is what the reference says; if not, in words. For those who only look.
    pub fn check(dir: &Path, payload: &PayloadRef) -> Result<Result<(), String>, Error> {
        files::check(dir, payload)
    }

    /// Keep every file that is there, or comes, until the guard is gone: a copy of the records finds what they refer to.
    #[must_use]
    pub fn freeze(&self) -> Frozen {
        self.shared.lock().frozen += 1;
        Frozen { payloads: self.clone() }
    }

    /// Give written and synced content its name, or find that it has one that is durable.
    fn publish(&self, temp: NamedTempFile, payload: PayloadRef) -> Result<Pinned, Error> {
        let mut table = self.shared.lock();
        loop {
            let entry = table.entries.entry(payload.hash).or_insert_with(|| Entry::new(State::Missing));
            match entry.state {
                State::Missing => {
                    entry.state = State::Publishing;
                    entry.pins += 1;
                    break;
                }
                State::Durable => {
                    entry.pins += 1;
                    return Ok(self.pinned(payload));
                }
                State::Publishing | State::Removing => table = self.shared.changed.wait(table).expect("see lock"),
            }
        }
        drop(table);
        let published = self.shared.files.publish(temp, &payload.hash);
        // Made before the lock is taken, and dropped after it is free: a guard takes it when it goes.
        let pinned = self.pinned(payload);
        let state = if published.is_ok() { State::Durable } else { State::Missing };
        self.shared
            .lock()
            .entries
            .entry(payload.hash)
            .and_modify(|entry| entry.state = state);
        self.shared.changed.notify_all();
        published.map(|()| pinned)
    }

    /// A file was found missing or damaged: do not take it for the content when somebody brings that again.
    fn distrust(&self, payload: &PayloadRef) {
        let mut table = self.shared.lock();
        if let Some(entry) = table.entries.get_mut(&payload.hash).filter(|entry| entry.state == State::Durable) {
            entry.state = State::Missing;
        }
    }

    /// A guard for a pin that is counted already.
    fn pinned(&self, payload: PayloadRef) -> Pinned {
        Pinned {
            pin: Arc::new(Pin {
                shared: Arc::clone(&self.shared),
                payload,
            }),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing under this lock panics")
    }
}

impl Entry {
    fn new(state: State) -> Entry {
        Entry {
            records: 0,
            pins: 0,
            state,
        }
    }

    fn is_unheld(&self) -> bool {
        self.records == 0 && self.pins == 0 && matches!(self.state, State::Durable | State::Missing)
    }
}

/// A payload that cannot be removed as long as a clone of this lives. Keep it until `settle` has counted the record it went into.
#[derive(Clone)]
pub struct Pinned {
    pin: Arc<Pin>,
}

struct Pin {
    shared: Arc<Shared>,
    payload: PayloadRef,
}

impl Deref for Pinned {
    type Target = PayloadRef;

    fn deref(&self) -> &PayloadRef {
        &self.pin.payload
    }
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pinned({:?})", self.pin.payload)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        let Some(entry) = table.entries.get_mut(&self.payload.hash) else {
            return;
        };
        entry.pins -= 1;
        if entry.is_unheld() {
            table.idle.insert(self.payload.hash);
        }
    }
}

/// As long as this lives no payload is removed. Its end removes what has become unheld meanwhile.
pub struct Frozen {
    payloads: Payloads,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.payloads.shared.lock().frozen -= 1;
        self.payloads.settle(&[], &[]);
    }
}

/// A payload being written. Dropped before [`Writer::finish`], it leaves nothing.
pub struct Writer {
    payloads: Payloads,
    temp: NamedTempFile,
    hasher: Sha256,
    len: u64,
}

impl Writer {
    /// Append a piece. [`Error::TooLarge`] once the limit is passed.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), Error> {
        let max = self.payloads.shared.max;
        self.len = self.len.saturating_add(piece.len() as u64);
        if self.len > max {
            return Err(Error::TooLarge(format!(
                "a payload of {} bytes or more, at most {max} are allowed",
                self.len
            )));
        }
        self.payloads.shared.space.admit(piece.len() as u64)?;
        self.hasher.update(piece);
        self.temp.write_all(piece).map_err(Error::at("write", self.temp.path()))
    }

    /// Make it durable under its name.
    pub fn finish(self) -> Result<Pinned, Error> {
        let Writer {
            payloads,
            temp,
            hasher,
            len,
        } = self;
        if len > payloads.shared.max {
            return Err(Error::TooLarge(format!(
                "a payload of {len} bytes, at most {} are allowed",
                payloads.shared.max
            )));
        }
        let written = temp.as_file().metadata().map_err(Error::at("look at", temp.path()))?.len();
        if written != len {
            return Err(Error::at("write", temp.path())(io::Error::other(
                "an earlier piece could not be written",
            )));
        }
        temp.as_file().sync_all().map_err(Error::at("sync", temp.path()))?;
        crash_point::reach("payload.written");
        payloads.publish(
            temp,
            PayloadRef {
                hash: hasher.finalize().into(),
                len,
            },
        )
    }
}

/// What a failed read of a [`Reader`] means.
fn unreadable(path: &Path, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::InvalidData {
        return Error::Damaged {
            file: path.to_owned(),
            what: error.to_string(),
        };
    }
    Error::at("read", path)(error)
}

/// Reads a payload and checks it on the way: the read that meets the end fails with `InvalidData` if length or hash do not fit. What
/// was read before that is not proved yet.
pub struct Reader {
    payloads: Payloads,
    file: File,
    expected: PayloadRef,
    hasher: Sha256,
    len: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.len += count as u64;
        let ended = count == 0 && !buffer.is_empty();
        if ended && (self.len != self.expected.len || self.hasher.clone().finalize()[..] != self.expected.hash) {
            self.payloads.distrust(&self.expected);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("its {} bytes do not have the hash in its name", self.len),
            ));
        }
        Ok(count)
    }
}
