//! The data directory: who may use it, what is in it, and the steps that make files in it durable.
//!
//! Opened first by every role that survives a crash, then handed to `sled_store` and `payload`. It must never touch a directory that
//! it did not make, never let two processes in, and never accept a format it does not know.
//!
//! ```text
//! <data-dir>/LOCK            held with flock for the life of the process; names the holder
//!            FORMAT          see `format`; its presence makes this a data directory
//!            log-<n>/store/  the storage engine with the log that counts, made by `sled_store`
//!            high-water-<n>  how far that log had come; outside of it, so that an old copy put in its place shows
//!            payloads/       content-addressed files, see `payload`
//!            work/           scratch space of running jobs
//! ```
//!
//! A log is made whole beside the one that counts and becomes it with the exchange of `FORMAT` ([`Directory::switch_to_next_log`]); other
//! logs are leftovers.

mod format;

use super::Error;
use super::space::free_at;
use crate::migrations;
use format::{BadFormat, Format};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Free bytes a start needs: two segments of the storage engine (8 MiB each), the snapshot it writes at open (some MiB per million
/// values), and room to shut down in order. A disk that fills up during the open leaves a half snapshot behind.
pub const FREE_FLOOR: u64 = 64 * 1024 * 1024;

/// A data directory that this process holds. The lock lasts until the last clone is gone.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    created: bool,
    format: Arc<Mutex<Format>>,
    lock: Arc<Lock>,
}

/// A file that is locked until this goes.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    /// Said, and not left to the close: a child that is being made has a copy of the descriptor until its program begins, and the lock with it.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the lock of the data directory stays until the process ends");
        }
    }
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
        refuse_full(&path, FREE_FLOOR)?;
        let format_path = path.join("FORMAT");
        let created = !exists(&format_path)?;
        if created {
            write_atomically(&format_path, Format::new(role, instance).text().as_bytes())?;
        }
        let format = read_format(&path)?;
        if format.role != role {
            let what = format!("belongs to the role {}, not {role}; give each role its own directory", format.role);
            return Err(Error::WrongDirectory { dir: path, what });
        }
        let directory = Directory {
            path,
            created,
            format: Arc::new(Mutex::new(format)),
            lock: Arc::new(lock),
        };
        for dir in [directory.payload_dir(), directory.work_dir()] {
            create_dir_durably(&dir)?;
        }
        // A process killed in here before may have left names that are only in the page cache.
        sync_dir(&directory.path)?;
        sync_parent(&directory.path)?;
        Ok(directory)
    }

    /// Take an existing directory of any role and known version, to look at or to mend. Makes nothing but the text in `LOCK`.
    ///
    /// Errors: as for [`Directory::open`]; [`Error::WrongDirectory`] also when there is none.
    pub fn inspect(path: &Path) -> Result<Directory, Error> {
        let path = std::path::absolute(path).map_err(Error::at("find", path))?;
        if !exists(&path.join("FORMAT"))? {
            if path.is_dir()
                && let Some(log) = list(&path)?.into_iter().find(|entry| is_log(entry))
            {
                return Err(lost_format(&path, &log));
            }
            let what = "is not a data directory: it has no FORMAT; give the --data-dir of a role".to_owned();
            return Err(Error::WrongDirectory { dir: path, what });
        }
        let lock = take_lock(&path, "store command")?;
        let format = Arc::new(Mutex::new(read_format(&path)?));
        Ok(Directory {
            path,
            created: false,
            format,
            lock: Arc::new(lock),
        })
    }

    /// Say whose directory this is. The first owner it is given stays; [`Error::WrongDirectory`] for any other.
    pub fn claim(&self, owner: &str) -> Result<(), Error> {
        let escaped = owner.escape_default().to_string();
        let mut format = self.lock_format();
        match &format.owner {
            Some(found) if *found == escaped => Ok(()),
            Some(found) => {
                let what = format!("belongs to {found}, not {escaped}; give each party its own directory");
                Err(Error::WrongDirectory {
                    dir: self.path.clone(),
                    what,
                })
            }
            // An older version keeps its text until it is brought up to date.
            None => {
                format.owner = Some(escaped);
                if format.version == migrations::CURRENT {
                    self.write_format(&format)?;
                }
                Ok(())
            }
        }
    }

    /// [`Directory::claim`] for a directory made anew from a backup: the owner is escaped already.
    pub fn restore_owner(&self, escaped: &str) -> Result<(), Error> {
        let mut format = self.lock_format();
        format.owner = Some(escaped.to_owned());
        self.write_format(&format)
    }

    /// The directory itself, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The role it belongs to.
    pub fn role(&self) -> String {
        self.lock_format().role.clone()
    }

    /// Whose it is, escaped as in `FORMAT`; `None` before the first [`Directory::claim`].
    pub fn owner(&self) -> Option<String> {
        self.lock_format().owner.clone()
    }

    /// Stored-format version; below [`migrations::CURRENT`] until the store was opened once.
    pub fn version(&self) -> u32 {
        self.lock_format().version
    }

    /// Number of the log that counts; 0 for none yet.
    pub fn log(&self) -> u64 {
        self.lock_format().log
    }

    /// Where the log that counts lives.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join(format!("log-{}", self.log()))
    }

    /// Where the storage engine lives.
    pub fn store_dir(&self) -> PathBuf {
        match self.version() {
            1 => self.path.join("store"),
            _ => self.log_dir().join("store"),
        }
    }

    /// The file that tells how far the store had come.
    pub fn high_water_path(&self) -> PathBuf {
        match self.version() {
            1 => self.path.join("high-water"),
            _ => self.path.join(format!("high-water-{}", self.log())),
        }
    }

    /// The same file of the log that may come next.
    pub fn next_high_water_path(&self) -> PathBuf {
        self.path.join(format!("high-water-{}", self.log() + 1))
    }

    /// Where the log is made that may replace the one that counts.
    pub fn next_log_dir(&self) -> PathBuf {
        self.path.join(format!("log-{}", self.log() + 1))
    }

    /// Let the log in [`Directory::next_log_dir`], whole and durable, be the one that counts, and the version the current one: all of it
    /// or nothing, also after a power cut.
    pub fn switch_to_next_log(&self) -> Result<(), Error> {
        let mut format = self.lock_format();
        let next = Format {
            version: migrations::CURRENT,
            log: format.log + 1,
            ..format.clone()
        };
        self.write_format(&next)?;
        *format = next;
        Ok(())
    }

    /// Remove what a log was made from, and logs that were not finished.
    pub(super) fn remove_other_logs(&self) -> Result<(), Error> {
        if self.version() != migrations::CURRENT || self.log() == 0 {
            return Ok(());
        }
        let (current, high_water) = (self.log_dir(), self.high_water_path());
        for path in list(&self.path)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_leftover = path != current && name.starts_with("log-") || name == "store" || name == "store.new";
            if is_leftover {
                fs::remove_dir_all(&path).map_err(Error::at("remove", &path))?;
            } else if path != high_water && name.starts_with("high-water") {
                fs::remove_file(&path).map_err(Error::at("remove", &path))?;
            }
        }
        sync_dir(&self.path)
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
        self.lock_format().instance
    }

    /// True when this open made the directory.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Bytes an unprivileged process may still write on this file system.
    pub fn free_space(&self) -> Result<u64, Error> {
        free_at(&self.path)
    }

    /// [`Error::Io`] that is [`full`](Error::is_full) unless `needed` bytes are free.
    pub(super) fn refuse_full(&self, needed: u64) -> Result<(), Error> {
        refuse_full(&self.path, needed)
    }

    /// A hold on the lock for one who outlives this value.
    pub(super) fn hold(&self) -> Arc<Lock> {
        Arc::clone(&self.lock)
    }

    fn lock_format(&self) -> MutexGuard<'_, Format> {
        self.format.lock().expect("nothing under this lock panics")
    }

    fn write_format(&self, format: &Format) -> Result<(), Error> {
        write_atomically(&self.path.join("FORMAT"), format.text().as_bytes())
    }
}

