//! Makes a whole log beside the one that counts: the first one of a directory, one of a newer version, one from a backup.
//!
//! Called by `open`, `migrate` and the restore of the operator. What it makes is found under its name only when it was proved and is
//! durable; whoever called then lets it count with `Directory::switch_to_next_log`. It must never touch the log that counts.

use super::disk::Disk;
use super::high_water::{HighWater, Mark};
use super::journal::Journal;
use super::{HEAD_KEY, Position, group, verify};
use crate::store::directory::{Directory, exists, sync_parent, sync_tree};
use crate::store::{Error, VALUE_MAX, codec, write_cost};
use std::fs;
use std::path::PathBuf;

/// Values are written in batches of this cost, far below what one batch may have.
const BATCH_COST: usize = 2 * 1024 * 1024;

/// A log under construction.
pub struct Builder {
    dir: PathBuf,
    new: PathBuf,
    high_water: PathBuf,
    disk: Disk,
    writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    cost: usize,
}

impl Builder {
    /// Begin in [`Directory::next_log_dir`]; leftovers of an earlier try are removed.
    pub fn new(directory: &Directory) -> Result<Builder, Error> {
        let dir = directory.next_log_dir();
        let new = dir.with_extension("new");
        for leftover in [&dir, &new] {
            if exists(leftover)? {
                fs::remove_dir_all(leftover).map_err(Error::at("remove", leftover))?;
            }
        }
        fs::create_dir(&new).map_err(Error::at("create directory", &new))?;
        let disk = Disk::open(&new.join("store"))?;
        Ok(Builder {
            dir,
            new,
            high_water: directory.next_high_water_path(),
            disk,
            writes: Vec::new(),
            cost: 0,
        })
    }

    /// Write a stored value as it is, or remove it; of several words on one key the last one counts. [`Error::Damaged`] for what no commit can have
    /// written.
    pub fn put(&mut self, key: &[u8], sealed: Option<&[u8]>) -> Result<(), Error> {
        if key.len() > group::LONGEST_KEY
            || sealed.is_some_and(|sealed| sealed.len() > VALUE_MAX || sealed.first() != Some(&codec::ENVELOPE_FORMAT))
        {
            return Err(super::damaged_key(
                self.disk.file(),
                key,
                "it is longer than any that is written, or has no envelope",
            ));
        }
        self.cost += write_cost(key.len() + sealed.map_or(0, <[u8]>::len));
        self.writes.push((key.to_vec(), sealed.map(<[u8]>::to_vec)));
        if self.cost < BATCH_COST {
            return Ok(());
        }
        self.cost = 0;
        self.disk.commit(std::mem::take(&mut self.writes))
    }

    /// [`Builder::put`] for the head value, with the epoch raised: a log that comes back must not get an epoch that was given before.
    pub fn put_raised(&mut self, sealed_head: &[u8], epoch: u64) -> Result<(), Error> {
        let head = codec::unseal(HEAD_KEY, sealed_head).and_then(|(_, body)| codec::decode::<Position>(body));
        let mut position = head.map_err(|error| Error::Damaged {
            file: self.dir.clone(),
            what: format!("the head value it is made from: {error}"),
        })?;
        position.epoch = position.epoch.max(epoch);
        self.put_head(&position)
    }

    /// Close the log with its head value, which must have been put, prove it, and make it durable under its name.
    pub fn finish(mut self) -> Result<(), Error> {
        self.disk.commit(std::mem::take(&mut self.writes))?;
        drop(self.disk);
        // What a start will find is what is proved, and opening makes the index file that every later open needs.
        let disk = Disk::open(&self.new.join("store"))?;
        let position = verify::everything(&disk)?;
        drop(disk);
        Journal::create(&self.new.join("store"))?;
        HighWater::create(&self.high_water, Mark::of(&position))?;
        sync_tree(&self.new)?;
        fs::rename(&self.new, &self.dir).map_err(Error::at("rename to", &self.dir))?;
        sync_parent(&self.dir)
    }

    /// [`Builder::put`] for the head.
    pub(super) fn put_head(&mut self, position: &Position) -> Result<(), Error> {
        let sealed = codec::seal(HEAD_KEY, position.batch, &codec::encode(position));
        self.put(HEAD_KEY, Some(&sealed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_commit_can_have_written_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path(), "master", [1; 16]).unwrap();
        let mut builder = Builder::new(&directory).unwrap();
        let sealed = codec::seal(b"rda", 1, b"body");
        builder.put(b"rda", Some(&sealed)).unwrap();
        for (key, value) in [
            (vec![b'r'; 600], sealed.clone()),
            (b"rdb".to_vec(), [sealed.clone(), vec![0; VALUE_MAX]].concat()),
            (b"rdb".to_vec(), b"\x02\0\0\x03\0\0\0rdc".to_vec()),
            (b"rdb".to_vec(), Vec::new()),
        ] {
            let refused = builder.put(&key, Some(&value));
            assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        }
        builder.put(b"rdb", None).unwrap();
    }
}
