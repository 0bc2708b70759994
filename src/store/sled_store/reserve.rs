//! Space for the log, taken from the file system before the engine needs it.
//!
//! Called by `Disk` before each commit, and whenever the engine begins a segment. An engine that met a full disk once takes no write any more, and fails reads too (a read may
//! split a page, which is a write); it must never meet one. What is reserved here lies behind the end of the file, so that its length
//! says what it said before.

use crate::store::Error;
use crate::store::space::free_at;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;

/// Bytes reserved behind the end of the log: when the engine is seen to have begun a segment it may have filled that one in memory, and the next one
/// is asked for before it goes on. The log grows by segments, so the file system is asked once for each.
const AHEAD: u64 = 2 * super::disk::SEGMENT as u64;

/// What is known of the space behind the end of the log.
#[derive(Default)]
pub(super) struct Reserve {
    /// Length of the log when it was last looked at.
    len: u64,
    /// There is space up to here.
    pub(super) until: u64,
}

impl Reserve {
    /// See to it that the next commit finds room in the log at `path`. The error is [`full`](Error::is_full) when there is none.
    pub(super) fn ensure(&mut self, log: &File, path: &Path) -> Result<(), Error> {
        let len = log.metadata().map_err(Error::at("look at", path))?.len();
        if len < self.len {
            // The engine has cut off its end, and what was reserved behind it went with it.
            self.until = len;
        }
        self.len = len;
        if len + AHEAD <= self.until {
            return Ok(());
        }
        let failed = match fallocate(log, FallocateFlags::KEEP_SIZE, len, AHEAD) {
            Ok(()) => {
                self.until = len + AHEAD;
                return Ok(());
            }
            // A file system that cannot reserve: all that can be done is to look.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if free_at(path)? >= AHEAD => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => io::ErrorKind::StorageFull.into(),
            Err(error) => error.into(),
        };
        Err(Error::at("reserve space for", path)(failed))
    }
}
