//! The newest commits, as they were confirmed: one write and one sync each, whatever the engine does.
//!
//! Called by the committer (append, turn), by who settles (clear) and by `open` (what to do again). A commit is confirmed once its frame is
//! durable here. The file has four parts: when one is full commits go on in the next, in a circle, while the engine is given what the older ones have, and
//! is made durable once for all of it. A start gives the engine all commits that are here, in order: each writes whole values, and the last
//! word on a key is that of the last commit. A part must never begin again before the engine has it durably, and no frame be confirmed
//! that a power cut could take.
//!
//! ```text
//! offset  bytes  what                                     a frame; each begins at a multiple of 512, the first ones at multiples of 4 MiB
//! 0       4      CRC-32 (IEEE) over all that follows; little endian
//! 4       4      length of the body, little endian
//! 8       8      number of the commit, little endian
//! 16      ..     body: for each key  2 bytes its length, 4 bytes that of the value or ffffffff where the key goes, key, sealed value
//! ```
//!
//! The file is as long as it ever gets from the first day, so that no frame needs space; one of two parts, as there were before, is replaced once it
//! is empty. Frames of earlier rounds stay behind those of the last
//! one of their part; their numbers are lower, and a frame counts only when it goes on with the number before it. The first one is made void
//! before the part may be used again: until its own first frame is whole, a round has none.

use super::disk::Value;
use crate::crash_point;
use crate::store::directory::sync_parent;
use crate::store::{COST_MAX, Error, codec};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Its name in the directory of the store.
pub(super) const NAME: &str = "journal";
/// Where frames begin: what a disk writes whole or not at all, so that a torn frame takes none before it.
const ALIGN: usize = 512;
const PART: usize = 4 * 1024 * 1024;
pub(super) const PARTS: usize = 4;
const LEN: usize = PARTS * PART;
/// Zeros that a new one is written with at once.
const BLANK: usize = 64 * 1024;
/// That of one from before.
const SHORT: usize = 2 * PART;
const HEADER: usize = 16;
/// So many bytes of a frame share a piece of memory, which is there as long as one of its values: as many as an allocator has at hand.
const PIECE: usize = 16 * 1024;
// The largest commit fits: what it costs is three times its bytes and 1 KiB for each key.
const _: () = assert!(COST_MAX / 3 + HEADER + ALIGN < PART);
const GONE: u32 = u32::MAX;

/// What one commit writes: keys and sealed values.
pub(super) type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// The frame of a commit while it is made, with the keys that are in it and where their values are.
pub(super) struct Draft {
    batch: u64,
    bytes: Vec<u8>,
    places: Vec<(Vec<u8>, Option<Range<usize>>)>,
}

impl Draft {
    /// Write a body under a key, or remove the key; gives it back with the sealed value.
    pub(super) fn put(&mut self, key: Vec<u8>, body: Option<&[u8]>) -> (&[u8], Option<&[u8]>) {
        let key_len = u16::try_from(key.len()).expect("a key is below KEY_MAX");
        let value_len = body.map_or(GONE, |body| {
            u32::try_from(codec::ENVELOPE_LEN + body.len()).expect("a commit is below COST_MAX")
        });
        self.bytes.extend_from_slice(&key_len.to_le_bytes());
        self.bytes.extend_from_slice(&value_len.to_le_bytes());
        self.bytes.extend_from_slice(&key);
        let start = self.bytes.len();
        if let Some(body) = body {
            codec::seal_into(&mut self.bytes, &key, self.batch, body);
        }
        let place = body.map(|_| start..self.bytes.len());
        let sealed = place.clone().map(|place| &self.bytes[place]);
        let (key, _) = self.places.push_mut((key, place));
        (key, sealed)
    }

