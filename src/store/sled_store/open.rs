//! From a directory to a store that may be served from.
//!
//! Called by `SledStore` only. It must never serve or write before the store is proved whole as far as [`SledStore::open`] says, and
//! never take a lost store for a new one.

use super::builder::Builder;
use super::disk::{self, Disk};
use super::high_water::{HighWater, Mark};
use super::journal::Journal;
use super::known::Known;
use super::verify::{self, Each, HistoryCheck};
use super::{Copies, Position, SledStore, Writer, index, migrate};
use crate::crash_point;
use crate::migrations;
use crate::store::Error;
use crate::store::directory::{Directory, exists, list, sync_names_at_once, sync_parent, sync_tree};
use std::path::Path;

/// Values of the history that are proved before a start serves, a fraction of a second's worth: most stores are proved whole at once.
const HISTORY_AT_OPEN: usize = 30_000;

pub(super) fn open(directory: &Directory, each: &mut Each<'_>) -> Result<SledStore, Error> {
    let is_current = directory.version() == migrations::CURRENT;
    // A process of version 1 that was killed before it had made its store leaves a directory without one.
    let never_made = directory.log() == 0 && !exists(&directory.store_dir())? && !exists(&directory.high_water_path())?;
    if never_made {
        create(directory)?;
    } else if !is_current {
        migrate::run(directory)?;
    }
    directory.remove_other_logs()?;
    let found = recover(directory)?;
    let store = found.prove(directory, HISTORY_AT_OPEN, each)?;
    let head = store.raise_epoch()?;
    tracing::info!(epoch = head.epoch, batch = head.batch, next_seq = head.next_seq, "store opened");
    Ok(store)
}

/// The store as it is, proved whole, for those who only read. Of a directory in the current version that has a log.
pub(super) fn inspect(directory: &Directory) -> Result<SledStore, Error> {
    if directory.version() != migrations::CURRENT {
        let what = format!(
            "has stored-format version {}, this release works with {}; run `fedbroker store migrate` on it first",
            directory.version(),
            migrations::CURRENT
        );
        return Err(Error::WrongDirectory {
            dir: directory.path().to_owned(),
            what,
        });
    }
    let found = recover(directory)?;
    found.prove(directory, usize::MAX, &mut |_, _| {})
}

/// Write the file anew that tells how far the store had come, of a store that is whole otherwise. Whether that store is an old one cannot
/// be told any more. A file that can be read stays as it is: its word counts.
pub(super) fn rebuild_high_water(directory: &Directory) -> Result<bool, Error> {
    match recover(directory) {
        Ok(_) => return Ok(false),
        Err(Error::Damaged { file, .. }) if file == directory.high_water_path() => {}
        Err(error) => return Err(error),
    }
    let (disk, _) = open_log(&directory.store_dir())?;
    let position = verify::everything(&disk)?;
    let path = directory.high_water_path();
    HighWater::create(&path, Mark::of(&position))?;
    sync_parent(&path)?;
    Ok(true)
}

/// A store whose engine is open and whose head fits the mark outside; its values are not proved yet.
pub(super) struct Found {
    pub(super) disk: Disk,
    journal: Journal,
    position: Position,
    high_water: HighWater,
}

impl Found {
    /// Prove what is live, hand it on, and prove so many values of the history.
    fn prove(self, directory: &Directory, history: usize, each: &mut Each<'_>) -> Result<SledStore, Error> {
        let mut known = Known::with_room(self.position.live.count);
        verify::live(&self.disk, &self.position, &mut |key, body| {
            known.add(key);
            each(&key[1..], body);
        })?;
        let mut check = HistoryCheck::new(&self.position);
        check.page(&self.disk, &self.position, history)?;
        let writer = Writer {
            position: self.position,
            journal: self.journal,
            known,
            high_water: self.high_water,
            check,
            copies: Copies::default(),
        };
        Ok(SledStore::new(self.disk, writer, directory.hold()))
    }
}

