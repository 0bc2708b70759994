//! Bytes and order: what every role that survives a crash is written on.
//!
//! [`Store`] is the contract; [`sled_store`] keeps it on disk, [`sim_store`] in memory with faults on order. Both pass the
//! suite of `tests/integration/store_contract.rs`. Called by `engine` (commit, recovery) and by the readers of the REST service.
//! Nothing here knows what an event or a record means, and nothing of the storage engine shows in the contract.

pub mod codec;
pub mod directory;
pub mod payload;
pub mod sim_store;
pub mod sled_store;
pub mod space;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use crate::machine::Seq;

/// The longest key, bytes: ids are at most 200 bytes each, and a key holds at most two of them.
pub const KEY_MAX: usize = 512;
/// The longest stored value with its envelope, bytes. The storage engine moves large values into side files that break the atomicity
/// of a batch; 4 KiB and a group's frame stay clear of that, sixteen of them in one page too. Larger content goes to [`payload`].
pub const VALUE_MAX: usize = 4096;
/// Records whose key begins with this byte are history, like the events: a start does not read them, and proves them while it serves.
pub const HISTORY: u8 = b'd';
/// The longest record a commit may carry, bytes.
pub const BODY_MAX: usize = VALUE_MAX - codec::ENVELOPE_LEN;
/// The longest event, which may share a value with others, bytes.
pub const EVENT_MAX: usize = BODY_MAX - 2;
/// What one commit may cost, see [`Commit::cost`].
pub const COST_MAX: usize = 6 * 1024 * 1024;

/// The most events one commit lets go of: each is read before it goes, and all others wait meanwhile.
pub const TRIM_MAX: u64 = 1000;
/// What letting go of them costs at worst: each may be alone, and what is left of the last value is written again.
pub const TRIM_COST: usize = TRIM_MAX as usize * write_cost(9) + write_cost(VALUE_MAX);

/// One atomic unit: events appended to the log, and the records they changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The epoch this writer was given at open; a store that has seen a newer one refuses ([`Error::Fenced`]).
    pub epoch: u64,
    /// The sequence the first event of this commit must get ([`Error::Conflict`] if the log is elsewhere).
    pub expected: Seq,
    /// Encoded events, in order; they get `expected`, `expected + 1`, ...
    pub events: Vec<Vec<u8>>,
    /// Changed records: `None` deletes. A key should appear once; of several changes to it the last one counts.
    pub changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Let go of events below this number: the oldest ones, at most [`TRIM_MAX`], none of this commit. [`Head::first_seq`] says how far it
    /// came.
    pub trim_to: Option<Seq>,
}

impl Commit {
    /// The events that `trim_to` lets go of, in a log that is there.
    pub(crate) fn trims(&self, head: &Head) -> Range<Seq> {
        let until = self.trim_to.unwrap_or(0).min(head.next_seq).min(head.first_seq + TRIM_MAX);
        head.first_seq..until.max(head.first_seq)
    }

    /// The sum of [`write_cost`] over its events and changes, and those it lets go of.
    pub fn cost(&self) -> usize {
        let events: usize = self.events.iter().map(|event| write_cost(event.len())).sum();
        let changes: usize = self
            .changes
            .iter()
            .map(|(key, body)| write_cost(key.len() + body.as_ref().map_or(0, Vec::len)))
            .sum();
        events + changes + self.trim_to.map_or(0, |_| TRIM_COST)
    }

    /// Refuses what is over the limits; every implementation asks this before it writes.
    pub(crate) fn check_size(&self) -> Result<(), Error> {
        let records = self.changes.iter().filter_map(|(_, body)| body.as_ref());
        let sizes = records.map(|body| (body.len(), BODY_MAX, "a value"));
        let mut sizes = sizes.chain(self.events.iter().map(|event| (event.len(), EVENT_MAX, "an event")));
        if let Some((size, most, what)) = sizes.find(|(size, most, _)| size > most) {
            return Err(Error::TooLarge(format!("{what} of {size} bytes, at most {most} are allowed")));
        }
        if let Some((key, _)) = self.changes.iter().find(|(key, _)| key.len() > KEY_MAX) {
            return Err(Error::TooLarge(format!(
                "a key of {} bytes, at most {KEY_MAX} are allowed",
                key.len()
            )));
        }
        let cost = self.cost();
        if cost > COST_MAX {
            return Err(Error::TooLarge(format!("a commit of cost {cost}, at most {COST_MAX} is allowed")));
        }
        Ok(())
    }
}