    /// The keys it writes.
    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.places.iter().map(|(key, _)| key.as_slice())
    }

    fn len(&self) -> usize {
        self.bytes.len().next_multiple_of(ALIGN)
    }

    /// The bytes of the frame.
    fn seal(&mut self) -> &[u8] {
        let body = u32::try_from(self.bytes.len() - HEADER).expect("a commit is below COST_MAX");
        self.bytes[4..8].copy_from_slice(&body.to_le_bytes());
        self.bytes[8..HEADER].copy_from_slice(&self.batch.to_le_bytes());
        let checksum = crc32fast::hash(&self.bytes[4..]);
        self.bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        self.bytes.resize(self.len(), 0);
        &self.bytes
    }
}

/// A commit that was confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) batch: u64,
    pub(super) writes: Writes,
}

/// A commit that is durable.
pub(super) struct Written<'a> {
    frame: &'a [u8],
    places: Vec<(Vec<u8>, Option<Range<usize>>)>,
}

impl<'a> Written<'a> {
    /// Its keys and sealed values; neighbours are parts of one piece of memory.
    pub(super) fn values(self) -> impl Iterator<Item = (Vec<u8>, Option<Value>)> + use<'a> {
        let Written { frame, places } = self;
        let (mut piece, mut of) = (Value::default(), 0..0);
        places.into_iter().map(move |(key, place)| {
            let value = place.map(|place| {
                if place.end > of.end {
                    of = place.start..frame.len().min(place.end.max(place.start + PIECE));
                    piece = Value::from(&frame[of.clone()]);
                }
                piece.subslice(place.start - of.start, place.len())
            });
            (key, value)
        })
    }
}

/// See the module.
pub(super) struct Journal {
    file: File,
    /// Opened for itself: of a write that failed the system tells each of them once, whoever syncs first.
    clearing: Arc<File>,
    path: PathBuf,
    /// How many it has.
    parts: usize,
    /// Which part is written; after an open the oldest one, until the journal begins again.
    part: usize,
    /// Where its next frame begins, from where it begins.
    at: usize,
    /// The last commit that was appended; after an open 0.
    last: u64,
    /// What the last frame was made in.
    spare: Vec<u8>,
}

/// A part that is full. It may be written again once it is cleared.
#[derive(Clone)]
#[must_use]
pub(super) struct Full {
    file: Arc<File>,
    path: PathBuf,
    part: usize,
    last: u64,
}

impl Journal {
    /// Make an empty one in the directory of a store. The caller makes its name durable.
    pub(super) fn create(store: &Path) -> Result<(), Error> {
        create_at(&store.join(NAME))
    }

    /// Open that of a store; gives the commits that the engine must be given again, in order: those of each part, the oldest one first.
    ///
    /// [`Error::Damaged`] if there is none, or a gap in it: what only it held is lost.
    pub(super) fn open(store: &Path) -> Result<(Journal, Vec<Vec<Frame>>), Error> {
        let path = store.join(NAME);
        let file = open_at(&path)?;
        let len = file.metadata().map_err(Error::at("look at", &path))?.len();
        let parts = match usize::try_from(len) {
            Ok(SHORT) => SHORT / PART,
            Ok(LEN..) => PARTS,
            // Its place on disk is taken from the first day; a shorter one was cut off.
            _ => {
                let what = format!("it has {len} bytes and not {LEN}");
                return Err(Error::Damaged { file: path, what });
            }
        };
        let mut rounds = Vec::new();
        for part in 0..parts {
            let round = frames(&file, part).map_err(Error::at("read", &path))?;
            if !round.is_empty() {
                rounds.push((part, round));
            }
        }
        rounds.sort_by_key(|(_, round)| round[0].batch);
        for ((_, before), (_, round)) in rounds.iter().zip(rounds.iter().skip(1)) {
            let (end, begin) = (before[before.len() - 1].batch, round[0].batch);
            if end + 1 != begin {
                let what = format!("commit {begin} comes after {end}");
                return Err(Error::Damaged { file: path, what });
            }
        }
        let journal = Journal {
            file,
            clearing: Arc::new(open_at(&path)?),
            path,
            parts,
            part: rounds.first().map_or(0, |(part, _)| *part),
            at: 0,
            last: 0,
            spare: Vec::new(),
        };
        Ok((journal, rounds.into_iter().map(|(_, round)| round).collect()))
    }

