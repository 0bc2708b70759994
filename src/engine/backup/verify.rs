//! Proves a backup whole: the manifest, every file by its hash, and the values against the count and the sum of their commit.
//!
//! Called by `fedbroker store verify-backup` and before a restore. Reads only.

use super::log;
use super::manifest::{Entry, LOG, MANIFEST, MANIFEST_HASH, Manifest, PAYLOADS, hash_file};
use super::receive::path_of;
use super::send::payload_of;
use crate::engine::reader::PAYLOAD;
use crate::store::directory::list;
use crate::store::sled_store::{Proof, RECORD_PREFIX};
use crate::store::{Error, Head};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;

/// What was found.
#[derive(Debug)]
pub struct Verdict {
    /// The manifest, which is good.
    pub manifest: Manifest,
    /// Files that are not what the manifest says, or values that are not a whole commit; empty for a good backup.
    pub damage: Vec<String>,
    /// Files nobody knows. They harm nothing.
    pub strange: Vec<String>,
}

/// Read everything; `progress` hears of the bytes read.
///
/// # Errors
/// The manifest itself cannot be read or is damaged.
pub fn verify(backup: &Path, progress: &mut dyn FnMut(u64)) -> Result<Verdict, Error> {
    let manifest = Manifest::read(backup)?;
    let mut damage = Vec::new();
    for entry in &manifest.files {
        if let Some(what) = spoiled(backup, entry, progress)? {
            damage.push(format!("{} {what}", entry.path));
        }
    }
    if !damage.iter().any(|what| what.starts_with("log ")) {
        damage.extend(prove(backup, &manifest)?);
    }
    let known: BTreeSet<&str> = manifest.files.iter().map(|entry| entry.path.as_str()).collect();
    let mut strange = files(backup, backup)?;
    strange.retain(|path| !known.contains(path.as_str()) && path != MANIFEST && path != MANIFEST_HASH);
    Ok(Verdict { manifest, damage, strange })
}

fn spoiled(backup: &Path, entry: &Entry, progress: &mut dyn FnMut(u64)) -> Result<Option<String>, Error> {
    let named_well = entry.path == LOG || entry.path == format!("{PAYLOADS}/{}/{}", entry.sha256.get(..2).unwrap_or(""), entry.sha256);
    if !named_well {
        return Ok(Some("is no path of a backup".to_owned()));
    }
    match hash_file(&backup.join(&entry.path), progress) {
        Ok((len, _)) if len != entry.len => Ok(Some(format!("has {len} bytes, not {}", entry.len))),
        Ok((_, hash)) if hash != entry.sha256 => Ok(Some("does not have its hash".to_owned())),
        Ok(_) => Ok(None),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Some("is missing".to_owned())),
        Err(error) => Err(error),
    }
}

/// The log once more, by what is in it.
fn prove(backup: &Path, manifest: &Manifest) -> Result<Vec<String>, Error> {
    let file = backup.join(LOG);
    match proved(&file) {
        Ok((head, payloads)) => {
            let mut damage = Vec::new();
            if manifest.head != head.into() {
                damage.push(format!("log is at commit {}, not {}", head.batch, manifest.head.batch));
            }
            let known: BTreeSet<&str> = manifest.files.iter().map(|entry| entry.path.as_str()).collect();
            let missing = payloads.iter().filter(|path| !known.contains(path.as_str()));
            damage.extend(missing.map(|path| format!("{path} is not in it, and records refer to it")));
            Ok(damage)
        }
        Err(Error::Damaged { what, .. }) => Ok(vec![format!("log: {what}")]),
        Err(error) => Err(error),
    }
}

