//! The data directory: who may use it, what is in it, and the steps that make files in it durable.
//!
//! Opened first by every role that survives a crash, then handed to `sled_store` and `payload`. It must never touch a directory that
//! it did not make, never let two processes in, and never accept a format it does not know.
//!
//! ```text
//! <data-dir>/LOCK         held with flock for the life of the process; names the holder
//!            FORMAT       role, stored-format version and instance id; its presence makes this a data directory
//!            store/       the storage engine, made by `sled_store`
//!            high-water   how far the store had come, made by `sled_store`
//!            payloads/    content-addressed files, see `payload`
//!            work/        scratch space of running jobs
//! ```

use super::Error;
use crate::migrations;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Free bytes a start needs: two segments of the storage engine (8 MiB each), the snapshot it writes at open (some MiB per million
/// values), and room to shut down in order. A disk that fills up during the open leaves a half snapshot behind.
pub const FREE_FLOOR: u64 = 64 * 1024 * 1024;

const TITLE: &str = "fedbroker data directory";

/// A data directory that this process holds. The lock lasts until the last clone is gone.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    instance: [u8; 16],
    created: bool,
    lock: Arc<File>,
}

impl Directory {
    /// Take the directory at `path` for `role` (one lower-case word), and make it if there is none.
    ///
    /// `instance` is the id a new directory gets; an existing one keeps its own. Errors: [`Error::Held`], [`Error::NewerFormat`],
    /// [`Error::WrongDirectory`], [`Error::Damaged`] for an unreadable `FORMAT`, and [`Error::Io`], which is
    /// [`full`](Error::is_full) when less than [`FREE_FLOOR`] is free.
    pub fn open(path: &Path, role: &str, instance: [u8; 16]) -> Result<Directory, Error> {
        let path = std::path::absolute(path).map_err(Error::at("find", path))?;
        create_dir_durably(&path)?;
        // Before anything is written: a mistyped --data-dir must not leave a LOCK in somebody's home.
        refuse_foreign(&path)?;
        let lock = take_lock(&path, role)?;
        refuse_foreign(&path)?;
        let format_path = path.join("FORMAT");
        let created = !exists(&format_path)?;
        if created {
            write_atomically(&format_path, format_text(role, instance).as_bytes())?;
        }
        let text = fs::read(&format_path).map_err(Error::at("read", &format_path))?;
        let instance = check_format(&path, &text, role)?;
        let directory = Directory {
            path,
            instance,
            created,
            lock: Arc::new(lock),
        };
        directory.refuse_full()?;
        for dir in [directory.payload_dir(), directory.work_dir()] {
            create_dir_durably(&dir)?;
        }
        // A process killed in here before may have left names that are only in the page cache.
        sync_dir(&directory.path)?;
        sync_parent(&directory.path)?;
        Ok(directory)
    }

    /// The directory itself, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the storage engine lives. It is made by `sled_store`, not here.
    pub fn store_dir(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Where payload files live; exists.
    pub fn payload_dir(&self) -> PathBuf {
        self.path.join("payloads")
    }

    /// Scratch space of running jobs; exists. What is in it at start belongs to no one.
    pub fn work_dir(&self) -> PathBuf {
        self.path.join("work")
    }

    /// The id this directory got when it was made.
    pub fn instance(&self) -> [u8; 16] {
        self.instance
    }

    /// True when this open made the directory.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Bytes an unprivileged process may still write on this file system.
    pub fn free_space(&self) -> Result<u64, Error> {
        let stat = rustix::fs::statvfs(&self.path).map_err(|e| Error::at("ask for free space at", &self.path)(e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// A hold on the lock for one who outlives this value.
    pub(super) fn hold(&self) -> Arc<File> {
        Arc::clone(&self.lock)
    }

    fn refuse_full(&self) -> Result<(), Error> {
        let free = self.free_space()?;
        if free >= FREE_FLOOR {
            return Ok(());
        }
        let what = format!(
            "data directory {} has {free} bytes free, a start needs {FREE_FLOOR}",
            self.path.display()
        );
        Err(Error::Io {
            what,
            source: io::ErrorKind::StorageFull.into(),
        })
    }
}

/// Make the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::at("sync directory", dir))
}

/// Make the name of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), Error> {
    match path.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Make a file or directory, and for a directory everything in it, durable; names included.
pub(super) fn sync_tree(path: &Path) -> Result<(), Error> {
    if !path.is_dir() {
        return File::open(path).and_then(|f| f.sync_all()).map_err(Error::at("sync", path));
    }
    for entry in list(path)? {
        sync_tree(&entry)?;
    }
    sync_dir(path)
}

/// Ask the file system to make each change of names in a directory durable as it happens, for a writer that does not sync it.
/// Some file systems cannot; they are left as they are.
pub(super) fn sync_names_at_once(dir: &Path) -> Result<(), Error> {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let opened = File::open(dir).map_err(Error::at("open", dir))?;
    if let Err(error) = ioctl_getflags(&opened).and_then(|flags| ioctl_setflags(&opened, flags | IFlags::DIRSYNC)) {
        tracing::debug!(dir = %dir.display(), %error, "the file system does not sync names at once");
    }
    Ok(())
}

/// The paths in a directory.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::at("list", dir))?;
    entries
        .map(|entry| entry.map(|e| e.path()).map_err(Error::at("list", dir)))
        .collect()
}

/// Whether there is something at `path`; unlike `Path::exists`, a failure to look is not a no.
pub(super) fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::at("look for", path))
}

