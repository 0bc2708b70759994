//! The newest commits, as they were confirmed: one write and one sync each, whatever the engine does.
//!
//! Called by the committer (append, restart) and by `open` (what to do again). A commit is confirmed once its frame is durable here; the
//! engine takes it after that, and what the engine holds is made durable once for many commits, before the journal begins again. So a start
//! gives the engine all commits that are here once more, in order: each writes whole values, and the last word on a key is that of the last
//! commit. It must never begin again before the engine is durable, and never confirm a frame that a power cut could take.
//!
//! ```text
//! offset  bytes  what                                     a frame; each begins at a multiple of 512, the first one at 0
//! 0       4      CRC-32 (IEEE) over all that follows; little endian
//! 4       4      length of the body, little endian
//! 8       8      number of the commit, little endian
//! 16      ..     body: for each key  2 bytes its length, 4 bytes that of the value or ffffffff where the key goes, key, sealed value
//! ```
//!
//! The file is as long as it ever gets from the first day, so that no frame needs space. Frames of earlier rounds stay behind those of this
//! one; their numbers are lower, and a frame counts only when it goes on with the number before it. The first one is made void before a round
//! begins: until its own first frame is whole, the round has none.

use crate::crash_point;
use crate::store::{COST_MAX, Error};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Its name in the directory of the store.
pub(super) const NAME: &str = "journal";
/// Where frames begin: what a disk writes whole or not at all, so that a torn frame takes none before it.
const ALIGN: usize = 512;
/// Every commit of a round fits, with room to spare: `COST_MAX` is three times their bytes and 1 KiB for each key.
const LEN: usize = 8 * 1024 * 1024;
const HEADER: usize = 16;
const GONE: u32 = u32::MAX;

/// What one commit writes: keys and sealed values.
pub(super) type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A commit that was confirmed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) batch: u64,
    pub(super) writes: Writes,
}

/// See the module.
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    /// Where the next frame begins.
    at: usize,
    /// What the commits of this round cost the engine.
    cost: usize,
    frame: Vec<u8>,
}

impl Journal {
    /// Make an empty one in the directory of a store. The caller makes its name durable.
    pub(super) fn create(store: &Path) -> Result<(), Error> {
        let path = store.join(NAME);
        let make = || {
            let file = File::create(&path)?;
            file.write_all_at(&vec![0; LEN], 0)?;
            file.sync_all()
        };
        make().map_err(Error::at("write", &path))
    }

    /// Open that of a store; gives the commits that the engine must be given again.
    ///
    /// [`Error::Damaged`] if there is none: what only it held is lost.
    pub(super) fn open(store: &Path) -> Result<(Journal, Vec<Frame>), Error> {
        let path = store.join(NAME);
        let opened = File::options().read(true).write(true).open(&path);
        let file = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::Damaged {
                file: path.clone(),
                what: "it is missing, and with it the newest commits".to_owned(),
            },
            _ => Error::at("open", &path)(error),
        })?;
        let mut bytes = vec![0; LEN];
        let read = read_up_to(&file, &mut bytes).map_err(Error::at("read", &path))?;
        if read < LEN {
            // Its place on disk is taken from the first day; a shorter one was cut off.
            let what = format!("it has {read} bytes and not {LEN}");
            return Err(Error::Damaged { file: path, what });
        }
        let journal = Journal {
            file,
            path,
            at: 0,
            cost: 0,
            frame: Vec::new(),
        };
        Ok((journal, frames(&bytes)))
    }

    /// The file, to be named in errors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a commit of this cost belongs to the next round: the engine must be made durable, and [`Journal::restart`] called.
    pub(super) fn is_full(&self, cost: usize) -> bool {
        self.cost + cost > COST_MAX || self.at + cost > LEN
    }

    /// Begin again: the engine has all of it durably.
    ///
    /// The first frame goes for certain before another is written there. Where a power cut tears that one, what is left of the round before would be
    /// taken for the newest commits.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        let clear = || {
            self.file.write_all_at(&[0; ALIGN], 0)?;
            self.file.sync_data()
        };
        clear().map_err(Error::at("write", &self.path))?;
        self.at = 0;
        self.cost = 0;
        Ok(())
    }

    /// Write a commit that costs the engine so much, and return when it survives a power cut. After an error it is unknown whether it does.
    pub(super) fn append(
        &mut self,
        batch: u64,
        cost: usize,
        writes: &Writes,
        sync: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<(), Error> {
        self.frame.clear();
        encode(&mut self.frame, batch, writes);
        self.file
            .write_all_at(&self.frame, self.at as u64)
            .map_err(Error::at("write", &self.path))?;
        crash_point::reach("store.written");
        sync(&self.file).map_err(Error::at("sync", &self.path))?;
        self.at += self.frame.len();
        self.cost += cost;
        Ok(())
    }
}