    /// The file, to be named in errors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Begin the frame of a commit.
    pub(super) fn draft(&mut self, batch: u64) -> Draft {
        let mut bytes = std::mem::take(&mut self.spare);
        bytes.clear();
        bytes.extend_from_slice(&[0; HEADER]);
        let places = Vec::new();
        Draft { batch, bytes, places }
    }

    /// Whether a commit finds room in this part.
    pub(super) fn has_room(&self, draft: &Draft) -> bool {
        self.at + draft.len() <= PART
    }

    /// Go on in the next part, which must have been cleared. Gives the one that is full.
    pub(super) fn turn(&mut self) -> Full {
        let full = self.full();
        self.part = (self.part + 1) % self.parts;
        self.at = 0;
        full
    }

    fn full(&self) -> Full {
        Full {
            file: Arc::clone(&self.clearing),
            path: self.path.clone(),
            part: self.part,
            last: self.last,
        }
    }

    /// Begin again: the engine has all of it durably. The oldest part is cleared first, since without a newer one the engine would be ahead of the
    /// journal.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        for n in 0..self.parts {
            let part = (self.part + n) % self.parts;
            Full { part, ..self.full() }.clear(File::sync_data)?;
        }
        (self.part, self.at) = (0, 0);
        self.lengthen()
    }

    /// Replace a short one, which must be empty.
    pub(super) fn lengthen(&mut self) -> Result<(), Error> {
        if self.parts < PARTS {
            let new = self.path.with_extension("new");
            create_at(&new)?;
            fs::rename(&new, &self.path).map_err(Error::at("rename to", &self.path))?;
            sync_parent(&self.path)?;
            (self.file, self.clearing) = (open_at(&self.path)?, Arc::new(open_at(&self.path)?));
            self.parts = PARTS;
        }
        Ok(())
    }

    /// Write a commit for which there is room, and return when it survives a power cut. After an error it is unknown whether it does.
    pub(super) fn append(&mut self, mut draft: Draft, sync: impl FnOnce(&File) -> std::io::Result<()>) -> Result<Written<'_>, Error> {
        let (batch, frame) = (draft.batch, draft.seal());
        self.file
            .write_all_at(frame, (self.part * PART + self.at) as u64)
            .map_err(Error::at("write", &self.path))?;
        crash_point::reach("store.written");
        sync(&self.file).map_err(Error::at("sync", &self.path))?;
        self.at += frame.len();
        self.last = batch;
        self.spare = draft.bytes;
        let (frame, places) = (&self.spare, draft.places);
        Ok(Written { frame, places })
    }
}

impl Full {
    /// Its last commit.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The engine has all of it durably: its first frame goes for certain before another is written there. Where a power cut tears that one,
    /// what is left of the round before would be taken for newer commits.
    pub(super) fn clear(&self, sync: impl FnOnce(&File) -> std::io::Result<()>) -> Result<(), Error> {
        let clear = || {
            self.file.write_all_at(&[0; ALIGN], (self.part * PART) as u64)?;
            sync(&self.file)
        };
        clear().map_err(Error::at("write", &self.path))
    }
}

fn create_at(path: &Path) -> Result<(), Error> {
    let make = || {
        let file = File::create(path)?;
        for at in (0..LEN).step_by(BLANK) {
            file.write_all_at(&[0; BLANK], at as u64)?;
        }
        file.sync_all()
    };
    make().map_err(Error::at("write", path))
}

fn open_at(path: &Path) -> Result<File, Error> {
    let opened = File::options().read(true).write(true).open(path);
    opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::Damaged {
            file: path.to_owned(),
            what: "it is missing, and with it the newest commits".to_owned(),
        },
        _ => Error::at("open", path)(error),
    })
}