/// Estimate of the log space that writing one key takes in the storage engine, three times the bytes plus 1 KiB: more than that among neighbours that
/// are written with it, less than that far from all others. A bound for commits and rounds, not for what the engine writes.
pub const fn write_cost(bytes: usize) -> usize {
    3 * bytes + 1024
}

/// Where the log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Raised by one at every open; the fence against a second writer.
    pub epoch: u64,
    /// Number of commits ever made; opening the store is one.
    pub batch: u64,
    /// The oldest event there is, or the next one if there is none; older ones were trimmed.
    pub first_seq: Seq,
    /// The sequence the next event will get.
    pub next_seq: Seq,
}

/// How far the history is proved; what is live was proved before the store was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryProof {
    /// Values proved.
    pub checked: u64,
    /// Values there are.
    pub of: u64,
    /// All of them are exactly what was committed. Before that, a value of the history that is read was proved by its own checksum, but one
    /// that is not found may be missing.
    pub done: bool,
}

/// A page of keys and values, in key order.
pub type Page = Vec<(Vec<u8>, Vec<u8>)>;

/// A durable, ordered log of events with the records they produced.
///
/// All methods block; callers on an async thread hand them to a blocking one. Only one caller commits.
pub trait Store: Send + Sync + 'static {
    /// The position after the last successful commit.
    fn head(&self) -> Head;

    /// Append the events and apply the changes, all or nothing.
    ///
    /// Once this returned `Ok`, the commit survives a power cut. Once it returned an error other than [`Error::Conflict`],
    /// [`Error::Fenced`] and [`Error::TooLarge`] (which leave everything as it was), whether it survives is unknown, and only a restart of
    /// the process finds out. The store stays as it is until then:
    ///
    /// - After an error that is [`full`](Error::is_full) it is read only: later commits fail with such an error too, and reads go on answering
    ///   as of the last commit that returned `Ok`. Nothing of the failed one shows, though a restart may find it.
    /// - After any other it is poisoned: every later call fails with [`Error::Poisoned`].
    fn commit(&self, commit: &Commit) -> Result<Head, Error>;

    /// The value of a record, durable: that of a commit whose barrier is still out does not show.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// [`Store::get`] of a record that is in memory, which the newest ones are; `None` where only the disk can tell. Does not block.
    fn peek(&self, _key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(None)
    }

    /// At most `limit` records whose keys begin with `prefix` and are greater than `after`, in key order; durable like [`Store::get`].
    ///
    /// Not a snapshot: a commit made meanwhile may show in a part of the page.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, Error>;

    /// At most `limit` events from sequence `from` on, in order; durable like [`Store::get`]. Those below [`Head::first_seq`] were let go of; there
    /// is no other gap.
    fn events(&self, from: Seq, limit: usize) -> Result<Vec<(Seq, Vec<u8>)>, Error>;

    /// Whether there is work for [`Store::settle`].
    fn is_behind(&self) -> bool {
        false
    }

    /// Work that is due beside commits; a commit that cannot wait for it does it itself. An error stops the store like that of a commit.
    fn settle(&self) -> Result<(), Error> {
        Ok(())
    }

    /// How far the history is proved.
    fn history(&self) -> HistoryProof;

    /// Prove the next values of the history. [`Error::Damaged`] stops the store like a failed commit. Holds up commits for about a
    /// millisecond; the caller decides how often.
    fn prove_history(&self) -> Result<HistoryProof, Error>;
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the directory.
    #[error("data directory {dir} is in use by {holder}; stop that process, or give this one its own --data-dir")]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, as far as the lock file tells.
        holder: String,
    },
    /// Written by a newer release.
    #[error("data directory {dir} has stored-format version {found}, this release knows up to {known}; run {needs} or a newer one")]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Version in the directory.
        found: u32,
        /// The newest version this release reads.
        known: u32,
        /// The oldest release that reads it.
        needs: String,
    },
    /// The directory belongs to another role or is not a data directory at all.
    #[error("data directory {dir} {what}")]
    WrongDirectory {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it and the mend.
        what: String,
    },
    /// Bytes on disk are not what was written.
    #[error("{file} is damaged: {what}; {}", mend(file))]
    Damaged {
        /// The file or directory.
        file: PathBuf,
        /// What does not fit, with the key where there is one.
        what: String,
    },
    /// A key, value or commit over the limits; nothing was written.
    #[error("too large for the store: {0}")]
    TooLarge(String),
    /// The log is not where the caller believed; nothing was written.
    #[error("the log is at sequence {actual}, not {expected}")]
    Conflict {
        /// What the commit expected.
        expected: Seq,
        /// Where the log is.
        actual: Seq,
    },
    /// A newer writer has opened this store; nothing was written.
    #[error("epoch {actual} has taken over from epoch {given}")]
    Fenced {
        /// Epoch of the commit.
        given: u64,
        /// Epoch of the store.
        actual: u64,
    },
    /// An earlier commit failed; see there.
    #[error("the store stopped after a failed commit; restart the process to recover")]
    Poisoned,
    /// The file system said no.
    #[error("{what}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The storage engine said no.
    #[error("the storage engine failed: {0}")]
    Engine(String),
}