/// Make a directory and the parents it lacks, and sync the name of each that is new.
fn create_dir_durably(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_dir_durably(parent)?;
    }
    match fs::create_dir(path) {
        Ok(()) => sync_parent(path),
        // Made by another process meanwhile; the caller finds out whose it is.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(Error::at("create directory", path)(e)),
    }
}

/// A file with these bytes, or no such file, also after a crash. A leftover of an earlier try is overwritten.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    let mut file = File::create(&new).map_err(Error::at("create", &new))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(Error::at("write", &new))?;
    fs::rename(&new, path).map_err(Error::at("rename to", path))?;
    sync_parent(path)
}

fn refuse_foreign(path: &Path) -> Result<(), Error> {
    // List first, look for FORMAT second: a process that is making the directory writes FORMAT before everything but LOCK.
    let foreign = list(path)?
        .into_iter()
        .find(|entry| !["LOCK", "FORMAT.new"].iter().any(|name| entry.ends_with(name)));
    match foreign {
        Some(entry) if !exists(&path.join("FORMAT"))? => {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let what = format!("holds {name} but no FORMAT, so it is not a data directory; give a new or an empty directory");
            Err(Error::WrongDirectory {
                dir: path.to_owned(),
                what,
            })
        }
        _ => Ok(()),
    }
}

