//! A data directory held still, and a copy of its log to look at.
//!
//! Used by every store command that only looks. The storage engine writes when it opens (an index file; on a damaged log it may zero or
//! cut what it does not understand), so it never gets the original: the log is copied first, which costs room for a second one and, on a
//! file system that shares blocks between files, not even that. What must hold of the original all the same: nobody else has it, and
//! nothing in it but the text in `LOCK` and a leftover in `work/` is ever changed.

use super::progress::Progress;
use crate::store::Error;
use crate::store::directory::{Directory, FREE_FLOOR};
use crate::store::sled_store::SledStore;
use anyhow::Context;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Names of copies in `work/`. One that is there when a command starts belonged to a command that was killed.
const PREFIX: &str = "store-copy-";

/// See the file's head.
pub(super) struct Specimen {
    /// The original, held.
    pub(super) directory: Directory,
    /// The copy, held as well.
    copy: Directory,
    _scratch: TempDir,
}

impl Specimen {
    /// Hold the directory and copy its log, to `scratch` or into the directory's `work/`.
    ///
    /// # Errors
    /// It is held by a role, it is no data directory, or there is no room for the copy.
    pub(super) fn take(data_dir: &Path, scratch: Option<&Path>) -> anyhow::Result<Specimen> {
        let directory = Directory::inspect(data_dir)?;
        let parent = match scratch {
            Some(scratch) => scratch.to_owned(),
            None => {
                let work = directory.work_dir();
                // Empty directories get lost when directories are copied around; if it cannot be made, the next step says so.
                let _ = fs::create_dir_all(&work);
                remove_leftovers(&work);
                work
            }
        };
        let total = size_of(&directory.store_dir());
        refuse_full(&parent, total)?;
        let scratch = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent).with_context(|| {
            format!(
                "cannot make a directory in {} for a copy of the log; give another --scratch",
                parent.display()
            )
        })?;
        let outline = ["FORMAT".into(), inside(&directory, &directory.high_water_path())];
        let store = inside(&directory, &directory.store_dir());
        let progress = Progress::bytes("copying the log", total);
        let copied = outline
            .iter()
            .chain([&store])
            .try_for_each(|name| copy(&directory.path().join(name), &scratch.path().join(name), &progress));
        copied.with_context(|| {
            format!(
                "cannot copy the log to {}, which takes {total} bytes; give another --scratch",
                scratch.path().display()
            )
        })?;
        let copy = Directory::inspect(scratch.path())?;
        Ok(Specimen {
            directory,
            copy,
            _scratch: scratch,
        })
    }

    /// The copy as a data directory, without payload files.
    pub(super) fn copy(&self) -> &Directory {
        &self.copy
    }

    /// Open the copied store and prove all its values. Errors name the files of the original.
    pub(super) fn open(&self) -> Result<SledStore, Error> {
        SledStore::inspect(&self.copy).map_err(|error| self.as_of_original(error))
    }

    /// The error, about the original.
    pub(super) fn as_of_original(&self, error: Error) -> Error {
        let original = |path: PathBuf| match path.strip_prefix(self.copy.path()) {
            Ok(inside) => self.directory.path().join(inside),
            Err(_) => path,
        };
        match error {
            Error::Damaged { file, what } => Error::Damaged {
                file: original(file),
                what,
            },
            Error::WrongDirectory { dir, what } => Error::WrongDirectory { dir: original(dir), what },
            other => other,
        }
    }
}

/// A copy must not fill the disk that roles write to.
fn refuse_full(parent: &Path, total: u64) -> anyhow::Result<()> {
    let stat = rustix::fs::statvfs(parent)
        .with_context(|| format!("cannot ask for free space at {}; give another --scratch", parent.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    anyhow::ensure!(
        free >= total + FREE_FLOOR,
        "{} has {free} bytes free, and a copy of the log takes {total} and must leave {FREE_FLOOR}; give another --scratch",
        parent.display()
    );
    Ok(())
}

/// Bytes in the files of a directory; what cannot be looked at counts nothing.
pub(super) fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn inside(directory: &Directory, path: &Path) -> PathBuf {
    path.strip_prefix(directory.path()).unwrap_or(path).to_owned()
}

/// Copies files, and directories with what is in them; what is not there is left out, for the look at the copy to find.
fn copy(from: &Path, to: &Path, progress: &Progress) -> std::io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if !from.is_dir() {
        return match fs::copy(from, to) {
            Ok(bytes) => {
                progress.more(bytes);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()), progress)?;
    }
    Ok(())
}

fn remove_leftovers(work: &Path) {
    let entries = fs::read_dir(work).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(dir = %entry.path().display(), %error, "a leftover stays");
        }
    }
}
