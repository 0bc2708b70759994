//! Reads what a task has written, from the file its shim keeps (`job_types::exec`), while it grows or afterwards.
//!
//! Used by `logs`. The task may have put anything in place of its directory or its files: nothing is followed out of the work directory, no pipe
//! is waited on, and what is not a plain file of its own is as good as gone. Every method blocks for the disk.

use super::directory;
use super::table::Attempt;
use crate::job_types::exec::{STDERR, STDOUT};
use rustix::fs::{Mode, OFlags, SeekFrom, openat, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Read at once while the beginning of the last lines is looked for.
const BLOCK: u64 = 64 * 1024;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// An open log.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
}

impl LogFile {
    /// Open the log of an attempt; `None` when there is none.
    ///
    /// # Errors
    /// What is there is no plain file of this task alone, or cannot be read.
    pub(super) fn open(work_dir: &Path, attempt: &Attempt, stream: Stream) -> io::Result<Option<Self>> {
        let name = match stream {
            Stream::Stdout => STDOUT,
            Stream::Stderr => STDERR,
        };
        match walk(work_dir, attempt, name) {
            Ok(file) => {
                let meta = file.metadata()?;
                if !meta.is_file() || meta.nlink() != 1 {
                    return Err(io::Error::other(format!("{name} is not the file that the worker made")));
                }
                Ok(Some(Self { file }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Err(io::Error::other(format!("{name} is not the file that the worker made"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Read at a place, or at the next that is kept; the place and the bytes. No bytes: the end, for now.
    pub(super) fn read(&self, from: u64, max: usize) -> io::Result<(u64, Vec<u8>)> {
        let mut at = from;
        loop {
            let Some(data) = self.data_from(at)? else {
                return Ok((at, Vec::new()));
            };
            let room = usize::try_from(self.hole_from(data)?.saturating_sub(data)).unwrap_or(max).min(max);
            let mut bytes = vec![0; room];
            let read = self.file.read_at(&mut bytes, data)?;
            bytes.truncate(read);
            // Dropped while it was read: zeros are not what was written.
            if read == 0 || self.data_from(data)? == Some(data) {
                return Ok((data, bytes));
            }
            at = data;
        }
    }

    /// Where the last `lines` begin, or what is kept of them.
    pub(super) fn start_of_tail(&self, lines: u32) -> io::Result<u64> {
        let end = self.file.metadata()?.len();
        let first = self.last_kept()?;
        let (mut at, mut left) = (end, u64::from(lines));
        let mut block = Vec::new();
        while at > first {
            let from = at.saturating_sub(BLOCK).max(first);
            block.resize(usize::try_from(at - from).unwrap_or_default(), 0);
            self.file.read_exact_at(&mut block, from)?;
            for (place, _) in (from..)
                .zip(&block)
                .filter(|(_, byte)| **byte == b'\n')
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                // The last line's own end begins no other.
                if place + 1 == end {
                    continue;
                }
                left -= 1;
                if left == 0 {
                    return Ok(place + 1);
                }
            }
            at = from;
        }
        Ok(first)
    }

    /// Where the last unbroken piece begins.
    fn last_kept(&self) -> io::Result<u64> {
        let (mut at, mut first) = (0, 0);
        while let Some(data) = self.data_from(at)? {
            first = data;
            at = self.hole_from(data)?;
        }
        Ok(first)
    }

    /// The first place from `at` on that holds something. A file system that does not know says `at` itself.
    fn data_from(&self, at: u64) -> io::Result<Option<u64>> {
        match seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((at < self.file.metadata()?.len()).then_some(at)),
            Err(error) => Err(error.into()),
        }
    }

    fn hole_from(&self, at: u64) -> io::Result<u64> {
        match seek(&self.file, SeekFrom::Hole(at)) {
            Ok(hole) => Ok(hole),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(self.file.metadata()?.len()),
            Err(error) => Err(error.into()),
        }
    }
}

fn walk(work_dir: &Path, attempt: &Attempt, name: &str) -> Result<File, Errno> {
    let components = directory::components(attempt);
    let dir = directory::open_inside(work_dir, &components.each_ref().map(String::as_str))?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(&dir, name, flags, Mode::empty()).map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ids::TaskKey;
    use rustix::fs::FallocateFlags;
    use std::os::unix::fs::symlink;

    fn place() -> (tempfile::TempDir, Attempt) {
        let dir = tempfile::tempdir().unwrap();
        let attempt = Attempt {
            key: TaskKey::parse("j", "../t").unwrap(),
            number: 1,
        };
        std::fs::create_dir_all(directory::of_attempt(dir.path(), &attempt)).unwrap();
        (dir, attempt)
    }

    #[test]
    fn what_a_task_left_in_place_of_its_log_is_not_followed() {
        let (dir, attempt) = place();
        let own = directory::of_attempt(dir.path(), &attempt);
        let open = || LogFile::open(dir.path(), &attempt, Stream::Stderr);
        assert!(open().unwrap().is_none());
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "secret\n").unwrap();
        let stderr = own.join("stderr");
        symlink(&secret, &stderr).unwrap();
        assert!(open().unwrap_err().to_string().contains("not the file"));
        std::fs::remove_file(&stderr).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &stderr, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(open().unwrap_err().to_string().contains("not the file"));
        std::fs::remove_file(&stderr).unwrap();
        std::fs::hard_link(&secret, &stderr).unwrap();
        assert!(open().unwrap_err().to_string().contains("not the file"));
        std::fs::remove_file(&stderr).unwrap();
        std::fs::create_dir(&stderr).unwrap();
        assert!(open().unwrap_err().to_string().contains("not the file"));
        std::fs::remove_dir_all(&own).unwrap();
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        std::fs::write(dir.path().join("elsewhere/stderr"), "x").unwrap();
        symlink(dir.path().join("elsewhere"), &own).unwrap();
        assert!(open().unwrap_err().to_string().contains("not the file"), "a link in the middle");
    }

    #[test]
    fn the_last_lines_are_found_and_holes_are_passed_over() {
        let (dir, attempt) = place();
        let path = directory::of_attempt(dir.path(), &attempt).join("stdout");
        std::fs::write(&path, "one\ntwo\nthree").unwrap();
        let log = LogFile::open(dir.path(), &attempt, Stream::Stdout).unwrap().unwrap();
        let tail = |lines| log.start_of_tail(lines).unwrap();
        assert_eq!((tail(1), tail(2), tail(3), tail(9)), (8, 4, 0, 0));
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!((tail(1), tail(2)), (8, 4));
        assert_eq!(log.read(4, 3).unwrap(), (4, b"two".to_vec()));
        assert_eq!(log.read(14, 3).unwrap(), (14, Vec::new()));

        let line = "0123456789abcde\n";
        std::fs::write(&path, line.repeat(1 << 16)).unwrap();
        let (hole, kept) = (64 * 1024, 512 * 1024);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(File::options().write(true).open(&path).unwrap(), flags, hole, kept - hole).unwrap();
        let (at, before) = log.read(0, 1 << 20).unwrap();
        assert_eq!((at, before.len() as u64), (0, hole), "up to the hole");
        let (at, after) = log.read(hole, 16).unwrap();
        assert_eq!((at, after), (kept, line.as_bytes().to_vec()));
        assert_eq!(tail(2), (1 << 20) - 32);
        assert_eq!(tail(u32::MAX), kept, "no further than it is whole");
    }
}