fn read_up_to(file: &File, bytes: &mut [u8]) -> std::io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], read as u64)? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

fn encode(frame: &mut Vec<u8>, batch: u64, writes: &Writes) {
    let length = |len: usize| u32::try_from(len).expect("a commit is below COST_MAX");
    frame.extend_from_slice(&[0; HEADER]);
    for (key, value) in writes {
        let key_len = u16::try_from(key.len()).expect("a key is below KEY_MAX");
        frame.extend_from_slice(&key_len.to_le_bytes());
        frame.extend_from_slice(&value.as_ref().map_or(GONE, |value| length(value.len())).to_le_bytes());
        frame.extend_from_slice(key);
        frame.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    let body = length(frame.len() - HEADER);
    frame[4..8].copy_from_slice(&body.to_le_bytes());
    frame[8..HEADER].copy_from_slice(&batch.to_le_bytes());
    let checksum = crc32fast::hash(&frame[4..]);
    frame[..4].copy_from_slice(&checksum.to_le_bytes());
    frame.resize(frame.len().next_multiple_of(ALIGN), 0);
}

/// The commits of the last round, as far as each follows the one before it.
fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::new();
    let mut at = 0;
    while let Some((frame, len)) = bytes.get(at..).and_then(decode)
        && frames.last().is_none_or(|last| last.batch + 1 == frame.batch)
    {
        frames.push(frame);
        at += len.next_multiple_of(ALIGN);
    }
    frames
}

