//! How far the store had come, kept outside the storage engine.
//!
//! Called by `open` (compare) and by the committer (record). A store that lost its newest commits to damage can still be whole in
//! itself; only a second witness can tell. It must never be ahead of the store, so it is written after the barrier, and it must never
//! stop a commit: losing it costs the witness, not the data.
//!
//! Each commit writes one of two slots in turn. The file is synced with every [`SYNC_EVERY`]th commit only; a kill of the process loses
//! nothing of it, a power cut at most that many commits of witness.

use crate::store::directory::sync_parent;
use crate::store::{Error, codec};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The second sync costs a quarter of the speed of small commits if made every time; every 64th is well below a per cent.
const SYNC_EVERY: u64 = 64;
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

pub(super) struct HighWater {
    /// `None` once it could not be written.
    file: Option<File>,
}

impl HighWater {
    /// Open the file at `path`, or make it; gives the newest mark that can be read.
    pub(super) fn open(path: &Path) -> Result<(HighWater, Option<Mark>), Error> {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.map_err(Error::at("open", path))?;
        let prepare = || {
            // Written out from the start, so that no later write needs space.
            if file.metadata()?.len() < 2 * SLOT_DISTANCE {
                file.write_all_at(&[0; 2 * SLOT_DISTANCE as usize], 0)?;
            }
            file.sync_all()
        };
        prepare().map_err(Error::at("write", path))?;
        sync_parent(path)?;
        let mark = [0, 1]
            .into_iter()
            .filter_map(|slot| read_slot(&file, slot))
            .max_by_key(|mark| mark.batch);
        Ok((HighWater { file: Some(file) }, mark))
    }

    /// Take note of a durable commit.
    pub(super) fn record(&mut self, mark: Mark) {
        let Some(file) = &self.file else { return };
        let mut slot = codec::seal(SLOT_KEY, mark.batch, &mark.sum.to_le_bytes());
        slot.resize(SLOT_LEN, 0);
        let mut written = file.write_all_at(&slot, mark.batch % 2 * SLOT_DISTANCE);
        if mark.batch.is_multiple_of(SYNC_EVERY) {
            written = written.and_then(|()| file.sync_data());
        }
        if let Err(error) = written {
            tracing::error!(%error, "the high-water mark is not written any more");
            self.file = None;
        }
    }
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

    #[test]
    fn the_newest_readable_mark_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("high-water");
        let (mut high_water, mark) = HighWater::open(&path).unwrap();
        assert_eq!(mark, None);
        for batch in 1..=3 {
            high_water.record(Mark { batch, sum: batch * 10 });
        }
        assert_eq!(HighWater::open(&path).unwrap().1, Some(Mark { batch: 3, sum: 30 }));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"torn", SLOT_DISTANCE + 5).unwrap();
        assert_eq!(HighWater::open(&path).unwrap().1, Some(Mark { batch: 2, sum: 20 }));
        file.write_all_at(b"torn", 5).unwrap();
        assert_eq!(HighWater::open(&path).unwrap().1, None);
    }
}