/// Make the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::at("sync directory", dir))
}

/// Make the name of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Error> {
    match path.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Make a file or directory, and for a directory everything in it, durable; names included.
pub(crate) fn sync_tree(path: &Path) -> Result<(), Error> {
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
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::at("list", dir))?;
    entries
        .map(|entry| entry.map(|e| e.path()).map_err(Error::at("list", dir)))
        .collect()
}

/// Whether there is something at `path`; unlike `Path::exists`, a failure to look is not a no.
pub(crate) fn exists(path: &Path) -> Result<bool, Error> {
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

/// The log of a data directory, by its name.
fn is_log(entry: &Path) -> bool {
    let name = entry.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("log-").is_some_and(|number| number.parse::<u64>().is_ok()) && entry.join("store").is_dir()
}

fn lost_format(dir: &Path, log: &Path) -> Error {
    Error::Damaged {
        file: dir.join("FORMAT"),
        what: format!(
            "it is missing, and {} holds what was stored; do not take it for an empty directory",
            log.display()
        ),
    }
}

fn refuse_foreign(path: &Path) -> Result<(), Error> {
    // List first, look for FORMAT second: a process that is making the directory writes FORMAT before everything but LOCK.
    let mut foreign = list(path)?;
    foreign.retain(|entry| !["LOCK", "FORMAT.new"].iter().any(|name| entry.ends_with(name)));
    // A log tells more than anything else.
    foreign.sort_by_key(|entry| !is_log(entry));
    let foreign = foreign.into_iter().next();
    match foreign {
        Some(entry) if !exists(&path.join("FORMAT"))? && is_log(&entry) => Err(lost_format(path, &entry)),
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

fn refuse_full(path: &Path, needed: u64) -> Result<(), Error> {
    let free = free_at(path)?;
    if free >= needed {
        return Ok(());
    }
    let what = format!(
        "data directory {} has {free} bytes free, and {needed} are needed; make room and start again",
        path.display()
    );
    Err(Error::Io {
        what,
        source: io::ErrorKind::StorageFull.into(),
    })
}

/// flock is tied to the open file, so it holds while this process is stopped and ends with it, however it ends.
fn take_lock(dir: &Path, role: &str) -> Result<Lock, Error> {
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
    match name_holder(&mut file).map_err(Error::at("write", &path)) {
        // It is held all the same; whoever comes second is told so without a name.
        Err(error) if !error.is_full() => Err(error),
        _ => Ok(Lock(file)),
    }
}

fn read_format(dir: &Path) -> Result<Format, Error> {
    let file = dir.join("FORMAT");
    let text = fs::read(&file).map_err(Error::at("read", &file))?;
    Format::parse(&text).map_err(|bad| match bad {
        BadFormat::Damaged(what) => Error::Damaged {
            file,
            what: what.to_owned(),
        },
        BadFormat::Newer { version, needs } => Error::NewerFormat {
            dir: dir.to_owned(),
            found: version,
            known: migrations::CURRENT,
            needs: needs.unwrap_or_else(|| "the release that wrote it".to_owned()),
        },
    })
}

#[cfg(test)]
mod tests;