/// Where the values are, and the payload files they refer to. Reads the file twice: keys that came again are few and are kept, all others
/// come in order and are not.
fn proved(file: &Path) -> Result<(Head, Vec<String>), Error> {
    let damaged = |what: String| Error::Damaged {
        file: file.to_owned(),
        what,
    };
    let mut last_words: HashMap<Vec<u8>, Option<Vec<u8>>> = HashMap::new();
    let mut newest = Vec::new();
    let ending = log::read(file, &mut |key, sealed| {
        if *key <= newest[..] && !newest.is_empty() {
            last_words.insert(key.to_vec(), sealed.map(<[u8]>::to_vec));
        } else {
            newest = key.to_vec();
        }
        Ok(())
    })?;
    let (mut proof, mut payloads, mut newest) = (Proof::default(), BTreeMap::new(), Vec::new());
    let mut take = |key: &[u8], sealed: &[u8]| {
        proof.add(key, sealed).map_err(damaged)?;
        if key.starts_with(&[RECORD_PREFIX, PAYLOAD]) {
            payloads.insert(key.to_vec(), path_of(&payload_of(key, sealed)?));
        }
        Ok::<(), Error>(())
    };
    log::read(file, &mut |key, sealed| {
        let in_order = newest.is_empty() || *key > newest[..];
        if in_order {
            newest = key.to_vec();
        }
        match sealed {
            Some(sealed) if in_order && !last_words.contains_key(key) => take(key, sealed),
            _ => Ok(()),
        }
    })?;
    for (key, sealed) in &last_words {
        if let Some(sealed) = sealed {
            take(key, sealed)?;
        }
    }
    let head = proof.finish().map_err(damaged)?;
    if head != ending {
        return Err(damaged(format!("its end says commit {}, its head {}", ending.batch, head.batch)));
    }
    Ok((head, payloads.into_values().collect()))
}

/// All files below a directory, as the manifest names them.
fn files(root: &Path, dir: &Path) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for path in list(dir)? {
        if path.is_dir() {
            found.extend(files(root, &path)?);
        } else if let Ok(inside) = path.strip_prefix(root) {
            found.push(inside.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::frame::{END, Values, frame};
    use super::super::manifest::{Counts, Ending};
    use super::*;
    use crate::store::directory::Directory;
    use crate::store::sled_store::{HEAD_KEY, SledStore};
    use crate::store::{Commit, Store, codec};
    use std::fs;

    #[test]
    fn of_several_words_on_a_key_the_last_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(&dir.path().join("data"), "master", [1; 16]).unwrap();
        let store = SledStore::open(&directory).unwrap();
        let (epoch, expected) = (store.head().epoch, store.head().next_seq);
        let changes = ["a", "b"].map(|key| (key.into(), Some(b"value".to_vec()))).to_vec();
        let events = vec![b"event".to_vec()];
        let head = store
            .commit(&Commit {
                epoch,
                expected,
                events,
                changes,
                trim_to: None,
            })
            .unwrap();
        let mut words: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        store
            .copy(&mut |key, sealed| {
                words.push((key.to_vec(), sealed.map(<[u8]>::to_vec)));
                Ok(())
            })
            .unwrap();
        let file = dir.path().join("log");
        let verdict = |words: &[(Vec<u8>, Option<Vec<u8>>)]| {
            let mut values = Values::default();
            words.iter().for_each(|(key, sealed)| values.push(key, sealed.as_deref()));
            let (head, counts) = (head.into(), Counts::default());
            let ending = serde_json::to_vec(&Ending { head, counts }).unwrap();
            fs::write(&file, [values.take(true).unwrap(), frame(END, &ending)].concat()).unwrap();
            proved(&file).map(|(head, _)| head).map_err(|error| error.to_string())
        };
        assert_eq!(verdict(&words), Ok(head));
        let stale = |key: &[u8], body: &[u8]| (key.to_vec(), Some(codec::seal(key, 1, body)));
        let ending = words.pop().filter(|(key, _)| key == HEAD_KEY).unwrap();
        let mut revised = words.clone();
        let changed = revised.iter_mut().find(|(key, _)| key == b"ra").unwrap();
        let last_word = std::mem::replace(changed, stale(b"ra", b"first"));
        revised.insert(0, stale(b"a", b"gone again"));
        revised.extend([stale(b"ra", b"second"), (b"a".to_vec(), None), last_word.clone(), ending.clone()]);
        assert_eq!(verdict(&revised), Ok(head));
        revised.push((b"ra".to_vec(), None));
        assert!(
            verdict(&revised).unwrap_err().contains("live values are there"),
            "deleted in the end"
        );
        words.extend([stale(b"ra", b"old"), ending]);
        assert!(verdict(&words).unwrap_err().contains("the sum over the"), "an old value in the end");
    }
}