/// The commits of the last round of a part, as far as each follows the one before it. One after the other: most parts are empty, or nearly so.
fn frames(file: &File, part: usize) -> std::io::Result<Vec<Frame>> {
    let (mut frames, mut bytes, mut at) = (Vec::<Frame>::new(), Vec::new(), 0);
    while at + HEADER <= PART {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, (part * PART + at) as u64)?;
        let body = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let len = HEADER.saturating_add(body);
        if len > PART - at {
            break;
        }
        bytes.resize(len, 0);
        file.read_exact_at(&mut bytes, (part * PART + at) as u64)?;
        match decode(&bytes) {
            Some(frame) if frames.last().is_none_or(|last| last.batch + 1 == frame.batch) => frames.push(frame),
            _ => break,
        }
        at += len.next_multiple_of(ALIGN);
    }
    Ok(frames)
}

/// The frame that these bytes are.
fn decode(bytes: &[u8]) -> Option<Frame> {
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
    Some(Frame { batch, writes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A journal to which these commits were appended, and its file.
    fn of(dir: &Path, batches: std::ops::Range<u64>) -> Journal {
        Journal::create(dir).unwrap();
        let (mut journal, before) = Journal::open(dir).unwrap();
        assert_eq!(before, Vec::<Vec<Frame>>::new());
        append(&mut journal, batches);
        journal
    }

    fn draft(journal: &mut Journal, batch: u64, body: &[u8]) -> Draft {
        let mut draft = journal.draft(batch);
        draft.put(b"key".to_vec(), Some(body));
        draft.put(b"gone".to_vec(), None);
        draft
    }

    fn append(journal: &mut Journal, batches: std::ops::Range<u64>) {
        for batch in batches {
            let text = format!("value {batch} {}", "x".repeat(usize::try_from(batch).unwrap() * 100));
            let draft = draft(journal, batch, text.as_bytes());
            let mut values = journal.append(draft, File::sync_data).unwrap().values();
            let (key, value) = values.next().unwrap();
            assert_eq!(codec::unseal(&key, &value.unwrap()), Ok((batch, text.as_bytes())));
            assert_eq!(values.collect::<Vec<_>>(), [(b"gone".to_vec(), None)]);
        }
    }

    fn found(dir: &Path) -> Vec<u64> {
        let (_, rounds) = Journal::open(dir).unwrap();
        let frames = rounds.concat();
        for frame in &frames {
            let [(key, Some(value)), gone] = &frame.writes[..] else {
                panic!("{frame:?}")
            };
            let (batch, body) = codec::unseal(key, value).unwrap();
            assert_eq!(batch, frame.batch);
            assert!(body.starts_with(format!("value {batch} ").as_bytes()));
            assert_eq!(*gone, (b"gone".to_vec(), None));
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
        let dir = tempfile::tempdir().unwrap();
        let mut draft = of(dir.path(), 1..1).draft(0x0102);
        let sealed = codec::seal(b"k", 0x0102, b"v");
        assert_eq!(draft.put(b"k".to_vec(), Some(b"v")), (&b"k"[..], Some(sealed.as_slice())));
        assert_eq!(draft.put(b"g".to_vec(), None), (&b"g"[..], None));
        let frame = draft.seal();
        assert_eq!(frame.len(), ALIGN);
        let head = b"\x1c\x00\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x01\x00\x0e\x00\x00\x00k\x01\x02\x01\x00\x00\x00\x00\x00\x00";
        assert_eq!(&frame[4..4 + head.len()], head);
        // The checksum of the envelope is between them.
        let rest = b"v\x01\x00\xff\xff\xff\xffg\x00";
        assert_eq!(&frame[4 + head.len() + 4..][..rest.len()], rest);
        assert_eq!(crc32fast::hash(&frame[4..HEADER + 0x1c]).to_le_bytes(), frame[..4]);
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
    fn commits_go_on_in_the_next_part() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = of(dir.path(), 1..9);
        let (mut first, mut fulls) = (1, VecDeque::new());
        for (end, cleared) in [(12, 0), (14, 1), (15, 0), (23, 2), (24, 1), (30, 0), (31, 1), (33, 3), (40, 1)] {
            let begin = found(dir.path()).last().unwrap() + 1;
            fulls.push_back(journal.turn());
            assert!(fulls.len() < PARTS);
            assert_eq!(found(dir.path()), (first..begin).collect::<Vec<_>>());
            append(&mut journal, begin..end);
            assert_eq!(found(dir.path()), (first..end).collect::<Vec<_>>());
            for full in fulls.drain(..cleared) {
                assert!(full.last() >= first);
                full.clear(File::sync_data).unwrap();
                first = full.last() + 1;
                assert_eq!(found(dir.path()), (first..end).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_start_that_is_cut_off_while_it_begins_again_leaves_the_newer_parts() {
        for turns in 1..9 {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = of(dir.path(), 1..5);
            for batch in 5..5 + turns {
                journal.turn().clear(File::sync_data).unwrap();
                append(&mut journal, batch..batch + 1);
            }
            for batch in 5 + turns..8 + turns {
                let _full = journal.turn();
                append(&mut journal, batch..batch + 1);
            }
            let (journal, _) = Journal::open(dir.path()).unwrap();
            for n in 0..PARTS as u64 {
                assert_eq!(found(dir.path()), (4 + turns + n..8 + turns).collect::<Vec<_>>());
                let part = (journal.part + n as usize) % PARTS;
                Full { part, ..journal.full() }.clear(File::sync_data).unwrap();
            }
            assert_eq!(found(dir.path()), Vec::<u64>::new());
        }
    }

    /// As it was before there were four parts.
    #[test]
    fn one_of_two_parts_is_read_and_replaced() {
        for first in [0, 1] {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = of(dir.path(), 1..1);
            journal.part = first;
            append(&mut journal, 1..9);
            let _full = journal.turn();
            journal.part = 1 - first;
            append(&mut journal, 9..15);
            journal.file.set_len(SHORT as u64).unwrap();
            assert_eq!(found(dir.path()), (1..15).collect::<Vec<_>>());
            let (mut journal, _) = Journal::open(dir.path()).unwrap();
            assert_eq!(journal.part, first);
            journal.restart().unwrap();
            assert_eq!(fs::metadata(dir.path().join(NAME)).unwrap().len(), LEN as u64);
            append(&mut journal, 15..17);
            assert_eq!(found(dir.path()), [15, 16]);
            journal.turn().clear(File::sync_data).unwrap();
            journal.file.set_len(SHORT as u64).unwrap();
            let (mut journal, rounds) = Journal::open(dir.path()).unwrap();
            assert_eq!(rounds, Vec::<Vec<Frame>>::new());
            journal.lengthen().unwrap();
            append(&mut journal, 17..18);
            assert_eq!(found(dir.path()), [17]);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_part_is_cleared_for_certain() {
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
    fn a_gap_between_the_parts_is_damage() {
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
        let mut batch = 0;
        let last = loop {
            batch += 1;
            let large = draft(&mut journal, batch, &[1; 1_000_000]);
            if !journal.has_room(&large) {
                break large;
            }
            drop(journal.append(large, |_| Ok(())).unwrap());
            assert!(journal.at <= PART);
        };
        assert_eq!(batch, 5);
        drop(journal.append(last, |_| Ok(())).unwrap());
        assert!(journal.at > PART);
    }

    #[test]
    fn a_torn_frame_ends_the_round() {
        let dir = tempfile::tempdir().unwrap();
        let at = of(dir.path(), 1..10).at;
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        (journal.part, journal.at) = (0, at);
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
        assert!(error.contains("and not 16777216"), "{error}");
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
