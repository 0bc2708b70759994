//! The files of the payloads: their names, and the steps that make a name durable.
//!
//! Called by `Payloads` only, which sees to it that one content is published or removed by one thread at a time. It must never say
//! that a name is durable while a sync it depends on is out, be it that of another thread.

use super::super::Error;
use super::super::directory::{exists, list, sync_dir};
use crate::crash_point;
use crate::machine::content::PayloadRef;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tempfile::NamedTempFile;

const TEMP_PREFIX: &str = ".tmp";

pub(super) struct Files {
    dir: PathBuf,
    /// Fan-out directories whose own names are durable. One that is there but not in here was made by a thread whose sync is out.
    durable_dirs: Mutex<HashSet<PathBuf>>,
}

impl Files {
    /// Use `dir`; files left half written by an earlier process are removed.
    pub(super) fn open(dir: &Path) -> Result<Files, Error> {
        let mut durable_dirs = HashSet::new();
        for path in list(dir)? {
            if path.is_dir() {
                durable_dirs.insert(path);
            } else if path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes()))
            {
                fs::remove_file(&path).map_err(Error::at("remove", &path))?;
            }
        }
        sync_dir(dir)?;
        Ok(Files {
            dir: dir.to_owned(),
            durable_dirs: Mutex::new(durable_dirs),
        })
    }

    pub(super) fn path(&self, hash: &[u8; 32]) -> PathBuf {
        path_in(&self.dir, hash)
    }

    /// A file to write content to, on the same file system; removed when dropped.
    pub(super) fn temp(&self) -> Result<NamedTempFile, Error> {
        let temp = tempfile::Builder::new().prefix(TEMP_PREFIX).tempfile_in(&self.dir);
        temp.map_err(Error::at("create a file in", &self.dir))
    }

    /// Give synced content its name; durable on return.
    pub(super) fn publish(&self, temp: NamedTempFile, hash: &[u8; 32]) -> Result<(), Error> {
        let path = self.path(hash);
        let fan_out = path.parent().expect("path puts every file in a fan-out directory");
        self.make_fan_out(fan_out)?;
        // Replaces a file of this name that nobody vouches for.
        temp.persist(&path).map_err(|e| Error::at("rename to", &path)(e.error))?;
        sync_dir(fan_out)?;
        crash_point::reach("payload.named");
        Ok(())
    }

    fn make_fan_out(&self, fan_out: &Path) -> Result<(), Error> {
        let known = || self.durable_dirs.lock().expect("nothing under this lock panics");
        if known().contains(fan_out) {
            return Ok(());
        }
        match fs::create_dir(fan_out) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::at("create directory", fan_out)(e)),
            _ => {}
        }
        // Also when another thread made it: its sync may still be out.
        sync_dir(&self.dir)?;
        known().insert(fan_out.to_owned());
        Ok(())
    }

    /// Open content for reading, if it has the right length.
    pub(super) fn open_content(&self, payload: &PayloadRef) -> Result<File, Error> {
        let path = self.path(&payload.hash);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Damaged {
                    file: path,
                    what: "it is missing".to_owned(),
                });
            }
            Err(e) => return Err(Error::at("open", &path)(e)),
        };
        let len = file.metadata().map_err(Error::at("look at", &path))?.len();
        if len != payload.len {
            return Err(Error::Damaged {
                file: path,
                what: format!("it has {len} bytes, not {}", payload.len),
            });
        }
        Ok(file)
    }

    /// Whether there is a file of the right length.
    pub(super) fn is_there(&self, payload: &PayloadRef) -> Result<bool, Error> {
        let path = self.path(&payload.hash);
        Ok(exists(&path)? && fs::metadata(&path).map_err(Error::at("look at", &path))?.len() == payload.len)
    }

    /// The hashes of all files. Other names are not ours and are left alone.
    pub(super) fn all(&self) -> Result<Vec<[u8; 32]>, Error> {
        let mut hashes = Vec::new();
        for dir in list(&self.dir)? {
            if !dir.is_dir() {
                continue;
            }
            for path in list(&dir)? {
                match path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .and_then(|name| PayloadRef::from_hex(name, 0))
                    .map(|payload| payload.hash)
                    .filter(|hash| self.path(hash) == path)
                {
                    Some(hash) => hashes.push(hash),
                    None => tracing::warn!(file = %path.display(), "a file among the payloads is not one"),
                }
            }
        }
        Ok(hashes)
    }

    /// Remove a file that no durable record refers to, so the removal need not be synced. Says whether it is gone.
    pub(super) fn remove(&self, hash: &[u8; 32]) -> bool {
        let path = self.path(hash);
        match fs::remove_file(&path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "an unused payload stays until the next start");
                false
            }
        }
    }
}

/// Where the payload directory `dir` has the file with this hash.
pub(super) fn path_in(dir: &Path, hash: &[u8; 32]) -> PathBuf {
    let name = PayloadRef { hash: *hash, len: 0 }.hex();
    dir.join(&name[..2]).join(name)
}

/// See `Payloads::check`.
pub(super) fn check(dir: &Path, payload: &PayloadRef) -> Result<Result<(), String>, Error> {
    let path = path_in(dir, &payload.hash);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Err(format!("{} is missing", path.display()))),
        Err(e) => return Err(Error::at("open", &path)(e)),
    };
    let (mut hasher, mut len, mut buffer) = (Sha256::new(), 0, vec![0; 64 * 1024]);
    loop {
        let count = file.read(&mut buffer).map_err(Error::at("read", &path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        len += count as u64;
    }
    let is_it = len == payload.len && hasher.finalize()[..] == payload.hash;
    Ok(if is_it {
        Ok(())
    } else {
        Err(format!(
            "{} is damaged: its {len} bytes do not have the hash in its name",
            path.display()
        ))
    })
}
