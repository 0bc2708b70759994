//! From a backup back to a data directory, all of it or nothing.
//!
//! Called by `fedbroker store restore`. A new directory is built under another name and renamed; in an existing one the new log is built
//! beside the damaged one and takes its place with the exchange of `FORMAT`. A kill at any moment leaves the old state or the new one.
//! It must never overwrite what only the damaged directory has: its log is kept, payload files are only added, or replaced where they
//! are not what their name says.

use super::log;
use super::manifest::{LOG, Manifest, PAYLOADS};
use crate::machine::content::PayloadRef;
use crate::store::directory::{Directory, exists, list, sync_dir, sync_parent, sync_tree};
use crate::store::payload::Payloads;
use crate::store::sled_store::{Builder, HEAD_KEY};
use crate::store::{Error, Head};
use std::fs;
use std::path::{Path, PathBuf};

/// Hears of the bytes that are done.
pub type Progress<'a> = dyn FnMut(u64) + 'a;

/// Where a new directory is built.
pub fn staging(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    dir.with_file_name(name)
}

/// Make a new data directory at `dir`, where there is nothing or an empty directory.
///
/// # Errors
/// The backup is damaged, or there is no room.
pub fn fresh(backup: &Path, manifest: &Manifest, dir: &Path, epoch: u64, progress: &mut Progress<'_>) -> Result<Head, Error> {
    let staging = staging(dir);
    if exists(&staging)? {
        // Of an earlier try: inspect sees to it that nobody is at it.
        if exists(&staging.join("FORMAT"))? {
            drop(Directory::inspect(&staging)?);
        }
        fs::remove_dir_all(&staging).map_err(Error::at("remove", &staging))?;
    }
    let instance = u128::from_str_radix(&manifest.origin.instance, 16).map_err(|_| Error::Damaged {
        file: backup.to_owned(),
        what: "the instance in the manifest is not a hexadecimal number".to_owned(),
    })?;
    let directory = Directory::open(&staging, &manifest.origin.role, instance.to_be_bytes())?;
    if !manifest.origin.owner.is_empty() {
        directory.restore_owner(&manifest.origin.owner)?;
    }
    payloads(backup, manifest, &directory.payload_dir(), progress)?;
    let head = build(backup, &directory, epoch, progress)?;
    directory.switch_to_next_log()?;
    sync_tree(&staging)?;
    fs::rename(&staging, dir).map_err(Error::at("rename to", dir))?;
    sync_parent(dir)?;
    Ok(head)
}

/// Replace the log of an existing directory; gives where the replaced one is kept.
///
/// # Errors
/// The backup is damaged, or there is no room. The directory is as it was then, but for payload files that were added.
pub fn in_place(
    backup: &Path,
    manifest: &Manifest,
    directory: &Directory,
    epoch: u64,
    progress: &mut Progress<'_>,
) -> Result<(Head, PathBuf), Error> {
    payloads(backup, manifest, &directory.payload_dir(), progress)?;
    let head = build(backup, directory, epoch, progress)?;
    let kept = keep(directory)?;
    directory.switch_to_next_log()?;
    Ok((head, kept))
}

/// Give the files of the log that counts second names, which no start of a role removes.
fn keep(directory: &Directory) -> Result<PathBuf, Error> {
    let kept = directory.path().join(format!("damaged-log-{}", directory.log()));
    if exists(&kept)? {
        // Of an earlier try that came to this and not to the switch.
        fs::remove_dir_all(&kept).map_err(Error::at("remove", &kept))?;
    }
    fs::create_dir(&kept).map_err(Error::at("create directory", &kept))?;
    for part in [directory.store_dir(), directory.high_water_path()] {
        link(&part, &kept.join(part.file_name().expect("it has a name")))?;
    }
    sync_tree(&kept)?;
    sync_parent(&kept)?;
    Ok(kept)
}

fn link(from: &Path, to: &Path) -> Result<(), Error> {
    if from.is_dir() {
        fs::create_dir(to).map_err(Error::at("create directory", to))?;
        for path in list(from)? {
            link(&path, &to.join(path.file_name().expect("it is listed by its name")))?;
        }
        Ok(())
    } else if exists(from)? {
        fs::hard_link(from, to).map_err(Error::at("link", to))
    } else {
        Ok(())
    }
}

/// The log of the backup, whole and proved, beside the one that counts.
fn build(backup: &Path, directory: &Directory, epoch: u64, progress: &mut Progress<'_>) -> Result<Head, Error> {
    let mut builder = Builder::new(directory)?;
    let mut sealed_head = None;
    let head = log::read(&backup.join(LOG), &mut |key, sealed| {
        progress((key.len() + sealed.map_or(0, <[u8]>::len)) as u64);
        if key == HEAD_KEY {
            sealed_head = sealed.map(<[u8]>::to_vec);
            return Ok(());
        }
        builder.put(key, sealed)
    })?;
    let sealed_head = sealed_head.ok_or_else(|| Error::Damaged {
        file: backup.join(LOG),
        what: "the head value is missing".to_owned(),
    })?;
    builder.put_raised(&sealed_head, epoch)?;
    builder.finish()?;
    Ok(head)
}

/// Bring in the payload files that are missing or not what their name says.
fn payloads(backup: &Path, manifest: &Manifest, dir: &Path, progress: &mut Progress<'_>) -> Result<(), Error> {
    let files = manifest
        .files
        .iter()
        .filter_map(|entry| Some((entry, PayloadRef::from_hex(&entry.sha256, entry.len)?)));
    for (entry, payload) in files.filter(|(entry, _)| entry.path != LOG) {
        if Payloads::check(dir, &payload)?.is_err() {
            let (from, to) = (backup.join(&entry.path), Payloads::path(dir, &payload));
            let fan_out = to.parent().expect("it is in a fan-out directory");
            fs::create_dir_all(fan_out).map_err(Error::at("create directory", fan_out))?;
            let temp = tempfile::Builder::new().prefix(".tmp").tempfile_in(dir);
            let temp = temp.map_err(Error::at("create a file in", dir))?;
            fs::copy(&from, temp.path()).map_err(Error::at("copy", &from))?;
            temp.as_file().sync_all().map_err(Error::at("sync", temp.path()))?;
            temp.persist(&to).map_err(|e| Error::at("rename to", &to)(e.error))?;
            sync_dir(fan_out)?;
            if let Err(what) = Payloads::check(dir, &payload)? {
                let (file, what) = (backup.join(PAYLOADS), format!("copied from there, {what}"));
                return Err(Error::Damaged { file, what });
            }
        }
        progress(payload.len);
    }
    sync_dir(dir)
}
