//! Brings a log of an older stored-format version up to date: read, written anew beside it, and switched to at once.
//!
//! Called by `open` at every start and by the operator's `store migrate`. Each step's knowledge of its version is in `migrations/`. A
//! crash at any point leaves either the old directory or the new one; the old log is removed after the switch.

use super::builder::Builder;
use super::disk::Disk;
use super::high_water::{HighWater, Mark};
use super::open::{open_engine, refuse_rollback};
use super::{HEAD_KEY, Position};
use crate::migrations::m0002_live_sum::Upgrade;
use crate::migrations::m0003_stories::Stories;
use crate::store::directory::{Directory, FREE_FLOOR, exists, list};
use crate::store::{Error, codec};
use std::ops::{Bound, ControlFlow};
use std::path::Path;

/// After a power cut a version 1 directory may lack the witness of its first commits.
const V1_SYNC_EVERY: u64 = 64;

/// What a migration would do, or has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Version before.
    pub from: u32,
    /// Version after.
    pub to: u32,
    /// Values that are carried over.
    pub values: u64,
    /// The last commit, the same before and after.
    pub batch: u64,
}

/// What [`run`] would do; reads and proves the old log, changes nothing that counts.
pub fn plan(directory: &Directory) -> Result<Migration, Error> {
    refuse_full(directory)?;
    carry(directory, &mut |_, _| Ok(())).map(|(_, migration)| migration)
}

/// Bring the directory to the current version. Errors: [`Error::Damaged`] if the old log is not whole, [`Error::Io`] that is
/// [`full`](Error::is_full) if there is no room for a second log; the directory is as it was then.
pub fn run(directory: &Directory) -> Result<Migration, Error> {
    refuse_full(directory)?;
    tracing::info!(
        dir = %directory.path().display(),
        from = directory.version(),
        to = crate::migrations::CURRENT,
        "bringing the data directory to the current format"
    );
    let mut builder = Builder::new(directory)?;
    let (position, migration) = carry(directory, &mut |key, sealed| builder.put(key, Some(sealed)))?;
    builder.put_head(&position)?;
    builder.finish()?;
    directory.switch_to_next_log()?;
    directory.remove_other_logs()?;
    tracing::info!(
        values = migration.values,
        batch = migration.batch,
        "the data directory is in the current format"
    );
    Ok(migration)
}

/// Takes a key and its sealed value.
type Put<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), Error> + 'a;

/// Read the old log, prove it as its version could, and hand its values to `put` as this version has them; gives the new head.
fn carry(directory: &Directory, put: &mut Put<'_>) -> Result<(Position, Migration), Error> {
    let mark = HighWater::open(&directory.high_water_path()).map(|(_, mark)| mark);
    let disk = open_engine(&directory.store_dir())?;
    // Version 2 was never released, and no crash leaves it.
    let mut position = prove_v1(&disk, mark)?;
    let mut values = 0;
    let mut stories = Stories::new(&directory.role());
    disk.range(Bound::Unbounded, &mut |key, sealed| {
        if key != HEAD_KEY {
            let (batch, body) = codec::unseal(key, sealed).map_err(|e| super::damaged(&disk, key, &e))?;
            let body = stories.carry(key, body).map_err(|what| damaged(disk.file(), key, &what))?;
            let sealed = codec::seal(key, batch, &body);
            position.tally(key).add(key, &sealed);
            values += 1;
            put(key, &sealed)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let migration = Migration {
        from: directory.version(),
        to: crate::migrations::CURRENT,
        values,
        batch: position.batch,
    };
    Ok((position, migration))
}

/// Where a whole version 1 log stands, with nothing counted.
fn prove_v1(disk: &Disk, mark: Result<Mark, Error>) -> Result<Position, Error> {
    let mut upgrade = Upgrade::default();
    disk.range(Bound::Unbounded, &mut |key, sealed| {
        upgrade.take(key, sealed).map_err(|what| damaged(disk.file(), key, &what))?;
        Ok(ControlFlow::Continue(()))
    })?;
    let (head, ..) = upgrade.finish().map_err(|what| damaged(disk.file(), HEAD_KEY, &what))?;
    let found = Mark {
        batch: head.batch,
        sum: head.sum,
    };
    match mark {
        Ok(mark) => refuse_rollback((disk.file(), None), found, mark)?,
        // Version 1 made the file after the store, and synced it with every 64th commit only.
        Err(Error::Damaged { .. }) if head.batch < V1_SYNC_EVERY => {}
        Err(error) => return Err(error),
    }
    Ok(Position::new(head.epoch, head.batch, head.next_seq))
}

/// The new log is written whole before the old one goes.
fn refuse_full(directory: &Directory) -> Result<(), Error> {
    let store = directory.store_dir();
    let mut size = 0;
    if exists(&store)? {
        for path in list(&store)? {
            size += path.metadata().map_err(Error::at("look at", &path))?.len();
        }
    }
    directory.refuse_full(size + FREE_FLOOR)
}

fn damaged(file: &Path, key: &[u8], what: &str) -> Error {
    super::damaged_key(file, key, what)
}