impl Error {
    /// Adapter for `map_err`: what was being done to which path.
    pub(crate) fn at(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let what = format!("cannot {doing} {}", path.display());
        move |source| Error::Io { what, source }
    }

    /// True when the disk is full: space, not the store, is what is missing. A quota that is used up is the same to us.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// The error with the path of a damaged file, so far relative to its data directory, made whole.
    pub(crate) fn within(self, dir: &Path) -> Error {
        match self {
            Error::Damaged { file, what } => Error::Damaged {
                file: dir.join(file),
                what,
            },
            other => other,
        }
    }

    /// The error once more, for a second one who is to be told.
    pub(crate) fn again(&self) -> Error {
        match self {
            Error::Held { dir, holder } => Error::Held {
                dir: dir.clone(),
                holder: holder.clone(),
            },
            Error::NewerFormat { dir, found, known, needs } => Error::NewerFormat {
                dir: dir.clone(),
                found: *found,
                known: *known,
                needs: needs.clone(),
            },
            Error::WrongDirectory { dir, what } => Error::WrongDirectory {
                dir: dir.clone(),
                what: what.clone(),
            },
            Error::Damaged { file, what } => Error::Damaged {
                file: file.clone(),
                what: what.clone(),
            },
            Error::TooLarge(what) => Error::TooLarge(what.clone()),
            Error::Conflict { expected, actual } => Error::Conflict {
                expected: *expected,
                actual: *actual,
            },
            Error::Fenced { given, actual } => Error::Fenced {
                given: *given,
                actual: *actual,
            },
            Error::Poisoned => Error::Poisoned,
            Error::Io { what, source } => Error::Io {
                what: what.clone(),
                source: io::Error::new(source.kind(), source.to_string()),
            },
            Error::Engine(what) => Error::Engine(what.clone()),
        }
    }
}

/// What to do about a damaged file: the commands, with the data directory it belongs to.
fn mend(file: &Path) -> String {
    let own = |part: &&Path| {
        ["LOCK", "FORMAT", "store", "high-water", "payloads"]
            .iter()
            .any(|name| part.ends_with(name))
    };
    let of_log = |dir: &&Path| dir.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"log-"));
    let dir = file.ancestors().find(own).and_then(Path::parent);
    let dir = dir.and_then(|dir| if of_log(&dir) { dir.parent() } else { Some(dir) });
    let dir = dir.filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.map_or_else(|| "<data-dir>".to_owned(), |dir| dir.display().to_string());
    format!("see what is affected with `fedbroker store check --data-dir {dir}`, then go back to a backup with `fedbroker store restore`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_names_the_commands_that_follow() {
        for (file, dir) in [
            ("/x/store/data/store/db", "/x/store/data"),
            ("/x/data/log-3/store/db", "/x/data"),
            ("/data/payloads/ab/abcd", "/data"),
            ("/data/FORMAT", "/data"),
            ("store", "<data-dir>"),
        ] {
            let (file, what) = (file.into(), "torn".to_owned());
            let text = Error::Damaged { file, what }.to_string();
            assert!(
                text.contains(&format!(
                    " is damaged: torn; see what is affected with `fedbroker store check --data-dir {dir}`"
                )),
                "{text}"
            );
            assert!(text.contains("fedbroker store restore"), "{text}");
        }
    }

    #[test]
    fn a_full_disk_is_known_by_its_cause() {
        let io = |kind: io::ErrorKind| Error::at("write", Path::new("/x"))(kind.into());
        assert!(io(io::ErrorKind::StorageFull).is_full() && io(io::ErrorKind::QuotaExceeded).again().is_full());
        assert!(!io(io::ErrorKind::PermissionDenied).is_full() && !Error::Poisoned.is_full());
    }
}