fn recover(directory: &Directory) -> Result<Found, Error> {
    // First, so that nothing is changed by a look at a store that cannot be judged.
    let (high_water, mark) = HighWater::open(&directory.high_water_path())?;
    let (disk, journal) = open_log(&directory.store_dir())?;
    let position = verify::head(&disk)?;
    refuse_rollback((disk.file(), Some(journal.path())), Mark::of(&position), mark)?;
    Ok(Found {
        disk,
        journal,
        position,
        high_water,
    })
}

/// The engine in `dir` with every confirmed commit, and the journal beside it, which begins again.
fn open_log(dir: &Path) -> Result<(Disk, Journal), Error> {
    let disk = open_engine(dir)?;
    let (mut journal, rounds) = Journal::open(dir)?;
    let mut batches = rounds.iter().flatten().map(|frame| frame.batch);
    let Some(first) = batches.next() else {
        journal.lengthen()?;
        return Ok((disk, journal));
    };
    let last = batches.next_back().unwrap_or(first);
    let head = verify::head(&disk)?.batch;
    // A commit goes to the journal first, and the engine has those of earlier rounds.
    if head + 1 < first || last < head {
        let what = format!("it has the commits {first} to {last}, and the log beside it ends at {head}");
        return Err(Error::Damaged {
            file: journal.path().to_owned(),
            what,
        });
    }
    // All of them, whatever the engine has: after a power cut it may have a later one without an earlier one.
    for round in rounds {
        for frame in round {
            disk.put(frame.batch, disk::values(frame.writes));
        }
        disk.freeze();
        disk.settle()?;
    }
    crash_point::reach("store.replayed");
    journal.restart()?;
    Ok((disk, journal))
}

/// The engine in `dir`, on files that are on disk as they are seen.
pub(super) fn open_engine(dir: &Path) -> Result<Disk, Error> {
    if !exists(dir)? {
        let what = "it is missing".to_owned();
        return Err(Error::Damaged {
            file: dir.to_owned(),
            what,
        });
    }
    tidy(dir)?;
    // The engine renames a new index into place and then zeroes what only the old one needs: that order must hold on disk as well.
    sync_names_at_once(dir)?;
    let disk = Disk::open(dir)?;
    // After a kill the engine recovers from the page cache; what it shows must be on disk before anyone is told of it.
    sync_tree(dir)?;
    sync_parent(dir)?;
    index::release(dir)?;
    Ok(disk)
}

/// Make an empty log, whole or not at all.
fn create(directory: &Directory) -> Result<(), Error> {
    let mut builder = Builder::new(directory)?;
    builder.put_head(&Position::new(0, 0, 1))?;
    builder.finish()?;
    directory.switch_to_next_log()
}

/// Remove what the engine trips over, refuse what it would take the wrong way.
///
/// Its index must stay: after writing a new one it zeroes the log segments that hold nothing live, and an open without the index takes
/// such a gap for a torn log and empties it for good.
fn tidy(dir: &Path) -> Result<(), Error> {
    let index = index::keep(dir)?;
    Disk::check_files(dir, &index)?;
    let blobs = dir.join("blobs");
    if exists(&blobs)?
        && let Some(file) = list(&blobs)?.into_iter().next()
    {
        let what = "no value is long enough for a file here, so the log does not hold what was committed".to_owned();
        return Err(Error::Damaged { file, what });
    }
    Ok(())
}

pub(super) fn refuse_rollback((file, journal): (&Path, Option<&Path>), found: Mark, confirmed: Mark) -> Result<(), Error> {
    let what = if found.batch < confirmed.batch {
        let journal = journal.map(|journal| format!(", which {} does not have either", journal.display()));
        let (found, confirmed) = (found.batch, confirmed.batch);
        format!(
            "it ends at commit {found}, and commit {confirmed} was confirmed{}",
            journal.unwrap_or_default()
        )
    } else if found.batch == confirmed.batch && found.sum != confirmed.sum {
        format!("commit {} is not the one that was confirmed", found.batch)
    } else {
        return Ok(());
    };
    Err(Error::Damaged {
        file: file.to_owned(),
        what,
    })
}
