//! The newest commits, as they were confirmed: one write and one sync each, whatever the engine does.
//!
//! Called by the committer (append, turn), by who settles (clear) and by `open` (what to do again). A commit is confirmed once its frame is
//! durable here. The file has two halves: when one is full commits go on in the other, while the engine is given what the first one has, and
//! is made durable once for all of it. A start gives the engine all commits that are here, in order: each writes whole values, and the last
//! word on a key is that of the last commit. A half must never begin again before the engine has it durably, and no frame be confirmed
//! that a power cut could take.
//!
//! ```text
//! offset  bytes  what                                     a frame; each begins at a multiple of 512, the first ones at 0 and 4 MiB
//! 0       4      CRC-32 (IEEE) over all that follows; little endian
//! 4       4      length of the body, little endian
//! 8       8      number of the commit, little endian
//! 16      ..     body: for each key  2 bytes its length, 4 bytes that of the value or ffffffff where the key goes, key, sealed value
//! ```
//!
//! The file is as long as it ever gets from the first day, so that no frame needs space. Frames of earlier rounds stay behind those of the last
//! one of their half; their numbers are lower, and a frame counts only when it goes on with the number before it. The first one is made void
//! before the half may be used again: until its own first frame is whole, a round has none.

use crate::crash_point;
use crate::store::{COST_MAX, Error};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Its name in the directory of the store.
pub(super) const NAME: &str = "journal";
/// Where frames begin: what a disk writes whole or not at all, so that a torn frame takes none before it.
const ALIGN: usize = 512;
const HALF: usize = 4 * 1024 * 1024;
const LEN: usize = 2 * HALF;
const HEADER: usize = 16;
/// Before each key.
const LENGTHS: usize = 2 + 4;
// The largest commit fits: what it costs is three times its bytes and 1 KiB for each key.
const _: () = assert!(COST_MAX / 3 + HEADER + ALIGN < HALF);
const GONE: u32 = u32::MAX;

/// What one commit writes: keys and sealed values.
pub(super) type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A commit that was confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) batch: u64,
    pub(super) writes: Writes,
}

/// See the module.
pub(super) struct Journal {
    file: Arc<File>,
    path: PathBuf,
    /// Where the half begins that is written; after an open the older one, until the journal begins again.
    half: usize,
    /// Where its next frame begins, from there.
    at: usize,
    frame: Vec<u8>,
}

/// A half that is full. It may be written again once it is cleared.
#[must_use]
pub(super) struct Full {
    file: Arc<File>,
    path: PathBuf,
    half: usize,
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

    /// Open that of a store; gives the commits that the engine must be given again, in order: those of each half, the older one first.
    ///
    /// [`Error::Damaged`] if there is none, or a gap in it: what only it held is lost.
    pub(super) fn open(store: &Path) -> Result<(Journal, [Vec<Frame>; 2]), Error> {
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
        let (first, second) = bytes.split_at(HALF);
        let mut rounds = [frames(first), frames(second)];
        let begins = |round: &Vec<Frame>| round.first().map(|frame| frame.batch);
        let mut half = 0;
        if begins(&rounds[1]) < begins(&rounds[0]) {
            rounds.reverse();
            half = HALF;
        }
        if let [Some(end), Some(begin)] = [rounds[0].last(), rounds[1].first()]
            && end.batch + 1 != begin.batch
        {
            let what = format!("commit {} comes after {}", begin.batch, end.batch);
            return Err(Error::Damaged { file: path, what });
        }
        let journal = Journal {
            file: Arc::new(file),
            path,
            half,
            at: 0,
            frame: Vec::new(),
        };
        Ok((journal, rounds))
    }

    /// The file, to be named in errors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a commit finds room in this half.
    pub(super) fn has_room(&self, writes: &Writes) -> bool {
        let entries: usize = writes
            .iter()
            .map(|(key, value)| LENGTHS + key.len() + value.as_ref().map_or(0, Vec::len))
            .sum();
        self.at + (HEADER + entries).next_multiple_of(ALIGN) <= HALF
    }

    /// Go on in the other half, which must have been cleared. Gives the one that is full.
    pub(super) fn turn(&mut self) -> Full {
        let full = Full {
            file: Arc::clone(&self.file),
            path: self.path.clone(),
            half: self.half,
        };
        self.half = HALF - self.half;
        self.at = 0;
        full
    }

    /// Begin again: the engine has all of it durably. Both halves are to be cleared, in this order, before a commit is written: the older one goes
    /// first, since without the newer one the engine would be ahead of the journal.
    pub(super) fn restart(&mut self) -> [Full; 2] {
        [self.turn(), self.turn()]
    }