/// flock is tied to the open file, so it holds while this process is stopped and ends with it, however it ends.
fn take_lock(dir: &Path, role: &str) -> Result<File, Error> {
    let path = dir.join("LOCK");
    let open = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let mut file = open.map_err(Error::at("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let holder = if text.trim().is_empty() {
                "another process".to_owned()
            } else {
                text.trim().to_owned()
            };
            return Err(Error::Held {
                dir: dir.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(e)) => return Err(Error::at("lock", &path)(e)),
    }
    let name_holder = |file: &mut File| {
        file.set_len(0)?;
        write!(file, "process {} ({role})", std::process::id())?;
        // The time the file system has just put on the file is the time of this start; no second clock is needed.
        let started = jiff::Timestamp::try_from(file.metadata()?.modified()?).map_err(io::Error::other)?;
        writeln!(file, ", started {started:.0}")
    };
    name_holder(&mut file).map_err(Error::at("write", &path))?;
    Ok(file)
}

/// The content of `FORMAT`: fixed lines, closed by the CRC-32 of the ones above it in hex. In every future version the first line stays
/// and the second one says `format N`, so that an old release can tell.
fn format_text(role: &str, instance: [u8; 16]) -> String {
    let instance = u128::from_be_bytes(instance);
    let text = format!("{TITLE}\nformat {}\nrole {role}\ninstance {instance:032x}\n", migrations::CURRENT);
    let checksum = crc32fast::hash(text.as_bytes());
    format!("{text}check {checksum:08x}\n")
}

/// Whether this release and role may use a directory with this `FORMAT`; gives its instance id.
fn check_format(dir: &Path, bytes: &[u8], role: &str) -> Result<[u8; 16], Error> {
    let damaged = |what: &str| Error::Damaged {
        file: dir.join("FORMAT"),
        what: what.to_owned(),
    };
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
    let mut lines = text.lines();
    if lines.next() != Some(TITLE) {
        return Err(damaged("the first line is not that of a data directory"));
    }
    let mut field = |name: &str| {
        let value = lines
            .next()
            .and_then(|line| line.strip_prefix(name))
            .and_then(|rest| rest.strip_prefix(' '));
        value.ok_or_else(|| damaged(&format!("the line with the {name} is missing")))
    };
    let found: u32 = field("format")?.parse().map_err(|_| damaged("the format is not a number"))?;
    if found > migrations::CURRENT {
        return Err(Error::NewerFormat {
            dir: dir.to_owned(),
            found,
            known: migrations::CURRENT,
        });
    }
    let stored_role = field("role")?;
    let instance = field("instance")?;
    let check = field("check")?;
    let (covered, _) = text
        .rsplit_once("check ")
        .ok_or_else(|| damaged("the line with the check is missing"))?;
    if found == 0 || check != format!("{:08x}", crc32fast::hash(covered.as_bytes())) {
        return Err(damaged("the checksum does not fit"));
    }
    if stored_role != role {
        let what = format!("belongs to the role {stored_role}, not {role}; give each role its own directory");
        return Err(Error::WrongDirectory { dir: dir.to_owned(), what });
    }
    let instance = u128::from_str_radix(instance, 16).map_err(|_| damaged("the instance is not a hexadecimal number"))?;
    Ok(instance.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = *b"0123456789abcdef";

    #[test]
    fn a_new_directory_keeps_its_instance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = Directory::open(&path, "master", ID).unwrap();
        assert!(first.created());
        assert_eq!(first.instance(), ID);
        drop(first);
        let second = Directory::open(&path, "master", [7; 16]).unwrap();
        assert!(!second.created());
        assert_eq!(second.instance(), ID);
    }

    #[test]
    fn a_second_opener_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Directory::open(dir.path(), "master", ID).unwrap();
        let hold = first.hold();
        drop(first);
        let Err(Error::Held { holder, .. }) = Directory::open(dir.path(), "master", ID) else {
            panic!("two holders")
        };
        assert!(
            holder.starts_with(&format!("process {} (master), started 2", std::process::id())),
            "{holder}"
        );
        drop(hold);
        Directory::open(dir.path(), "master", ID).unwrap();
    }

    #[test]
    fn foreign_directories_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        assert!(matches!(
            Directory::open(dir.path(), "master", ID),
            Err(Error::WrongDirectory { .. })
        ));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_half_made_directory_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("LOCK"), "").unwrap();
        fs::write(dir.path().join("FORMAT.new"), "fedbro").unwrap();
        assert!(Directory::open(dir.path(), "master", ID).unwrap().created());
        assert!(!dir.path().join("FORMAT.new").exists());
    }

    #[test]
    fn other_roles_formats_and_damage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Directory::open(dir.path(), "master", ID).unwrap());
        let reopen = || Directory::open(dir.path(), "master", ID);
        assert!(matches!(
            Directory::open(dir.path(), "cluster", ID),
            Err(Error::WrongDirectory { .. })
        ));
        let format = dir.path().join("FORMAT");
        let good = fs::read_to_string(&format).unwrap();
        fs::write(&format, "fedbroker data directory\nformat 2\nanything else\n").unwrap();
        assert!(matches!(reopen(), Err(Error::NewerFormat { found: 2, known: 1, .. })));
        for (from, to) in [
            ("instance 3", "instance 4"),
            ("role master", "role mastes"),
            ("fed", "fad"),
            ("format 1", "format 0"),
        ] {
            fs::write(&format, good.replacen(from, to, 1)).unwrap();
            assert!(matches!(reopen(), Err(Error::Damaged { .. })), "{from} -> {to}");
        }
        fs::write(&format, &good[..good.len() / 2]).unwrap();
        assert!(matches!(reopen(), Err(Error::Damaged { .. })));
        fs::write(&format, &good).unwrap();
        reopen().unwrap();
    }
}
