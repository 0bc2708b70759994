//! What a task writes to stdout or stderr, on its way into a file: all of it while it is little, beginning and end of it when it is much.
//!
//! Used by the shim only, between two looks at its program. A file keeps its first [`HEAD`] and at least its last [`TAIL`]; what is between
//! becomes a hole, so that every byte stays at its place and the file takes no more than [`HEAD`], [`TAIL`] and [`STEP`] of the disk. It must never let the
//! program wait: what cannot be written is dropped.

use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// How a program begins is kept: versions, arguments, what it found.
const HEAD: u64 = 1024 * 1024;
/// How it ends is what everybody looks for.
const TAIL: u64 = 14 * 1024 * 1024;
/// A hole grows by so much at once.
const STEP: u64 = 1024 * 1024;
/// Read at once; a pipe holds as much.
const BLOCK: usize = 64 * 1024;
/// The most that is taken from a pipe whose program has ended: what a pipe can hold at most.
const REST_MAX: usize = 1024 * 1024;
/// Written where the file system knows no holes.
const STOPPED: &str = "\n[fedbroker: 16 MiB were written, and this file system cannot drop the middle of a file: nothing more is kept]\n";

/// One stream of a program.
pub(super) struct Kept {
    /// Gone once nobody can write to it any more.
    pipe: Option<PipeReader>,
    file: File,
    /// How much of the file is written.
    at: u64,
    /// Where its hole ends.
    hole: u64,
    /// Nothing more is kept.
    stopped: bool,
}

impl Kept {
    /// The file, and the end for the program. A file that is there becomes empty.
    pub(super) fn create(name: &str) -> std::io::Result<(Self, PipeWriter)> {
        let file = File::create(name)?;
        let (pipe, writer) = std::io::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let kept = Self {
            pipe: Some(pipe),
            file,
            at: 0,
            hole: HEAD,
            stopped: false,
        };
        Ok((kept, writer))
    }

    /// To be waited on; `None` once there is nothing to come.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Take what is there now, one block at most; how much it was.
    pub(super) fn take(&mut self) -> usize {
        let Some(pipe) = &mut self.pipe else { return 0 };
        let mut block = [0; BLOCK];
        match pipe.read(&mut block) {
            Ok(0) => self.pipe = None,
            Ok(read) => {
                self.keep(&block[..read]);
                return read;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.pipe = None,
        }
        0
    }

    /// Take what a program that has ended has left in its pipe.
    pub(super) fn take_rest(&mut self) {
        let mut rest = 0;
        while rest < REST_MAX {
            match self.take() {
                0 => return,
                read => rest += read,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.stopped {
            return;
        }
        // A full disk: nothing of this can be kept, and the program goes on.
        if self.file.write_all(bytes).is_err() {
            self.at = self.file.stream_position().unwrap_or(self.at);
            return;
        }
        self.at += bytes.len() as u64;
        let end = self.at.saturating_sub(TAIL);
        if end >= self.hole + STEP {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let end = end / STEP * STEP;
            if rustix::fs::fallocate(&self.file, flags, self.hole, end - self.hole).is_err() {
                self.stopped = true;
                let _ = self.file.write_all(STOPPED.as_bytes());
            }
            self.hole = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    /// The most a file takes of the disk, bytes.
    const KEPT_MAX: u64 = HEAD + TAIL + STEP;

    #[test]
    fn a_flood_leaves_its_beginning_and_its_end_where_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let (mut kept, mut writer) = Kept::create(path.to_str().unwrap()).unwrap();
        let line = |n: usize| format!("{n:015}\n");
        let lines = 4 * 1024 * 1024;
        for n in (0..lines).step_by(1024) {
            let block: String = (n..n + 1024).map(line).collect();
            writer.write_all(block.as_bytes()).unwrap();
            kept.take();
        }
        drop(writer);
        kept.take_rest();
        assert!(kept.pipe().is_none());
        let file = File::open(&path).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), 64 * 1024 * 1024, "every byte has its place");
        assert!(meta.blocks() * 512 <= KEPT_MAX, "{} bytes are kept", meta.blocks() * 512);
        let mut found = [0; 16];
        let tail = usize::try_from(TAIL / 16).unwrap();
        for n in [0, usize::try_from(HEAD / 16).unwrap() - 1, lines - tail, lines - 1] {
            file.read_exact_at(&mut found, n as u64 * 16).unwrap();
            assert_eq!(String::from_utf8_lossy(&found), line(n));
        }
        file.read_exact_at(&mut found, HEAD + 16).unwrap();
        assert_eq!(found, [0; 16], "the middle is not kept");
    }

    #[test]
    fn a_program_never_waits_for_what_cannot_be_kept() {
        let (pipe, mut writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&pipe, true).unwrap();
        // Every write to it fails: the disk is full.
        let file = File::options().write(true).open("/dev/full").unwrap();
        let mut kept = Kept {
            pipe: Some(pipe),
            file,
            at: 0,
            hole: HEAD,
            stopped: false,
        };
        for _ in 0..64 {
            writer.write_all(&[b'x'; BLOCK]).unwrap();
            assert_eq!(kept.take(), BLOCK);
        }
    }
}
