//! How far the store had come, kept outside the storage engine.
//!
//! Called by the builder (make), by `open` (compare) and by the committer (record). A store that lost its newest commits to damage can
//! still be whole in itself; only a second witness can tell. It must never be ahead of the store, so it is written after the barrier,
//! and it must never stop a commit: losing it while serving costs the witness, not the data. It is there from a log's first day, so a
//! log without it is damaged.
//!
//! Each commit writes one of two slots. The file is synced now and then ([`SYNC_EVERY`], [`SYNC_AFTER`]), and the slot of the last sync
//! is left alone until the next one; so a kill of the process loses nothing of it, a power cut at most that much of the witness.

use super::Position;
use crate::store::{Error, codec};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The second sync costs a quarter of the speed of small commits if made every time; every 64th is well below a per cent.
pub(super) const SYNC_EVERY: u64 = 64;
/// A store with few commits can afford it for each.
const SYNC_AFTER: Duration = Duration::from_millis(100);
/// Each slot has a page of its own, so that no torn write takes both.
const SLOT_DISTANCE: u64 = 4096;
/// A slot is one sector: the envelope of [`codec`] (which holds the batch) around the eight bytes of the sum, zeros after that.
const SLOT_LEN: usize = 512;
const SLOT_USED: usize = codec::ENVELOPE_LEN + 8;
const SLOT_KEY: &[u8] = b"high-water";

/// One point in the life of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) batch: u64,
    pub(super) sum: u64,
}

impl Mark {
    pub(super) fn of(position: &Position) -> Mark {
        Mark {
            batch: position.batch,
            sum: position.live.sum.wrapping_add(position.history.sum),
        }
    }
}

pub(super) struct HighWater {
    /// `None` once it could not be written.
    file: Option<File>,
    /// The slot that is written now; the other one is durable.
    slot: u64,
    /// Commits since the last sync, and when that was.
    unsynced: u64,
    synced_at: Instant,
}

impl HighWater {
    /// Make the file at `path` with its first mark. The caller makes its name durable.
    pub(super) fn create(path: &Path, mark: Mark) -> Result<(), Error> {
        let make = || {
            let file = File::create(path)?;
            // Written out from the start, so that no later write needs space.
            file.write_all_at(&[0; 2 * SLOT_DISTANCE as usize], 0)?;
            file.write_all_at(&slot_bytes(mark), 0)?;
            file.sync_all()
        };
        make().map_err(Error::at("write", path))
    }

    /// Open the file at `path`; gives the newest mark in it. [`Error::Damaged`] if there is none.
    pub(super) fn open(path: &Path) -> Result<(HighWater, Mark), Error> {
        let damaged = |what: &str| Error::Damaged {
            file: path.to_owned(),
            what: what.to_owned(),
        };
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(
                    "it is missing, and without it an old state of the store would not be noticed; `fedbroker store check` says what can be done",
                ));
            }
            Err(e) => return Err(Error::at("open", path)(e)),
        };
        file.sync_all().map_err(Error::at("sync", path))?;
        let marks = [0, 1].map(|slot| read_slot(&file, slot));
        let newest = marks.iter().flatten().max_by_key(|mark| mark.batch).copied();
        let mark = newest.ok_or_else(|| damaged("no mark in it can be read; `fedbroker store check` says what can be done"))?;
        let high_water = HighWater {
            file: Some(file),
            slot: u64::from(marks[0] == Some(mark)),
            unsynced: 0,
            synced_at: Instant::now(),
        };
        Ok((high_water, mark))
    }

    /// Take note of a durable commit.
    pub(super) fn record(&mut self, mark: Mark) {
        let Some(file) = &self.file else { return };
        let mut written = file.write_all_at(&slot_bytes(mark), self.slot * SLOT_DISTANCE);
        self.unsynced += 1;
        if written.is_ok() && (self.unsynced >= SYNC_EVERY || self.synced_at.elapsed() >= SYNC_AFTER) {
            written = file.sync_data();
            self.slot = 1 - self.slot;
            self.unsynced = 0;
            self.synced_at = Instant::now();
        }
        if let Err(error) = written {
            tracing::error!(%error, "the high-water mark is not written any more");
            self.file = None;
        }
    }
}

fn slot_bytes(mark: Mark) -> Vec<u8> {
    let mut slot = codec::seal(SLOT_KEY, mark.batch, &mark.sum.to_le_bytes());
    slot.resize(SLOT_LEN, 0);
    slot
}

fn read_slot(file: &File, slot: u64) -> Option<Mark> {
    let mut bytes = [0; SLOT_USED];
    file.read_exact_at(&mut bytes, slot * SLOT_DISTANCE).ok()?;
    let (batch, sum) = codec::unseal(SLOT_KEY, &bytes).ok()?;
    Some(Mark {
        batch,
        sum: u64::from_le_bytes(sum.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(batch: u64) -> Mark {
        Mark { batch, sum: batch * 10 }
    }

    #[test]
    fn the_newest_readable_mark_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("high-water");
        assert!(matches!(HighWater::open(&path), Err(Error::Damaged { file, .. }) if file == path));
        HighWater::create(&path, mark(0)).unwrap();
        let open = || HighWater::open(&path);
        for batch in 1..=3 {
            let (mut high_water, before) = open().unwrap();
            assert_eq!(before, mark(batch - 1));
            high_water.record(mark(batch));
        }
        assert_eq!(open().unwrap().1, mark(3));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"torn", SLOT_DISTANCE + 5).unwrap();
        assert_eq!(open().unwrap().1, mark(2));
        file.write_all_at(b"torn", 5).unwrap();
        assert!(matches!(open(), Err(Error::Damaged { .. })));
        file.set_len(0).unwrap();
        assert!(matches!(open(), Err(Error::Damaged { .. })));
    }

    #[test]
    fn the_slot_of_the_last_sync_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("high-water");
        HighWater::create(&path, mark(0)).unwrap();
        let (mut high_water, _) = HighWater::open(&path).unwrap();
        let file = File::open(&path).unwrap();
        let mut durable = mark(0);
        for batch in 1..=300 {
            let before = high_water.slot;
            high_water.record(mark(batch));
            if high_water.slot == before {
                assert_eq!(read_slot(&file, 1 - high_water.slot), Some(durable));
            } else {
                durable = mark(batch);
            }
        }
        assert!(durable.batch >= 300 - SYNC_EVERY);
    }
}