    /// Write a commit for which there is room, and return when it survives a power cut. After an error it is unknown whether it does.
    pub(super) fn append(&mut self, batch: u64, writes: &Writes, sync: impl FnOnce(&File) -> std::io::Result<()>) -> Result<(), Error> {
        self.frame.clear();
        encode(&mut self.frame, batch, writes);
        self.file
            .write_all_at(&self.frame, (self.half + self.at) as u64)
            .map_err(Error::at("write", &self.path))?;
        crash_point::reach("store.written");
        sync(&self.file).map_err(Error::at("sync", &self.path))?;
        self.at += self.frame.len();
        Ok(())
    }
}

impl Full {
    /// The engine has all of it durably: its first frame goes for certain before another is written there. Where a power cut tears that one,
    /// what is left of the round before would be taken for newer commits.
    pub(super) fn clear(self, sync: impl FnOnce(&File) -> std::io::Result<()>) -> Result<(), Error> {
        let clear = || {
            self.file.write_all_at(&[0; ALIGN], self.half as u64)?;
            sync(&self.file)
        };
        clear().map_err(Error::at("write", &self.path))
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

/// The commits of the last round of a half, as far as each follows the one before it.
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
        assert_eq!(before, [[], []]);
        append(&mut journal, batches);
        journal
    }

    fn append(journal: &mut Journal, batches: std::ops::Range<u64>) {
        for batch in batches {
            let text = format!("value {batch} {}", "x".repeat(usize::try_from(batch).unwrap() * 100));
            journal.append(batch, &writes(&text), File::sync_data).unwrap();
        }
    }

    fn found(dir: &Path) -> Vec<u64> {
        let (_, rounds) = Journal::open(dir).unwrap();
        let frames = rounds.concat();
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
            journal.restart().into_iter().for_each(|half| half.clear(File::sync_data).unwrap());
            assert_eq!(found(dir.path()), Vec::<u64>::new());
            append(&mut journal, 20..20 + second);
            assert_eq!(found(dir.path()), (20..20 + second).collect::<Vec<_>>());
        }
    }

    #[test]
    fn commits_go_on_in_the_other_half() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = of(dir.path(), 1..9);
        let mut first = 1;
        for end in [12, 14, 15, 23] {
            let begin = found(dir.path()).last().unwrap() + 1;
            let full = journal.turn();
            assert_eq!(found(dir.path()), (first..begin).collect::<Vec<_>>());
            append(&mut journal, begin..end);
            assert_eq!(found(dir.path()), (first..end).collect::<Vec<_>>());
            full.clear(File::sync_data).unwrap();
            first = begin;
            assert_eq!(found(dir.path()), (first..end).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_start_that_is_cut_off_while_it_begins_again_leaves_the_newer_half() {
        for turns in 1..3 {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = of(dir.path(), 1..5);
            for batch in 5..5 + turns {
                journal.turn().clear(File::sync_data).unwrap();
                append(&mut journal, batch..batch + 1);
            }
            let _full = journal.turn();
            let newer = 5 + turns..7 + turns;
            append(&mut journal, newer.clone());
            let (mut journal, _) = Journal::open(dir.path()).unwrap();
            let [older, _] = journal.restart();
            older.clear(File::sync_data).unwrap();
            assert_eq!(found(dir.path()), newer.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_half_is_cleared_for_certain() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = of(dir.path(), 1..3);
        let mut synced = false;
        let look = |_: &File| {
            synced = found(dir.path()).is_empty();
            Ok(())
        };
        journal.turn().clear(look).unwrap();
        assert!(synced);
    }

    #[test]
    fn a_gap_between_the_halves_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = of(dir.path(), 1..9);
        let last = journal.at - ALIGN;
        let _full = journal.turn();
        append(&mut journal, 9..12);
        journal.file.write_all_at(&[1; 2], last as u64).unwrap();
        let error = Journal::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("commit 9 comes after 7"), "{error}");
    }

    #[test]
    fn room_is_what_a_frame_takes() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = of(dir.path(), 1..1);
        let large = vec![(b"k".to_vec(), Some(vec![1; 100_000])); 10];
        let mut batch = 0;
        while journal.has_room(&large) {
            batch += 1;
            journal.append(batch, &large, |_| Ok(())).unwrap();
            assert!(journal.at <= HALF);
        }
        assert_eq!(batch, 4);
        journal.append(batch + 1, &large, |_| Ok(())).unwrap();
        assert!(journal.at > HALF);
    }

    #[test]
    fn a_torn_frame_ends_the_round() {
        let dir = tempfile::tempdir().unwrap();
        let at = of(dir.path(), 1..10).at;
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        (journal.half, journal.at) = (0, at);
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
            journal.restart().into_iter().for_each(|half| half.clear(File::sync_data).unwrap());
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
