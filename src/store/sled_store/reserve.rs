//! Space for the log, taken from the file system before the engine needs it.
//!
//! Called by `Disk` before each commit, and whenever the engine begins a segment. An engine that met a full disk once takes no write any more, and fails reads too (a read may
//! split a page, which is a write); it must never meet one. What is reserved here lies behind the end of the file, so that its length
//! says what it said before.

use crate::store::Error;
use crate::store::space::{LOW, free_at};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes reserved behind the end of the log: when the engine is seen to have begun a segment it may have filled that one in memory, and the next one
/// is asked for before it goes on. The log grows by segments, so the file system is asked once for each.
const AHEAD: u64 = 2 * super::disk::SEGMENT as u64;

/// What is known of the space behind the end of the log.
#[derive(Default)]
pub(super) struct Reserve {
    /// Length of the log when it was last looked at.
    len: AtomicU64,
    /// There is space up to here.
    until: AtomicU64,
    asking: Mutex<()>,
}

impl Reserve {
    /// See to it that the next commit finds room in the log at `path`. The error is [`full`](Error::is_full) when there is none.
    pub(super) fn ensure(&self, log: &File, path: &Path) -> Result<(), Error> {
        if self.is_ahead(len(log, path)?, AHEAD) {
            return Ok(());
        }
        let asking = self.asking();
        let len = self.look(log, path)?;
        if self.is_ahead(len, AHEAD) {
            return Ok(());
        }
        let asked = match self.ask(&asking, log, len, AHEAD) {
            // A file system that cannot reserve: all that can be done is to look.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if free_at(path)? >= AHEAD => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::StorageFull.into()),
            asked => asked.map_err(io::Error::from),
        };
        asked.map_err(Error::at("reserve space for", path))
    }

    /// [`Reserve::ensure`], and as much again where there is plenty, so that commits, which would wait for it, need not ask.
    pub(super) fn ensure_more(&self, log: &File, path: &Path) -> Result<(), Error> {
        if !self.is_ahead(len(log, path)?, AHEAD + AHEAD / 2) && free_at(path)? >= LOW {
            let asking = self.asking();
            let _ = self.ask(&asking, log, self.look(log, path)?, 2 * AHEAD);
        }
        self.ensure(log, path)
    }

    /// Up to where there is space.
    #[cfg(test)]
    pub(super) fn until(&self) -> u64 {
        self.until.load(Ordering::Relaxed)
    }

    /// Not if the log is shorter than it was: that takes another look.
    fn is_ahead(&self, len: u64, ahead: u64) -> bool {
        len >= self.len.fetch_max(len, Ordering::Relaxed) && len + ahead <= self.until.load(Ordering::Relaxed)
    }

    /// The length of the log, by who is the only one to ask.
    fn look(&self, log: &File, path: &Path) -> Result<u64, Error> {
        let len = len(log, path)?;
        if len < self.len.swap(len, Ordering::Relaxed) {
            // The engine has cut off its end, and what was reserved behind it went with it.
            self.until.store(len, Ordering::Relaxed);
        }
        Ok(len)
    }

    fn ask(&self, _: &MutexGuard<'_, ()>, log: &File, len: u64, ahead: u64) -> Result<(), Errno> {
        fallocate(log, FallocateFlags::KEEP_SIZE, len, ahead)?;
        self.until.fetch_max(len + ahead, Ordering::Relaxed);
        Ok(())
    }

    fn asking(&self) -> MutexGuard<'_, ()> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn len(log: &File, path: &Path) -> Result<u64, Error> {
    Ok(log.metadata().map_err(Error::at("look at", path))?.len())
}
