//! The newest commits, as they were confirmed: one write and one sync each, whatever the engine does.
//!
//! Called by the committer (append, turn), by who settles (clear) and by `open` (what to do again). A commit is confirmed once its frame is
//! durable here. The file has four parts: when one is full commits go on in the next, in a circle, while the engine is given what the older ones have, and
//! is made durable once for all of it. A start gives the engine all commits that are here, in order: each writes whole values, and the last
//! word on a key is that of the last commit. A part must never begin again before the engine has it durably, and no frame be confirmed
//! that a power cut could take. Frames are made and read by `frame`; the first one of a part is at a multiple of 4 MiB.
//!
//! The file is as long as it ever gets from the first day, so that no frame needs space; one of two parts, as there were before, is replaced once it
//! is empty. Frames of earlier rounds stay behind those of the last
//! one of their part; their numbers are lower, and a frame counts only when it goes on with the number before it. The first one is made void
//! before the part may be used again: until its own first frame is whole, a round has none.

use super::frame::{self, ALIGN, Draft, Frame, HEADER, Written};
use crate::crash_point;
use crate::store::directory::sync_parent;
use crate::store::{COST_MAX, Error};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Its name in the directory of the store.
pub(super) const NAME: &str = "journal";
const PART: usize = 4 * 1024 * 1024;
pub(super) const PARTS: usize = 4;
const LEN: usize = PARTS * PART;
/// Zeros that a new one is written with at once.
const BLANK: usize = 64 * 1024;
/// That of one from before.
const SHORT: usize = 2 * PART;
// The largest commit fits: what it costs is three times its bytes and 1 KiB for each key.
const _: () = assert!(COST_MAX / 3 + HEADER + ALIGN < PART);

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
        Draft::new(batch, std::mem::take(&mut self.spare))
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
        let frame = draft.seal();
        self.file
            .write_all_at(frame, (self.part * PART + self.at) as u64)
            .map_err(Error::at("write", &self.path))?;
        crash_point::reach("store.written");
        sync(&self.file).map_err(Error::at("sync", &self.path))?;
        self.at += frame.len();
        self.last = draft.batch();
        Ok(draft.written(&mut self.spare))
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
        match frame::decode(&bytes) {
            Some(frame) if frames.last().is_none_or(|last| last.batch + 1 == frame.batch) => frames.push(frame),
            _ => break,
        }
        at += len.next_multiple_of(ALIGN);
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::codec;
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
}