/// The frame that the bytes begin with, and its length.
fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let checksum = u32::from_le_bytes(*header.first_chunk()?);
    let len = u32::from_le_bytes(*header[4..].first_chunk()?) as usize;
    let body = rest.get(..len)?;
    if crc32fast::hash(&bytes[4..HEADER + len]) != checksum {
        return None;
    }
    let batch = u64::from_le_bytes(*header[8..].first_chunk()?);
    let (mut writes, mut left) = (Vec::new(), body);
    while !left.is_empty() {
        let (key_len, rest) = left.split_first_chunk::<2>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u16::from_le_bytes(*key_len).into())?;
        let (value, rest) = match u32::from_le_bytes(*value_len) {
            GONE => (None, rest),
            len => {
                let (value, rest) = rest.split_at_checked(len as usize)?;
                (Some(value.to_vec()), rest)
            }
        };
        writes.push((key.to_vec(), value));
        left = rest;
    }
    Some((Frame { batch, writes }, HEADER + len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn writes(text: &str) -> Writes {
        vec![(b"key".to_vec(), Some(text.as_bytes().to_vec())), (b"gone".to_vec(), None)]
    }

    /// A journal to which these commits were appended, and its file.
    fn of(dir: &Path, batches: std::ops::Range<u64>) -> Journal {
        Journal::create(dir).unwrap();
        let (mut journal, before) = Journal::open(dir).unwrap();
        assert_eq!(before, []);
        append(&mut journal, batches);
        journal
    }

    fn append(journal: &mut Journal, batches: std::ops::Range<u64>) {
        for batch in batches {
            let text = format!("value {batch} {}", "x".repeat(usize::try_from(batch).unwrap() * 100));
            journal.append(batch, 2000, &writes(&text), File::sync_data).unwrap();
        }
    }

    fn found(dir: &Path) -> Vec<u64> {
        let (_, frames) = Journal::open(dir).unwrap();
        for frame in &frames {
            assert!(
                frame.writes[0]
                    .1
                    .as_ref()
                    .unwrap()
                    .starts_with(format!("value {} ", frame.batch).as_bytes())
            );
            assert_eq!(frame.writes[1], (b"gone".to_vec(), None));
        }
        frames.iter().map(|frame| frame.batch).collect()
    }

    #[test]
    fn commits_come_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        of(dir.path(), 7..30);
        assert_eq!(found(dir.path()), (7..30).collect::<Vec<_>>());
    }

    #[test]
    fn frames_have_the_golden_bytes() {
        let mut frame = Vec::new();
        encode(
            &mut frame,
            0x0102,
            &vec![(b"k".to_vec(), Some(b"v".to_vec())), (b"g".to_vec(), None)],
        );
        assert_eq!(frame.len(), ALIGN);
        let used = b"\x0f\x00\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x01\x00\x01\x00\x00\x00kv\x01\x00\xff\xff\xff\xffg\x00";
        assert_eq!(&frame[4..4 + used.len()], used);
    }

    /// The frames of the round before lie behind, at places where frames begin.
    #[test]
    fn a_round_ends_where_it_ended() {
        for second in 1..12 {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = of(dir.path(), 1..20);
            journal.restart().unwrap();
            assert_eq!(found(dir.path()), Vec::<u64>::new());
            append(&mut journal, 20..20 + second);
            assert_eq!(found(dir.path()), (20..20 + second).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_torn_frame_ends_the_round() {
        let dir = tempfile::tempdir().unwrap();
        let at = of(dir.path(), 1..10).at;
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.at = at;
        append(&mut journal, 10..11);
        let whole = found(dir.path());
        assert_eq!(whole.len(), 10);
        let sectors = (journal.at - at) / ALIGN;
        assert!(sectors > 1);
        for lost in 0..sectors {
            let sector = (at + lost * ALIGN) as u64;
            let mut kept = [0; ALIGN];
            journal.file.read_exact_at(&mut kept, sector).unwrap();
            journal.file.write_all_at(&[0; ALIGN], sector).unwrap();
            assert_eq!(found(dir.path()), (1..10).collect::<Vec<_>>(), "sector {lost}");
            journal.file.write_all_at(&kept, sector).unwrap();
        }
        assert_eq!(found(dir.path()), whole);
    }

    /// Its first sector may be the first frame of the round before, whole.
    #[test]
    fn a_torn_first_frame_leaves_nothing_of_the_round_before() {
        for (before, first) in [(1..2, 20), (1..3, 9), (8..12, 12), (1..2, 6)] {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = of(dir.path(), before);
            journal.restart().unwrap();
            let mut old = vec![0; LEN];
            journal.file.read_exact_at(&mut old, 0).unwrap();
            append(&mut journal, first..first + 1);
            let sectors = journal.at / ALIGN;
            assert!(sectors > 1);
            let mut new = vec![0; LEN];
            journal.file.read_exact_at(&mut new, 0).unwrap();
            for lost in 1..1 << sectors.min(6) {
                journal.file.write_all_at(&new, 0).unwrap();
                for sector in (0..sectors).filter(|sector| lost >> sector & 1 == 1) {
                    let at = sector * ALIGN;
                    journal.file.write_all_at(&old[at..at + ALIGN], at as u64).unwrap();
                }
                assert_eq!(found(dir.path()), Vec::<u64>::new(), "sectors {lost:b} of {sectors} are lost");
            }
        }
    }

    #[test]
    fn a_journal_that_is_gone_or_cut_off_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let journal = of(dir.path(), 1..3);
        journal.file.set_len(LEN as u64 - 1).unwrap();
        let error = Journal::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("and not 8388608"), "{error}");
        std::fs::remove_file(&journal.path).unwrap();
        let error = Journal::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("it is missing"), "{error}");
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            if bytes.len() > HEADER {
                let len = u32::try_from(bytes.len() - HEADER).unwrap();
                bytes[4..8].copy_from_slice(&len.to_le_bytes());
                let checksum = crc32fast::hash(&bytes[4..]);
                bytes[..4].copy_from_slice(&checksum.to_le_bytes());
                let _ = decode(&bytes);
            }
        }
    }
}
