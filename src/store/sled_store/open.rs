//! From a directory to a store that may be served from.
//!
//! Called by `SledStore::open` only. It must never serve or write before the store is proved whole, and never take a lost store for a
//! new one.

use super::disk::Disk;
use super::high_water::{HighWater, Mark};
use super::{HEAD_KEY, Position, SledStore, verify};
use crate::store::directory::{Directory, exists, list, sync_names_at_once, sync_parent, sync_tree};
use crate::store::{Error, codec};
use std::fs;
use std::path::Path;

pub(super) fn open(directory: &Directory) -> Result<SledStore, Error> {
    let dir = directory.store_dir();
    let high_water = directory.path().join("high-water");
    // The high-water file is made after the store was first opened, so it proves that there was one.
    let served_before = exists(&high_water)?;
    if !exists(&dir)? {
        if served_before {
            let what = format!(
                "it is missing, and {} tells of commits in it; restore the whole directory",
                high_water.display()
            );
            return Err(Error::Damaged { file: dir, what });
        }
        create(&dir)?;
    }
    tidy(&dir, served_before)?;
    // The engine renames a new index into place and then zeroes what only the old one needs: that order must hold on disk as well.
    sync_names_at_once(&dir)?;
    let disk = Disk::open(&dir)?;
    // After a kill the engine recovers from the page cache; what it shows must be on disk before anyone is told of it.
    sync_tree(&dir)?;
    sync_parent(&dir)?;
    let position = verify::verify(&disk)?;
    let (high_water, mark) = HighWater::open(&high_water)?;
    refuse_rollback(&disk, &position, mark)?;
    let store = SledStore::new(disk, position, high_water, directory.hold());
    let head = store.raise_epoch()?;
    tracing::info!(
        epoch = head.epoch,
        batch = head.batch,
        next_seq = head.next_seq,
        values = position.count,
        "store opened"
    );
    Ok(store)
}

/// Make an empty store, whole or not at all: the engine writes its first files without syncing them.
fn create(dir: &Path) -> Result<(), Error> {
    let new = dir.with_extension("new");
    if exists(&new)? {
        fs::remove_dir_all(&new).map_err(Error::at("remove", &new))?;
    }
    let disk = Disk::open(&new)?;
    let empty = Position {
        epoch: 0,
        batch: 0,
        next_seq: 1,
        count: 0,
        sum: 0,
    };
    let head = codec::seal(HEAD_KEY, empty.batch, &codec::encode(&empty));
    disk.commit(vec![(HEAD_KEY.to_vec(), Some(head))])?;
    drop(disk);
    sync_tree(&new)?;
    fs::rename(&new, dir).map_err(Error::at("rename to", dir))?;
    sync_parent(dir)
}

/// Remove what the engine trips over, refuse what it would take the wrong way.
///
/// Its index files, `snap.<lsn>`, must stay: after writing one it zeroes the log segments that hold nothing live, and an open without
/// the index takes such a gap for a torn log and empties it for good.
fn tidy(dir: &Path, served_before: bool) -> Result<(), Error> {
    let mut indexed = false;
    for path in list(dir)? {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(b"snap.") && name.ends_with(b".generating") {
            // Half written when an earlier open ended. The engine takes the newest name, so every open would fail.
            fs::remove_file(&path).map_err(Error::at("remove", &path))?;
        } else if name.starts_with(b"snap.") {
            indexed = true;
        }
    }
    if served_before && !indexed {
        let what = "its index file, snap.*, is missing, and without it the log cannot be read; restore the whole directory".to_owned();
        return Err(Error::Damaged {
            file: dir.to_owned(),
            what,
        });
    }
    let blobs = dir.join("blobs");
    if exists(&blobs)?
        && let Some(file) = list(&blobs)?.into_iter().next()
    {
        let what = "no value is long enough for a file here, so the log does not hold what was committed".to_owned();
        return Err(Error::Damaged { file, what });
    }
    Ok(())
}

fn refuse_rollback(disk: &Disk, position: &Position, mark: Option<Mark>) -> Result<(), Error> {
    let Some(mark) = mark else {
        if position.batch > 0 {
            tracing::warn!("no high-water mark can be read, so this start cannot tell whether the store is an old one");
        }
        return Ok(());
    };
    let what = if position.batch < mark.batch {
        format!("it ends at commit {}, and commit {} was confirmed", position.batch, mark.batch)
    } else if position.batch == mark.batch && position.sum != mark.sum {
        format!("commit {} is not the one that was confirmed", mark.batch)
    } else {
        return Ok(());
    };
    Err(Error::Damaged {
        file: disk.file().to_owned(),
        what,
    })
}
